"""What the Triton kernels share: a tile of scores, activations, keys that sort, and noise.

Names in kernels: X [N, D] features, T [K, D] concepts, INVERSE [N] a factor on every row, ALPHA and BETA [K] an affine
map of every concept's score; block sizes BM (rows), BK (concepts), BD (dimensions). ``WIDE`` casts operands of products
to float32 first: Triton's interpreter would multiply the bit patterns of bfloat16.

Loops over D are inside, so that Triton pipelines their loads; addresses are 64-bit, since N x K passes 2^31. Numbers
that change from step to step, such as a seed, are not specialised on: each would compile a kernel of its own.
"""

import triton
import triton.language as tl

from cbm.kernels.backend import interpreted

ACTIVATIONS = {"identity": 0, "sigmoid": 1, "relu": 2, "tanh": 3, "cube": 4}
WIDE = interpreted()


@triton.jit
def widen(x, WIDE: tl.constexpr):
    """The operand of a product."""
    if WIDE:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """phi(z)."""
    if ACTIVATION == 1:
        return 1.0 / (1.0 + tl.exp(-z))
    elif ACTIVATION == 2:
        return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 3:
        return 2.0 / (1.0 + tl.exp(-2.0 * z)) - 1.0
    elif ACTIVATION == 4:
        return z * z * z
    else:
        return z


@triton.jit
def slope(a, ACTIVATION: tl.constexpr):
    """phi'(z) as a function of a = phi(z)."""
    if ACTIVATION == 1:
        return a * (1.0 - a)
    elif ACTIVATION == 2:
        return tl.where(a > 0.0, 1.0, 0.0)
    elif ACTIVATION == 3:
        return 1.0 - a * a
    elif ACTIVATION == 4:
        return 3.0 * tl.exp(tl.log(tl.abs(a)) * (2.0 / 3.0))
    else:
        return tl.full(a.shape, 1.0, tl.float32)


@triton.jit
def score_tile(
    X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Dot products of BM rows of X with BK rows of T in float32, [BM, BK]."""
    scores = tl.zeros((BM, BK), tl.float32)
    for start in range(0, D, BD):
        dims = start + tl.arange(0, BD)
        within = dims < D
        x = tl.load(X + rows[:, None] * x_stride + dims[None, :], mask=row_mask[:, None] & within[None, :], other=0.0)
        t = tl.load(
            T + columns[None, :] * t_stride + dims[:, None], mask=column_mask[None, :] & within[:, None], other=0.0
        )
        scores = tl.dot(widen(x, WIDE), widen(t, WIDE), scores)
    return scores


@triton.jit
def described_tile(X, T, row, column, D, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr):
    """The same from tensor descriptors, of the rows from ``row`` and ``column`` on; beyond the edges it is 0."""
    scores = tl.zeros((BM, BK), tl.float32)
    for start in range(0, D, BD):
        x = X.load([row, start])
        t = T.load([column, start])
        scores = tl.dot(widen(x, WIDE), widen(t, WIDE).T, scores)
    return scores


@triton.jit
def affine(
    scores, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr,
):  # fmt: skip
    """``scores * inverse_n * alpha_k + beta_k``."""
    if HAS_INVERSE:
        scores = scores * tl.load(INVERSE + rows, mask=row_mask, other=0.0)[:, None]
    if HAS_ALPHA:
        scores = scores * tl.load(ALPHA + columns, mask=column_mask, other=0.0)[None, :]
    if HAS_BETA:
        scores = scores + tl.load(BETA + columns, mask=column_mask, other=0.0)[None, :]
    return scores


@triton.jit
def packed_key(value, index):
    """An int64 that orders float32 values, and of equal values the lower index first."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # -0 equals 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def gumbel(seed, stream, rows, first_block, BM: tl.constexpr, BLOCKS: tl.constexpr):
    """Noise [BM, 4 BLOCKS] of rows and of columns 4 first_block, 4 first_block + 1, ..: ``gumbel_noise``, in place."""
    block = (first_block + tl.arange(0, BLOCKS)).to(tl.uint32)
    low, high = rows.to(tl.uint32), (rows >> 32).to(tl.uint32)
    zero = tl.zeros((BM, BLOCKS), tl.uint32)
    counter = zero + stream.to(tl.uint32)
    a, b, c, d = tl.philox(seed, zero + block[None, :], zero + low[:, None], zero + high[:, None], counter)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(BM, 4 * BLOCKS)  # a b c d next to each other
    uniform = ((words >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    return -tl.log(-tl.log(uniform))
