"""Argument checks shared by every kernel and solver: an error names the argument, its shape and what is accepted."""

from __future__ import annotations

import torch
from torch import Tensor


def check_matrix(name: str, value: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
    """Return ``value`` if it is a floating-point matrix of the wanted size, else raise.

    Args:
        name: Argument name, as the caller of the public function knows it.
        value: The tensor to look at.
        rows: Wanted number of rows, or None for any number >= 1.
        columns: Wanted number of columns, or None for any number >= 1.

    Raises:
        ValueError: If ``value`` is not a floating-point tensor of shape [rows, columns].
    """
    wanted = f"[{'>=1' if rows is None else rows}, {'>=1' if columns is None else columns}]"
    shape = list(value.shape)
    fits = len(shape) == 2 and min(shape) >= 1
    fits = fits and (rows is None or shape[0] == rows) and (columns is None or shape[1] == columns)
    if not fits or not value.is_floating_point():
        raise ValueError(f"{name} has shape {shape} and dtype {value.dtype}; expected a floating-point {wanted} matrix")
    return value


def check_vector(name: str, value: Tensor | None, length: int) -> Tensor | None:
    """Return ``value`` if it is None or a floating-point [length] vector, else raise ValueError."""
    if value is not None and (list(value.shape) != [length] or not value.is_floating_point()):
        raise ValueError(
            f"{name} has shape {list(value.shape)} and dtype {value.dtype}; expected a floating-point [{length}] vector"
        )
    return value


def may_read(tensor: Tensor) -> bool:
    """Whether values may be looked at: not on a GPU, which would have to be waited for, nor while a graph is traced."""
    return not tensor.is_cuda and not torch.compiler.is_compiling()


def check_labels(y: Tensor, rows: int, num_classes: int) -> Tensor:
    """Return ``y`` if it is an int64 [rows] vector of classes 0 .. num_classes - 1, of two or more, else raise.

    Raises:
        ValueError: If it is not.
    """
    if list(y.shape) != [rows] or y.dtype != torch.int64:
        raise ValueError(f"y has shape {list(y.shape)} and dtype {y.dtype}; expected an int64 [{rows}] vector")
    if num_classes < 2 or int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise ValueError(
            f"y has classes from {int(y.min())} to {int(y.max())}; expected 0 to num_classes - 1 = {num_classes - 1}, "
            "and at least two classes"
        )
    return y


def check_answers(y: Tensor, rows: int, num_classes: int) -> Tensor:
    """Return ``y`` if it is an int64 [S, rows] matrix of 0 and 1 and ``num_classes`` is 1, else raise.

    Raises:
        ValueError: If it is not.
    """
    if y.dim() != 2 or y.shape[1] != rows or y.dtype != torch.int64:
        raise ValueError(f"y has shape {list(y.shape)} and dtype {y.dtype}; expected an int64 [S, {rows}] matrix")
    if num_classes != 1 or bool(((y != 0) & (y != 1)).any()):
        raise ValueError(
            f"num_classes is {num_classes}, y from {int(y.min())} to {int(y.max())}; expected 1, and 0 or 1"
        )
    return y


def check_scale(scale: float | Tensor) -> float | Tensor:
    """Return ``scale`` if it is a number or a 0-d tensor, else raise ValueError."""
    if isinstance(scale, Tensor) and scale.ndim != 0:
        raise ValueError(f"scale has shape {list(scale.shape)}; expected a number or a 0-d tensor")
    return scale


def check_row_factors(name: str, value: Tensor | None, rows: int) -> Tensor | None:
    """Return ``value`` if it is None or one constant floating-point factor per row [rows], else raise ValueError."""
    check_vector(name, value, rows)
    if value is not None and value.requires_grad:
        raise ValueError(f"{name} requires a gradient; expected constants: normalise x itself to train through norms")
    return value


def scaled_alpha(scale: float | Tensor, alpha: Tensor | None, concepts: Tensor) -> Tensor | None:
    """``scale * alpha`` [K], one factor per concept; None where it would be all ones.

    Raises:
        ValueError: If ``scale`` is neither a number nor a 0-d tensor, or ``alpha`` is not None or a [K] vector.
    """
    check_scale(scale)
    check_vector("alpha", alpha, len(concepts))
    if not isinstance(scale, Tensor) and scale == 1.0:
        return alpha
    if alpha is not None:
        return scale * alpha
    return torch.ones(len(concepts), dtype=compute_dtype(concepts), device=concepts.device) * scale


def check_k(k: int, count: int) -> int:
    """Return ``k`` if 1 <= k <= count, the number of concepts to choose from, else raise ValueError."""
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}; expected 1 <= k <= {count}, the number of concepts")
    return k


def check_tau(tau: float) -> float:
    """Return the temperature ``tau`` if it is positive, else raise ValueError."""
    if not tau > 0:
        raise ValueError(f"tau is {tau}; expected > 0")
    return tau


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: float64 if any tensor is float64, else float32 (half-precision inputs are upcast).

    Half-precision products are exact in float32, so bf16 and fp16 inputs lose nothing here; what costs accuracy is a
    half-precision *result*: a bf16 cosine of 0.2 is off by up to 4e-4, which is 2% of a typical standard deviation.
    """
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
