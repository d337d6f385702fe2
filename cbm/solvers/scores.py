"""Standardised concept scores that are never all in memory: linear in the features, computed where they are needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cbm.kernels.moments import score_moments
from cbm.kernels.scores import concept_scores
from cbm.kernels.shapes import check_matrix, check_vector, compute_dtype

_HELD_BYTES = 2**31  # largest block of scores that is kept in memory
_CACHED = {"cpu": 2**18, "cuda": 2**26}  # numbers per chunk of rows


class LinearScores:
    """Scores ``z = (x T^T - mean) / std`` [N, K] of K concepts.

    A pass over them and back for C classes costs 4NKC FLOP when they are held in memory, and 4NDC + 4KDC when it is
    re-associated through the D features. Only x [N, D] and T [K, D] are held here; ``take`` holds a few columns.

    Args:
        x: Features [N, D] of any floating dtype. Rows are upcast and moved to the device of ``concepts`` chunk by
            chunk, so x may be memory-mapped.
        concepts: Directions T [K, D]; None where the features are the scores themselves (T = identity, K = D).
        mean: Means [K] that are subtracted; by default those over the rows.
        std: Standard deviations [K] that the scores are divided by; by default those over the rows (with N, not N - 1).
            A score that does not vary counts as zero, so that its weight stays zero.

    Raises:
        ValueError: If a shape does not fit.
    """

    def __init__(
        self, x: Tensor, concepts: Tensor | None = None, *, mean: Tensor | None = None, std: Tensor | None = None
    ):
        check_matrix("x", x)
        if concepts is not None:
            check_matrix("concepts", concepts, columns=x.shape[1])
        self.x, self.concepts = x, concepts
        self.picked: Tensor | None = None
        self.held = False  # whether x are the standardised scores
        self.count = x.shape[1] if concepts is None else len(concepts)
        self.device = x.device if concepts is None else concepts.device
        self.dtype = compute_dtype(x, concepts)
        check_vector("mean", mean, self.count)
        check_vector("std", std, self.count)
        directions = torch.eye(self.count, dtype=self.dtype, device=self.device) if concepts is None else concepts
        if mean is None or std is None:
            measured = score_moments(x, directions, ddof=0)
            mean, std = (measured[0] if mean is None else mean), (measured[1] if std is None else std)
        varies = std > 1e-6 * directions.norm(dim=1).to(std)
        self.mean = mean.to(self.device, self.dtype)
        self.inverse_std = torch.where(varies, 1 / std, 0.0).to(self.device, self.dtype)

    def __len__(self) -> int:
        return len(self.x)

    def to(self, dtype: torch.dtype) -> LinearScores:
        """The same scores computed in ``dtype``."""
        other = copy.copy(self)
        other.dtype = dtype
        other.concepts = None if self.concepts is None else self.concepts.to(dtype)
        other.mean, other.inverse_std = self.mean.to(dtype), self.inverse_std.to(dtype)
        return other

    def take(self, columns: Tensor) -> LinearScores:
        """The scores at ``columns`` [A]: held where that makes a pass cheaper and they fit, else computed as before."""
        other = copy.copy(self)
        other.count = len(columns)
        size = torch.finfo(self.dtype).bits // 8
        if len(columns) <= self.x.shape[1] and len(self) * len(columns) * size <= _HELD_BYTES:
            other.x = torch.cat([self.block(rows, columns) for rows in self.chunks(len(columns))])
            other.concepts, other.picked, other.held = None, None, True
            other.mean, other.inverse_std = self.mean.new_zeros(len(columns)), self.mean.new_ones(len(columns))
            return other
        if self.concepts is None:
            other.picked = columns if self.picked is None else self.picked[columns]
        else:
            other.concepts = self.concepts[columns]
        other.mean, other.inverse_std = self.mean[columns], self.inverse_std[columns]
        return other

    def chunks(self, columns: int) -> Iterator[slice]:
        """Slices of rows such that a [rows, columns] block stays in cache."""
        size = max(256, _CACHED[self.device.type] // max(1, columns))
        return (slice(start, start + size) for start in range(0, len(self), size))

    def features(self, rows: slice | Tensor) -> Tensor:
        """What the scores are linear in, for some rows: [rows, D]."""
        x = self.x[rows].to(self.device, self.dtype)
        return x if self.picked is None else x[:, self.picked]

    def part(self, rows: slice | Tensor) -> Any:
        """Some rows in the form in which ``logits`` and ``collect`` read them."""
        return self.features(rows)

    def logits(self, part: Any, vectors: Tensor, offset: Tensor) -> Tensor:
        """``features V^T + o`` of some rows, [rows, R], for vectors V [R, D] and offsets o [R]."""
        return torch.addmm(offset, part, vectors.T)

    def collect(self, products: Tensor, errors: Tensor, part: Any) -> None:
        """Add ``errors^T features`` to products [R, D], for errors [rows, R] of some rows."""
        products.addmm_(errors.T, part)

    def block(self, rows: slice | Tensor, columns: Tensor | slice = slice(None)) -> Tensor:
        """The scores of some rows, [rows, A]."""
        if self.held and isinstance(columns, slice):
            return self.features(rows)[:, columns]
        x, mean, factor = self.features(rows), self.mean[columns], self.inverse_std[columns]
        if self.concepts is None:
            return (x[:, columns] - mean) * factor
        return (concept_scores(x, self.concepts[columns].to(self.dtype)) - mean) * factor

    def on_raw(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier ``z W^T + b`` on the raw scores ``x T^T``: [R, K] and [R], from W [R, K] and b [R]."""
        scaled = weight * self.inverse_std
        return scaled, bias - scaled @ self.mean

    def vectors(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier ``z W^T + b`` as one on the features: [R, D] and [R], from W [R, K] and b [R]."""
        scaled, offset = self.on_raw(weight, bias)
        return scaled if self.concepts is None else scaled @ self.concepts.to(self.dtype), offset

    def pull(self, products: Tensor, sums: Tensor) -> Tensor:
        """``r^T z`` [R, K], from ``r^T x`` [R, D] and the column sums [R] of r [N, R]."""
        if self.concepts is not None:
            products = products @ self.concepts.to(self.dtype).T
        return torch.addr(products, sums, self.mean, alpha=-1) * self.inverse_std
