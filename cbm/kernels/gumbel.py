"""Gumbel noise, and a gate that keeps k concepts of every picture, sampled with it.

With standard Gumbel noise g the largest entry of z + g is a draw from softmax(z), and the k largest are k draws without
replacement (Plackett-Luce). The temperature tau belongs to the relaxation (z + g) / tau, never to the law.

Noise is drawn again wherever it is needed, never stored: it is a function of a seed and of the position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cbm.kernels.chunks import slices
from cbm.kernels.noise import gumbel_noise
from cbm.kernels.shapes import check_k, check_matrix, check_tau, compute_dtype
from cbm.kernels.topk import ordered_topk

_CHUNK = {"cpu": 2**17, "cuda": 2**23}
"""Entries per step, of which the relaxation keeps a few times k copies: 20 MB of float32 at k = 5 on a CPU, 1.3 GB on a
GPU, which small steps would leave waiting for the next launch."""


def check_noise(seed: int | None, *noise: Tensor | None, shape: torch.Size) -> None:
    """Raise ValueError unless either a seed is given or every matrix of noise, each of the wanted shape."""
    if (seed is None) == all(matrix is None for matrix in noise):
        raise ValueError("seed and noise: expected exactly one of them")
    for matrix in noise:
        if matrix is not None:
            check_matrix("noise", matrix, *shape)


def row_chunks(z: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of a matrix in order, of a bounded number of entries."""
    entries = _CHUNK.get(z.device.type, _CHUNK["cpu"])
    return slices(len(z), max(1, entries // z.shape[1]))


def perturb(
    z: Tensor, rows: slice, dtype: torch.dtype, seed: int | None, noise: Tensor | None, stream: int = 0
) -> Tensor:
    """``z + g`` on some of the rows in ``dtype``; g is given as ``noise``, else drawn from ``seed``."""
    if noise is not None:
        return z[rows].to(dtype) + noise[rows].to(z.device, dtype)
    assert seed is not None
    drawn = gumbel_noise(
        rows.stop - rows.start, z.shape[1], seed, start=rows.start, stream=stream, device=z.device, dtype=dtype
    )
    return drawn.add_(z[rows])


def soft_khot(keys: Tensor, k: int, tau: float) -> Tensor:
    """Relaxed indicator of the k largest keys of every row: the sum of k softmaxes, each with less of what was taken.

        p^j = softmax(keys^j / tau)        keys^{j+1} = keys^j + log(1 - p^j)        result = p^1 + .. + p^k

    log(1 - p) of the largest entry is formed from the others, so it is exact, and has its gradient, where p rounds
    to 1. An entry may exceed 1; with tau -> 0 the result is the indicator. Differentiable in the keys.

    Args:
        keys: ``[N, K]``, finite.
        k: How many, 1 <= k <= K.
        tau: Temperature, > 0.

    Returns:
        ``[N, K]``; every row sums to k. float32, or float64 if the keys are.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_k(k, check_matrix("keys", keys).shape[1])
    check_tau(tau)
    keys = keys.to(compute_dtype(keys))
    total = torch.zeros_like(keys)
    for step in range(k):
        log_p = torch.log_softmax(keys / tau, 1)
        p = log_p.exp()
        total = total + p
        if step < k - 1:
            top = log_p.argmax(1, keepdim=True)
            others = log_p.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
            keys = keys + torch.log1p(-p.scatter(1, top, 0)).scatter(1, top, others)
    return total


def topk_gate(z: Tensor, k: int) -> Tensor:
    """``z`` where it is among the k largest of its row, else 0; of equal values the lower index is kept.

    Args:
        z: ``[N, K]``.
        k: How many to keep, 1 <= k <= K.

    Returns:
        ``[N, K]``, float32 or, if z is, float64. The gradient goes to the kept entries only.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_k(k, check_matrix("z", z).shape[1])
    values = z.to(compute_dtype(z))
    kept = ordered_topk(values.detach(), k)[1]
    return torch.zeros_like(values).scatter(1, kept, values.gather(1, kept))


def gumbel_topk_gate(z: Tensor, k: int, tau: float, *, seed: int | None = None, noise: Tensor | None = None) -> Tensor:
    """``m * z`` with m the indicator of the k largest entries of ``z + g`` in every row; g is Gumbel noise.

    The gradient is straight-through: m is differentiated as if it were ``soft_khot(z + g, k, tau)``,

        dL/dz = m * u + J^T (u * z)        u = dL/d(m * z), J the Jacobian of soft_khot in its keys

    Between the passes only z and the seed (or the given noise) are kept: the backward pass draws the noise again and
    differentiates the relaxation in chunks of rows. Differentiable once.

    Args:
        z: ``[N, K]``, finite.
        k: How many to keep, 1 <= k <= K.
        tau: Temperature of the relaxation, > 0; the forward pass does not depend on it.
        seed: Draws ``g = gumbel_noise(N, K, seed)``.
        noise: g itself ``[N, K]``, instead of a seed. It gets no gradient.

    Returns:
        ``[N, K]``, float32 or, if z is, float64.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of ``seed`` and ``noise`` is given.
    """
    check_k(k, check_matrix("z", z).shape[1])
    check_tau(tau)
    check_noise(seed, noise, shape=z.shape)
    return _GumbelTopkGate.apply(z, k, tau, seed, noise)


class _GumbelTopkGate(torch.autograd.Function):
    """Forward and backward of the gate, both over chunks of rows."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, k: int, tau: float, seed: int | None, noise: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, noise)
        ctx.settings = k, tau, seed
        gated = torch.zeros_like(z, dtype=compute_dtype(z))
        for rows in row_chunks(z):
            kept = ordered_topk(perturb(z, rows, gated.dtype, seed, noise), k)[1]
            gated[rows].scatter_(1, kept, z[rows].gather(1, kept).to(gated.dtype))
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, noise = ctx.saved_tensors
        k, tau, seed = ctx.settings
        gradient = torch.empty_like(z)
        for rows in row_chunks(z):
            keys = perturb(z, rows, upstream.dtype, seed, noise)
            u = upstream[rows]
            kept = ordered_topk(keys, k)[1]
            with torch.enable_grad():
                soft = soft_khot(keys.requires_grad_(), k, tau)
            (through,) = torch.autograd.grad(soft, keys, u * z[rows])
            gradient[rows] = through.scatter_add(1, kept, u.gather(1, kept))
        return gradient, None, None, None, None
