"""A nonlinear bottleneck in one kernel: scores never leave the registers. Forward, and backward to head and affine map.

It is attention without a softmax: queries X, keys T, values W^T. A score is computed again in the backward pass, which
costs 2D FLOP; written and read once it would cost four bytes. Gradients of T and X need [BK, D] accumulators that do
not fit, so they are left to the chunked path.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import dot_precision, launch, splits_of_concepts
from cbm.kernels.gpu.tiles import ACTIVATIONS, WIDE, activate, affine, score_tile, slope, widen


@triton.jit
def logits_kernel(
    X, INVERSE, T, ALPHA, BETA, W, PARTS, N, K, C, D, x_stride, t_stride, per,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Logits of BM rows from ``per`` concepts: a part of the sum per program; W is [K, C]."""
    split = tl.program_id(1)
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    row_mask = rows < N
    classes = tl.arange(0, BC)
    class_mask = classes < C
    logits = tl.zeros((BM, BC), tl.float32)
    for start in range(split * per, tl.minimum(split * per + per, K), BK):
        columns = (start + tl.arange(0, BK)).to(tl.int64)
        column_mask = columns < K
        z = score_tile(X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, PRECISION, WIDE)
        z = affine(z, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, HAS_INVERSE, HAS_ALPHA, HAS_BETA)
        w = tl.load(
            W + columns[:, None] * C + classes[None, :], mask=column_mask[:, None] & class_mask[None, :], other=0.0
        )
        a = activate(z, ACTIVATION).to(w.dtype)
        logits = tl.dot(widen(a, WIDE), widen(w, WIDE), logits, input_precision=PRECISION)
    place = (split.to(tl.int64) * N + rows[:, None]) * C + classes[None, :]
    tl.store(PARTS + place, logits, mask=row_mask[:, None] & class_mask[None, :])


def logits(
    x: Tensor, concepts: Tensor, head: Tensor, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None,
    activation: str,
) -> Tensor:  # fmt: skip
    """``phi(inv_norm_n alpha_k (x_n . t_k) + beta_k) W^T``, [N, C] in float32, without a bias."""
    (n, d), (c, k) = x.shape, head.shape
    tile = launch("logits", x.dtype, c)
    splits, per = splits_of_concepts(n, k, tile)
    parts = torch.empty(splits, n, c, dtype=torch.float32, device=x.device)
    logits_kernel[(triton.cdiv(n, tile.rows), splits)](
        x, inv_norm, concepts, alpha, beta, head.T.contiguous(), parts, n, k, c, d, x.stride(0), concepts.stride(0),
        per, inv_norm is not None, alpha is not None, beta is not None, ACTIVATIONS[activation],
        tile.rows, tile.concepts, tile.dims, max(16, triton.next_power_of_2(c)), dot_precision(), WIDE,
        **tile.options,
    )  # fmt: skip
    return parts.sum(0)


@triton.jit
def gradients_kernel(
    X, INVERSE, T, ALPHA, BETA, W, G, D_W, D_ALPHA, D_BETA, N, K, C, D, x_stride, t_stride, per,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr, NEED_AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of BK concepts' weights, alpha and beta from ``per`` rows: a part of the sum per program."""
    split = tl.program_id(1)
    columns = (tl.program_id(0) * BK + tl.arange(0, BK)).to(tl.int64)
    column_mask = columns < K
    classes = tl.arange(0, BC)
    class_mask = classes < C
    head_mask = column_mask[:, None] & class_mask[None, :]
    d_w = tl.zeros((BK, BC), tl.float32)
    d_alpha = tl.zeros((BK,), tl.float32)
    d_beta = tl.zeros((BK,), tl.float32)
    for start in range(split * per, tl.minimum(split * per + per, N), BM):
        rows = (start + tl.arange(0, BM)).to(tl.int64)
        row_mask = rows < N
        u = score_tile(X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, PRECISION, WIDE)
        u = affine(u, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, HAS_INVERSE, False, False)
        z = affine(u, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, False, HAS_ALPHA, HAS_BETA)
        a = activate(z, ACTIVATION)
        g = tl.load(G + rows[:, None] * C + classes[None, :], mask=row_mask[:, None] & class_mask[None, :], other=0.0)
        transposed = tl.trans(widen(a.to(g.dtype), WIDE))
        d_w = tl.dot(transposed, widen(g, WIDE), d_w, input_precision=PRECISION)
        if NEED_AFFINE:
            w = tl.load(W + columns[:, None] * C + classes[None, :], mask=head_mask, other=0.0)
            da = tl.dot(widen(g, WIDE), tl.trans(widen(w, WIDE)), input_precision=PRECISION)
            dz = tl.where(row_mask[:, None], da * slope(a, ACTIVATION), 0.0)
            d_alpha += tl.sum(dz * u, 0)
            d_beta += tl.sum(dz, 0)
    part = split.to(tl.int64) * K + columns
    tl.store(D_W + part[:, None] * C + classes[None, :], d_w, mask=head_mask)
    if NEED_AFFINE:
        tl.store(D_ALPHA + part, d_alpha, mask=column_mask)
        tl.store(D_BETA + part, d_beta, mask=column_mask)


def gradients(
    x: Tensor, concepts: Tensor, head: Tensor, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None,
    activation: str, upstream: Tensor, need_affine: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of head [C, K], alpha [K] and beta [K] from those of the logits [N, C]."""
    (n, d), (c, k) = x.shape, head.shape
    tile = launch("gradients", x.dtype, c)
    row_splits = max(1, min(256 // triton.cdiv(k, tile.concepts), n // (8 * tile.rows), 32))
    per = triton.cdiv(triton.cdiv(n, row_splits), tile.rows) * tile.rows
    row_splits = triton.cdiv(n, per)
    d_w = torch.empty(row_splits, k, c, dtype=torch.float32, device=x.device)
    d_alpha, d_beta = torch.empty(2, row_splits, k, dtype=torch.float32, device=x.device)
    gradients_kernel[(triton.cdiv(k, tile.concepts), row_splits)](
        x, inv_norm, concepts, alpha, beta, head.T.contiguous(), upstream.to(x.dtype), d_w, d_alpha, d_beta,
        n, k, c, d, x.stride(0), concepts.stride(0), per,
        inv_norm is not None, alpha is not None, beta is not None, need_affine, ACTIVATIONS[activation],
        tile.rows, tile.concepts, tile.dims, max(16, triton.next_power_of_2(c)), dot_precision(), WIDE,
        **tile.options,
    )  # fmt: skip
    return d_w.sum(0).T, d_alpha.sum(0) if need_affine else None, d_beta.sum(0) if need_affine else None
