"""k concepts of every picture, sampled with Gumbel noise, and what a head says of them: no N x K between the passes.

    z = (alpha_k inv_norm_n (x_n . t_k) + beta_k + g_nk) / tau          g: ``gumbel_noise`` of the picture's number
    forward     logits = sum of the head's columns of the k largest z   (a k-hot gate; or softmax(z) W^T)
    backward    straight-through: as if the gate had been p = softmax(z),
                dz = p * (dA - p . dA)        dA = dlogits W            (Jang, Gu and Poole, ICLR 2017)

Scores, noise and p are computed again in the backward pass, chunk by chunk; kept are k indices and one number a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.backend import MOST_PICKS, Backend, kernel_matrix, kernel_vector, use_triton
from cbm.kernels.chunks import accumulate, product, rows_per_chunk
from cbm.kernels.noise import gumbel_noise
from cbm.kernels.shapes import (
    check_k,
    check_matrix,
    check_row_factors,
    check_tau,
    check_vector,
    compute_dtype,
    scaled_alpha,
)
from cbm.kernels.topk import ordered_topk


def gumbel_topk(
    x: Tensor,
    concepts: Tensor,
    k: int,
    tau: float,
    seed: int,
    row_ids: Tensor | None = None,
    *,
    head: Tensor | None = None,
    inv_norm: Tensor | None = None,
    scale: float | Tensor = 1.0,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    hard: bool = True,
    stream: int = 0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sample k concepts of every picture, and the logits of a head that reads nothing but which they are.

    The noise depends on the seed, the number of the picture and the concept: not on the batch, the chunk or the
    device. ``torch.nn.functional.gumbel_softmax`` draws from another stream.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        k: How many concepts, 1 <= k <= K.
        tau: Temperature, > 0. Which concepts are sampled does not depend on it.
        seed: Of the noise; its lowest 64 bits count.
        row_ids: The number of every picture [N] (int64, >= 0), the same in every batch; None for 0 .. N - 1.
        head: Class weights over concepts [C, K]; None for no logits.
        inv_norm: A factor on every row of x [N]; None for 1.
        scale: Factor on the scores, a number or a 0-d tensor.
        alpha: Factor on every concept's score [K]; None for 1.
        beta: Added to every concept's score [K]; None for 0.
        hard: The logits read the k-hot gate; else softmax(z).
        stream: Another matrix of noise of the same seed.
        backend: "auto", "torch" or "triton".

    Returns:
        Indices [N, k] (int64), largest z first; logits [N, C] or None; log-sum-exp of z [N]. Logits and log-sum-exp
        are differentiable once in x, concepts, head, scale, alpha and beta.

    Raises:
        ValueError: If a shape does not fit, a number is out of range, or the backend cannot take the tensors.
    """
    n, d = check_matrix("x", x).shape
    count = len(check_matrix("concepts", concepts, columns=d))
    check_k(k, count)
    check_tau(tau)
    check_row_factors("inv_norm", inv_norm, n)
    check_vector("beta", beta, count)
    alpha = scaled_alpha(scale, alpha, concepts)
    if head is not None:
        check_matrix("head", head, columns=count)
    if row_ids is None:
        row_ids = torch.arange(n, device=x.device)
    elif list(row_ids.shape) != [n] or row_ids.dtype != torch.int64:
        raise ValueError(
            f"row_ids has shape {list(row_ids.shape)} and dtype {row_ids.dtype}; expected an int64 [{n}] vector"
        )
    triton = use_triton(backend, x, concepts, head, beyond=f"k is {k}" if k > MOST_PICKS else "")
    signed = ((seed & 2**64 - 1) ^ 2**63) - 2**63
    indices, logits, lse = torch.ops.cbm.gumbel_topk(
        x, concepts, head, alpha, beta, inv_norm, row_ids, k, tau, signed, stream, hard, triton
    )
    return indices, None if head is None else logits, lse


def _sampled(
    x: Tensor, concepts: Tensor, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None,
    row_ids: Tensor, tau: float, seed: int, stream: int, triton: bool,
):  # fmt: skip
    """Functions of a slice of rows: features [n, D], scores [n, K] of ``alpha = 1, beta = 0``, and z [n, K]."""
    dtype = compute_dtype(x, concepts, alpha, beta)
    operand = torch.promote_types(x.dtype, concepts.dtype) if triton else dtype
    weight = concepts.to(operand)

    def scores(rows: slice) -> tuple[Tensor, Tensor]:
        features = x[rows].to(operand)
        raw = torch.empty(len(features), len(weight), dtype=dtype, device=x.device)
        return features, product(features, weight.T, raw)

    def perturbed(rows: slice, raw: Tensor) -> Tensor:
        z = raw if inv_norm is None else raw * inv_norm[rows, None]
        z = z if alpha is None else z * alpha
        z = z if beta is None else z + beta
        return (z + gumbel_noise(row_ids[rows], len(weight), seed, stream=stream, dtype=dtype)) / tau

    return scores, perturbed


