"""The Gumbel objective of Sparse Concept Bottleneck Models (Semenov, Ivanov, Beznosikov and Gasnikov, 2024).

With standard Gumbel noise G1 and G0, Y1 the softmax over concepts of (Z + G1) / tau and Y0 the softmax over images of
(Z + G0) / tau, the paper and its code have two different losses:

    "diagonal" (paper)    L = -1/(2m) sum_{i < m} (log Y1_ii + log Y0_ii)        on the m x m block, m = min(B, K)
    "all" (code)          L = -1/(2BK) sum_{b,k} (log Y1_bk + log Y0_bk)

The first pairs image i of the batch with concept i: slot numbers. The second is least, in expectation, where Z is
constant: it makes the outputs flatter, not sparser. Neither ties an output to the concept whose name it bears.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cbm.kernels.gumbel import check_noise, perturb, row_chunks
from cbm.kernels.shapes import check_matrix, check_tau, compute_dtype


def gumbel_nll(
    z: Tensor,
    tau: float = 1.0,
    *,
    seed: int | None = None,
    noise: tuple[Tensor, Tensor] | None = None,
    pairing: Literal["diagonal", "all"] = "diagonal",
    hard: bool = False,
) -> Tensor:
    """Negative log-likelihood of the pairs under Gumbel-softmaxes over concepts and over images.

    The paper perturbs the logarithm of the scores. Here, as in the code, Z itself is perturbed: a score may be
    negative and then has no logarithm, and an output of a linear layer already plays the part of a log-probability.

    Computed from the log-sum-exps of rows and columns, so it is finite where a softmax would underflow. Only Z, these
    and the seed (or the given noise) are kept between the passes: the backward pass draws the noise again and writes
    the gradient in chunks of rows. Differentiable once. With T the average target, 1 on the diagonal or 1/K and 1/B,

        dL/dZ_bk = 1/(2 tau) ((Y1_bk - T1_bk) / B + (Y0_bk - T0_bk) / K)        (in the m x m block, if diagonal)

    Args:
        z: Bottleneck outputs ``[B, K]``, finite.
        tau: Temperature, > 0.
        seed: Draws G1 and G0 as streams 0 and 1 of ``gumbel_noise``.
        noise: G1 and G0 themselves ``[B, K]``, instead of a seed. They get no gradient.
        pairing: "diagonal" or "all", see above.
        hard: Must be False: a one-hot sample has zeros, whose logarithm makes every loss infinite.

    Returns:
        The loss, 0-d.

    Raises:
        ValueError: If an argument is not as above, or not exactly one of ``seed`` and ``noise`` is given.
    """
    if hard:
        raise ValueError("hard is True; expected False: the loss takes logarithms and a one-hot sample has exact zeros")
    if pairing not in ("diagonal", "all"):
        raise ValueError(f"pairing is {pairing!r}; expected 'diagonal' or 'all'")
    check_matrix("z", z)
    check_tau(tau)
    noise_1, noise_0 = noise or (None, None)
    check_noise(seed, noise_1, noise_0, shape=z.shape)
    if pairing == "diagonal":
        m = min(z.shape)
        z = z[:m, :m]
        noise_1, noise_0 = (None if g is None else g[:m, :m] for g in (noise_1, noise_0))
    return _GumbelNll.apply(z, tau, pairing == "diagonal", seed, noise_1, noise_0)


class _GumbelNll(torch.autograd.Function):
    """Forward and backward of the loss, both over chunks of rows; row log-sum-exps [B], column log-sum-exps [K]."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        tau: float,
        diagonal: bool,
        seed: int | None,
        noise_1: Tensor | None,
        noise_0: Tensor | None,
    ) -> Tensor:
        dtype = compute_dtype(z)
        row_lse = z.new_empty(len(z), dtype=dtype)
        column_lse = z.new_full((z.shape[1],), -torch.inf, dtype=dtype)
        paired = z.new_zeros((), dtype=dtype)
        for rows in row_chunks(z):
            logits_1 = perturb(z, rows, dtype, seed, noise_1, stream=0).div_(tau)
            logits_0 = perturb(z, rows, dtype, seed, noise_0, stream=1).div_(tau)
            row_lse[rows] = logits_1.logsumexp(1)
            column_lse = torch.logaddexp(column_lse, logits_0.logsumexp(0))
            paired += _pairs(logits_1.add_(logits_0), rows, diagonal).sum()
        ctx.save_for_backward(z, row_lse, column_lse, noise_1, noise_0)
        ctx.settings = tau, diagonal, seed
        return (row_lse.mean() + column_lse.mean() - paired / _pair_count(z, diagonal)) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        z, row_lse, column_lse, noise_1, noise_0 = ctx.saved_tensors
        tau, diagonal, seed = ctx.settings
        gradient = torch.empty_like(z)
        for rows in row_chunks(z):
            logits_1 = perturb(z, rows, row_lse.dtype, seed, noise_1, stream=0).div_(tau)
            logits_0 = perturb(z, rows, row_lse.dtype, seed, noise_0, stream=1).div_(tau)
            y_1, y_0 = logits_1.sub_(row_lse[rows, None]).exp_(), logits_0.sub_(column_lse).exp_()
            change = y_1.div_(z.shape[0]).add_(y_0.div_(z.shape[1]))
            _pairs(change, rows, diagonal).sub_(2 / _pair_count(z, diagonal))
            gradient[rows] = change.mul_(upstream / (2 * tau))
        return gradient, None, None, None, None, None


def _pairs(chunk: Tensor, rows: slice, diagonal: bool) -> Tensor:
    """View of the entries of these rows that are pairs."""
    return chunk.diagonal(rows.start) if diagonal else chunk


def _pair_count(z: Tensor, diagonal: bool) -> int:
    return len(z) if diagonal else z.numel()
