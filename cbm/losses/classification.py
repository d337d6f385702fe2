"""Cross-entropy of a classifier on a batch: the default training loss of a method."""

from torch import Tensor, nn


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of a batch.

    Args:
        model: the classifier, from features ``[B, D]`` to logits ``[B, C]``.
        x: features ``[B, D]``.
        y: class indices ``[B]``.
    """
    return nn.functional.cross_entropy(model(x), y)


def score_batch(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a batch and its logits ``[B, C]``; arguments as for ``cross_entropy``."""
    logits = model(x)
    return nn.functional.cross_entropy(logits, y), logits
