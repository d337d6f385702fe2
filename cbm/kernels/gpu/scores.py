"""Concept scores: product, scale, affine map and activation in one pass; N x K numbers are written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import dot_precision, launch
from cbm.kernels.gpu.tiles import ACTIVATIONS, WIDE, activate, affine, score_tile

_GROUP = 8  # row blocks that go over the concepts together, so that tiles of T are found in L2


@triton.jit
def scores_kernel(
    X, ROWS, INVERSE, T, ALPHA, BETA, OUT, N, K, D, x_stride, t_stride,
    HAS_ROWS: tl.constexpr, HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One [BM, BK] tile of OUT [N, K] per program."""
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(N, BM), tl.cdiv(K, BK)
    group = program // (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    inside = program % (GROUP * column_blocks)
    out_rows = ((group * GROUP + inside % height) * BM + tl.arange(0, BM)).to(tl.int64)
    columns = ((inside // height) * BK + tl.arange(0, BK)).to(tl.int64)
    row_mask, column_mask = out_rows < N, columns < K
    rows = out_rows
    if HAS_ROWS:
        rows = tl.load(ROWS + out_rows, mask=row_mask, other=0)
    scores = score_tile(X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, PRECISION, WIDE)
    scores = affine(
        scores, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, HAS_INVERSE, HAS_ALPHA, HAS_BETA
    )
    scores = activate(scores, ACTIVATION).to(OUT.dtype.element_ty)
    tl.store(OUT + out_rows[:, None] * K + columns[None, :], scores, mask=row_mask[:, None] & column_mask[None, :])


def scores(
    x: Tensor, concepts: Tensor, rows: Tensor | None, inv_norm: Tensor | None, alpha: Tensor | None,
    beta: Tensor | None, activation: str, out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``phi(inv_norm_n alpha_k (x_n . t_k) + beta_k)`` for all rows, or for those numbered by ``rows``."""
    n, (k, d) = len(x) if rows is None else len(rows), concepts.shape
    out = torch.empty(n, k, dtype=out_dtype, device=x.device)
    tile = launch("scores", x.dtype)
    grid = (triton.cdiv(n, tile.rows) * triton.cdiv(k, tile.concepts),)
    scores_kernel[grid](
        x, rows, inv_norm, concepts, alpha, beta, out, n, k, d, x.stride(0), concepts.stride(0),
        rows is not None, inv_norm is not None, alpha is not None, beta is not None, ACTIVATIONS[activation],
        tile.rows, tile.concepts, tile.dims, _GROUP, dot_precision(), WIDE,
        **tile.options,
    )  # fmt: skip
    return out
