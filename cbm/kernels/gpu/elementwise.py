"""What happens to a chunk of scores between matrix products: activation, its gradient, cross-entropy, Gumbel softmax.

Chunks are small enough to stay in L2, so these kernels count instructions and launches, not memory traffic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.gpu.tiles import ACTIVATIONS, activate, affine, gumbel, slope

_BLOCK = 1024
_OPTIONS = {"enable_fp_fusion": True}
_ROWS, _COLUMNS = 32, 64


@triton.jit
def activate_kernel(
    SCORES, INVERSE, ALPHA, BETA, OUT, K,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK entries of one row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < K
    z = tl.load(SCORES + row * K + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_INVERSE:
        z = z * tl.load(INVERSE + row)
    if HAS_ALPHA:
        z = z * tl.load(ALPHA + columns, mask=mask, other=0.0)
    if HAS_BETA:
        z = z + tl.load(BETA + columns, mask=mask, other=0.0)
    tl.store(OUT + row * K + columns, activate(z, ACTIVATION).to(OUT.dtype.element_ty), mask=mask)


def activate_chunk(
    scores: Tensor, inv_norm: Tensor | None, alpha: Tensor | None, beta: Tensor | None, activation: str, out: Tensor
) -> None:
    """``out = phi(inv_norm_n alpha_k scores_nk + beta_k)``, [n, K]."""
    n, k = scores.shape
    activate_kernel[(n, triton.cdiv(k, _BLOCK))](
        scores, inv_norm, alpha, beta, out, k, inv_norm is not None, alpha is not None, beta is not None,
        ACTIVATIONS[activation], _BLOCK, **_OPTIONS,
    )  # fmt: skip


@triton.jit
def slope_kernel(
    UPSTREAM, A, SCORES, INVERSE, OUT, D_ALPHA, D_BETA, penalty, N, K,
    HAS_INVERSE: tl.constexpr, NEED_ALPHA: tl.constexpr, NEED_BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of dz and its column sums per program."""
    block = tl.program_id(0)
    rows = (block * BM + tl.arange(0, BM)).to(tl.int64)
    columns = tl.program_id(1) * BK + tl.arange(0, BK)
    column_mask = columns < K
    mask = (rows < N)[:, None] & column_mask[None, :]
    place = rows[:, None] * K + columns[None, :]
    a = tl.load(A + place, mask=mask, other=0.0).to(tl.float32)
    upstream = tl.load(UPSTREAM + place, mask=mask, other=0.0).to(tl.float32)
    upstream = upstream + tl.where(a > 0.0, penalty, tl.where(a < 0.0, -penalty, 0.0))
    dz = tl.where(mask, upstream * slope(a, ACTIVATION), 0.0)
    if NEED_BETA:
        tl.store(D_BETA + block * K + columns, tl.sum(dz, 0), mask=column_mask)
    if HAS_INVERSE:
        dz = dz * tl.load(INVERSE + rows, mask=rows < N, other=0.0)[:, None]
    if NEED_ALPHA:
        scores = tl.load(SCORES + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(D_ALPHA + block * K + columns, tl.sum(dz * scores, 0), mask=column_mask)
    tl.store(OUT + place, dz.to(OUT.dtype.element_ty), mask=mask)


def slope_chunk(
    upstream: Tensor, activations: Tensor, scores: Tensor | None, inv_norm: Tensor | None, activation: str,
    penalty: float, need_beta: bool, out: Tensor,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """``out = inv_norm dz``, ``dz = phi'(z) (upstream + penalty sign(a))`` [n, K]; gradients of alpha and beta [K].

    The gradient of alpha is only formed if the raw ``scores`` are given. Sums go over blocks of rows, in order.
    """
    n, k = activations.shape
    blocks = triton.cdiv(n, _ROWS)
    d_alpha = None if scores is None else scores.new_empty(blocks, k, dtype=torch.float32)
    d_beta = upstream.new_empty(blocks, k, dtype=torch.float32) if need_beta else None
    slope_kernel[(blocks, triton.cdiv(k, _COLUMNS))](
        upstream, activations, scores, inv_norm, out, d_alpha, d_beta, penalty, n, k,
        inv_norm is not None, d_alpha is not None, need_beta, ACTIVATIONS[activation], _ROWS, _COLUMNS,
        **_OPTIONS,
    )  # fmt: skip
    return None if d_alpha is None else d_alpha.sum(0), None if d_beta is None else d_beta.sum(0)


@triton.jit
def cross_entropy_kernel(LOGITS, Y, GRADIENT, LOSS, RIGHT, C, weight, smoothing, BLOCK: tl.constexpr):
    """One row per program: two passes over its logits, any number of classes."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(Y + row)
    largest, total, everything = -float("inf"), 0.0, 0.0
    best = tl.zeros((), tl.int64)
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < C
        logits = tl.load(LOGITS + row * C + columns, mask=mask, other=-float("inf")).to(tl.float32)
        top, place = tl.max(logits, 0, return_indices=True)
        if top > largest:
            best = (start + place).to(tl.int64)
        now = tl.maximum(largest, top)
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(logits - now), 0)
        everything += tl.sum(tl.where(mask, logits, 0.0), 0)
        largest = now
    lse = largest + tl.log(total)
    own = tl.load(LOGITS + row * C + label).to(tl.float32)
    tl.store(LOSS + row, lse - (1.0 - smoothing) * own - smoothing * everything / C)
    tl.store(RIGHT + row, (best == label).to(tl.float32))
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < C
        logits = tl.load(LOGITS + row * C + columns, mask=mask, other=-float("inf")).to(tl.float32)
        target = smoothing / C + tl.where(columns == label, 1.0 - smoothing, 0.0)
        gradient = (tl.exp(logits - lse) - target) * weight
        tl.store(GRADIENT + row * C + columns, gradient.to(GRADIENT.dtype.element_ty), mask=mask)


def cross_entropy_chunk(
    logits: Tensor, y: Tensor, weight: float, smoothing: float, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of right answers, 0-d; writes ``gradient = weight dloss/dlogits``, [n, C]."""
    n, c = logits.shape
    loss, right = logits.new_empty(2, n, dtype=torch.float32)
    block = min(triton.next_power_of_2(c), 4096)
    cross_entropy_kernel[(n,)](logits, y, gradient, loss, right, c, weight, smoothing, block, **_OPTIONS)
    return loss.sum(), right.sum()


@triton.jit
def gumbel_softmax_kernel(
    SCORES, ROW_IDS, INVERSE, ALPHA, BETA, LSE, OUT, seed, stream, inverse_tau, K,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK entries of one row per program."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros((1,), tl.int64)
    one = row >= 0
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < K
    z = tl.load(SCORES + row[:, None] * K + columns[None, :], mask=mask[None, :], other=0.0).to(tl.float32)
    z = affine(z, INVERSE, ALPHA, BETA, row, one, columns, mask, HAS_INVERSE, HAS_ALPHA, HAS_BETA)
    noise = gumbel(seed, stream, tl.load(ROW_IDS + row), tl.program_id(1) * (BLOCK // 4), 1, BLOCK // 4)
    p = tl.exp((z + noise) * inverse_tau - tl.load(LSE + row)[:, None])
    tl.store(OUT + row[:, None] * K + columns[None, :], p.to(OUT.dtype.element_ty), mask=mask[None, :])


def gumbel_softmax_chunk(
    scores: Tensor, row_ids: Tensor, inv_norm: Tensor | None, alpha: Tensor | None, beta: Tensor | None, lse: Tensor,
    seed: int, stream: int, tau: float, out: Tensor,
) -> None:  # fmt: skip
    """``out = exp((inv_norm alpha scores + beta + g) / tau - lse)``, [n, K]: the noise is drawn again."""
    n, k = scores.shape
    gumbel_softmax_kernel[(n, triton.cdiv(k, _BLOCK))](
        scores, row_ids, inv_norm, alpha, beta, lse, out, seed, stream, 1 / tau, k,
        inv_norm is not None, alpha is not None, beta is not None, _BLOCK, **_OPTIONS,
    )  # fmt: skip
