"""The k largest scores of every row, with or without Gumbel noise: scores are looked at and forgotten.

Every row keeps k packed keys in registers. Of a tile of scores only the largest is looked at, inserted if it beats the
k-th key, and taken out of the tile; about k (1 + ln(K / k)) insertions a row in all. Few rows: the concepts are split
among programs, and the lists merged by one sort.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import dot_precision, launch, splits_of_concepts
from cbm.kernels.gpu.tiles import WIDE, affine, gumbel, packed_key, score_tile


@triton.jit
def topk_kernel(
    X, INVERSE, T, ALPHA, BETA, ROW_IDS, KEYS, LSE, N, K, D, x_stride, t_stride, per, k, seed, stream,
    inverse_tau, HAS_INVERSE: tl.constexpr, HAS_ALPHA: tl.constexpr, HAS_BETA: tl.constexpr,
    SAMPLE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    SLOTS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """k keys of BM rows among ``per`` concepts per program."""
    LOWEST: tl.constexpr = -0x7FFFFFFFFFFFFFFF
    HIGHEST: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    split = tl.program_id(1)
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    row_mask = rows < N
    slots = tl.arange(0, SLOTS)
    alive = (slots < k)[None, :]  # the others hold the highest key, so that they are never the lowest
    kept = tl.where(alive, tl.full((BM, SLOTS), LOWEST, tl.int64), tl.full((BM, SLOTS), HIGHEST, tl.int64))
    last = tl.full((BM,), LOWEST, tl.int64)
    if SAMPLE:
        row_ids = tl.load(ROW_IDS + rows, mask=row_mask, other=0)
        largest = tl.full((BM,), -float("inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
    for start in range(split * per, tl.minimum(split * per + per, K), BK):
        columns = (start + tl.arange(0, BK)).to(tl.int64)
        column_mask = columns < K
        scores = score_tile(
            X, T, rows, row_mask, columns, column_mask, D, x_stride, t_stride, BM, BK, BD, PRECISION, WIDE
        )
        scores = affine(
            scores, INVERSE, ALPHA, BETA, rows, row_mask, columns, column_mask, HAS_INVERSE, HAS_ALPHA, HAS_BETA
        )
        if SAMPLE:
            scores = (scores + gumbel(seed, stream, row_ids, start // 4, BM, BK // 4)) * inverse_tau
        taken = row_mask[:, None] & column_mask[None, :] & (scores == scores)  # a NaN counts as -inf
        scores = tl.where(taken, scores, -float("inf"))
        if SAMPLE:
            now = tl.maximum(largest, tl.max(scores, 1))
            total = total * tl.exp(largest - now) + tl.sum(tl.exp(scores - now[:, None]), 1)
            largest = now
        best, place = tl.max(scores, 1, return_indices=True)
        key = packed_key(best, start + place)
        while tl.max((key > last).to(tl.int32), 0) > 0:
            lowest = tl.min(tl.where((kept == last[:, None]) & alive, slots[None, :], SLOTS), 1)
            enters = (key > last)[:, None] & (slots[None, :] == lowest[:, None])
            kept = tl.where(enters, key[:, None], kept)
            last = tl.min(kept, 1)
            scores = tl.where(tl.arange(0, BK)[None, :] == place[:, None], -float("inf"), scores)
            best, place = tl.max(scores, 1, return_indices=True)
            key = packed_key(best, start + place)
    part = split.to(tl.int64) * N + rows
    tl.store(KEYS + part[:, None] * k + slots[None, :], kept, mask=row_mask[:, None] & alive)
    if SAMPLE:
        tl.store(LSE + part, largest + tl.log(total), mask=row_mask)


def topk(
    x: Tensor, concepts: Tensor, k: int, inv_norm: Tensor | None = None, alpha: Tensor | None = None,
    beta: Tensor | None = None, *, row_ids: Tensor | None = None, seed: int = 0,
    stream: int = 0, tau: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Values [N, k] in descending order and indices [N, k]; with ``row_ids`` of ``(score + g) / tau``, and its
    log-sum-exps [N] (else empty). An index may be K or more where a row has fewer than k scores above -inf."""
    (n, d), count = x.shape, len(concepts)
    sample = row_ids is not None
    tile = launch("sampled" if sample else "topk", x.dtype)
    splits, per = splits_of_concepts(n, count, tile)
    keys = torch.empty(splits, n, k, dtype=torch.int64, device=x.device)
    lse = torch.empty(splits, n if sample else 0, dtype=torch.float32, device=x.device)
    topk_kernel[(triton.cdiv(n, tile.rows), splits)](
        x, inv_norm, concepts, alpha, beta, row_ids, keys, lse, n, count, d, x.stride(0), concepts.stride(0),
        per, k, seed, stream, 1 / tau, inv_norm is not None, alpha is not None, beta is not None, sample,
        tile.rows, tile.concepts, tile.dims, triton.next_power_of_2(k), dot_precision(), WIDE,
        **tile.options,
    )  # fmt: skip
    merged = keys.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values[:, :k]
    ordered = (merged >> 32).int()
    values = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    return values, 0x7FFFFFFF - (merged & 0x7FFFFFFF), lse.logsumexp(0)
