"""k concepts of every picture, sampled with Gumbel noise, and what a head says of them: no N x K between the passes.

    z = (alpha_k inv_norm_n (x_n . t_k) + beta_k + g_nk) / tau          g: ``gumbel_noise`` of the picture's number
    forward     logits = sum of the head's columns of the k largest z   (a k-hot gate; or softmax(z) W^T)
    backward    straight-through: as if the gate had been p = softmax(z),
                dz = p * (dA - p . dA)        dA = dlogits W            (Jang, Gu and Poole, ICLR 2017)

Scores, noise and p are computed again in the backward pass, chunk by chunk; kept are k indices and one number a row.
On a CPU, where noise is integer arithmetic and costs more than all else, p of the first rows is kept as well: as many
as ``KEPT_BYTES`` hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.backend import MOST_PICKS, Backend, kernel_operands, kernel_vector, use_triton
from cbm.kernels.chunks import CHUNK_BYTES, accumulate, as_operand, product, rows_per_chunk, slices
from cbm.kernels.noise import gumbel_noise, signed
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

KEPT_BYTES = 2**27
"""Of softmaxes that a forward pass on a CPU keeps for the backward pass, beside the batch: assign to change it."""


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
        stream: Another matrix of noise of the same seed, 0 to 2^32 - 1.
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
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream is {stream}; expected 0 to 2^32 - 1")
    alpha = scaled_alpha(scale, alpha, concepts)
    if head is not None:
        check_matrix("head", head, columns=count)
    if row_ids is None:
        row_ids = torch.arange(n, device=x.device)
    elif list(row_ids.shape) != [n] or row_ids.dtype != torch.int64:
        raise ValueError(
            f"row_ids has shape {list(row_ids.shape)} and dtype {row_ids.dtype}; expected an int64 [{n}] vector"
        )
    beyond = f"k is {k}" if k > MOST_PICKS else ""
    triton = use_triton(backend, x, concepts, head, inv_norm, alpha, beta, beyond=beyond)
    trained = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, concepts, head, alpha, beta)
    )
    keep = 0 if triton or x.is_cuda or not trained else min(n, KEPT_BYTES // (4 * count))
    indices, logits, lse, _ = torch.ops.cbm.gumbel_topk(
        x, concepts, head, alpha, beta, inv_norm, row_ids, k, tau, signed(seed), stream, hard, triton, keep
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
        noise = gumbel_noise(row_ids[rows], len(weight), seed, stream=stream, dtype=dtype)
        return noise.add_(z).div_(tau)

    return scores, perturbed


def _rows(n: int, k: int, device: torch.device) -> int:
    """Rows per step: three matrices on a GPU; a CPU's noise takes several times the memory of the scores."""
    if device.type == "cuda":
        return rows_per_chunk(n, 3 * 4 * k, device)
    return max(1, min(n, CHUNK_BYTES["cpu"] * 2 // 5 // (4 * k)))


@torch.library.custom_op("cbm::gumbel_topk", mutates_args=())
def _gumbel_topk(
    x: Tensor, concepts: Tensor, head: Tensor | None, alpha: Tensor | None, beta: Tensor | None,
    inv_norm: Tensor | None, row_ids: Tensor, k: int, tau: float, seed: int, stream: int, hard: bool, triton: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Indices, logits, log-sum-exps, and softmax(z) of the first ``keep`` rows."""
    n, dtype = len(x), compute_dtype(x, concepts, alpha, beta)
    with torch.autocast(x.device.type, enabled=False):
        scores, perturbed = _sampled(x, concepts, alpha, beta, inv_norm, row_ids, tau, seed, stream, triton)
        votes = None if head is None else head.to(dtype)
        logits = x.new_empty(0 if votes is None else (n, len(votes)), dtype=dtype)
        kept = x.new_empty(keep, len(concepts), dtype=dtype)
        soft = votes is not None and not hard
        if triton:
            from cbm.kernels.gpu import topk as gpu

            _, indices, lse = gpu.topk(
                *kernel_operands(x, concepts), k, kernel_vector(inv_norm), kernel_vector(alpha), kernel_vector(beta),
                row_ids=row_ids, seed=seed, stream=stream, tau=tau,
            )  # fmt: skip
        else:
            indices, lse = row_ids.new_empty(n, k), x.new_empty(n, dtype=dtype)
        for rows in slices(n, _rows(n, len(concepts), x.device)) if soft or not triton else ():
            raw = scores(rows)[1]
            if triton:
                p = _softmax(raw, rows, alpha, beta, inv_norm, row_ids, lse, tau, seed, stream)
            else:
                z = perturbed(rows, raw)
                indices[rows], lse[rows] = ordered_topk(z, k)[1], z.logsumexp(1)
                p = z.sub_(lse[rows, None]).exp_() if soft or rows.start < keep else z
                kept[rows] = p[: max(0, keep - rows.start)]
            if votes is not None and soft:
                torch.mm(p, votes.T, out=logits[rows])
        if votes is not None and hard:
            logits = torch.nn.functional.embedding_bag(indices, votes.T.contiguous(), mode="sum")
        return indices, logits, lse, kept


def _softmax(
    raw: Tensor, rows: slice, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None, row_ids: Tensor,
    lse: Tensor, tau: float, seed: int, stream: int,
) -> Tensor:  # fmt: skip
    """softmax(z) [n, K] of some rows by one kernel, from their raw scores."""
    from cbm.kernels.gpu import elementwise

    p = torch.empty_like(raw)
    elementwise.gumbel_softmax_chunk(
        raw, row_ids[rows], None if inv_norm is None else kernel_vector(inv_norm[rows]), kernel_vector(alpha),
        kernel_vector(beta), lse[rows], seed, stream, tau, p,
    )  # fmt: skip
    return p


@_gumbel_topk.register_fake
def _(x, concepts, head, alpha, beta, inv_norm, row_ids, k, tau, seed, stream, hard, triton, keep):
    n, dtype = len(x), compute_dtype(x, concepts, alpha, beta)
    logits = x.new_empty(*((0,) if head is None else (n, len(head))), dtype=dtype)
    kept = x.new_empty(keep, len(concepts), dtype=dtype)
    return row_ids.new_empty(n, k), logits, x.new_empty(n, dtype=dtype), kept


@torch.library.custom_op("cbm::gumbel_topk_backward", mutates_args=())
def _backward(
    d_logits: Tensor | None, d_lse: Tensor | None, indices: Tensor, lse: Tensor, kept: Tensor, x: Tensor,
    concepts: Tensor, head: Tensor | None, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None,
    row_ids: Tensor, tau: float, seed: int, stream: int, hard: bool, triton: bool, need: list[bool],
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
        operand = torch.promote_types(x.dtype, concepts.dtype) if triton else dtype
        weight = concepts.to(operand)
        for rows in slices(n, _rows(n, count, x.device)):
            features, raw, held = x[rows].to(operand), None, kept[rows]
            if need[3] or len(held) < len(features):
                features, raw = scores(rows)
            if raw is None or len(held) == len(features):
                p = held
            elif triton:
                p = _softmax(raw, rows, alpha, beta, inv_norm, row_ids, lse, tau, seed, stream)
            else:
                p = perturbed(rows, raw).sub_(lse[rows, None]).exp_()
            if d_logits is None or votes is None:
                dz = torch.zeros_like(p)
            else:
                errors = d_logits[rows].to(dtype)
                if need[2]:
                    d_head += errors.T @ (torch.zeros_like(p).scatter_(1, indices[rows], 1.0) if hard else p)
                dz = errors @ votes
                dz = dz.sub_(torch.linalg.vecdot(p, dz)[:, None]).mul_(p)
            if d_lse is not None:
                dz.addcmul_(p, d_lse[rows, None])
            dz.div_(tau)
            if need[4]:
                d_beta += dz.sum(0)
            dz = dz if inv_norm is None else dz.mul_(inv_norm[rows, None])
            if need[3] and raw is not None:
                d_alpha += torch.linalg.vecdot(dz, raw, dim=0)
            if need[1]:
                accumulate(products, dz.T, features)
            if need[0]:
                errors, factor = as_operand(dz if alpha is None else dz.mul_(alpha), operand)
                product(errors, weight, d_x[rows])
                d_x[rows] *= 1.0 if factor is None else factor
        if need[1] and alpha is not None:
            found[1] = products * alpha[:, None]
    return found[0], found[1], found[2], found[3], found[4]


@_backward.register_fake
def _(
    d_logits, d_lse, indices, lse, kept, x, concepts, head, alpha, beta, inv_norm, row_ids, tau, seed, stream, hard,
    triton, need,
):  # fmt: skip
    shapes = [x.shape, concepts.shape, (0,) if head is None else head.shape, (len(concepts),), (len(concepts),)]
    return tuple(x.new_empty(s if w else (0,), dtype=lse.dtype) for s, w in zip(shapes, need))


def _keep(ctx, inputs, output):
    *tensors, _, ctx.tau, ctx.seed, ctx.stream, ctx.hard, ctx.triton, _ = inputs
    ctx.save_for_backward(output[0], output[2], output[3], *tensors)
    ctx.mark_non_differentiable(output[3])


def _pull(ctx, d_indices, d_logits, d_lse, d_kept):
    indices, lse, kept, *tensors = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:5])
    d_logits = None if tensors[2] is None else d_logits
    found = torch.ops.cbm.gumbel_topk_backward(
        d_logits, d_lse, indices, lse, kept, *tensors, ctx.tau, ctx.seed, ctx.stream, ctx.hard, ctx.triton, need
    )
    gradients = (g.to(t.dtype) if w else None for g, t, w in zip(found, tensors, need))
    return (*gradients, *[None] * 9)


_gumbel_topk.register_autograd(_pull, setup_context=_keep)
