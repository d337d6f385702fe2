"""The temperature of a classifier that has similarities and no scale: one number, found by bisection."""

import torch
from torch import Tensor


def fit_scale(similarity: Tensor, labels: Tensor, start: float) -> float:
    """The factor on ``[N, C]`` similarities with the lowest cross-entropy: convex in one number, found by bisection.

    Args:
        similarity: similarities ``[N, C]`` of images and classes.
        labels: class indices ``[N]``.
        start: factor in the middle of the range that is searched, from a thousandth to a thousand times as large
            (perfectly separated training images have no best factor).

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])  # the last one is wrong
    >>> round(fit_scale(logits, torch.tensor([0, 1, 0, 1]), 1.0), 3)  # 2 s = log 3: right in three of four
    0.549
    """
    similarity = (similarity - similarity.mean(dim=1, keepdim=True)).double()
    target = similarity[torch.arange(len(labels)), labels].mean()
    low, high = start / 1000, start * 1000
    for _ in range(40):
        middle = (low * high) ** 0.5
        slope = ((middle * similarity).softmax(dim=1) * similarity).sum(dim=1).mean() - target
        low, high = (low, middle) if slope > 0 else (middle, high)
    return (low * high) ** 0.5
