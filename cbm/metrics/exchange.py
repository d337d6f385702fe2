"""Whether names can be dealt out anew in enough ways for a permutation test: of two names, half of the draws are right.

A test that even perfect concepts could not pass has no result, and "not passed" would be said of it falsely.
"""

import math

from torch import Tensor

LEVEL = 0.05
"""Level of every test of the names."""
WAYS = 40
"""Ways to deal names out that a permutation test needs: with fewer, right names cannot reach the level for sure."""


def ways_to_deal(rows: Tensor) -> float:
    """In how many ways rows ``[K, ...]`` can be put in order: ``K! / (m_1! m_2! ...)`` for ``m_j`` equal ones.

    Args:
        rows: what every name stands for; NaN equals NaN.

    >>> import torch
    >>> round(ways_to_deal(torch.tensor([[1.0], [1.0], [2.0], [3.0]])))
    12
    """
    sizes = rows.nan_to_num(nan=7e7).unique(dim=0, return_counts=True)[1].tolist() if len(rows) else []
    log = math.lgamma(len(rows) + 1) - sum(math.lgamma(size + 1) for size in sizes)
    return math.exp(min(log, 700.0))
