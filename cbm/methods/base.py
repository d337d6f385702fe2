"""``Method``: which concepts the model is built on, how it is built, how it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.config import Registry
from cbm.data.dataset import Task
from cbm.data.features import FeatureData
from cbm.errors import UserError, did_you_mean
from cbm.layers.link import Link
from cbm.losses.classification import cross_entropy, score_batch

Given = TypeVar("Given")


@dataclass(frozen=True)
class Built:
    """A model that is ready for training, as ``Method.build`` returns it.

    Attributes:
        model: the model before training, from features ``[N, D]`` to logits ``[N, C]``.
        bank: the concepts of the model's columns, or None.
        batch_size: rows per training batch; None for the full batch.
        targets: concept labels ``[N, K]`` by name of the split, which training and validation batches include.
        passes: number of passes over the training images, whatever validation says (the best weights are kept); None
            to train until validation no longer improves.
    """

    model: Any
    bank: ConceptBank | None
    batch_size: int | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    passes: int | None = None


class Method:
    """The base class of all methods, one per paper.

    Subclasses define a ``Config`` dataclass, ``build``, and, if they train by gradient, ``optimizer``. The module that
    is trained may differ from the one that is saved: ``finish`` turns the first into the second.

    Attributes:
        concepts_from: source of the concepts: ``bank`` (the configured concepts), ``labels`` (the data set's own
            concepts, or a bank of which it labels some), ``class_names`` (one concept per class), ``features`` (found
            in the features; the configured concepts are the vocabulary that names them, if text can be read), or None.
        trains: whether the model needs training by Lightning after ``build``.
        uses_teacher: whether another text-image model may score the concepts (``data.teacher``).
        facts: numbers about the fit, written to ``metrics.json`` as ``method/NAME``.
        many_labels: whether an image may have any number of labels.
        chooses_thresholds: whether validation images choose the logit above which each label is said to be there.
        reads_crops: whether ``build`` needs ``data.crops``.
        reads_class_names: whether ``build`` needs ``data.class_embeddings``.
        reads_owners: whether the fit depends on which class owns which concept. One that does not gives the same model
            whatever the names of its directions, so shuffled names are no control of it.
    """

    Config: ClassVar[type]
    concepts_from: ClassVar[Literal["bank", "labels", "class_names", "features"] | None] = "bank"
    trains: bool = True
    uses_teacher: ClassVar[bool] = False
    many_labels: ClassVar[bool] = False
    chooses_thresholds: ClassVar[bool] = True
    reads_crops: bool = False
    reads_class_names: bool = False
    reads_owners: bool = False

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, float] = {}

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make the model before training, with the concepts it uses in the order of its columns.

        Args:
            data: encoded splits.
            bank: candidate concepts, embedded by the encoder (or the teacher, if there is one), whose owners are names
                in ``data.classes``; None if ``concepts_from`` is None.
            logit_scale: factor that the encoder puts on cosines.

        Raises:
            UserError: the data or the concepts do not suit the method.
        """
        raise NotImplementedError

    def required(self, given: Given | None, what: str) -> Given:
        """What a method cannot do without, as it was given.

        Args:
            given: a bank, labels, ...
            what: its name, for the message.

        Raises:
            UserError: it was not given.
        """
        if given is None:
            name = next((name for name, kind in METHODS.items() if kind is type(self)), type(self).__name__)
            raise UserError(f"method={name} needs {what}, and got none")
        return given

    @classmethod
    def check_task(cls, task: Task) -> None:
        """Check that the method can do what the images ask for.

        Raises:
            UserError: an image has any number of labels, and the method names one class.
        """
        if task == "many" and not cls.many_labels:
            name = next((name for name, kind in METHODS.items() if kind is cls), cls.__name__)
            able = ", ".join(name for name, kind in sorted(METHODS.items()) if kind.many_labels)
            raise UserError(f"method={name} names one class per picture: several labels can be told by {able}")

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple["Method", ConceptBank]:
        """The method and the candidates that a control is fitted with.

        Controls must use the same concepts: a method that filters phrases reuses the ones it kept, without filtering
        again.

        Args:
            candidates: the concepts that ``build`` chose from.
            used: the concepts that the model uses.
        """
        return self, candidates

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Training loss of a batch.

        Args:
            model: the model in training.
            x: features ``[B, D]``.
            y: class indices ``[B]``, or labels ``[B, L]``.
            concepts: concept labels ``[B, K]`` from ``Built.targets``, if the method has any.
        """
        return cross_entropy(model, x, y)

    def validate(
        self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Validation loss and logits of a batch (None without any); the weights with the lowest loss are kept.

        Arguments as for ``loss``.
        """
        return score_batch(model, x, y)

    def finish(self, built: Built, data: FeatureData) -> nn.Module | tuple[nn.Module, ConceptBank]:
        """The model that is saved and used, from the trained ``built.model``; with the bank of its columns, if that is
        not ``built.bank`` (names that exist only after training)."""
        return built.model

    def leave(self, folder: Path) -> None:
        """Write what else belongs into the run directory ``folder``; nothing by default."""

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """The optimizer of the parameters that are trained."""
        raise NotImplementedError


def link_of(data: FeatureData) -> Link:
    """The link of a classifier for these images."""
    return "sigmoid" if data.many else "softmax"


METHODS: Registry[type[Method]] = Registry("method")
register_method = METHODS.register
"""Make a method available as ``method=NAME`` (its defaults go to ``configs/method/NAME.yaml``)."""
create_method = METHODS.create
"""Make a method from its settings: ``name`` and the fields of its ``Config``; a UserError for an unknown one."""


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def one_of(setting: str, value: str, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the choices.

    Args:
        setting: name of the setting, for the message.
        value: value to check.
        choices: allowed values.

    Raises:
        UserError: the value is not allowed; the message names the nearest choice.
    """
    if value not in choices:
        raise UserError(f"{setting}={value}: {did_you_mean(value, choices)}")
    return value
