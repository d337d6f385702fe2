"""The k largest scores of every row, with or without Gumbel noise: scores are looked at and forgotten.

Every row keeps k packed keys in registers. Of a tile of scores only the largest is looked at, inserted if it beats the
k-th key, and taken out of the tile; about k (1 + ln(K / k)) insertions a row in all. Few rows: the concepts are split
among programs, and the lists merged by one sort. Tiles are products of half precision made on the spot; of float32 the
library makes a chunk of scores, and the same kernel reads its tiles from there ("stored").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cbm.kernels.backend import LAUNCH, Launch, describable, launched_on, splits_of_concepts
from cbm.kernels.chunks import rows_per_chunk, slices
from cbm.kernels.gpu.tiles import WIDE, affine, described_tile, gumbel, packed_key, score_tile

_CONCEPTS = 16_384  # of a chunk of stored scores; a multiple of four, since noise is drawn for four columns at once
_ROWS = 32


@triton.jit(do_not_specialize=["N", "first", "per", "k", "seed", "stream"])
def topk_kernel(
    X, INVERSE, T, ALPHA, BETA, ROW_IDS, KEYS, LSE, N, K, D, x_stride, t_stride, first, per, k, seed, stream,
    inverse_tau, HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr,
    SAMPLE: tl.constexpr, FROM: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    SLOTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """k keys of BM rows among ``per`` concepts from number ``first`` on per program.

    FROM 0: X and T are pointers; 1: descriptors; 2: X holds scores of the concepts from ``first`` on, and the keys (and
    log-sum-exps) of those before are taken up again unless ``first`` is 0.
    """
    LOWEST: tl.constexpr = -0x7FFFFFFFFFFFFFFF
    HIGHEST: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    split = tl.program_id(1)
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    row_mask = rows < N
    slots = tl.arange(0, SLOTS)
    alive = (slots < k)[None, :]  # the others hold the highest key, so that they are never the lowest
    part = split.to(tl.int64) * N + rows
    kept = tl.where(alive, tl.full((BM, SLOTS), LOWEST, tl.int64), tl.full((BM, SLOTS), HIGHEST, tl.int64))
    largest = tl.full((BM,), -float("inf"), tl.float32)
    if FROM == 2:
        resumed = row_mask & (tl.zeros((BM,), tl.int32) + first > 0)
        kept = tl.load(KEYS + part[:, None] * k + slots[None, :], mask=resumed[:, None] & alive, other=kept)
        if SAMPLE:
            largest = tl.load(LSE + part, mask=resumed, other=-float("inf"))
    last = tl.min(kept, 1)
    if SAMPLE:
        row_ids = tl.load(ROW_IDS + rows, mask=row_mask, other=0)
        total = tl.where(largest == -float("inf"), 0.0, 1.0)
        odd = largest != largest  # whether a score is NaN
    begin = first + split * per
    for start in range(begin, tl.minimum(begin + per, K), BK):
        columns = (start + tl.arange(0, BK)).to(tl.int64)
        column_mask = columns < K
        if FROM == 0:
            scores = score_tile(X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, WIDE)
        elif FROM == 1:
            scores = described_tile(X, T, tl.program_id(0) * BM, start, D, BM, BK, BD, WIDE)
        else:
            column_mask = columns < tl.minimum(begin + per, K)
            place = rows[:, None] * x_stride + (columns - first)[None, :]
            scores = tl.load(X + place, mask=row_mask[:, None] & column_mask[None, :], other=0.0)
        scores = affine(
            scores, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, HAS_INVERSE, HAS_ALPHA, HAS_BETA
        )
        if SAMPLE:
            scores = (scores + gumbel(seed, stream, row_ids, start // 4, BM, BK // 4)) * inverse_tau
            odd = odd | (tl.max((column_mask[None, :] & (scores != scores)).to(tl.int32), 1) > 0)
        taken = row_mask[:, None] & column_mask[None, :] & (scores == scores)  # a NaN counts as -inf
        scores = tl.where(taken, scores, -float("inf"))
        best, place_of_best = tl.max(scores, 1, return_indices=True)
        if SAMPLE:
            now = tl.maximum(largest, best)
            shift = tl.where(now == -float("inf"), 0.0, now)  # as long as all there is is -inf
            total = total * tl.exp(largest - shift) + tl.sum(tl.exp(scores - shift[:, None]), 1)
            largest = now
        key = tl.where(best > -float("inf"), packed_key(best, start + place_of_best), LOWEST)
        while tl.max((key > last).to(tl.int32), 0) > 0:
            lowest = tl.min(tl.where((kept == last[:, None]) & alive, slots[None, :], SLOTS), 1)
            enters = (key > last)[:, None] & (slots[None, :] == lowest[:, None])
            kept = tl.where(enters, key[:, None], kept)
            last = tl.min(kept, 1)
            scores = tl.where(tl.arange(0, BK)[None, :] == place_of_best[:, None], -float("inf"), scores)
            best, place_of_best = tl.max(scores, 1, return_indices=True)
            key = tl.where(best > -float("inf"), packed_key(best, start + place_of_best), LOWEST)
    tl.store(KEYS + part[:, None] * k + slots[None, :], kept, mask=row_mask[:, None] & alive)
    if SAMPLE:
        lse = tl.where(total > 0.0, largest + tl.log(total), -float("inf"))
        tl.store(LSE + part, tl.where(odd, float("nan"), lse), mask=row_mask)


@triton.jit(do_not_specialize=["N", "k", "stride"])
def unpack_kernel(KEYS, VALUES, INDICES, N, k, stride, BM: tl.constexpr, SLOTS: tl.constexpr):
    """Values and indices of BM rows of keys in descending order.

    Rows with fewer than k scores above -inf get the lowest of the other indices, with -inf: as a stable sort would.
    """
    LOWEST: tl.constexpr = -0x7FFFFFFFFFFFFFFF
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    mask = (rows < N)[:, None] & (slots < k)[None, :]
    keys = tl.load(KEYS + rows[:, None] * stride + slots[None, :], mask=mask, other=0)
    ordered = (keys >> 32).to(tl.int32)
    values = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
    found = mask & (keys != LOWEST)
    values = tl.where(found, values, -float("inf"))
    indices = tl.where(found, 0x7FFFFFFF - (keys & 0x7FFFFFFF), -1)
    wanted = tl.sum(mask.to(tl.int32), 1)
    filled = tl.sum(found.to(tl.int32), 1)
    candidate = tl.zeros((), tl.int64)
    while tl.max((filled < wanted).to(tl.int32), 0) > 0:
        there = tl.max((indices == candidate).to(tl.int32), 1) > 0
        enters = (slots[None, :] == filled[:, None]) & mask & (there == 0)[:, None]
        indices = tl.where(enters, candidate, indices)
        filled += ((filled < wanted) & (there == 0)).to(tl.int32)
        candidate += 1
    tl.store(VALUES + rows[:, None] * k + slots[None, :], values, mask=mask)
    tl.store(INDICES + rows[:, None] * k + slots[None, :], indices, mask=mask)


def topk(
    x: Tensor, concepts: Tensor, k: int, inv_norm: Tensor | None = None, alpha: Tensor | None = None,
    beta: Tensor | None = None, *, row_ids: Tensor | None = None, seed: int = 0,
    stream: int = 0, tau: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Values [N, k] in descending order and indices [N, k]; with ``row_ids`` of ``(score + g) / tau``, and its
    log-sum-exps [N] (else empty). Operands of one dtype, float32 vectors; the seed a signed 64-bit number."""
    n = len(x)
    row_ids = None if row_ids is None else row_ids.contiguous()
    values = torch.empty(n, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(n, k, dtype=torch.int64, device=x.device)
    search = _Search(len(concepts), k, alpha, beta, seed, stream, tau)
    with launched_on(x):
        keys, lse = (_stored if x.dtype == torch.float32 else _on_the_spot)(search, x, concepts, inv_norm, row_ids)
        merged = keys.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values
        unpack_kernel[(triton.cdiv(n, _ROWS),)](
            merged, values, indices, n, k, merged.stride(0), _ROWS, triton.next_power_of_2(k)
        )
    return values, indices, lse.logsumexp(0) if len(lse) > 1 else lse[0]


@dataclass
class _Search:
    """What stays the same in all launches of one operation."""

    count: int
    k: int
    alpha: Tensor | None
    beta: Tensor | None
    seed: int
    stream: int
    tau: float

    def tile(self, row_ids: Tensor | None, way: str) -> Launch:
        """Tile sizes; half the rows and threads where many keys are kept of each, so that they stay in registers."""
        tile = LAUNCH[("topk" if row_ids is None else "sampled") + way]
        return replace(tile, rows=64, warps=4) if self.k > 32 and tile.rows > 64 else tile

    def results(self, splits: int, n: int, x: Tensor, row_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Memory for keys [splits, n, k] and log-sum-exps [splits, n], empty where nothing is sampled."""
        keys = torch.empty(splits, n, self.k, dtype=torch.int64, device=x.device)
        return keys, torch.empty(splits, 0 if row_ids is None else n, dtype=torch.float32, device=x.device)

    def launch(self, source, text, way, tile, inv_norm, row_ids, keys, lse, first, per, strides, d) -> None:
        """One kernel: rows and splits are those of the keys, ``source`` and ``text`` what ``way`` says."""
        splits, n = keys.shape[:2]
        topk_kernel[(triton.cdiv(n, tile.rows), splits)](
            source, inv_norm, text, self.alpha, self.beta, row_ids, keys, lse, n, self.count, d, *strides, first, per,
            self.k, self.seed, self.stream, 1 / self.tau, inv_norm is not None, self.alpha is not None,
            self.beta is not None, row_ids is not None, way, tile.rows, tile.concepts, tile.dims,
            triton.next_power_of_2(self.k), WIDE, **tile.options,
        )  # fmt: skip


def _on_the_spot(search: _Search, x, concepts, inv_norm, row_ids) -> tuple[Tensor, Tensor]:
    """Keys and log-sum-exps of half-precision operands, whose scores are nowhere written."""
    described = describable(x, concepts)
    tile = search.tile(row_ids, ", described" if described else "")
    splits, per = splits_of_concepts(len(x), len(concepts), tile)
    keys, lse = search.results(splits, len(x), x, row_ids)
    strides, d = (x.stride(0), concepts.stride(0)), x.shape[1]
    if described:
        x = TensorDescriptor.from_tensor(x, [tile.rows, tile.dims])
        concepts = TensorDescriptor.from_tensor(concepts, [tile.concepts, tile.dims])
    search.launch(x, concepts, int(described), tile, inv_norm, row_ids, keys, lse, 0, per, strides, d)
    return keys, lse


def _stored(search: _Search, x, concepts, inv_norm, row_ids) -> tuple[Tensor, Tensor]:
    """The same of float32 operands, from chunks of scores that the library makes."""
    n, count = len(x), len(concepts)
    tile, width = search.tile(row_ids, ", stored"), min(count, _CONCEPTS)
    keys, lse = search.results(1, n, x, row_ids)
    for rows in slices(n, rows_per_chunk(n, 4 * width, x.device)):
        inverse, ids = (None if v is None else v[rows] for v in (inv_norm, row_ids))
        for first in range(0, count, width):
            scores = x[rows] @ concepts[first : first + width].T
            strides = scores.stride(0), 0
            search.launch(
                scores, None, 2, tile, inverse, ids, keys[:, rows], lse[:, rows], first, scores.shape[1], strides, 0
            )
    return keys, lse
