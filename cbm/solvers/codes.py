"""Sparse codes of many pictures: a few words and their weights each, padded to the longest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cbm.kernels.shapes import check_matrix, compute_dtype


@dataclass(frozen=True)
class Codes:
    """What `sparse_code` found for N pictures: ``x_n ~ sum_j values[n, j] * dictionary[columns[n, j]]``.

    Attributes:
        values: weights [N, m] of the words in use, the largest (in absolute value) first; 0 where there are fewer than
            the m of the longest code. No weight in use is 0.
        columns: rows of the dictionary [N, m] (int64) that the weights belong to, none twice in a picture; -1 where
            there are fewer than m.
        gap: duality gap of every picture [N] (float64), a bound on how far its objective is above the optimum, up to
            rounding; NaN for a pursuit, which has none.
        violation: how far the largest correlation of a word with the residual is above what the optimum allows [N]
            (float64), as a correlation divided by the word's penalty; for a pursuit the largest correlation of a word.
        passes: how often the dictionary was read for the picture that needed it most often.
    """

    values: Tensor
    columns: Tensor
    gap: Tensor
    violation: Tensor
    passes: int

    def __len__(self) -> int:
        return len(self.values)

    @property
    def count(self) -> Tensor:
        """Number of words in use, L0 [N] (int64)."""
        return (self.columns >= 0).sum(dim=1)

    def dense(self, size: int) -> Tensor:
        """The codes as a matrix [N, size], for a dictionary of ``size`` rows.

        Raises:
            ValueError: If a column lies beyond ``size``.
        """
        self._check_size(size)
        full = self.values.new_zeros(len(self), size)
        return full.scatter_add_(1, self.columns.clamp(min=0), self.values)  # padding adds 0 to column 0

    def reconstruct(self, dictionary: Tensor) -> Tensor:
        """What the codes say, ``z C`` [N, D], for a dictionary C [K, D]; in float32, or float64 if either is.

        Raises:
            ValueError: If the dictionary is not a floating-point matrix, or has fewer rows than the codes use.
        """
        check_matrix("dictionary", dictionary)
        self._check_size(len(dictionary))
        dtype = compute_dtype(self.values, dictionary)
        if not self.values.shape[1]:
            return torch.zeros(len(self), dictionary.shape[1], dtype=dtype, device=dictionary.device)
        columns = self.columns.clamp(min=0).to(dictionary.device)  # padding adds 0 times the first row
        return embedding_bag(
            columns, dictionary.to(dtype), per_sample_weights=self.values.to(dictionary.device, dtype), mode="sum"
        )

    def typical(self, size: int) -> Tensor:
        """Median [size] of every word's weights where it is used; 0 for a word that is never used.

        Raises:
            ValueError: If a column lies beyond ``size``.
        """
        self._check_size(size)
        used = self.columns >= 0
        columns, values = self.columns[used], self.values[used]
        order = values.argsort()
        order = order[columns[order].argsort(stable=True)]
        sizes = torch.bincount(columns, minlength=size)
        middle = sizes.cumsum(0) - sizes + (sizes - 1).clamp(min=0) // 2
        found = torch.zeros(size, device=values.device)
        found[sizes > 0] = values[order][middle[sizes > 0]].float()
        return found

    def _check_size(self, size: int) -> None:
        largest = int(self.columns.max()) if self.columns.numel() else -1
        if largest >= size:
            raise ValueError(f"the dictionary has {size} rows; the codes use column {largest}")
