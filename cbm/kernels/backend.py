"""Which code computes an operation, and how its GPU kernels are launched. All choices are made here.

An operation has a plain PyTorch path and, where that pays, Triton kernels (``cbm.kernels.gpu``). ``backend="auto"``
takes Triton where every tensor is float32, bfloat16 or float16 on a CUDA device, and PyTorch for everything else. With
``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs the kernels on CPU tensors, for tests.

Triton multiplies half-precision matrices only, where something follows that the library would do in passes of its
own. Products of float32 are the library's, with what ``torch.set_float32_matmul_precision`` allows: the tensor cores
that a kernel of ours could use for them round to three decimal digits.

``LAUNCH`` holds tile sizes. They were chosen from compiled code (no spills, shared memory within limits on sm_80 and
sm_90; tests/kernels/test_compiled.py holds them to it); those of "described" and "stored" were compared with others on
one H100 (docs/kernels.md). Assign to an entry to try another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
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


LAUNCH: dict[str, Launch] = {
    "scores": Launch(128, 128, 64, 8, 3),
    "scores, described": Launch(128, 256, 64, 8, 3),
    "topk": Launch(128, 128, 64, 8, 3),
    "topk, described": Launch(128, 128, 64, 8, 4),
    "topk, stored": Launch(8, 512, 64, 4, 1),
    "sampled": Launch(128, 64, 64, 8, 3),
    "sampled, described": Launch(128, 64, 64, 8, 4),
    "sampled, stored": Launch(16, 64, 64, 4, 1),
}
"""By kernel. "described": loads go through tensor descriptors (TMA, from sm_90 on); "stored": scores are in memory."""
MOST_PICKS = 128  # concepts per picture that a kernel keeps in registers


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
        tensors: All its floating-point arguments: one float64 vector makes the sums float64, which Triton does not do.
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


def kernel_operands(x: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices as kernels take them: of one dtype, neighbouring columns next to each other, rows any way apart."""
    dtype = torch.promote_types(x.dtype, concepts.dtype)
    x, concepts = x.to(dtype), concepts.to(dtype)
    return x if x.stride(1) == 1 else x.contiguous(), concepts if concepts.stride(1) == 1 else concepts.contiguous()


def describable(*matrices: Tensor) -> bool:
    """Whether tiles can be loaded through tensor descriptors: rows of whole 16 bytes, on sm_90 or newer."""
    for matrix in matrices:
        if matrix.is_cuda and torch.cuda.get_device_capability(matrix.device)[0] < 9:
            return False
        pitch = matrix.stride(0) * matrix.element_size()
        if matrix.stride(1) != 1 or pitch == 0 or pitch % 16 or matrix.data_ptr() % 16:
            return False
    return True


@contextlib.contextmanager
def launched_on(tensor: Tensor) -> Iterator[None]:
    """Triton launches on the current device, which need not be that of the tensors: make it so."""
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
        yield


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
