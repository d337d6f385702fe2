"""Grounding: does a concept score higher on images of the classes that own it?"""

import torch
from torch import Tensor

from cbm.kernels import class_sums, score_moments


def concept_gaps(x: Tensor, y: Tensor, concepts: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Mean score of every concept on the images of its owners minus its mean score on all others.

    The owners come from the text, the scores from the images; a concept whose direction has nothing to do with its name
    has a gap near zero.

    Args:
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
        concepts: concept directions ``[K, D]`` of the model.
        owners: which class owns which concept, ``[C, K]`` bool.

    Returns:
        The gaps ``[K]`` in cosine units, and in standard deviations of the concept's score over the images. NaN for a
        concept that no class or every class owns.
    """
    classes = len(owners)
    counts = torch.bincount(y, minlength=classes).float()
    sums = class_sums(x, y, classes) @ concepts.T  # [C, K] summed scores per class
    own, rest = owners.float(), 1 - owners.float()
    inside, outside = (own * counts[:, None]).sum(0), (rest * counts[:, None]).sum(0)
    gap = (own * sums).sum(0) / inside - (rest * sums).sum(0) / outside  # NaN where a count is zero
    if len(x) < 2:
        return gap, torch.full_like(gap, torch.nan)
    _, std = score_moments(x, concepts)
    return gap, gap / std.clamp(min=1e-12)


def grounding_gap(x: Tensor, y: Tensor, concepts: Tensor, owners: Tensor) -> tuple[float, float]:
    """Mean of ``concept_gaps`` over the concepts that have one, in cosine units and in standard deviations.

    Arguments as for ``concept_gaps``.
    """
    gap, standard = concept_gaps(x, y, concepts, owners)
    return float(gap.nanmean()), float(standard.nanmean())
