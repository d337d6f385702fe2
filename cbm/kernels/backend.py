"""Which code computes an operation, and how its GPU kernels are launched. All choices are made here.

An operation has a plain PyTorch path and, where that pays, Triton kernels (``cbm.kernels.gpu``). ``backend="auto"``
takes Triton for float32, bfloat16 and float16 tensors on a CUDA device and PyTorch for everything else. With
``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs the kernels on CPU tensors, for tests.

``LAUNCH`` holds tile sizes. They were chosen from compiled code (no spills, shared memory within limits on sm_80 and
sm_90; tests/kernels/test_compiled.py holds them to it), not from timings: no entry has been measured on a GPU yet.
Assign to an entry to try another.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton"]


@dataclass(frozen=True)
class Launch:
    """Tile sizes of a kernel: rows of pictures, concepts, feature dimensions, and what the compiler is told."""

    rows: int
    concepts: int
    dims: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told. Fused multiply-add is on by default before Triton 3.10 and off from there."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


# (kernel, float32 or half precision, classes up to)
LAUNCH: dict[tuple[str, bool, int], Launch] = {
    ("scores", False, 0): Launch(128, 128, 64, 8, 3),
    ("scores", True, 0): Launch(64, 64, 32, 4, 3),
    ("topk", False, 0): Launch(128, 128, 64, 8, 3),
    ("topk", True, 0): Launch(64, 64, 32, 4, 3),
    ("sampled", False, 0): Launch(64, 64, 64, 8, 3),
    ("sampled", True, 0): Launch(64, 64, 32, 8, 3),
    ("logits", False, 64): Launch(128, 128, 64, 8, 3),
    ("logits", False, 128): Launch(128, 64, 64, 8, 3),
    ("logits", False, 256): Launch(64, 64, 64, 8, 3),
    ("logits", True, 64): Launch(64, 64, 32, 8, 3),
    ("logits", True, 256): Launch(32, 32, 32, 8, 2),
    ("gradients", False, 64): Launch(32, 64, 64, 8, 3),
    ("gradients", False, 256): Launch(32, 64, 32, 8, 3),
    ("gradients", True, 64): Launch(32, 64, 32, 8, 2),
    ("gradients", True, 256): Launch(16, 32, 32, 8, 2),
    ("adam", True, 0): Launch(64, 64, 32, 8, 3),
}
MOST_CLASSES = 256  # that a single kernel keeps logits of in registers
MOST_PICKS = 128  # concepts per picture that a kernel keeps in registers


def launch(kernel: str, dtype: torch.dtype, classes: int = 0) -> Launch:
    """The entry of ``LAUNCH`` with the fewest classes that are enough."""
    single = dtype == torch.float32
    fitting = [c for name, s, c in LAUNCH if name == kernel and s == single and c >= classes]
    if not fitting:
        raise ValueError(
            f"kernel {kernel!r} has no launch parameters for {classes} classes; expected <= {MOST_CLASSES}"
        )
    return LAUNCH[kernel, single, min(fitting)]


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_runs_on(tensor: Tensor) -> bool:
    """Whether Triton kernels can take this tensor: on a CUDA device (or interpreted), and not float64."""
    if not (tensor.is_cuda or interpreted()) or tensor.dtype == torch.float64:
        return False
    return importlib.util.find_spec("triton") is not None


def use_triton(backend: str, *tensors: Tensor | None, beyond: str = "") -> bool:
    """Decide between the two paths of an operation.

    Args:
        backend: "auto", "torch" or "triton".
        tensors: Its matrix arguments.
        beyond: What is beyond its kernels, such as "k is 200"; empty if nothing is.

    Raises:
        ValueError: If ``backend`` is another word, or "triton" cannot take the tensors.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend is {backend!r}; expected 'auto', 'torch' or 'triton'")
    if backend == "torch":
        return False
    unfit = [tensor for tensor in tensors if tensor is not None and not triton_runs_on(tensor)]
    if backend == "triton" and unfit:
        raise ValueError(
            f"backend is 'triton', but a tensor is {unfit[0].dtype} on {unfit[0].device}; expected float32, bfloat16 "
            "or float16 on a CUDA device with triton installed, or TRITON_INTERPRET=1 in the environment"
        )
    if backend == "triton" and beyond:
        raise ValueError(
            f"backend is 'triton', but {beyond}, which its kernels do not take; expected 'auto' or 'torch'"
        )
    return not unfit and not beyond


def kernel_vector(vector: Tensor | None) -> Tensor | None:
    """A vector as kernels take it: float32, contiguous."""
    return None if vector is None else vector.float().contiguous()


def kernel_matrix(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A matrix as kernels take it: neighbouring columns next to each other, rows any distance apart."""
    matrix = matrix if dtype is None else matrix.to(dtype)
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def dot_precision() -> str:
    """How float32 operands are multiplied: exactly, unless ``torch.set_float32_matmul_precision`` allows less.

    Three TF32 products come within a few units of the last place of float32; a single one, with errors of 1e-3, is
    never taken.
    """
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32x3"


def splits_of_concepts(rows: int, concepts: int, tile: Launch) -> tuple[int, int]:
    """Into how many parts the concepts are split so that few rows keep a GPU busy, and concepts per part.

    Depends on the shape only, not on the device, so that sums are added in the same order everywhere.
    """
    blocks = -(-rows // tile.rows)
    most = max(1, concepts // (8 * tile.concepts))
    splits = max(1, min(256 // blocks, most, 32))
    per = -(-concepts // splits)
    per = -(-per // tile.concepts) * tile.concepts
    return -(-concepts // per), per
