"""Concept scores: product, scale, affine map and activation in one pass; N x K numbers are written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cbm.kernels.backend import LAUNCH, Launch, describable, launched_on
from cbm.kernels.chunks import product
from cbm.kernels.gpu.elementwise import activate_chunk
from cbm.kernels.gpu.tiles import ACTIVATIONS, WIDE, activate, affine, described_tile, score_tile

_GROUP = 8  # row blocks that go over the concepts together, so that tiles of T are found in L2
_PROGRAMS = 4  # that stand for a GPU's multiprocessors where there is none


@triton.jit
def place_of(tile, row_blocks, column_blocks, GROUP: tl.constexpr):
    """Row block and column block of a tile: GROUP row blocks share the concepts before the next ones do."""
    group = tile // (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    inside = tile % (GROUP * column_blocks)
    return group * GROUP + inside % height, inside // height


@triton.jit(do_not_specialize=["N"])
def scores_kernel(
    X, INVERSE, T, ALPHA, BETA, OUT, N, K, D, x_stride, t_stride,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One [BM, BK] tile of OUT [N, K] per program."""
    row, column = place_of(tl.program_id(0), tl.cdiv(N, BM), tl.cdiv(K, BK), GROUP)
    rows = (row * BM + tl.arange(0, BM)).to(tl.int64)
    columns = (column * BK + tl.arange(0, BK)).to(tl.int64)
    row_mask, column_mask = rows < N, columns < K
    z = score_tile(X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, WIDE)
    z = affine(z, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, HAS_INVERSE, HAS_ALPHA, HAS_BETA)
    z = activate(z, ACTIVATION).to(OUT.dtype.element_ty)
    tl.store(OUT + rows[:, None] * K + columns[None, :], z, mask=row_mask[:, None] & column_mask[None, :])


@triton.jit(do_not_specialize=["N"])
def described_scores_kernel(
    X, INVERSE, T, ALPHA, BETA, OUT, N, K, D,
    HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th tile per program, X, T and OUT by descriptors: a tile is stored while the next is loaded.

    Half a tile is stored at a time, so that a whole one need not be turned into the layout of the store at once.
    """
    row_blocks, column_blocks = tl.cdiv(N, BM), tl.cdiv(K, BK)
    for tile in tl.range(tl.program_id(0), row_blocks * column_blocks, PROGRAMS, flatten=True):
        row, column = place_of(tile, row_blocks, column_blocks, GROUP)
        row, column = row * BM, column * BK
        z = described_tile(X, T, row, column, D, BM, BK, BD, WIDE)
        rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BK)
        z = affine(z, INVERSE, ALPHA, BETA, rows, rows < N, columns, columns < K, HAS_INVERSE, HAS_ALPHA, HAS_BETA)
        left, right = tl.split(tl.permute(tl.reshape(activate(z, ACTIVATION), (BM, 2, BK // 2)), (0, 2, 1)))
        OUT.store([row, column], left.to(OUT.dtype))
        OUT.store([row, column + BK // 2], right.to(OUT.dtype))


def scores(
    x: Tensor, concepts: Tensor, inv_norm: Tensor | None, alpha: Tensor | None, beta: Tensor | None, activation: str,
    out: Tensor,
) -> Tensor:  # fmt: skip
    """``out = phi(inv_norm_n alpha_k (x_n . t_k) + beta_k)`` [N, K] of operands of one dtype and float32 vectors.

    float32 and plain products are the library's: no kernel of ours is faster at either.
    """
    plain = activation == "identity" and inv_norm is None and alpha is None and beta is None
    if plain and (out.dtype == x.dtype or out.dtype == torch.float32):
        return product(x, concepts.T, out)
    if x.dtype == torch.float32:
        raw = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        activate_chunk(product(x, concepts.T, raw), inv_norm, alpha, beta, activation, out)
        return out
    with launched_on(x):
        if describable(x, concepts, out):
            _described(x, concepts, inv_norm, alpha, beta, activation, out, LAUNCH["scores, described"])
        else:
            _pointed(x, concepts, inv_norm, alpha, beta, activation, out, LAUNCH["scores"])
    return out


def _pointed(x, concepts, inv_norm, alpha, beta, activation, out, tile: Launch) -> None:
    (n, d), k = x.shape, len(concepts)
    scores_kernel[(triton.cdiv(n, tile.rows) * triton.cdiv(k, tile.concepts),)](
        x, inv_norm, concepts, alpha, beta, out, n, k, d, x.stride(0), concepts.stride(0),
        inv_norm is not None, alpha is not None, beta is not None, ACTIVATIONS[activation],
        tile.rows, tile.concepts, tile.dims, _GROUP, WIDE, **tile.options,
    )  # fmt: skip


def _described(x, concepts, inv_norm, alpha, beta, activation, out, tile: Launch) -> None:
    (n, d), k = x.shape, len(concepts)
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else _PROGRAMS
    described_scores_kernel[(min(programs, triton.cdiv(n, tile.rows) * triton.cdiv(k, tile.concepts)),)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.dims]), inv_norm,
        TensorDescriptor.from_tensor(concepts, [tile.concepts, tile.dims]), alpha, beta,
        TensorDescriptor.from_tensor(out, [tile.rows, tile.concepts // 2]), n, k, d,
        inv_norm is not None, alpha is not None, beta is not None, ACTIVATIONS[activation],
        tile.rows, tile.concepts, tile.dims, _GROUP, programs, WIDE, **tile.options,
    )  # fmt: skip
