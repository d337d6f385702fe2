"""What a method is: which concepts the model is built on, how it is built, how it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.config import Registry
from cbm.data.features import FeatureData
from cbm.errors import UserError, did_you_mean
from cbm.losses.classification import cross_entropy, score_batch


@dataclass(frozen=True)
class Built:
    """What ``Method.build`` made.

    Attributes:
        model: features ``[N, D]`` to logits ``[N, C]``, before training.
        bank: the concepts of its columns, or None.
        batch_size: rows per training batch; None is the full batch.
        targets: split name to concept labels ``[N, K]`` that training and validation batches bring along.
    """

    model: Any
    bank: ConceptBank | None
    batch_size: int | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)


class Method:
    """A paper. Subclasses give a ``Config`` dataclass, ``build``, and, if they train by gradient, ``optimizer``.

    What is trained may be another module than what is saved: ``finish`` turns one into the other.

    Attributes:
        concepts_from: what the model is built on: ``bank`` (the configured concepts), ``labels`` (the data set's own
            concepts, or a bank of which it labels some), ``class_names`` (one concept per class), or None.
        trains: whether ``build`` leaves something for Lightning to train.
        uses_teacher: whether the concepts may be phrases of another text-image model (``data.teacher``).
        facts: numbers about the fit that go to ``metrics.json`` as ``method/NAME``.
        reads_class_names: whether ``build`` needs ``data.class_embeddings``.
    """

    Config: ClassVar[type]
    concepts_from: ClassVar[Literal["bank", "labels", "class_names"] | None] = "bank"
    trains: bool = True
    uses_teacher: ClassVar[bool] = False
    reads_class_names: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, float] = {}

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """The model before training, with the concepts it uses in the order of its columns.

        Args:
            data: encoded splits.
            bank: embedded candidate concepts (by the teacher, if there is one), owners named as in ``data.classes``;
                None without ``concepts_from``.
            logit_scale: the encoder's own factor on cosines.
        """
        raise NotImplementedError

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple["Method", ConceptBank]:
        """The method and the candidates that a control is fitted with.

        Controls must use the same concepts: a method that filters phrases reuses the ones it kept, without filtering
        again.

        Args:
            candidates: what ``build`` chose from.
            used: what it made the model of.
        """
        return self, candidates

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Training loss of a batch: features ``[B, D]``, labels ``[B]``, and ``Built.targets`` where there are any."""
        return cross_entropy(model, x, y)

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Validation loss and logits of a batch; the weights with the lowest loss are kept. Arguments as ``loss``."""
        return score_batch(model, x, y)

    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """The model that is saved and used, from the trained ``built.model``."""
        return built.model

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """The optimizer of what ``build`` left to train of its model."""
        raise NotImplementedError


METHODS: Registry[type[Method]] = Registry("method")
register_method = METHODS.register
"""Make a method available as ``method=NAME`` (its defaults go to ``configs/method/NAME.yaml``)."""
create_method = METHODS.create
"""A method from its settings: ``name`` and the fields of its ``Config``."""


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def one_of(setting: str, value: str, choices: tuple[str, ...]) -> str:
    """``value`` if it is among ``choices``, else a UserError with the nearest."""
    if value not in choices:
        raise UserError(f"{setting}={value}: {did_you_mean(value, choices)}")
    return value
