"""Gumbel noise as a function: of a seed, a stream, the number of a row and of a column, and of nothing else.

Counter-based random numbers (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011):
Philox4x32-10 turns the counter (column / 4, row, stream) under the key ``seed`` into four 32-bit words, one for each
of four columns. So noise can be drawn again wherever it is needed: in another batch, on another device, or inside a
GPU kernel (``cbm.kernels.gpu.tiles``), which draws the same words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.backend import Backend, use_triton

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_BLOCKS = {"cpu": 2**15, "cuda": 2**22}  # counters at a time: their words stay in a CPU's cache, or take 250 MB


def gumbel_noise(
    rows: int | Tensor,
    columns: int,
    seed: int,
    *,
    start: int = 0,
    stream: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> Tensor:
    """Rows of an endless matrix of standard Gumbel draws, in any order and any chunks, the same on every device.

    A draw comes from 23 random bits i as g = -log(-log((i + 1/2) / 2^23)), between -2.81 and 16.64: never infinite,
    and the same draw in float32 and in float64.

    Args:
        rows: How many rows, from ``start`` on; or the numbers of the rows ``[N]`` (int64, >= 0).
        columns: Columns of the matrix, at most 2^34.
        seed: Any integer; its lowest 64 bits count.
        start: The first row, >= 0; 0 if the rows are numbered.
        stream: Independent matrices of one seed are numbered by it, 0 to 2^32 - 1.
        device: Where to draw, by default where the row numbers are, else PyTorch's default device.
        dtype: float32 or float64.
        backend: "auto", "torch" or "triton".

    Returns:
        ``[N, columns]``.

    Raises:
        ValueError: If ``start`` is negative, ``stream`` or ``dtype`` is another one, or the backend cannot draw there.
    """
    if start < 0:
        raise ValueError(f"start is {start}; expected >= 0")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream is {stream}; expected 0 to 2^32 - 1")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}; expected torch.float32 or torch.float64")
    if isinstance(rows, Tensor):
        row = rows if device is None else rows.to(device)
    else:
        row = torch.arange(start, start + rows, device=torch.get_default_device() if device is None else device)
    if use_triton(backend, row, beyond="dtype is torch.float64" if dtype == torch.float64 else ""):
        from cbm.kernels.gpu import elementwise

        return elementwise.noise(row, columns, signed(seed), stream)
    block = torch.arange(-(-columns // 4), device=row.device)
    noise = torch.empty(len(row), columns, dtype=dtype, device=row.device)
    step = max(1, _BLOCKS.get(row.device.type, _BLOCKS["cpu"]) // len(block))
    for part, numbers in zip(noise.split(step), row.split(step)):
        words = torch.stack(_philox(block, numbers[:, None], stream, seed), 2).flatten(1)[:, :columns]
        part.copy_(words.bitwise_right_shift_(9))
    return noise.add_(0.5).div_(2**23).log_().neg_().log_().neg_()


def signed(seed: int) -> int:
    """The lowest 64 bits of any integer as a signed number, which an operation of PyTorch or a kernel can take."""
    return ((seed & 2**64 - 1) ^ 2**63) - 2**63


def _philox(block: Tensor, row: Tensor, stream: int, seed: int) -> tuple[Tensor, ...]:
    """Four matrices [N, blocks] of 32-bit words, as int64, from block numbers [blocks] and row numbers [N, 1].

    Products of 32-bit words are taken in int64: the sign of the wrapped product is masked away. Everything is written
    to memory that is in cache already.
    """
    a, b = _MULTIPLIERS
    key = [seed & _WORD, seed >> 32 & _WORD]
    start = block & _WORD, row & _WORD, row >> 32 & _WORD, torch.full_like(block, stream & _WORD)
    c0, c1, c2, c3 = (counter.expand(len(row), len(block)).clone() for counter in start)
    from_c0, from_c2 = torch.empty_like(c0), torch.empty_like(c2)
    for _ in range(_ROUNDS):
        torch.mul(c0, a, out=from_c0)
        torch.mul(c2, b, out=from_c2)
        torch.bitwise_right_shift(from_c2, 32, out=c0).bitwise_and_(_WORD).bitwise_xor_(c1).bitwise_xor_(key[0])
        torch.bitwise_right_shift(from_c0, 32, out=c2).bitwise_and_(_WORD).bitwise_xor_(c3).bitwise_xor_(key[1])
        torch.bitwise_and(from_c2, _WORD, out=c1)
        torch.bitwise_and(from_c0, _WORD, out=c3)
        key = [(word + step) & _WORD for word, step in zip(key, _KEY_STEPS)]
    return c0, c1, c2, c3
