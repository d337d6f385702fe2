"""The objective that ties every output of a bottleneck to the concept whose name it bears."""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix, compute_dtype
from cbm.solvers import cos_cubed


def similarity_loss(z: Tensor, s: Tensor, *, power: int = 1) -> Tensor:
    """Minus the mean over concepts of the similarity of column k of ``z`` and column k of ``s``.

    The similarity is the cosine of the columns, centred over the batch and raised to ``power`` elementwise: with 1 the
    correlation, with 3 that of Label-free CBM (``cbm.solvers.cos_cubed``). A column that is constant in either matrix,
    as all are in a batch of one image, counts as 0 and has no gradient.

    Args:
        z: Bottleneck outputs ``[B, K]``.
        s: Scores of the same images and concepts ``[B, K]``.
        power: 1 or 3.

    Returns:
        The loss, 0-d, in -1 .. 1.

    Raises:
        ValueError: If a shape does not fit or ``power`` is another one.
    """
    check_matrix("z", z)
    check_matrix("s", s, *z.shape)
    if power not in (1, 3):
        raise ValueError(f"power is {power}; expected 1 or 3")
    if power == 3:
        return -cos_cubed(z, s).mean()
    dtype = compute_dtype(z, s)
    return -(_unit_columns(z.to(dtype)) * _unit_columns(s.to(dtype))).sum(0).mean()


def _unit_columns(value: Tensor) -> Tensor:
    """Columns with mean 0 and norm 1; constant ones, up to rounding, are 0."""
    centred = value - value.mean(0)
    norm = centred.norm(dim=0)
    constant = norm <= 16 * torch.finfo(value.dtype).eps * len(value) ** 0.5 * value.abs().amax(0)
    return centred / norm.masked_fill(constant, torch.inf)
