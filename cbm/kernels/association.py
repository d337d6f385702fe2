"""A row-stochastic head (LaBo) trained without the association: class vectors, and Adam on W from their gradient.

    A = softmax_k(W) [C, K]        V = A T [C, D]        dW_ck = A_ck (dV_c . t_k - dV_c . V_c)

The classifier reads A only through V, and what the softmax takes off a row's gradient, sum_k A_ck dA_ck, is dV_c . V_c.
So of all that has the size of W, a training step touches W and Adam's two moments, once each, tile by tile. With 50,000
concepts and 1,000 classes each of A, dA, dW and an optimizer's temporaries would be 200 MB, read and written.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cbm.kernels.backend import Backend, use_triton
from cbm.kernels.chunks import slices
from cbm.kernels.shapes import check_matrix, compute_dtype

_COLUMNS, _ROWS = 2048, 256  # a tile of W and what is made of it stay in a CPU's cache
_COLUMNS_GPU = 8192  # of the gradient at a time: 32 MB for 1,000 classes


def association_vectors(logits: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
    """Class vectors ``softmax_k(W) T`` and the log-sum-exps of W's rows, without the [C, K] association.

    Args:
        logits: W [C, K].
        concepts: Concept embeddings T [K, D].

    Returns:
        Vectors [C, D], differentiable once in both arguments, and log-sum-exps [C], not differentiable. float32, or
        float64 if an argument is.

    Raises:
        ValueError: If a shape does not fit.
    """
    check_matrix("logits", logits, columns=len(check_matrix("concepts", concepts)))
    vectors, lse = torch.ops.cbm.association_vectors(logits, concepts)
    return vectors, lse


@torch.library.custom_op("cbm::association_vectors", mutates_args=())
def _vectors(logits: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(logits, concepts)
    with torch.autocast(logits.device.type, enabled=False):
        largest = logits.amax(1).to(dtype)
        vectors = logits.new_zeros(len(logits), concepts.shape[1], dtype=dtype)
        total = torch.zeros_like(largest)
        for columns in _columns(logits):
            part = (logits[:, columns].to(dtype) - largest[:, None]).exp_()
            total += part.sum(1)
            vectors.addmm_(part, concepts[columns].to(dtype))
        return vectors.div_(total[:, None]), largest + total.log()


@_vectors.register_fake
def _(logits, concepts):
    dtype = compute_dtype(logits, concepts)
    return logits.new_empty(len(logits), concepts.shape[1], dtype=dtype), logits.new_empty(len(logits), dtype=dtype)


@torch.library.custom_op("cbm::association_vectors_backward", mutates_args=())
def _backward(
    upstream: Tensor, logits: Tensor, concepts: Tensor, vectors: Tensor, lse: Tensor, need: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and concepts; empty where none is needed."""
    d_logits, d_concepts = (
        torch.empty_like(t, dtype=vectors.dtype) if wanted else t.new_empty(0, dtype=vectors.dtype)
        for t, wanted in zip((logits, concepts), need)
    )
    with torch.autocast(logits.device.type, enabled=False):
        level = torch.linalg.vecdot(upstream, vectors)[:, None]
        for columns in _columns(logits):
            share = (logits[:, columns].to(vectors.dtype) - lse[:, None]).exp_()
            if need[1]:
                torch.mm(share.T, upstream, out=d_concepts[columns])
            if need[0]:
                d_logits[:, columns] = share.mul_(upstream @ concepts[columns].to(vectors.dtype).T - level)
    return d_logits, d_concepts


