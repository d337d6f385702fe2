"""Adam on the logits of a row-stochastic head: its gradient is made tile by tile and used up on the spot."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import dot_precision, launch
from cbm.kernels.gpu.tiles import WIDE, score_tile


@triton.jit
def adam_kernel(
    X, T, LOGITS, MEAN, SQUARE, LSE, LEVEL, N, K, D, x_stride, t_stride, w_stride, rate, root, beta1, beta2, eps,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """BM classes and BK concepts per program; X [N, D] is the gradient of the class vectors."""
    rows = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    columns = (tl.program_id(0) * BK + tl.arange(0, BK)).to(tl.int64)
    row_mask, column_mask = rows < N, columns < K
    gradient = score_tile(
        X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, PRECISION, WIDE
    )
    mask = row_mask[:, None] & column_mask[None, :]
    place = rows[:, None] * w_stride + columns[None, :]
    logits = tl.load(LOGITS + place, mask=mask, other=0.0)
    lse = tl.load(LSE + rows, mask=row_mask, other=0.0)
    level = tl.load(LEVEL + rows, mask=row_mask, other=0.0)
    gradient = (gradient - level[:, None]) * tl.exp(logits - lse[:, None])
    mean = tl.load(MEAN + place, mask=mask, other=0.0)
    mean = mean + (gradient - mean) * (1.0 - beta1)
    square = tl.load(SQUARE + place, mask=mask, other=0.0) * beta2 + gradient * gradient * (1.0 - beta2)
    tl.store(MEAN + place, mean, mask=mask)
    tl.store(SQUARE + place, square, mask=mask)
    tl.store(LOGITS + place, logits - rate * mean / (tl.sqrt(square) / root + eps), mask=mask)


def adam_step(
    logits: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, upstream: Tensor, concepts: Tensor, lse: Tensor, level: Tensor,
    rate: float, root: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """Change float32 logits and moments [C, K], which have the same strides, in place."""
    (c, k), d = logits.shape, concepts.shape[1]
    tile = launch("adam", torch.float32)
    adam_kernel[(triton.cdiv(k, tile.concepts), triton.cdiv(c, tile.rows))](
        upstream, concepts, logits, exp_avg, exp_avg_sq, lse, level, c, k, d, upstream.stride(0), concepts.stride(0),
        logits.stride(0), rate, root, betas[0], betas[1], eps,
        tile.rows, tile.concepts, tile.dims, dot_precision(), WIDE, **tile.options,
    )  # fmt: skip
