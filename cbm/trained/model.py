"""A trained model, back from its run directory: ``cbm.load(run).predict(images)``."""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from cbm.concepts import ConceptBank, load_bank, phrase_bank, read_bank
from cbm.concepts.prepare import prepare_bank
from cbm.config import load_card
from cbm.data import FeatureData, FeatureSplit, ImageDataset, unit_norm
from cbm.data.encoded import Encoding, encode_splits, read_images, reorder_classes
from cbm.data.text_store import text_encoder
from cbm.editing import BankSwap, Edit, EditSet, edited_model, load_edits, load_source_card, swap_bank
from cbm.encoders import load_encoder
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import resolve_path, write_atomically
from cbm.files.run_directory import open_run, read_about
from cbm.layers import ConceptBottleneck, load_model, require_concepts, require_linear, save_model
from cbm.trained.export import export_model
from cbm.trained.heat_map import HeatMap, heat_map
from cbm.trained.hub import pull, push, without_paths
from cbm.trained.model_card import model_card
from cbm.trained.portable import PortableModel

HUB = "hf-hub:"

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What a model says about N images.

    Attributes:
        logits: ``[N, C]``.
        classes: C class names.
        features: ``[N, D]`` unit-norm features the logits came from.
        model: the classifier.
        bank: its concepts, or None.
    """

    logits: Tensor
    classes: list[str]
    features: Tensor
    model: nn.Module
    bank: ConceptBank | None

    @property
    def labels(self) -> list[str]:
        """The predicted class of every image."""
        return [self.classes[i] for i in self.logits.argmax(dim=1)]

    @property
    def probabilities(self) -> Tensor:
        """``[N, C]``."""
        return self.logits.softmax(dim=1)

    @property
    def scores(self) -> Tensor:
        """Concept scores ``[N, K]``: cosine of every image with every concept."""
        return self._bottleneck().scores(self.features)

    def contributions(self, classes: Tensor | None = None) -> Tensor:
        """What every concept adds to a class's logit, ``[N, K]``.

        Args:
            classes: ``[N]`` class indices; the predicted ones by default. ``model.base()[classes]`` plus the row sum is
                the logit.
        """
        return self._bottleneck().contributions(
            self.features, self.logits.argmax(dim=1) if classes is None else classes
        )

    def explain(self, picture: int, top: int = 10) -> list[tuple[str, float]]:
        """The concepts that moved the predicted logit of one image most, with their contributions."""
        row = self.contributions()[picture]
        assert self.bank is not None
        return [(self.bank.texts[k], float(row[k])) for k in row.abs().topk(min(top, len(row))).indices]

    def _bottleneck(self) -> ConceptBottleneck:
        return require_linear(self.model, self.bank)


class TrainedModel:
    """A model with everything needed to use it: the one door to a finished run.

    Attributes:
        path: the run directory.
        config: its configuration.
        classes: C class names.
        model: features ``[N, D]`` to logits ``[N, C]``.
        bank: the K concepts of its columns, or None.
        about: what the run knows of itself (``about.json``).
        changes: what was done to the model after training: edits, and exchanges of the bank (``BankSwap``); as text
            once they have been written and read.
    """

    def __init__(self, path: Path, config: DictConfig, about: dict[str, Any]):
        self.path = path
        self.config = config
        self.about = about
        self.classes: list[str] = about["classes"]
        self.model = load_model(path / "model.safetensors")
        self.bank = load_bank(path / "bank") if (path / "bank").is_dir() else None
        self.changes: tuple[Edit | BankSwap | str, ...] = tuple(about.get("changes", ()))

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen encoder, loaded on first use.

        Raises:
            UserError: it has other weights than the one the model was trained on.
        """
        encoder = load_encoder(self.config.encoder)
        trained_on = self.about["encoder"]["fingerprint"]
        if encoder.fingerprint != trained_on:
            raise UserError(
                f"encoder '{encoder.id}' has other weights than when '{self.path}' was trained "
                f"({encoder.fingerprint} against {trained_on})"
            )
        return encoder

    def card(self, dataset: str | DictConfig | None = None, root: str | Path | None = None) -> DictConfig:
        """The card of the images to look at.

        Args:
            dataset: a card, or the name of one (``datasets/NAME.yaml``); by default that of the run.
            root: where the images are, if the card does not say.

        Raises:
            UserError: no such card.
        """
        card = load_card(dataset) if isinstance(dataset, str) else copy.deepcopy(dataset or self.config.dataset)
        card.root = card.root if root is None else str(root)
        return card

    def encoding(self, card: DictConfig, cache: str | Path = "cache") -> Encoding:
        """How the images of a card are encoded: as the run says, all of them."""
        cfg = OmegaConf.merge(self.config, {"cache": str(cache)})
        cfg.dataset = card
        return Encoding.of(cfg).whole()  # type: ignore[arg-type]

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
            splits: of train, val and test. ``val`` is left out if the data set has none and another split is wanted.
            dataset: a card with the same classes, or its name; by default that of the run.
            root: where the images are, if the card does not say.
            cache: folder of the feature store.
            as_trained: take the few-shot images that the run was trained on, instead of all.

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
        encoder = self.encoder  # other weights are found before anything is read
        images = reorder_classes(read_images(card, Path(cache)), self.classes)
        wanted = [name for name in dict.fromkeys(splits) if name != "val" or name in images.splits or len(splits) == 1]
        return encode_splits(images, encoder, settings, tuple(wanted))

    def split(
        self,
        name: str = "test",
        *,
        dataset: str | DictConfig | None = None,
        root: str | Path | None = None,
        cache: str | Path = "cache",
    ) -> FeatureSplit:
        """The features of one split; arguments as for ``read``."""
        return self.read((name,), dataset=dataset, root=root, cache=cache)[1].splits[name]

    def with_edits(self, edits: EditSet | Sequence[Edit] | str | Path, *, domain: str | None = None) -> "TrainedModel":
        """The same model after edits of all images: a set, a list, or the file of one. This one stays as it is.

        Args:
            edits: in their order; edits of single images belong to ``cbm.Editor``.
            domain: where the images come from, for edits bound to a domain.

        Raises:
            UserError: the model has no concepts to edit, an unknown concept or class, or edits of single images.
        """
        made = load_edits(edits) if isinstance(edits, str | Path) else edits
        made = made if isinstance(made, EditSet) else EditSet(tuple(made))
        bottleneck = require_concepts(self.model, self.bank)
        assert self.bank is not None
        if made.samples:
            raise UserError("edits of single pictures cannot become part of a model: use cbm.Editor")
        other = copy.copy(self)
        other.model = edited_model(bottleneck, made, self.bank.texts, self.classes, domain)
        other.changes = (*self.changes, *(edit for edit in made.edits if edit.domain in (None, domain)))
        return other

    def with_bank(
        self, bank: ConceptBank | str | Path | Sequence[str], *, translation: bool = False,
        features: Tensor | None = None, ridge: float = 1e-3, least: float = 0.5, cache: str | Path = "cache",
    ) -> "TrainedModel":  # fmt: skip
        """The same decisions through other concepts, by a closed-form re-fit of the head (``cbm.editing.bank_swap``).

        The share of decisions that is kept is recorded as the last entry of ``changes``. This model stays as it is.

        Args:
            bank: a bank, the file of one, or phrases; read by the text tower of the model's own encoder.
            translation: concept k says in other words, or in another language, what the model's concept k says: its
                weights stay near those of that concept, and nothing is filtered.
            features: ``[M, D]`` images on which the decisions are to be kept; by default those of the source card.
            ridge: on the weights (``cbm.editing.refit_head``).
            least: share of the decisions that must be left.
            cache: where text features are kept.

        Raises:
            UserError: no linear concepts to exchange, no text tower, or too little of the decisions would be left.
        """
        bottleneck = require_linear(self.model, self.bank)
        if not isinstance(bank, ConceptBank):
            bank = self._read_bank(bank, translation)
        if bank.embeddings is None or bank.encoder != self.about["encoder"]["fingerprint"]:
            concepts = self.config.concepts
            bank = prepare_bank(
                bank, self.classes, text_encoder(self.encoder, Path(cache), False), self.encoder.fingerprint,
                hygiene=concepts.hygiene and not translation, max_words=concepts.max_words,
                remove_class_names="none" if translation else concepts.remove_class_names,
            )  # fmt: skip
        if features is None:
            features = load_source_card(self.path / "source_card.safetensors").x
        x = unit_norm(features, [f"row {i}" for i in range(len(features))])
        other = copy.copy(self)
        other.model, swap = swap_bank(bottleneck, bank, x, translation=translation, ridge=ridge, least=least)
        other.bank, other.changes = bank, (*self.changes, swap)
        return other

    def _read_bank(self, bank: str | Path | Sequence[str], translation: bool) -> ConceptBank:
        """The bank of a file or of phrases; phrases of a translation have the owners of what they translate."""
        if isinstance(bank, str | Path):
            return read_bank(resolve_path(bank))
        if translation and self.bank is not None and len(bank) == len(self.bank):  # two may become the same phrase
            concepts = tuple(replace(concept, text=text) for concept, text in zip(self.bank.concepts, bank))
            return replace(self.bank, name="translation", source="translation", concepts=concepts, embeddings=None)
        return phrase_bank(bank)

    def as_module(self, top_k: int | None = None) -> PortableModel:
        """The classifier as a plain ``torch.nn.Module``: features ``[N, D]`` of any norm to logits ``[N, C]``.

        Args:
            top_k: also return values and indices ``[N, top_k]`` of the concepts an image shows most.

        Raises:
            UserError: see ``PortableModel``.
        """
        return PortableModel(self.model, top_k)

    def export(self, path: str | Path, *, top_k: int | None = None, format: str | None = None) -> Path:
        """Write ``as_module`` as ONNX or as a program of ``torch.export`` (``cbm.trained.export``), with class names,
        concepts and encoder inside the file.

        Args:
            path: the file.
            top_k: see ``as_module``.
            format: ``onnx`` or ``pt2``; by default what the name of the file says.

        Raises:
            UserError: an unknown format, packages that are not installed, or a model that cannot be exported.
        """
        about = {
            "classes": self.classes,
            "concepts": [] if self.bank is None else self.bank.texts,
            "encoder": self.about["encoder"],
            "features": "the picture features of this encoder; they are divided by their length inside",
            "changes": [str(change) for change in self.changes],
        }
        return export_model(self.as_module(top_k), Path(path), about, format)

    def save(self, folder: str | Path) -> Path:
        """Write the model as it is now, to be read by ``cbm.load(folder)`` (``cbm.trained.hub``).

        Raises:
            UserError: the folder is there already.
        """
        return save_folder(self, Path(folder))

    def push_to_hub(self, repo: str, *, private: bool = True, message: str = "Upload of a cbm model") -> str:
        """Put the model with a model card on the Hugging Face hub, to be read by ``cbm.load("hf-hub:ORG/NAME")``.

        Args:
            repo: ``ORG/NAME``; made if it is not there.
            private: of a new one.
            message: of the commit.

        Returns:
            Where it is.

        Raises:
            UserError: no network, or nobody logged in.
        """
        return push(lambda folder: save_folder(self, folder, repo), repo, private=private, message=message)

    def predict(self, images: Sequence[Picture] | Tensor) -> Prediction:
        """Classify images.

        Args:
            images: paths or PIL images, or preprocessed images ``[N, 3, H, W]``.

        Raises:
            UserError: an image cannot be read.
        """
        if not isinstance(images, Tensor):
            images = torch.stack([self.encoder.preprocess(_open(image)) for image in images])
        features = torch.cat([self.encoder.encode_images(part) for part in images.split(256)])
        return self.predict_features(features)

    def heat_map(self, image: Picture, concept: str, method: str | None = None) -> HeatMap:
        """Where an image shows a concept: ``model.heat_map("bird.png", "yellow belly").overlay()``.

        Raises:
            UserError: an image that cannot be read, an unknown concept or method, or a model without concepts.
        """
        require_concepts(self.model, self.bank)
        assert self.bank is not None
        return heat_map(self.encoder, self.model, self.bank.index(concept), _open(image), method)

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Prediction:
        """Classify encoded images ``[N, D]`` (of any norm)."""
        x = unit_norm(features, [f"row {i}" for i in range(len(features))])
        return Prediction(self.model(x), self.classes, x, self.model, self.bank)


