"""Linear concept bottleneck without the N x K score matrix.

A bottleneck with identity activation is linear from the features to the logits,

    logits = ((scale * x T^T - mean) / std) A^T + bias,         x [N, D], concepts T [K, D], head A [C, K]

so the product may be associated either way round:

    direct          (x T^T) A^T      builds the scores [N, K];   forward + backward 2NKD + 4NKC FLOP
    reassociated    x (A T)^T        builds class vectors [C, D]; forward + backward 4DC(N + K) FLOP

Both are exact. With K in the thousands and a handful of classes the second is many times cheaper and needs no memory
that grows with N * K.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix, check_row_factors, check_scale, check_vector, compute_dtype

Plan = Literal["auto", "reassociated", "direct"]

_UPCAST_ROWS = 65536
_OVERHEAD = 10_000_000  # FLOP that take as long as the reassociated plan's extra small operations


def choose_plan(n: int, k: int, d: int, c: int, *, scores_cached: bool = False) -> Literal["reassociated", "direct"]:
    """Pick the cheaper association for one training step (forward, and backward to the head).

    The model counts the FLOP of the matrix products:

        reassociated  4dc(n + k) + 1e7
        direct        2nkd + 4nkc          (4nkc when the scores x T^T are kept from step to step)

    The constant is measured: the extra small operations of the reassociated plan take about 0.1 ms on a CPU, the time
    of 1e7 FLOP, which decides steps of under 0.3 ms. Below about 1e9 FLOP overhead rules and the predicted *ratio* is
    too optimistic, but the predicted *winner* was the measured one at all sizes tried (benchmarks/results).

    Args:
        n: Rows of x in one step.
        k: Concepts.
        d: Feature dimensions.
        c: Classes.
        scores_cached: True if the caller holds x T^T for these rows and would not compute it again.

    Returns:
        The plan with the lower count; ties go to "reassociated", which needs less memory.
    """
    reassociated = 4 * d * c * (n + k) + _OVERHEAD
    direct = 4 * n * k * c + (0 if scores_cached else 2 * n * k * d)
    return "reassociated" if reassociated <= direct else "direct"


def class_vectors(
    concepts: Tensor,
    head: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Collapse a linear bottleneck into one linear classifier: ``logits = x @ vectors.T + bias``.

    For inference and export: 2DC FLOP per image instead of 2K(D + C). The vectors are float32 or float64; do not round
    them to half precision, since all classes share the large mean text vector and differ in the small digits.

    Args:
        concepts: Concept embeddings [K, D].
        head: Class weights over concepts [C, K].
        scale: Factor on the scores, a number or a 0-d tensor.
        mean: Mean of every scaled score [K], subtracted before the head; it ends up in the returned bias.
        std: Standard deviation of every scaled score [K], divided out before the head.
        bias: Class bias [C].

    Returns:
        Class vectors [C, D] and class bias [C].

    Raises:
        ValueError: If a shape does not fit.
    """
    concepts, head, scale, mean, std, bias = _checked(None, concepts, head, scale, mean, std, bias)
    with torch.autocast(concepts.device.type, enabled=False):
        weights = head if std is None else head / std
        vectors = scale * (weights @ concepts)
        return vectors, _class_bias(weights, mean, bias)


