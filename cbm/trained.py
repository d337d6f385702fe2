"""A trained model, back from its run directory: ``cbm.load(run).predict(images)``."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from cbm.concepts import ConceptBank, load_bank
from cbm.config import load_card
from cbm.data import FeatureSplit, unit_norm
from cbm.editing import Edit, EditSet, edited_model, load_edits
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.heat_map import HeatMap, heat_map
from cbm.inputs import encode_splits, read_images, reorder_classes
from cbm.layers import ConceptBottleneck, EnergyBottleneck, load_model
from cbm.run_directory import open_run, read_about

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What a model says about N pictures.

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
        """The predicted class of every picture."""
        return [self.classes[i] for i in self.logits.argmax(dim=1)]

    @property
    def probabilities(self) -> Tensor:
        """``[N, C]``."""
        return self.logits.softmax(dim=1)

    @property
    def scores(self) -> Tensor:
        """Concept scores ``[N, K]``: cosine of every picture with every concept."""
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
        """The concepts that moved the predicted logit of one picture most, with their contributions."""
        row = self.contributions()[picture]
        assert self.bank is not None
        return [(self.bank.texts[k], float(row[k])) for k in row.abs().topk(min(top, len(row))).indices]

    def _bottleneck(self) -> ConceptBottleneck:
        if not isinstance(self.model, ConceptBottleneck):
            raise UserError("this model has no concepts (it is a linear probe)")
        return self.model


class TrainedModel:
    """A model with everything needed to use it.

    Attributes:
        path: the run directory.
        config: its configuration.
        classes: C class names.
        model: features ``[N, D]`` to logits ``[N, C]``.
        bank: the K concepts of its columns, or None.
    """

    def __init__(self, path: Path, config: DictConfig, classes: list[str], fingerprint: str):
        self.path = path
        self.config = config
        self.classes = classes
        self.model = load_model(path / "model.safetensors")
        self.bank = load_bank(path / "bank") if (path / "bank").is_dir() else None
        self._fingerprint = fingerprint

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen encoder, loaded on first use.

        Raises:
            UserError: it has other weights than the one the model was trained on.
        """
        from cbm.encoders import create_encoder

        settings = self.config.encoder
        encoder = create_encoder(
            settings.model, settings.pretrained, precision=settings.precision, device=settings.device
        )
        if encoder.fingerprint != self._fingerprint:
            raise UserError(f"encoder '{encoder.id}' has other weights than when '{self.path}' was trained")
        return encoder

    def split(
        self, name: str = "test", *, dataset: str | None = None, root: str | Path | None = None,
        cache: str | Path = "cache",
    ) -> FeatureSplit:  # fmt: skip
        """Labelled pictures, encoded, in the order of the model's classes: of its own data set, or of another.

        Args:
            name: train, val or test.
            dataset: a card of pictures with the same classes (``datasets/NAME.yaml``); by default that of the run.
            root: where they are, if the card does not say.
            cache: the feature store.

        Raises:
            UserError: no such card or split, or a class that the model does not know.
        """
        cfg = copy.deepcopy(self.config)
        cfg.cache, cfg.shots, cfg.val_shots = str(cache), "all", "all"
        if dataset is not None:
            cfg.dataset = load_card(dataset)
        if root is not None:
            cfg.dataset.root = str(root)
        pictures = reorder_classes(read_images(cfg.dataset, Path(cache)), self.classes)
        return encode_splits(pictures, self.encoder, cfg, (name,)).splits[name]

    def with_edits(self, edits: EditSet | Sequence[Edit] | str | Path, *, domain: str | None = None) -> "TrainedModel":
        """The same model after edits of all pictures: a set, a list, or the file of one. This one stays as it is.

        Args:
            edits: in their order; edits of single pictures belong to ``cbm.Editor``.
            domain: where the pictures come from, for edits bound to a domain.

        Raises:
            UserError: the model has no concepts to edit, an unknown concept or class, or edits of single pictures.
        """
        made = load_edits(edits) if isinstance(edits, str | Path) else edits
        made = made if isinstance(made, EditSet) else EditSet(tuple(made))
        if not isinstance(self.model, ConceptBottleneck | EnergyBottleneck) or self.bank is None:
            raise UserError("this model has no concepts to edit")
        if made.samples:
            raise UserError("edits of single pictures cannot become part of a model: use cbm.Editor")
        other = copy.copy(self)
        other.model = edited_model(self.model, made, self.bank.texts, self.classes, domain)
        return other

    def predict(self, images: Sequence[Picture] | Tensor) -> Prediction:
        """Classify pictures.

        Args:
            images: paths or PIL pictures, or preprocessed pictures ``[N, 3, H, W]``.

        Raises:
            UserError: a picture cannot be read.
        """
        if not isinstance(images, Tensor):
            images = torch.stack([self.encoder.preprocess(_open(image)) for image in images])
        features = torch.cat([self.encoder.encode_images(part) for part in images.split(256)])
        return self.predict_features(features)

    def heat_map(self, image: Picture, concept: str, method: str | None = None) -> HeatMap:
        """Where a picture shows a concept (``cbm.heat_map``): ``model.heat_map("bird.png", "yellow belly").overlay()``.

        Raises:
            UserError: a picture that cannot be read, an unknown concept or method, or a model without concepts.
        """
        if self.bank is None:
            raise UserError("this model has no concepts, so there is nothing to look for in a picture")
        return heat_map(self.encoder, self.model, self.bank.index(concept), _open(image), method)

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Prediction:
        """Classify encoded pictures ``[N, D]`` (of any norm)."""
        x = unit_norm(features, [f"row {i}" for i in range(len(features))])
        return Prediction(self.model(x), self.classes, x, self.model, self.bank)


def load(run: str | Path) -> TrainedModel:
    """The trained model of a run directory. Reads safetensors, JSON and YAML; nothing in them is executed.

    Raises:
        UserError: no such run, or it is not finished.
    """
    path, config = open_run(Path(run))
    about = read_about(path)
    return TrainedModel(path, config, about["classes"], about["encoder"]["fingerprint"])


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as file:
            return file.convert("RGB")
    except Exception as error:  # a broken file can make a decoder raise anything
        raise UserError(f"cannot read image '{picture}': {error}") from error