@_backward.register_fake
def _(upstream, logits, concepts, vectors, lse, need):
    return tuple(
        torch.empty_like(t, dtype=vectors.dtype) if wanted else t.new_empty(0, dtype=vectors.dtype)
        for t, wanted in zip((logits, concepts), need)
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _pull(ctx, upstream, _):
    need = list(ctx.needs_input_grad)
    found = torch.ops.cbm.association_vectors_backward(upstream.contiguous(), *ctx.saved_tensors, need)
    return tuple(g.to(t.dtype) if wanted else None for g, t, wanted in zip(found, ctx.saved_tensors, need))


_vectors.register_autograd(_pull, setup_context=_keep)


def _columns(logits: Tensor) -> Iterator[slice]:
    return slices(logits.shape[1], _COLUMNS_GPU if logits.is_cuda else _COLUMNS)


@torch.no_grad()
def association_adam_(
    logits: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    upstream: Tensor,
    vectors: Tensor,
    lse: Tensor,
    concepts: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    backend: Backend = "auto",
) -> None:
    """One step of Adam (Kingma and Ba, 2015) on W, in place, from the gradient of the class vectors.

    ``step`` is a number of Python's: a step that ``captured`` records would repeat its bias correction in every
    replay. Capture what comes before it, and call it as it is.

    Args:
        logits: W [C, K]; changed.
        exp_avg: Running mean of its gradient [C, K], zeros at first; changed.
        exp_avg_sq: Running mean of the square [C, K]; changed.
        upstream: Gradient of the class vectors [C, D].
        vectors: What ``association_vectors`` returned for this W [C, D].
        lse: Its other result [C].
        concepts: Concept embeddings [K, D].
        step: Which step this is, counted from 1.
        lr: Learning rate.
        betas: Decay of the two running means.
        eps: Added to the root.
        backend: "auto", "torch" or "triton".

    Raises:
        ValueError: If a shape does not fit, ``step`` is below 1, or the backend cannot take the tensors.
    """
    c, k = check_matrix("logits", logits).shape
    d = check_matrix("concepts", concepts, rows=k).shape[1]
    for name, matrix, width in (("exp_avg", exp_avg, k), ("exp_avg_sq", exp_avg_sq, k), ("upstream", upstream, d),
                                  ("vectors", vectors, d)):  # fmt: skip
        check_matrix(name, matrix, rows=c, columns=width)
    if not (logits.is_contiguous() and exp_avg.is_contiguous() and exp_avg_sq.is_contiguous()):
        raise ValueError("logits, exp_avg and exp_avg_sq: expected contiguous matrices")
    if step < 1:
        raise ValueError(f"step is {step}; expected >= 1")
    level = torch.linalg.vecdot(upstream, vectors)
    beyond = "" if logits.dtype == torch.float32 else f"logits are {logits.dtype}"
    rate, root = lr / (1 - betas[0] ** step), (1 - betas[1] ** step) ** 0.5
    if use_triton(backend, logits, upstream, vectors, lse, concepts, beyond=beyond):
        from cbm.kernels.gpu import elementwise

        upstream, level, lse = upstream.to(logits.dtype), level.float(), lse.float().contiguous()
        buffer = torch.empty(c, min(k, _COLUMNS_GPU), device=logits.device)
        for columns in _columns(logits):
            text = concepts[columns].to(logits.dtype)
            gradient = torch.mm(upstream, text.T, out=buffer[:, : len(text)])
            weight, mean, square = (each[:, columns] for each in (logits, exp_avg, exp_avg_sq))
            elementwise.adam_chunk(gradient, weight, mean, square, lse, level, rate, root, betas, eps)
        return
    with torch.autocast(logits.device.type, enabled=False):
        for columns in _columns(logits):
            text = concepts[columns].to(logits.dtype).T.contiguous()
            for start in range(0, c, _ROWS):
                rows = slice(start, start + _ROWS)
                share = (logits[rows, columns] - lse[rows, None]).exp_()
                gradient = torch.mm(upstream[rows].to(logits.dtype), text).sub_(level[rows, None]).mul_(share)
                mean, square = exp_avg[rows, columns], exp_avg_sq[rows, columns]
                mean.lerp_(gradient, 1 - betas[0])
                square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
                torch.sqrt(square, out=share).div_(root).add_(eps)
                logits[rows, columns].addcdiv_(mean, share, value=-rate)
