"""Chunks of rows within a budget of memory, and matrix products into memory that is used again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 5 * 2**20, "cuda": 2**30}
"""What a chunk may take, by kind of device: on a CPU what stays in cache, on a GPU what is no loss beside its memory
and makes products large enough to keep it busy. Assign to an entry to try another."""
_LEAST = {"cpu": 128, "cuda": 1024}  # rows that keep matrix products efficient
_HIGHEST = 4096.0  # to which a matrix is scaled before it is rounded to float16


def rows_per_chunk(n: int, bytes_per_row: int, device: torch.device) -> int:
    """How many of n rows a chunk takes: as many as the budget allows, but not so few that products are slow."""
    rows = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // max(bytes_per_row, 1) // 128 * 128
    return min(n, max(_LEAST.get(device.type, _LEAST["cpu"]), rows))


def slices(n: int, rows: int) -> Iterator[slice]:
    """Slices of so many rows that cover n in order."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def as_operand(errors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Gradients as an operand of a product, and the factor that the product has to be multiplied by (None for 1).

    float16 has no numbers below 6e-8, which a gradient of a mean over many rows falls under: its largest entry is
    brought to 4096 first. bfloat16 reaches as far down as float32.
    """
    if dtype != torch.float16 or errors.dtype == torch.float16:
        return errors.to(dtype), None
    largest = errors.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return (errors * (_HIGHEST / largest)).to(dtype), largest / _HIGHEST


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b`` of two matrices of one dtype, written to ``out``, which may be wider."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def batched_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices of half precision [P, m, n] and [P, n, l], in float32."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, summed in the dtype of ``total``; ``a`` is rounded to the dtype of ``b``."""
    a, factor = as_operand(a, b.dtype)
    if factor is not None:
        total.addcmul_(product(a, b, torch.empty_like(total)), factor)
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """``total[index] += rows``, in the same order every time: ``index_add_`` on a GPU is not."""
    if total.is_cuda:
        total.index_put_((index,), rows, accumulate=True)
    else:
        total.index_add_(0, index, rows)
