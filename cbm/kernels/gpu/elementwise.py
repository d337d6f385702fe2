"""What happens to a matrix between products: activation, its gradient, cross-entropy, Gumbel softmax, Adam."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import launched_on
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
    """``out = phi(inv_norm_n alpha_k scores_nk + beta_k)``, [n, K]; ``out`` may be ``scores``."""
    n, k = scores.shape
    with launched_on(scores):
        activate_kernel[(n, triton.cdiv(k, _BLOCK))](
            scores, inv_norm, alpha, beta, out, k, inv_norm is not None, alpha is not None, beta is not None,
            ACTIVATIONS[activation], _BLOCK, **_OPTIONS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N"])
def slope_kernel(
    UPSTREAM, A, INVERSE, OUT, D_BETA, penalty, N, K,
    HAS_INVERSE: tl.constexpr, NEED_BETA: tl.constexpr, ACTIVATION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
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
        tl.store(D_BETA + block.to(tl.int64) * K + columns, tl.sum(dz, 0), mask=column_mask)
    if HAS_INVERSE:
        dz = dz * tl.load(INVERSE + rows, mask=rows < N, other=0.0)[:, None]
    tl.store(OUT + place, dz.to(OUT.dtype.element_ty), mask=mask)


def slope_chunk(
    upstream: Tensor, activations: Tensor, inv_norm: Tensor | None, activation: str, penalty: float, need_beta: bool
) -> Tensor | None:
    """Writes ``inv_norm dz``, ``dz = phi'(z) (upstream + penalty sign(a))`` [n, K], over ``upstream``.

    Returns the gradient of beta [K], the sum of dz over blocks of rows, in order; None if it is not needed.
    """
    n, k = activations.shape
    blocks = triton.cdiv(n, _ROWS)
    d_beta = upstream.new_empty(blocks, k, dtype=torch.float32) if need_beta else None
    with launched_on(upstream):
        slope_kernel[(blocks, triton.cdiv(k, _COLUMNS))](
            upstream, activations, inv_norm, upstream, d_beta, penalty, n, k,
            inv_norm is not None, need_beta, ACTIVATIONS[activation], _ROWS, _COLUMNS, **_OPTIONS,
        )  # fmt: skip
    return None if d_beta is None else d_beta.sum(0)


@triton.jit
def cross_entropy_kernel(LOGITS, Y, GRADIENT, LOSS, RIGHT, C, width, smoothing, BLOCK: tl.constexpr):
    """One row per program: two passes over its logits, any number of classes; columns from C to ``width`` are no class.

    A label that is no class makes the row's loss and gradient NaN: nothing is read beside the row, and it is seen.
    """
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(Y + row)
    is_class = (label >= 0) & (label < C)
    largest, total, everything = -float("inf"), 0.0, 0.0
    best = tl.zeros((), tl.int64)
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < C
        logits = tl.load(LOGITS + row * width + columns, mask=mask, other=-float("inf")).to(tl.float32)
        top, place = tl.max(logits, 0, return_indices=True)
        if top > largest:
            best = (start + place).to(tl.int64)
        now = tl.maximum(largest, top)
        shift = tl.where(now == -float("inf"), 0.0, now)  # as long as all there is is -inf
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(logits - shift), 0)
        everything += tl.sum(tl.where(mask, logits, 0.0), 0)
        largest = now
    lse = tl.where(largest == -float("inf"), 0.0, largest) + tl.log(total)
    own = tl.load(LOGITS + row * width + label, mask=is_class, other=float("nan")).to(tl.float32)
    loss = lse - (1.0 - smoothing) * own
    if smoothing != 0.0:  # a logit of -inf times 0 would be NaN
        loss -= smoothing * everything / C
    tl.store(LOSS + row, loss)
    tl.store(RIGHT + row, (best == label).to(tl.float32))
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < C
        logits = tl.load(LOGITS + row * width + columns, mask=mask, other=-float("inf")).to(tl.float32)
        target = smoothing / C + tl.where(columns == label, 1.0 - smoothing, 0.0)
        gradient = tl.where(is_class, tl.exp(logits - lse) - target, float("nan"))
        gradient = tl.where(mask, gradient, 0.0)
        tl.store(GRADIENT + row * width + columns, gradient.to(GRADIENT.dtype.element_ty), mask=columns < width)


def cross_entropy_chunk(
    logits: Tensor, y: Tensor, smoothing: float, gradient: Tensor, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of right answers, 0-d; writes their gradient p - y, [n, width].

    The first ``classes`` columns count, all by default; the gradient of the others is 0.
    """
    n, width = logits.shape
    classes = width if classes is None else classes
    loss, right = logits.new_empty(2, n, dtype=torch.float32)
    block = min(triton.next_power_of_2(width), 4096)
    with launched_on(logits):
        cross_entropy_kernel[(n,)](
            logits, y.contiguous(), gradient, loss, right, classes, width, smoothing, block, **_OPTIONS
        )
    return loss.sum(), right.sum()


