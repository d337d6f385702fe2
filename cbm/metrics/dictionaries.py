"""Are the units of two dictionaries the same? Beside every number stands that of random directions.

A mean cosine means nothing by itself: directions drawn at random with the pictures' covariance have a larger one than
the units of two autoencoders, because most of them lie along the pictures' few main axes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.kernels import topk_concepts

EXACT = 4096
"""Units up to which the best assignment is solved exactly."""
SAME = 0.7
"""Cosine from which on two units count as the same."""


@dataclass(frozen=True)
class Match:
    """The units of one dictionary beside those of another.

    Attributes:
        partner: the unit of the other dictionary that every unit is assigned to ``[K]``, by the largest sum of cosines
            (nearest, if there are more than ``EXACT`` units); -1 where none is left.
        cosine: their cosine ``[K]``; NaN where none is left.
        mutual: whether a unit and the one that it is assigned to are the nearest of each other ``[K]``.
    """

    partner: Tensor
    cosine: Tensor
    mutual: Tensor

    @property
    def mean(self) -> float:
        """Mean cosine of the assignment."""
        return float(self.cosine.nanmean())

    @property
    def matched(self) -> float:
        """Share of the units that are assigned to one another, are the nearest of each other, and have a cosine above
        ``SAME``."""
        return float((self.mutual & (self.cosine > SAME)).double().mean())


def match_dictionaries(atoms: Tensor, others: Tensor) -> Match:
    """Assign the units of one dictionary to those of another.

    Args:
        atoms: atoms ``[K, D]``.
        others: atoms ``[L, D]`` of the other dictionary.

    >>> found = match_dictionaries(torch.eye(3), torch.eye(3)[[1, 2, 0]])
    >>> found.partner.tolist(), found.mean, found.matched
    ([2, 0, 1], 1.0, 1.0)
    """
    a, b = normalize(atoms.float(), dim=1), normalize(others.float(), dim=1)
    cosine, nearest = (each[:, 0] for each in topk_concepts(a, b, 1))
    back = topk_concepts(b, a, 1)[1][:, 0]
    mutual = back[nearest] == torch.arange(len(a))
    if max(len(a), len(b)) > EXACT:
        return Match(nearest, cosine, mutual)
    from scipy.optimize import linear_sum_assignment

    table = a @ b.T
    rows, columns = (torch.from_numpy(each) for each in linear_sum_assignment(-table.numpy()))
    partner, found = torch.full((len(a),), -1), torch.full((len(a),), torch.nan)
    partner[rows], found[rows] = columns, table[rows, columns]
    return Match(partner, found, mutual & (nearest == partner))


def directions_like(covariance: Tensor, count: int, seed: int) -> Tensor:
    """Random unit directions ``[K, D]`` with a given covariance: what a dictionary (or words) must beat.

    Args:
        covariance: covariance ``[D, D]`` of the pictures (of the words).
        count: number of directions K.
        seed: random seed.
    """
    values, axes = torch.linalg.eigh(covariance.double())
    root = (values.clamp(min=0).sqrt()[:, None] * axes.T).float()
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, len(root), generator=generator) @ root, dim=1)
