"""A trained model, loaded from its run directory: ``cbm.load(run).predict(images)``."""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor, nn

from cbm.concepts import ConceptBank, load_bank, phrase_bank, read_bank
from cbm.concepts.prepare import prepare_bank
from cbm.concepts.units import former_names
from cbm.config import FEATURES, load_card
from cbm.data import FeatureData, FeatureSplit, ImageDataset, unit_norm
from cbm.data.encoded import Encoding, encode_splits, read_images, reorder_classes
from cbm.data.received import as_received
from cbm.data.text_store import text_encoder
from cbm.editing import BankSwap, Edit, EditSet, edited_model, load_edits, load_source_card, swap_bank
from cbm.encoders import load_encoder
from cbm.encoders.base import LOGIT_SCALE, Encoder
from cbm.errors import UserError, did_you_mean
from cbm.files import new_folder, resolve_path, write_atomically
from cbm.files.console import warn_once
from cbm.files.names import one_form
from cbm.files.pictures import VERSION, open_picture, upright_rgb
from cbm.files.run_directory import open_run, read_about, read_metrics
from cbm.files.without_paths import without_paths
from cbm.layers import (
    ConceptBottleneck,
    Linked,
    decide,
    is_many,
    load_model,
    one_class,
    probabilities,
    require_concepts,
    require_linear,
    save_model,
)
from cbm.layers.require import concepts_of, has_concepts, width_of
from cbm.metrics.evaluate import cut_points
from cbm.trained.export import export_model
from cbm.trained.heat_map import HeatMap, heat_map
from cbm.trained.hub import pull, push
from cbm.trained.model_card import model_card
from cbm.trained.portable import PortableModel

log = logging.getLogger(__name__)

HUB = "hf-hub:"
UNTRAINED = ("zero_shot",)
"""Methods that learn nothing from images: all images are new to them."""

Picture = str | Path | Image.Image | np.ndarray
AT_ONCE = 256
"""Images that are read and encoded together."""


@dataclass(frozen=True)
class Prediction:
    """A model's decisions about N images, with what is needed to explain them.

    Attributes:
        logits: class logits ``[N, C]``.
        classes: C class names.
        features: unit-norm features ``[N, D]`` that the logits were computed from.
        model: the classifier.
        bank: the classifier's concepts, or None.
    """

    logits: Tensor
    classes: list[str]
    features: Tensor
    model: nn.Module
    bank: ConceptBank | None

    @property
    def many(self) -> bool:
        """Whether an image has any number of labels."""
        return is_many(self.model)

    @property
    def labels(self) -> list[Any]:
        """The predicted class of every image; where an image has any number of labels, the list of those it has."""
        said = decide(self.model, self.logits)
        if self.many:
            return [[name for name, has in zip(self.classes, row) if has] for row in said.tolist()]
        return [self.classes[i] for i in said]

    @property
    def probabilities(self) -> Tensor:
        """Class probabilities ``[N, C]``; of labels, that of each."""
        return probabilities(self.model, self.logits)

    @property
    def scores(self) -> Tensor:
        """Concept scores ``[N, K]``: the cosine of every image with every concept.

        Raises:
            UserError: the model has no concepts that a linear head reads.
        """
        bottleneck = self._bottleneck()
        return bottleneck.scores(self.features) if len(self.features) else self._no_rows()

    def contributions(self, classes: Tensor | None = None) -> Tensor:
        """Contribution of every concept to the logit of a class, ``[N, K]``.

        ``model.base()[classes]`` plus the sum of a row is the logit.

        Args:
            classes: indices ``[N]`` of classes or labels; the predicted classes by default.

        Raises:
            UserError: the model has no concepts that a linear head reads, or says any number of labels of an image, and
                none is named.
        """
        bottleneck = self._bottleneck()
        if classes is None and self.many:
            raise UserError(
                f"this model says any number of labels: say which one, label={self.classes[0]!r} or another"
            )
        classes = self.logits.argmax(dim=1) if classes is None else classes
        return bottleneck.contributions(self.features, classes) if len(self.features) else self._no_rows()

    def explain(self, picture: int, top: int = 10, label: str | None = None) -> list[tuple[str, float]]:
        """The concepts that changed a logit of one image most, with their contributions.

        Args:
            picture: number of the image, from 0.
            top: number of concepts.
            label: class or label whose logit is explained; by default the predicted class, of labels one has to be
                named.

        Raises:
            UserError: the model has no concepts that a linear head reads, no such label, or labels and none named.
        """
        classes = None
        if label is not None:
            classes = torch.full((len(self.logits),), class_number(self.classes, label))
        row = self.contributions(classes)[picture]
        assert self.bank is not None
        return [(self.bank.texts[k], float(row[k])) for k in row.abs().topk(min(top, len(row))).indices]

    def _no_rows(self) -> Tensor:
        assert self.bank is not None
        return torch.empty(0, len(self.bank))

    def _bottleneck(self) -> ConceptBottleneck:
        return require_linear(self.model, self.bank)