@triton.jit(do_not_specialize=["seed", "stream"])
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
    with launched_on(scores):
        gumbel_softmax_kernel[(n, triton.cdiv(k, _BLOCK))](
            scores, row_ids.contiguous(), inv_norm, alpha, beta, lse, out, seed, stream, 1 / tau, k,
            inv_norm is not None, alpha is not None, beta is not None, _BLOCK, **_OPTIONS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "stream"])
def noise_kernel(ROW_IDS, OUT, seed, stream, K, BLOCK: tl.constexpr):
    """BLOCK draws of one row per program."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros((1,), tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    noise = gumbel(seed, stream, tl.load(ROW_IDS + row), tl.program_id(1) * (BLOCK // 4), 1, BLOCK // 4)
    tl.store(OUT + row[:, None] * K + columns[None, :], noise, mask=(columns < K)[None, :])


def noise(row_ids: Tensor, columns: int, seed: int, stream: int) -> Tensor:
    """``gumbel_noise`` of the rows with these numbers [n, columns], float32; the seed as a signed 64-bit number."""
    out = torch.empty(len(row_ids), columns, dtype=torch.float32, device=row_ids.device)
    with launched_on(out):
        noise_kernel[(len(row_ids), triton.cdiv(columns, _BLOCK))](
            row_ids.contiguous(), out, seed, stream, columns, _BLOCK, **_OPTIONS
        )
    return out


@triton.jit
def adam_kernel(
    GRADIENT, LOGITS, MEAN, SQUARE, LSE, LEVEL, K, gradient_stride, stride, rate, root, keep1, new1, keep2, new2, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK weights of one class per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < K
    place = row * stride + columns
    logits = tl.load(LOGITS + place, mask=mask, other=0.0)
    gradient = tl.load(GRADIENT + row * gradient_stride + columns, mask=mask, other=0.0)
    gradient = (gradient - tl.load(LEVEL + row)) * tl.exp(logits - tl.load(LSE + row))
    mean = tl.load(MEAN + place, mask=mask, other=0.0) * keep1 + gradient * new1
    square = tl.load(SQUARE + place, mask=mask, other=0.0) * keep2 + gradient * gradient * new2
    tl.store(MEAN + place, mean, mask=mask)
    tl.store(SQUARE + place, square, mask=mask)
    tl.store(LOGITS + place, logits - rate * mean / (tl.sqrt(square) / root + eps), mask=mask)


def adam_chunk(
    gradient: Tensor, logits: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, lse: Tensor, level: Tensor, rate: float,
    root: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """Change float32 logits and moments [C, n], columns of matrices of one shape, in place: 28 bytes a weight.

    ``gradient`` [C, n] is that of the association; 1 - beta is taken in float64, where 1 - 0.999 keeps its digits.
    """
    c, k = logits.shape
    with launched_on(logits):
        adam_kernel[(c, triton.cdiv(k, _BLOCK))](
            gradient, logits, exp_avg, exp_avg_sq, lse, level, k, gradient.stride(0), logits.stride(0), rate, root,
            betas[0], 1 - betas[0], betas[1], 1 - betas[1], eps, _BLOCK, **_OPTIONS,
        )  # fmt: skip
