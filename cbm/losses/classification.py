"""Cross-entropy of a classifier on a batch: the default training loss of a method."""

import torch
from torch import Tensor, nn


def label_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``[B, C]`` and classes ``[B]``, or of logits ``[B, L]`` and labels ``[B, L]``.

    Of labels (1, 0, a probability, NaN if unknown) it is the mean over the labels of the mean over their KNOWN entries:
    a label that is mostly unknown counts as much as any other. A label of which a batch knows nothing is left out.

    >>> label_loss(torch.zeros(2, 2), torch.tensor([[1.0, float("nan")], [0.0, float("nan")]]))
    tensor(0.6931)
    """
    if y.ndim == 1:
        return nn.functional.cross_entropy(logits, y)
    known = ~y.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, y.nan_to_num().to(logits), reduction="none")
    counts = known.sum(dim=0)
    of_labels = torch.where(known, losses, 0.0).sum(dim=0) / counts.clamp(min=1)
    return of_labels.sum() / (counts > 0).sum().clamp(min=1)


def mean_loss_by_label(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of every label over its known entries ``[L]``; NaN where nothing is known.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(logits, y.nan_to_num().to(logits), reduction="none")
    return losses.where(~y.isnan(), torch.nan).nanmean(dim=0)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``label_loss`` of a batch.

    Args:
        model: the classifier, from features ``[B, D]`` to logits ``[B, C]``.
        x: features ``[B, D]``.
        y: class indices ``[B]``, or labels ``[B, L]``.
    """
    return label_loss(model(x), y)


def score_batch(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a batch and its logits ``[B, C]``; arguments as for ``cross_entropy``."""
    logits = model(x)
    return label_loss(logits, y), logits
