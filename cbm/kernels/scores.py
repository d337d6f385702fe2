"""Concept scores, written out: N x K numbers. Where only logits, losses or the largest scores are wanted, the other
operations of this room do without them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cbm.kernels.backend import Backend, kernel_operands, kernel_vector, use_triton
from cbm.kernels.chunks import as_operand, product
from cbm.kernels.shapes import check_matrix, check_row_factors, check_vector, compute_dtype, scaled_alpha

Activation = Literal["identity", "sigmoid", "relu", "tanh", "cube"]


def concept_scores(
    x: Tensor,
    concepts: Tensor,
    *,
    inv_norm: Tensor | None = None,
    scale: float | Tensor = 1.0,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    activation: Activation = "identity",
    rows: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Activated concept scores ``phi(scale * inv_norm_n * alpha_k * (x_n . t_k) + beta_k)``.

    Differentiable in x, concepts, scale, alpha and beta. Sums are float32 (float64 if an argument is). A CPU takes
    one matrix product, with scale and alpha in the concepts [K, D]; a GPU one kernel for half precision, and the
    library's product for float32 and for scores as they are.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        inv_norm: A factor on every row of x [N], such as 1 / |x|; None for 1.
        scale: Factor on the dot products, a number or a 0-d tensor.
        alpha: Factor on every concept's score [K], 1 / std to standardise; None for 1.
        beta: Added to every concept's score [K], - mean / std to standardise; None for 0.
        activation: "identity", "sigmoid", "relu", "tanh" or "cube".
        rows: Numbers of the rows of x that are wanted [B] (int64); None for all.
        out_dtype: Of the scores; None for the dtype of the sums.
        backend: "auto", "torch" or "triton".

    Returns:
        Scores [N, K], or [B, K].

    Raises:
        ValueError: If a shape does not fit, the activation is unknown, or the backend cannot take the tensors.
    """
    check_activation(activation)
    k = len(check_matrix("concepts", concepts, columns=check_matrix("x", x).shape[1]))
    check_row_factors("inv_norm", inv_norm, len(x))
    check_vector("beta", beta, k)
    alpha = scaled_alpha(scale, alpha, concepts)
    out_dtype = out_dtype or compute_dtype(x, concepts, alpha, beta)
    if rows is not None:
        x = x[rows]
        inv_norm = None if inv_norm is None else inv_norm[rows]
    if use_triton(backend, x, concepts, inv_norm, alpha, beta):
        return torch.ops.cbm.concept_scores(x, concepts, inv_norm, alpha, beta, activation, out_dtype)

    dtype = compute_dtype(x, concepts, alpha, beta)
    with torch.autocast(x.device.type, enabled=False):
        weight = concepts.to(dtype)
        if alpha is not None:
            weight = weight * alpha.to(dtype)[:, None]
        x = x.to(dtype) if inv_norm is None else x.to(dtype) * inv_norm.to(dtype)[:, None]
        scores = torch.nn.functional.linear(x, weight, None if beta is None else beta.to(dtype))
        return ACTIVATIONS[activation](scores).to(out_dtype)


def _cube(z: Tensor) -> Tensor:
    return z * z * z


ACTIVATIONS = {"identity": lambda z: z, "sigmoid": torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh, "cube": _cube}


def check_activation(name: str) -> str:
    """Return ``name`` if it is an activation, else raise ValueError."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; expected one of {', '.join(map(repr, ACTIVATIONS))}")
    return name


def slope(activations: Tensor, name: str) -> Tensor:
    """phi'(z) as a function of ``a = phi(z)``, of the same shape."""
    a = activations
    if name == "sigmoid":
        return a * (1 - a)
    if name == "relu":
        return (a > 0).to(a.dtype)
    if name == "tanh":
        return 1 - a * a
    if name == "cube":
        return 3 * a.abs().pow(2 / 3)
    return torch.ones_like(a)


@torch.library.custom_op("cbm::concept_scores", mutates_args=())
def _scores(
    x: Tensor, concepts: Tensor, inv_norm: Tensor | None, alpha: Tensor | None, beta: Tensor | None, activation: str,
    out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    from cbm.kernels.gpu import scores as gpu

    out = x.new_empty(len(x), len(concepts), dtype=out_dtype)
    vectors = kernel_vector(inv_norm), kernel_vector(alpha), kernel_vector(beta)
    return gpu.scores(*kernel_operands(x, concepts), *vectors, activation, out)


@_scores.register_fake
def _(x, concepts, inv_norm, alpha, beta, activation, out_dtype):
    return x.new_empty(len(x), len(concepts), dtype=out_dtype)


def _keep(ctx, inputs, output):
    x, concepts, inv_norm, alpha, beta, ctx.activation, _ = inputs
    ctx.save_for_backward(x, concepts, inv_norm, alpha, beta, output)


def _pull(ctx, upstream):
    x, concepts, inv_norm, alpha, beta, scores = ctx.saved_tensors
    need_x, need_concepts, _, need_alpha, need_beta, *_ = ctx.needs_input_grad
    operand = torch.promote_types(x.dtype, concepts.dtype)
    dz = upstream.float() * slope(scores.float(), ctx.activation)
    d_beta = dz.sum(0).to(beta) if need_beta else None
    if inv_norm is not None:
        dz = dz * inv_norm[:, None]
    d_x = d_concepts = d_alpha = None
    if need_x:
        d_x = _rounded_product(dz if alpha is None else dz * alpha, concepts.to(operand)).to(x.dtype)
    if need_concepts or need_alpha:
        products = _rounded_product(dz.T, x.to(operand))  # [K, D]
        if need_alpha:
            d_alpha = (products * concepts).sum(1).to(alpha)
        if need_concepts:
            d_concepts = (products if alpha is None else products * alpha[:, None]).to(concepts.dtype)
    return d_x, d_concepts, None, d_alpha, d_beta, None, None


def _rounded_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, with a rounded to the dtype of b."""
    a, factor = as_operand(a, b.dtype)
    found = product(a, b, a.new_empty(len(a), b.shape[1], dtype=torch.float32))
    return found if factor is None else found * factor


_scores.register_autograd(_pull, setup_context=_keep)