def class_number(classes: list[str], name: str) -> int:
    """The index of a class or label.

    Raises:
        UserError: there is none of this name.
    """
    if name not in classes:
        raise UserError(f"no class '{name}' in this model: {did_you_mean(str(name), classes)}")
    return classes.index(name)


class TrainedModel:
    """A trained model with everything needed to use it. Every command opens a finished run this way.

    Attributes:
        path: the run directory.
        config: configuration of the run.
        classes: C class names.
        model: the classifier, from features ``[N, D]`` to logits ``[N, C]``.
        bank: the K concepts of the model's columns, or None.
        about: facts about the run, as in ``about.json``.
        changes: changes made after training: edits, and exchanges of the bank (``BankSwap``); text if the model was
            saved and loaded since.
    """

    def __init__(self, path: Path, config: DictConfig, about: dict[str, Any]):
        self.path = path
        self.config = config
        self.about = about
        self.classes: list[str] = [one_form(name) for name in about["classes"]]
        self.model = load_model(path / "model.safetensors")
        self.bank = load_bank(path / "bank") if (path / "bank").is_dir() else None
        self.changes: tuple[Edit | BankSwap | str, ...] = tuple(about.get("changes") or ())

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen encoder, loaded on first use.

        Raises:
            UserError: its weights differ from those of the encoder that the model was trained on, or the model was
                trained on features, and nothing is known of what made them.
        """
        trained_on = self.fingerprint
        if trained_on is None:
            raise UserError(
                f"'{self.path}' was trained on features that were made elsewhere: no encoder is known to read images "
                f"or phrases; give it features [N, {self.dim}] of the same model (dataset=features dataset.root=FILE, "
                "cbm.load(RUN).predict(features))"
            )
        try:
            encoder = load_encoder(self.config.encoder)
        except OmegaConfBaseException as error:
            raise self._not_of_a_run(error) from error
        if trained_on not in (encoder.fingerprint, encoder.former):
            raise UserError(
                f"encoder '{encoder.id}' has other weights than when '{self.path}' was trained "
                f"({encoder.fingerprint} against {trained_on})"
            )
        return encoder

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder of the features; None if that is not known."""
        return self.about["encoder"] and self.about["encoder"]["fingerprint"]

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return int(self.about["dim"] if "dim" in self.about else self.about["encoder"]["dim"])

    @property
    def logit_scale(self) -> float:
        """Factor on cosines; that of CLIP if nothing is known of what made the features."""
        return LOGIT_SCALE if self.about["encoder"] is None else float(self.about["encoder"]["logit_scale"])

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower that embeds phrases."""
        return self.fingerprint is not None and self.encoder.has_text

    def cut_points(self, cache: str | Path = "cache") -> dict[str, float]:
        """Score above which a concept counts as shown, by its text, as chosen on the run's own validation images.

        A run made before they were kept chooses them anew on those images; without the images there are none.

        Args:
            cache: folder of the feature store.

        Raises:
            UserError: ``about.json`` is damaged.
        """
        kept = self.about.get("cut_points")
        if kept is None:
            try:
                _, home = self.read(("val",), cache=cache, as_trained=True)
            except UserError as error:
                log.warning("no concept accuracy: the run keeps no cut points, and its images are gone (%s)", error)
                return {}
            return cut_points(self.model, self.bank, home)
        if not isinstance(kept, dict) or not all(isinstance(cut, int | float) for cut in kept.values()):
            raise UserError(f"'{self.path / 'about.json'}' is damaged: 'cut_points' is not names and numbers")
        names = {} if self.bank is None else former_names(self.bank)
        return {names.get(str(text), str(text)): float(cut) for text, cut in kept.items()}

    def card(self, dataset: str | DictConfig | None = None, root: str | Path | None = None) -> DictConfig:
        """A data set card with its settings.

        Args:
            dataset: a card, or the name of one (``datasets/NAME.yaml``); by default the card of the run.
            root: folder of the images, if the card does not say.

        Raises:
            UserError: no such card, or the run's own would draw images somewhere.
        """
        if dataset is None and root is None:
            return as_received(copy.deepcopy(self.config.dataset))
        card = load_card(dataset) if isinstance(dataset, str) else copy.deepcopy(dataset or self.config.dataset)
        card.root = card.root if root is None else str(root)
        return card

    def encoding(self, card: DictConfig, cache: str | Path = "cache") -> Encoding:
        """How the images of a card are encoded: with the settings of the run, but all images instead of few shots."""
        try:
            cfg = OmegaConf.merge(self.config, {"cache": str(cache)})
            cfg.dataset = card
            return Encoding.of(cfg).whole()  # type: ignore[arg-type]
        except (OmegaConfBaseException, AttributeError) as error:
            raise self._not_of_a_run(error) from error

    def _not_of_a_run(self, error: Exception) -> UserError:
        """The one line for a configuration that lacks a setting."""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UserError(f"'{self.path / 'config.yaml'}' is not the configuration of a run: {reason}")

    def read(
        self,
        splits: Sequence[str],
        *,
        dataset: str | DictConfig | None = None,
        root: str | Path | None = None,
        cache: str | Path = "cache",
        as_trained: bool = False,
    ) -> tuple[ImageDataset, FeatureData]:
        """Images and their features, with the labels in the order of the model's classes.

        Args:
            splits: names of splits: train, val, test. ``val`` is left out if the data set has none and another split is
                wanted.
            dataset: a card with the same classes, or its name; by default the card of the run. If it is not divided
                and the run was not trained on it, all its images are the split ``test``.
            root: folder of the images, if the card does not say.
            cache: folder of the feature store.
            as_trained: whether to take the few-shot images that the run was trained on, instead of all.

        Returns:
            The data set with the images that could be read, and their features in the same order.

        Raises:
            UserError: no such card or split, a class that the model does not know, or an encoder that has other
                weights than the one the model was trained on.
        """
        card = self.card(dataset, root)
        settings = self.encoding(card, cache)
        if as_trained:
            settings = replace(settings, shots=self.config.shots, val_shots=self.config.val_shots)
        encoder = None if card.reader == FEATURES else self.encoder  # other weights are found before anything is read
        whole = dataset is not None and not self._learned_from(card)
        if dataset is not None and not whole:
            log.info("'%s' was trained on these images: only those of its own splits are measured", self.path)
        found = read_images(card, Path(cache), whole=whole)
        if (found.task == "many") != is_many(self.model):
            says = "any number of labels" if is_many(self.model) else "one class"
            raise UserError(f"'{self.path}' says {says} of an image, and data set '{found.name}' does not")
        images = reorder_classes(found, self.classes)
        wanted = [name for name in dict.fromkeys(splits) if name != "val" or name in images.splits or len(splits) == 1]
        taken, data = encode_splits(images, encoder, settings, tuple(wanted))
        self.check_width(tuple(next(iter(data.splits.values())).x.shape), f"data set '{taken.name}'")
        return taken, data

    def check_width(self, shape: tuple[int, ...], whose: str) -> None:
        """Refuse features that are not ``[N, D]`` as the model reads them.

        Args:
            shape: shape of the features.
            whose: where they are, for the message.

        Raises:
            UserError: they are of another width.
        """
        if len(shape) != 2 or shape[1] != self.dim:
            raise UserError(
                f"{whose}: features are {list(shape)}, this model reads [N, {self.dim}]: expected features of "
                "the model that it was trained on"
            )

    def _learned_from(self, card: DictConfig) -> bool:
        """Whether the run was trained on the images of a card; then its own test split is what measures it."""
        own = self.config.dataset
        if self.config.method.name in UNTRAINED:
            return False
        places = [None if each.root is None else resolve_path(each.root).absolute() for each in (own, card)]
        return own.reader == card.reader and places[0] == places[1] and own.get("args") == card.get("args")

    def split(
        self,
        name: str = "test",
        *,
        dataset: str | DictConfig | None = None,
        root: str | Path | None = None,
        cache: str | Path = "cache",
    ) -> FeatureSplit:
        """The features and labels of one split.

        Args:
            name: name of the split: train, val or test.
            dataset: a card with the same classes, or its name; by default the card of the run.
            root: folder of the images, if the card does not say.
            cache: folder of the feature store.

        Raises:
            UserError: as for ``read``.
        """
        return self.read((name,), dataset=dataset, root=root, cache=cache)[1].splits[name]

    def with_edits(self, edits: EditSet | Sequence[Edit] | str | Path, *, domain: str | None = None) -> "TrainedModel":
        """A copy of the model with edits applied; this model is not changed.

        Args:
            edits: a set or list of edits, or a file of edits; they act in their order. Edits of single images need
                ``cbm.Editor``.
            domain: name of the domain that the images come from, for edits bound to a domain.

        Raises:
            UserError: the model has no concepts to edit, an unknown concept or class, or edits of single images.
        """
        made = load_edits(edits) if isinstance(edits, str | Path) else edits
        made = made if isinstance(made, EditSet) else EditSet(tuple(made))
        bottleneck = require_concepts(self.model, self.bank)
        assert self.bank is not None
        made = made.renamed(former_names(self.bank))
        if made.samples:
            raise UserError("edits of single pictures cannot become part of a model: use cbm.Editor")
        other = copy.copy(self)
        other.model = edited_model(bottleneck, made, self.bank.texts, self.classes, domain)
        other.changes = (*self.changes, *(edit for edit in made.edits if edit.domain in (None, domain)))
        return other

    def with_bank(
        self,
        bank: ConceptBank | str | Path | Sequence[str],
        *,
        translation: bool = False,
        features: Tensor | None = None,
        ridge: float = 1e-3,
        least: float = 0.5,
        cache: str | Path = "cache",
    ) -> "TrainedModel":
        """A copy of the model that makes the same decisions with other concepts.

        The head is fitted again in closed form (``cbm.editing.bank_swap``). The share of decisions that is kept is
        recorded as the last entry of ``changes``. This model is not changed.

        Args:
            bank: a bank, a file of one, or phrases, which the text tower of the model's own encoder embeds.
            translation: whether concept k says in other words, or in another language, what the model's concept k says:
                then its weights stay near those of that concept, and no phrase is filtered.
            features: features ``[M, D]`` of images on which the decisions should be kept; by default those of the
                source card.
            ridge: strength of the penalty on the weights (``cbm.editing.refit_head``).
            least: share of the decisions that must be kept.
            cache: folder of the feature store.

        Raises:
            UserError: the model has no linear concepts or no text tower, or fewer decisions than ``least`` are kept.
        """
        bottleneck = require_linear(self.model, self.bank)
        if not isinstance(bank, ConceptBank):
            bank = self._read_bank(bank, translation)
        if bank.embeddings is None or bank.encoder != self.fingerprint:
            concepts = self.config.concepts
            bank = prepare_bank(
                bank,
                self.classes,
                text_encoder(self.encoder, Path(cache), False),
                self.encoder.fingerprint,
                hygiene=concepts.hygiene and not translation,
                max_words=concepts.max_words,
                remove_class_names="none" if translation else concepts.remove_class_names,
            )
        if features is None:
            one_class(self.model, "the source card of a run")
            features = load_source_card(self.path / "source_card.safetensors").x
        x = unit_norm(features, [f"row {i}" for i in range(len(features))])
        other = copy.copy(self)
        other.model, swap = swap_bank(bottleneck, bank, x, translation=translation, ridge=ridge, least=least)
        other.bank, other.changes = bank, (*self.changes, swap)
        other.about = {**self.about, "cut_points": {}}  # those are of other directions
        return other

    def _read_bank(self, bank: str | Path | Sequence[str], translation: bool) -> ConceptBank:
        """A bank from a file or phrases; phrases of a translation get the owners of the concepts they translate."""
        if isinstance(bank, str | Path):
            return read_bank(resolve_path(bank))
        if translation and self.bank is not None and len(bank) == len(self.bank):  # two may become the same phrase
            concepts = tuple(replace(concept, text=text) for concept, text in zip(self.bank.concepts, bank))
            return replace(self.bank, name="translation", source="translation", concepts=concepts, embeddings=None)
        return phrase_bank(bank)

    def as_module(self, top_k: int | None = None) -> PortableModel:
        """The classifier as a plain ``torch.nn.Module``: features ``[N, D]`` of any norm to logits ``[N, C]``.

        Args:
            top_k: number of concepts with the highest scores whose values and indices ``[N, top_k]`` are returned too.

        Raises:
            UserError: the model is energy-based, has no concepts to return, or has fewer than ``top_k``.
        """
        return PortableModel(self.model, top_k)

    def export(self, path: str | Path, *, top_k: int | None = None, format: str | None = None) -> Path:
        """Write ``as_module`` as ONNX or as a program of ``torch.export`` (``cbm.trained.export``), with class names,
        concepts and encoder inside the file; of concepts that are numbers also the mean and the standard deviation in
        which their values are counted, with the unit.

        Args:
            path: the file to write.
            top_k: number of concepts to return for every image, see ``as_module``.
            format: ``onnx`` or ``pt2``; by default the ending of the file's name.

        Raises:
            UserError: an unknown format, packages that are not installed, or a model that cannot be exported.
        """
        made_by = "this encoder" if self.fingerprint else "the model that made those of training"
        about = {
            "classes": self.classes,
            "concepts": [] if self.bank is None else self.bank.texts,
            "encoder": self.about["encoder"],
            "features": f"features of {made_by}, {self.dim} numbers each; they are divided by their length inside",
            "changes": [str(change) for change in self.changes],
        }
        concepts = () if self.bank is None else self.bank.concepts
        numbers = {each.text: each.provenance["number"] for each in concepts if "number" in each.provenance}
        if numbers:
            about["numbers"] = {name: {key: of[key] for key in ("mean", "sd", "unit")} for name, of in numbers.items()}
        if isinstance(self.model, Linked) and self.model.many:
            cuts = self.model.thresholds
            about["task"] = "any number of labels: the sigmoid of each logit is its probability"
            about["thresholds"] = [0.0] * len(self.classes) if cuts is None else cuts.tolist()
        return export_model(self.as_module(top_k), Path(path), about, format)

    def save(self, folder: str | Path) -> Path:
        """Write the model as it is now to a folder, which ``cbm.load(folder)`` reads; returns the folder.

        Raises:
            UserError: the folder exists already.
        """
        return save_folder(self, Path(folder))

    def push_to_hub(self, repo: str, *, private: bool = True, message: str = "Upload of a cbm model") -> str:
        """Upload the model with a model card to the Hugging Face hub; ``cbm.load("hf-hub:ORG/NAME")`` reads it.

        Args:
            repo: repository, ``ORG/NAME``; created if it does not exist.
            private: whether a repository that is created now is private.
            message: commit message.

        Returns:
            Address of the model on the hub.

        Raises:
            UserError: the hub cannot be reached, nobody is logged in, or the organisation does not exist.
        """
        return push(lambda folder: save_folder(self, folder, repo), repo, private=private, message=message)

    def predict(self, images: Picture | Sequence[Picture] | Tensor) -> Prediction:
        """Classify images, or their features.

        Args:
            images: an image or a list of images: paths, PIL images, or uint8 arrays ``[H, W, 3]``; an array of them
                ``[N, H, W, 3]``; preprocessed images, a tensor ``[N, 3, H, W]``; or features of any norm, floats
                ``[N, D]``.

        Raises:
            UserError: an image cannot be read, or an array or tensor is none of these.
        """
        if isinstance(images, np.ndarray) and images.dtype.kind == "f" and images.ndim == 2:
            kind = images.dtype.newbyteorder("=") if images.dtype.itemsize <= 8 else np.dtype(np.float64)
            images = torch.from_numpy(np.array(images, kind, order="C", copy=None if images.flags.writeable else True))
        if isinstance(images, Tensor):
            if images.dim() == 2:
                return self.predict_features(images)
            if images.dim() != 4:
                raise UserError(
                    f"predict: a tensor is {list(images.shape)}, expected features [N, {self.dim}] or images "
                    "[N, 3, H, W]"
                )
            parts = [self.encoder.encode_images(part) for part in images.split(AT_ONCE)]
        else:
            parts = [self._encode(part) for part in _in_parts(images, self.dim)]
        return self.predict_features(torch.cat(parts) if parts else torch.empty(0, self.dim))

    def _encode(self, images: Sequence[Picture]) -> Tensor:
        """Features ``[n, D]`` of a few images."""
        opened = [self.encoder.preprocess(open_image(image, self.encoder.least)) for image in images]
        return self.encoder.encode_images(torch.stack(opened))

    def heat_map(self, image: Picture, concept: str, method: str | None = None) -> HeatMap:
        """Where an image shows a concept: ``model.heat_map("bird.png", "yellow belly").overlay()``.

        Args:
            image: a path or a PIL image.
            concept: text of the concept.
            method: "covering" or "positions"; by default positions if the encoder has enough of them
                (``cbm.trained.heat_map``).

        Raises:
            UserError: an image that cannot be read, an unknown concept or method, or a model without concepts.
        """
        require_concepts(self.model, self.bank)
        assert self.bank is not None
        return heat_map(
            self.encoder, self.model, self.bank.index(concept), open_image(image, self.encoder.least), method
        )

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Prediction:
        """Classify encoded images.

        Args:
            features: features ``[N, D]`` of the model's own encoder, of any norm.

        Raises:
            UserError: they are of another width, one is NaN or infinite, or a row is zero.
        """
        self.check_width(tuple(features.shape), "predict")
        x = unit_norm(features, [f"row {i}" for i in range(len(features))])
        logits = self.model(x) if len(x) else torch.empty(0, len(self.classes))
        return Prediction(logits, self.classes, x, self.model, self.bank)


def save_folder(model: TrainedModel, folder: Path, repo: str | None = None) -> Path:
    """Write the model as it is now, for ``cbm.load(folder)``; returns the folder.

    Args:
        model: the model.
        folder: a folder that does not exist yet.
        repo: repository of the hub that the folder is for; paths of this computer are left out then.

    Raises:
        UserError: the folder exists already, the disk is full, or ``metrics.json`` of the run is damaged.
    """
    with new_folder(folder) as whole:
        write_model(model, whole, str(folder), repo)
    return folder


def write_model(model: TrainedModel, whole: Path, place: str, repo: str | None = None) -> None:
    """Write the files of a model as it is now into a folder that nobody reads yet.

    The metrics of a model that was changed after training are left out, because they no longer hold.

    Args:
        model: the model.
        whole: the folder.
        place: name that the folder will have, for the model card.
        repo: repository of the hub that the folder is for; paths of this computer are left out then.

    Raises:
        UserError: the disk is full, or ``metrics.json`` of the run is damaged.
    """
    config: Any = OmegaConf.to_container(model.config)
    about = {**model.about, "changes": [str(change) for change in model.changes]}
    bank = model.bank
    if repo is not None:
        config = {**without_paths(config), "run_dir": None, "cache": "cache"}
        about = without_paths(about)
        if bank is not None:
            concepts = tuple(replace(c, provenance=without_paths(c.provenance)) for c in bank.concepts)
            bank = replace(bank, source=without_paths(bank.source), concepts=concepts)
    metrics = read_metrics(model.path)
    if model.changes:
        about |= {"verdict": None, "integrity": None}
        metrics = {}
    place = place if repo is None else f"hf-hub:{repo}"
    card = model_card(model.model, model.bank, place, config, about, metrics)
    save_model(model.model, whole / "model.safetensors")
    if bank is not None:
        bank.save(whole / "bank")
    write_atomically(whole / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)).encode())
    write_atomically(whole / "README.md", card.encode())
    for name, content in (("about.json", about), ("metrics.json", metrics)):
        write_atomically(whole / name, json.dumps(content, indent=1, ensure_ascii=False).encode())
    source = model.path / "source_card.safetensors"
    if repo is None and source.is_file():
        shutil.copyfile(source, whole / source.name)


def load(run: str | Path, *, device: str | None = None) -> TrainedModel:
    """Load the trained model of a run directory, or of a repository of the Hugging Face hub.

    Only safetensors, JSON and YAML are read, and nothing in them is executed.

    Args:
        run: a run directory, or ``hf-hub:ORG/NAME`` (``hf-hub:ORG/NAME@REVISION``).
        device: device of the encoder (``auto``, ``cpu``, ``cuda``); by default that of the run's configuration.

    Raises:
        UserError: no such run, it is not finished, or the hub cannot be reached.
    """
    path, config = open_run(pull(str(run).removeprefix(HUB)) if str(run).startswith(HUB) else Path(run))
    about = read_about(path)
    told = about if about["encoder"] is None else about["encoder"]
    if unsaid := [key for key in ("dim", "id", "logit_scale")[: 1 if told is about else 3] if key not in told]:
        raise UserError(f"'{path / 'about.json'}' is damaged: expected the classes and the encoder of a run, with its "
                        f"{unsaid[0]}")  # fmt: skip
    needed = ["dataset.name", "method.name", "trainer", "seed", *(["encoder"] if about["encoder"] is not None else [])]
    if lacking := [name for name in needed if OmegaConf.select(config, name) is None]:
        raise UserError(f"'{path / 'config.yaml'}' is not the configuration of a run: it has no '{lacking[0]}'")
    if device is not None and about["encoder"] is not None:
        config.encoder.device = device
    if about["encoder"] is not None and (made_with := about["encoder"].get("pixels", 1)) != VERSION:
        warn_once(
            f"'{path}' was made by version {made_with} of how images are read, this is version {VERSION}: its numbers "
            "hold for upright, opaque images with 8 bits that are not much larger than needed; to compare others, "
            "train it again (docs/datasets.md)"
        )
    model = TrainedModel(path, config, about)
    _check(model)
    return model


def _check(model: TrainedModel) -> None:
    """Whether the files of a model are of one another.

    Raises:
        UserError: the classifier has other classes, reads features of another width, or has other concepts than the
            files beside it say; or weights are NaN or infinite.
    """
    file, classes = model.path / "model.safetensors", len(model.classes)
    try:
        logits = model.model(torch.full((1, width_of(model.model)), 1.0))
    except Exception as error:  # tensors that do not fit together
        raise UserError(f"'{file}' is damaged: its tensors do not fit together ({type(error).__name__})") from error
    if (found := width_of(model.model)) != model.dim:
        raise UserError(f"'{file}' reads {found:,} features, but 'about.json' beside it says {model.dim:,}")
    if tuple(logits.shape) != (1, classes):
        raise UserError(
            f"'{file}' tells {logits.shape[-1]:,} classes apart, but 'about.json' beside it names {classes:,}"
        )
    if not logits.isfinite().all():
        raise UserError(f"'{file}' is damaged: it holds NaN or infinite values")
    if has_concepts(model.model, model.bank) and (count := concepts_of(model.model)) != len(model.bank or ()):
        raise UserError(f"'{file}' has {count:,} concepts, the bank beside it {len(model.bank or ()):,}")


def _in_parts(images: Picture | Sequence[Picture], dim: int) -> Iterator[Sequence[Picture]]:
    """Images, at most ``AT_ONCE`` at a time, so that never all are held as the encoder reads them.

    Raises:
        UserError: an array that holds neither images nor features.
    """
    if isinstance(images, np.ndarray) and images.ndim != 1:  # an array of paths is a list
        if images.dtype != np.uint8 or images.shape[-1] != 3 or images.ndim not in (3, 4):
            raise UserError(
                f"predict: an array is {list(images.shape)} of {images.dtype}, expected images, uint8 [H, W, 3] or "
                f"[N, H, W, 3], or features [N, {dim}] of floats"
            )
        images = [images] if images.ndim == 3 else list(images)
    elif isinstance(images, str | Path | Image.Image):
        images = [images]
    elif not isinstance(images, Sequence | np.ndarray):
        raise UserError(f"predict: this is a {type(images).__name__}, expected a path, a PIL image, or a list of them")
    for start in range(0, len(images), AT_ONCE):
        yield list(images[start : start + AT_ONCE])


def open_image(picture: Picture, least: int | None = None) -> Image.Image:
    """An image by its path, or as it is, in upright RGB (``cbm.files.pictures``).

    Args:
        picture: a path, a PIL image, or a uint8 array ``[H, W, 3]``.
        least: pixels along the shorter side that suffice; all by default.

    Raises:
        UserError: it cannot be read as an image.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"an image is an array {list(picture.shape)} of {picture.dtype}; expected uint8 [H, W, 3], a path or a "
                "PIL image"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, str | Path | Image.Image):
        raise UserError(f"an image is a {type(picture).__name__}; expected a path, a PIL image or a uint8 array")
    try:
        return upright_rgb(picture) if isinstance(picture, Image.Image) else open_picture(picture, least)
    except Exception as error:  # a broken file can make a decoder raise anything
        what = "this image" if isinstance(picture, Image.Image) else f"image '{picture}'"
        raise UserError(f"cannot read {what}: {error}") from error
