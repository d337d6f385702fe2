"""What a method is: which concepts it speaks through, how its model is built, how it is trained."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.config import typed_settings
from cbm.data.features import FeatureData
from cbm.errors import UserError, did_you_mean
from cbm.module import cross_entropy, score_batch

METHODS: dict[str, type["Method"]] = {}


class Method:
    """A paper. Subclasses give a ``Config`` dataclass, ``build``, and, if they train by gradient, ``optimizer``.

    What is trained may be another module than what is saved: ``finish`` turns one into the other.

    Attributes:
        speaks_through: ``bank`` (the configured concepts), ``labels`` (the data set's own concepts, or a bank of
            which it labels some), ``class_names`` (one concept per class), or None.
        trains: whether ``build`` leaves something for Lightning to train.
        uses_teacher: whether the concepts may be phrases of another text-image model (``data.teacher``).
        facts: numbers about the fit that go to ``metrics.json`` as ``method/NAME``.
        reads_class_names: whether ``build`` needs ``data.class_embeddings``.
    """

    Config: ClassVar[type]
    speaks_through: ClassVar[Literal["bank", "labels", "class_names"] | None] = "bank"
    trains: bool = True
    uses_teacher: ClassVar[bool] = False
    reads_class_names: ClassVar[bool] = False

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, float] = {}

    def build(
        self, data: FeatureData, bank: ConceptBank | None, logit_scale: float
    ) -> tuple[nn.Module, ConceptBank | None]:
        """The model before training, and the bank of the concepts it uses, in the order of its columns.

        Args:
            data: encoded splits; ``batch_size`` and ``concept_targets`` may be set.
            bank: embedded candidate concepts (by the teacher, if there is one), owners named as in ``data.classes``;
                None without ``speaks_through``.
            logit_scale: the encoder's own factor on cosines.
        """
        raise NotImplementedError

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple["Method", ConceptBank]:
        """The method and the candidates that a control is fitted with.

        A method that leaves phrases out for what they mean or show takes the names it used, and judges none anew.

        Args:
            candidates: what ``build`` chose from.
            used: what it made the model of.
        """
        return self, candidates

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """What training makes small on a batch: features ``[B, D]``, labels ``[B]``, ``data.concept_targets``."""
        return cross_entropy(model, x, y)

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the best weights make smallest on the validation split, and the logits of its batch; as ``loss``."""
        return score_batch(model, x, y)

    def finish(self, model: Any, data: FeatureData) -> nn.Module:
        """The model that is saved and used, from the trained one."""
        return model

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """The optimizer of what ``build`` left to train of its model."""
        raise NotImplementedError


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a method available as ``method=NAME`` (its defaults go to ``configs/method/NAME.yaml``)."""

    def register(kind: type[Method]) -> type[Method]:
        METHODS[name] = kind
        return kind

    return register


def create_method(settings: DictConfig | dict[str, Any]) -> Method:
    """A method from its settings: ``name`` and the fields of its ``Config``.

    Raises:
        UserError: unknown method or setting (with the nearest names), or a value of the wrong type.
    """
    settings = dict(OmegaConf.to_container(OmegaConf.create(settings)))  # type: ignore[arg-type]
    name = str(settings.pop("name", ""))
    if name not in METHODS:
        raise UserError(f"unknown method '{name}': {did_you_mean(name, METHODS)}")
    kind = METHODS[name]
    return kind(typed_settings("method", name, kind.Config, settings))


def one_of(setting: str, value: str, choices: tuple[str, ...]) -> str:
    """``value`` if it is among ``choices``, else a UserError with the nearest."""
    if value not in choices:
        raise UserError(f"{setting}={value}: {did_you_mean(value, choices)}")
    return value