def _rows(n: int, k: int, triton: bool) -> int:
    """Rows per step; the CPU's noise takes several times the memory of the scores."""
    return rows_per_chunk(n, k, cuda=True) if triton else max(1, min(n, 2**19 // k))


@torch.library.custom_op("cbm::gumbel_topk", mutates_args=())
def _gumbel_topk(
    x: Tensor, concepts: Tensor, head: Tensor | None, alpha: Tensor | None, beta: Tensor | None,
    inv_norm: Tensor | None, row_ids: Tensor, k: int, tau: float, seed: int, stream: int, hard: bool, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, dtype = len(x), compute_dtype(x, concepts, alpha, beta)
    with torch.autocast(x.device.type, enabled=False):
        scores, perturbed = _sampled(x, concepts, alpha, beta, inv_norm, row_ids, tau, seed, stream, triton)
        step = _rows(n, len(concepts), triton)
        chunks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        if triton:
            from cbm.kernels.gpu import topk as gpu

            _, indices, lse = gpu.topk(
                kernel_matrix(x), kernel_matrix(concepts), k, kernel_vector(inv_norm), kernel_vector(alpha),
                kernel_vector(beta), row_ids=row_ids.contiguous(), seed=seed, stream=stream, tau=tau,
            )  # fmt: skip
        else:
            indices, lse = row_ids.new_empty(n, k), x.new_empty(n, dtype=dtype)
            for rows in chunks:
                z = perturbed(rows, scores(rows)[1])
                indices[rows], lse[rows] = ordered_topk(z, k)[1], z.logsumexp(1)
        if head is None:
            return indices, x.new_empty(0, dtype=dtype), lse
        votes = head.to(dtype)
        if hard:
            return indices, torch.nn.functional.embedding_bag(indices, votes.T.contiguous(), mode="sum"), lse
        logits = x.new_empty(n, len(head), dtype=dtype)
        for rows in chunks:
            logits[rows] = (perturbed(rows, scores(rows)[1]) - lse[rows, None]).exp() @ votes.T
        return indices, logits, lse


@_gumbel_topk.register_fake
def _(x, concepts, head, alpha, beta, inv_norm, row_ids, k, tau, seed, stream, hard, triton):
    n, dtype = len(x), compute_dtype(x, concepts, alpha, beta)
    logits = x.new_empty(*((0,) if head is None else (n, len(head))), dtype=dtype)
    return row_ids.new_empty(n, k), logits, x.new_empty(n, dtype=dtype)


@torch.library.custom_op("cbm::gumbel_topk_backward", mutates_args=())
def _backward(
    d_logits: Tensor | None, d_lse: Tensor | None, indices: Tensor, lse: Tensor, x: Tensor, concepts: Tensor,
    head: Tensor | None, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None, row_ids: Tensor,
    tau: float, seed: int, stream: int, hard: bool, triton: bool, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, concepts, head, alpha and beta; empty where none is needed."""
    (n, d), count, dtype = x.shape, len(concepts), lse.dtype
    shapes = [(n, d), (count, d), (0 if head is None else len(head), count), (count,), (count,)]
    d_x, products, d_head, d_alpha, d_beta = found = [
        x.new_zeros(shape if wanted else (0,), dtype=dtype) for shape, wanted in zip(shapes, need)
    ]
    with torch.autocast(x.device.type, enabled=False):
        scores, perturbed = _sampled(x, concepts, alpha, beta, inv_norm, row_ids, tau, seed, stream, triton)
        votes = None if head is None else head.to(dtype)
        step = _rows(n, count, triton)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            features, raw = scores(rows)
            if triton:
                from cbm.kernels.gpu import elementwise

                p = torch.empty_like(raw)
                elementwise.gumbel_softmax_chunk(
                    raw, row_ids[rows], None if inv_norm is None else kernel_vector(inv_norm[rows]),
                    kernel_vector(alpha), kernel_vector(beta), lse[rows], seed, stream, tau, p,
                )  # fmt: skip
            else:
                p = (perturbed(rows, raw) - lse[rows, None]).exp_()
            dz = torch.zeros_like(p)
            if d_logits is not None and votes is not None:
                errors = d_logits[rows].to(dtype)
                if need[2]:
                    gate = torch.zeros_like(p).scatter_(1, indices[rows], 1.0) if hard else p
                    d_head += errors.T @ gate
                dz = errors @ votes
                dz = p * (dz - torch.linalg.vecdot(p, dz)[:, None])
            if d_lse is not None:
                dz = dz + p * d_lse[rows, None]
            dz = dz / tau
            if need[4]:
                d_beta += dz.sum(0)
            dz = dz if inv_norm is None else dz * inv_norm[rows, None]
            if need[3]:
                d_alpha += torch.linalg.vecdot(dz, raw, dim=0)
            if need[1]:
                accumulate(products, dz.to(features.dtype).T, features)
            if need[0]:
                weight = concepts.to(dtype) if alpha is None else concepts.to(dtype) * alpha[:, None]
                d_x[rows] = dz @ weight
        if need[1] and alpha is not None:
            found[1] = products * alpha[:, None]
    return found[0], found[1], found[2], found[3], found[4]


@_backward.register_fake
def _(
    d_logits, d_lse, indices, lse, x, concepts, head, alpha, beta, inv_norm, row_ids, tau, seed, stream, hard, triton,
    need,
):  # fmt: skip
    shapes = [x.shape, concepts.shape, (0,) if head is None else head.shape, (len(concepts),), (len(concepts),)]
    return tuple(x.new_empty(s if w else (0,), dtype=lse.dtype) for s, w in zip(shapes, need))


def _keep(ctx, inputs, output):
    *tensors, _, ctx.tau, ctx.seed, ctx.stream, ctx.hard, ctx.triton = inputs
    ctx.save_for_backward(output[0], output[2], *tensors)


def _pull(ctx, d_indices, d_logits, d_lse):
    indices, lse, *tensors = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:5])
    d_logits = None if tensors[2] is None else d_logits
    found = torch.ops.cbm.gumbel_topk_backward(
        d_logits, d_lse, indices, lse, *tensors, ctx.tau, ctx.seed, ctx.stream, ctx.hard, ctx.triton, need
    )
    gradients = (g.to(t.dtype) if w else None for g, t, w in zip(found, tensors, need))
    return (*gradients, *[None] * 8)


_gumbel_topk.register_autograd(_pull, setup_context=_keep)
