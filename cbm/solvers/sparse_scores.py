"""Scores that are mostly zero: a few concepts per image, kept as columns and values, never as N x K numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cbm.solvers.scores import LinearScores

_HELD_BYTES = 2**31  # largest block of scores that is kept in memory
_DENSE = {"cpu": 2**22, "cuda": 2**27}  # numbers of a block of rows that is written out for a product


class SparseScores(LinearScores):
    """Scores [N, K] of which an image has only a few, for the solvers that read ``LinearScores``.

    They are scaled by their standard deviation and not centred, which would make them dense (the bias of a head takes
    the place of the mean).

    Args:
        values: scores [N, m] of the concepts in use; 0 where an image uses fewer than m.
        columns: their columns [N, m]; -1 where an image uses fewer than m.
        count: number of concepts K.
        std: unit [K] of every score; by default its standard deviation over the rows (with N).

    Example:
        >>> scores = SparseScores(torch.tensor([[2.0], [0.0]]), torch.tensor([[1], [-1]]), 3, std=torch.ones(3))
        >>> scores.block(slice(None)).tolist()
        [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, values: Tensor, columns: Tensor, count: int, *, std: Tensor | None = None):
        self.dtype = torch.promote_types(values.dtype, torch.float32)
        self.device = values.device
        self.values = values.to(self.dtype).where(columns >= 0, 0.0)
        self.columns = columns.clamp(min=0)
        self.x = self.values  # its length is the number of rows
        self.concepts, self.picked, self.count = None, None, count
        self.mean = self.values.new_zeros(count)
        if std is None:
            flat, exact = self.columns.flatten(), self.values.double().flatten()
            sums = torch.zeros(2, count, dtype=torch.float64, device=self.device)
            sums[0].index_add_(0, flat, exact)
            sums[1].index_add_(0, flat, exact.square())
            mean, square = sums / max(len(values), 1)
            std = (square - mean.square()).clamp(min=0).sqrt()
        self.inverse_std = torch.where(std > 1e-6, 1 / std, 0.0).to(self.device, self.dtype)

    def to(self, dtype: torch.dtype) -> SparseScores:
        """The same scores computed in ``dtype``."""
        other = copy.copy(self)
        other.dtype = dtype
        other.values = other.x = self.values.to(dtype)
        other.mean, other.inverse_std = self.mean.to(dtype), self.inverse_std.to(dtype)
        return other

    def take(self, columns: Tensor) -> LinearScores:
        """The scores at ``columns`` [A]: written out if they fit in memory, else sparse as before."""
        size = torch.finfo(self.dtype).bits // 8
        if len(self) * len(columns) * size <= _HELD_BYTES:
            size = max(1, _DENSE[self.device.type] // max(self.count, 1))
            parts = [self.block(slice(start, start + size), columns) for start in range(0, len(self), size)]
            held = torch.cat(parts) if parts else self.values.new_zeros(0, len(columns))
            ones = self.mean.new_ones(len(columns))
            return LinearScores(held, None, mean=torch.zeros_like(ones), std=ones)
        place = torch.full((self.count,), -1, dtype=torch.long, device=self.device)
        place[columns] = torch.arange(len(columns), device=self.device)
        new = place[self.columns].where(self.values != 0, -1)
        other = SparseScores(self.values, new, len(columns), std=self.mean.new_ones(len(columns)))
        other.inverse_std = self.inverse_std[columns]
        return other

    def chunks(self, columns: int) -> Iterator[slice]:
        """Slices of rows such that a [rows, columns] block stays small."""
        size = max(256, _DENSE[self.device.type] // max(self.values.shape[1], columns, 1))
        return (slice(start, start + size) for start in range(0, len(self), size))

    def part(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Scores and columns of some rows."""
        return self.values[rows], self.columns[rows]

    def logits(self, part: tuple[Tensor, Tensor], vectors: Tensor, offset: Tensor) -> Tensor:
        """``z V^T + o`` of some rows from the columns in use; arguments as for ``LinearScores.logits``."""
        values, columns = part
        if not values.shape[1]:
            return offset.expand(len(values), -1)
        return offset + embedding_bag(columns, vectors.T.contiguous(), per_sample_weights=values, mode="sum")

    def collect(self, products: Tensor, errors: Tensor, part: tuple[Tensor, Tensor]) -> None:
        """Add ``errors^T z`` to products [R, K], column in use by column in use."""
        for value, column in zip(part[0].T, part[1].T):
            products.index_add_(1, column, (value[:, None] * errors).T)

    def features(self, rows: slice | Tensor) -> Tensor:
        """The raw scores of some rows, written out: [rows, K]."""
        values = self.values[rows]
        return values.new_zeros(len(values), self.count).scatter_add_(1, self.columns[rows], values)

    def block(self, rows: slice | Tensor, columns: Tensor | slice = slice(None)) -> Tensor:
        """The standardised scores of some rows, [rows, A]."""
        return (self.features(rows) * self.inverse_std)[:, columns]
