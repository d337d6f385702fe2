"""Does a concept fire on the pictures of the classes that claim it?"""

import torch
from torch import Tensor

from cbm.kernels import score_moments


def grounding_gap(x: Tensor, y: Tensor, concepts: Tensor, owners: Tensor) -> tuple[float, float]:
    """Mean score on the pictures of a concept's owners minus mean score on all others, averaged over owned concepts.

    The owners come from the language, the scores from the pictures; a concept whose direction has nothing to do with
    its name has a gap near zero.

    Args:
        x: ``[N, D]`` unit-norm features.
        y: ``[N]`` class indices.
        concepts: ``[K, D]`` the directions the model uses.
        owners: ``[C, K]`` bool.

    Returns:
        The gap in cosine units, and in standard deviations of each concept's score over the pictures. NaN if no concept
        has both an owner and a class that does not own it.
    """
    classes = len(owners)
    counts = torch.bincount(y, minlength=classes).float()
    sums = torch.zeros(classes, x.shape[1]).index_add_(0, y, x) @ concepts.T  # [C, K] summed scores per class
    member = owners.float() * (counts > 0)[:, None]
    inside, outside = (member * counts[:, None]).sum(0), ((1 - owners.float()) * counts[:, None]).sum(0)
    usable = (inside > 0) & (outside > 0)
    if not usable.any():
        return float("nan"), float("nan")
    gap = (member * sums).sum(0) / inside - ((1 - owners.float()) * sums).sum(0) / outside
    _, std = score_moments(x, concepts)
    return float(gap[usable].mean()), float((gap / std.clamp(min=1e-12))[usable].mean())