def linear_bottleneck_logits(
    x: Tensor,
    concepts: Tensor,
    head: Tensor,
    *,
    inv_norm: Tensor | None = None,
    scale: float | Tensor = 1.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    bias: Tensor | None = None,
    plan: Plan = "auto",
    center_text: bool = True,
) -> Tensor:
    """Logits ``((scale * x T^T - mean) / std) A^T + bias`` of a linear concept bottleneck.

    Differentiable in every tensor argument. Matrix products run in float32 (float64 if an argument is), under autocast
    too; TF32 is used only where ``torch.set_float32_matmul_precision`` allows it.

    CLIP text vectors share a large mean t, so the logits of all classes share a large part and differ in small digits
    (with a fresh LaBo head, bf16 class vectors get the differences wrong by 140%). ``center_text`` takes t out of the
    class vectors and adds it back as the rank-one term ``scale * (x t) (A / std 1)^T`` on its own.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        head: Class weights over concepts [C, K], after any softmax or ReLU of the raw parameter.
        inv_norm: A factor on every row of x [N], such as 1 / |x|, or None for 1.
        scale: Factor on the scores, a number or a 0-d tensor.
        mean: Mean of every scaled score [K], or None for 0.
        std: Standard deviation of every scaled score [K], or None for 1.
        bias: Class bias [C], or None for 0.
        plan: "reassociated", "direct" (through the [N, K] scores), or "auto" for the cheaper one (`choose_plan`).
        center_text: Keep the mean text vector out of the class vectors. Exact either way in real arithmetic; only the
            reassociated plan looks at it.

    Returns:
        Logits [N, C].

    Raises:
        ValueError: If a shape does not fit or the plan is unknown.
    """
    if plan not in ("auto", "reassociated", "direct"):
        raise ValueError(f"plan is {plan!r}; expected 'auto', 'reassociated' or 'direct'")
    x = check_matrix("x", x)
    concepts, head, scale, mean, std, bias = _checked(x, concepts, head, scale, mean, std, bias)
    check_row_factors("inv_norm", inv_norm, len(x))
    x = x.to(concepts.dtype) if inv_norm is None else x.to(concepts.dtype) * inv_norm.to(concepts.dtype)[:, None]
    if plan == "auto":
        plan = choose_plan(len(x), len(concepts), x.shape[1], len(head))

    with torch.autocast(x.device.type, enabled=False):
        if plan == "direct":
            scores = scale * (x @ concepts.T)
            if mean is not None:
                scores = scores - mean
            if std is not None:
                scores = scores / std
            return torch.nn.functional.linear(scores, head, bias)

        weights = head if std is None else head / std
        offset = None if mean is None and bias is None else _class_bias(weights, mean, bias)
        if not center_text:
            return torch.nn.functional.linear(x, scale * (weights @ concepts), offset)
        center, total = concepts.mean(0), weights.sum(1)
        if concepts.is_cuda:  # TF32 may round the operands: the mean has to go before the product
            vectors = weights @ (concepts - center)
        else:  # full float32 products: cheaper after it, [C, D] instead of [K, D]
            vectors = torch.addr(weights @ concepts, total, center, alpha=-1)
        logits = torch.nn.functional.linear(x, scale * vectors, offset)
        return torch.addr(logits, x @ center, scale * total)


def class_logits(
    x: Tensor, vectors: Tensor, bias: Tensor | None = None, *, center: Tensor | None = None,
    scale: float | Tensor = 1.0,
) -> Tensor:  # fmt: skip
    """Logits ``scale * x V^T + bias`` of class vectors, of any number of pictures.

    Args:
        x: Image features [N, D]; may be memory-mapped, in half precision: it is upcast in chunks.
        vectors: Class vectors [C, D].
        bias: Class bias [C], or None for 0.
        center: What the vectors share [D], kept out of the product: the mean text vector where every class weighs
            texts with a mass of one. None for nothing.
        scale: Factor on the products, a number or a 0-d tensor.

    Returns:
        Logits [N, C], float32 or float64. Differentiable in every tensor.

    Raises:
        ValueError: If a shape does not fit.
    """
    c, d = check_matrix("vectors", vectors, columns=check_matrix("x", x).shape[1]).shape
    check_vector("bias", bias, c)
    check_vector("center", center, d)
    check_scale(scale)
    dtype = compute_dtype(x, vectors, bias)
    with torch.autocast(x.device.type, enabled=False):
        vectors = scale * vectors.to(dtype) if center is None else scale * (vectors - center).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        parts = [x] if x.dtype == dtype else x.split(_UPCAST_ROWS)
        logits = torch.cat([torch.nn.functional.linear(part.to(dtype), vectors, bias) for part in parts])
        if center is None:
            return logits
        return torch.addr(logits, x.to(dtype) @ center.to(dtype), scale * logits.new_ones(c))


def _class_bias(weights: Tensor, mean: Tensor | None, bias: Tensor | None) -> Tensor:
    """Class bias [C] with the mean score of every concept folded in: ``bias - weights @ mean``."""
    bias = weights.new_zeros(len(weights)) if bias is None else bias
    return bias if mean is None else bias - weights @ mean


def _checked(x, concepts, head, scale, mean, std, bias):
    """Check the shapes against each other and cast all to one compute dtype."""
    concepts = check_matrix("concepts", concepts, columns=None if x is None else x.shape[1])
    k = len(concepts)
    head = check_matrix("head", head, columns=k)
    check_scale(scale)
    check_vector("mean", mean, k)
    check_vector("std", std, k)
    check_vector("bias", bias, len(head))
    dtype = compute_dtype(x, concepts, head, mean, std, bias)
    if isinstance(scale, Tensor):
        scale = scale.to(dtype)
    mean, std, bias = (None if v is None else v.to(dtype) for v in (mean, std, bias))
    return concepts.to(dtype), head.to(dtype), scale, mean, std, bias