def save_folder(model: TrainedModel, folder: Path, repo: str | None = None) -> Path:
    """Write the model as it is now, for ``cbm.load(folder)``; returns the folder.

    The metrics of a model that was changed after training are left out: nobody has measured it.

    Args:
        model: what to write.
        folder: a new one.
        repo: the repository of the hub it is for.

    Raises:
        UserError: the folder is there already.
    """
    if folder.exists():
        raise UserError(f"'{folder}' is there already: remove it or choose another folder")
    config: Any = OmegaConf.to_container(model.config)
    about = {**model.about, "changes": [str(change) for change in model.changes]}
    bank = model.bank
    if repo is not None:
        config = {**without_paths(config), "run_dir": None, "cache": "cache"}
        about = without_paths(about)
        if bank is not None:
            concepts = tuple(replace(c, provenance=without_paths(c.provenance)) for c in bank.concepts)
            bank = replace(bank, source=without_paths(bank.source), concepts=concepts)
    metrics = json.loads((model.path / "metrics.json").read_text())
    if model.changes:
        about |= {"verdict": None, "integrity": None}
        metrics = {}
    save_model(model.model, folder / "model.safetensors")
    if bank is not None:
        bank.save(folder / "bank")
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)).encode())
    place = str(folder) if repo is None else f"hf-hub:{repo}"
    write_atomically(folder / "README.md", model_card(model.model, model.bank, place, config, about, metrics).encode())
    for name, content in (("about.json", about), ("metrics.json", metrics)):  # the last says: finished
        write_atomically(folder / name, json.dumps(content, indent=1, ensure_ascii=False).encode())
    if repo is None and (card := model.path / "source_card.safetensors").is_file():
        shutil.copyfile(card, folder / card.name)
    return folder


def load(run: str | Path, *, device: str | None = None) -> TrainedModel:
    """The trained model of a run directory, or of a repository of the Hugging Face hub. Reads safetensors, JSON and
    YAML; nothing in them is executed.

    Args:
        run: the directory, or ``hf-hub:ORG/NAME`` (``hf-hub:ORG/NAME@REVISION``).
        device: where the encoder computes (``auto``, ``cpu``, ``cuda``); by default as the run's configuration says.

    Raises:
        UserError: no such run, it is not finished, or the hub cannot be reached.
    """
    path, config = open_run(pull(str(run).removeprefix(HUB)) if str(run).startswith(HUB) else Path(run))
    if device is not None:
        config.encoder.device = device
    return TrainedModel(path, config, read_about(path))


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as file:
            return file.convert("RGB")
    except Exception as error:  # a broken file can make a decoder raise anything
        raise UserError(f"cannot read image '{picture}': {error}") from error
