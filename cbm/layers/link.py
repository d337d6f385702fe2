"""What logits stand for: one of the classes, or any number of labels. Nothing else turns logits into answers."""

from typing import Literal

import torch
from torch import Tensor, nn

from cbm.errors import UserError

Link = Literal["softmax", "sigmoid"]


class Linked(nn.Module):
    """The base class of classifiers.

    Args:
        link: ``softmax`` for one of C classes, ``sigmoid`` for any number of L labels.

    Attributes:
        thresholds: logits ``[L]`` above which a label is said to be there; None for classes, and for labels until
            validation chooses some: then 0, a probability of one half.
    """

    thresholds: Tensor | None

    def __init__(self, link: Link = "softmax"):
        super().__init__()
        self.link: Link = link
        self.register_buffer("thresholds", None)

    @property
    def many(self) -> bool:
        """Whether an image has any number of labels."""
        return self.link == "sigmoid"

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities ``[N, C]`` of logits: they sum to one over classes, and not over labels."""
        return logits.sigmoid() if self.many else logits.softmax(dim=-1)

    def decide(self, logits: Tensor) -> Tensor:
        """The class of every row ``[N]`` int64, or whether it has every label ``[N, L]`` bool."""
        if not self.many:
            return logits.argmax(dim=-1)
        return logits > (0.0 if self.thresholds is None else self.thresholds.to(logits))

    def cut(self, label: int) -> float:
        """The logit above which one label is said to be there."""
        return 0.0 if self.thresholds is None else float(self.thresholds[label])

    def with_thresholds(self, thresholds: Tensor) -> "Linked":
        """Set the thresholds ``[L]``; returns the model."""
        self.thresholds = thresholds.detach().clone()
        return self


def is_many(model: nn.Module) -> bool:
    """Whether a classifier says any number of labels (whatever is not ``Linked`` says one class)."""
    return isinstance(model, Linked) and model.many


def decide(model: nn.Module, logits: Tensor) -> Tensor:
    """``Linked.decide`` of any classifier."""
    return model.decide(logits) if isinstance(model, Linked) else logits.argmax(dim=-1)


def probabilities(model: nn.Module, logits: Tensor) -> Tensor:
    """``Linked.probabilities`` of any classifier."""
    return model.probabilities(logits) if isinstance(model, Linked) else logits.softmax(dim=-1)


def thresholds_of(model: nn.Module, count: int) -> Tensor:
    """Logits ``[L]`` above which a classifier of ``count`` labels says that they are there; 0 if none were chosen."""
    thresholds = model.thresholds if isinstance(model, Linked) else None
    return torch.zeros(count) if thresholds is None else thresholds


def one_class(model: nn.Module, what: str) -> None:
    """Check that a classifier says one class.

    Args:
        model: the classifier.
        what: what cannot be done with labels, for the message.

    Raises:
        UserError: it says any number of labels.
    """
    if is_many(model):
        raise UserError(f"{what} asks which class an image is; this model says any number of labels of it")


def same_link(of: nn.Module, other: nn.Module) -> nn.Module:
    """``other`` with the link and the thresholds of a model that it stands in for."""
    if isinstance(of, Linked) and isinstance(other, Linked):
        other.link = of.link
        other.thresholds = None if of.thresholds is None else torch.clone(of.thresholds)
    return other
