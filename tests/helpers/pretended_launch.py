"""Launch kernels on a GPU that is not there: everything happens but the kernel itself.

Triton binds the arguments, specialises on them and compiles for the architecture, as it does on a GPU; what would run
is dropped. Tensors lie on the CPU, and hold zeros.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from cbm.kernels import backend, bottleneck
from cbm.kernels.gpu import elementwise, interventions, scores, topk


@dataclass
class Launches:
    """What was launched: names in order, and the distinct compiled kernels of every name."""

    names: list[str] = field(default_factory=list)
    compiled: dict[str, set[int]] = field(default_factory=dict)
    guarded: bool = False


class _Driver:
    """As much of a driver as binding and compiling ask for. Every architecture is a device of its own."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@contextlib.contextmanager
def pretended_launches(architecture: int) -> Iterator[Launches]:
    """Within it, ``backend="triton"`` takes CPU tensors, and its results are zeros."""
    seen, run, describable = Launches(), JITFunction.run, backend.describable

    def compile_only(self, *arguments, grid, warmup, **options):
        assert seen.guarded, f"{self.__name__} was launched outside of launched_on"
        assert min(grid) >= 1
        assert max(grid[1:], default=1) <= 65535
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        assert kernel.metadata.shared <= {80: 163 * 1024, 90: 227 * 1024}[architecture]
        seen.names.append(self.__name__)
        seen.compiled.setdefault(self.__name__, set()).add(id(kernel))
        return kernel

    @contextlib.contextmanager
    def launched_on(tensor):
        seen.guarded = True
        yield
        seen.guarded = False

    def zeros(*shape, **options):
        return torch.zeros(*shape, **options)

    with contextlib.ExitStack() as stack:
        patch = lambda *what: stack.enter_context(mock.patch.object(*what))  # noqa: E731
        patch(driver, "_active", _Driver(architecture))
        patch(JITFunction, "run", compile_only)
        patch(backend, "triton_runs_on", lambda tensor: tensor.dtype != torch.float64)
        patch(torch, "empty", zeros)
        for module in (scores, topk, elementwise, interventions):
            patch(module, "launched_on", launched_on)
        for module in (scores, topk):
            patch(module, "describable", (lambda *matrices: architecture >= 90 and describable(*matrices)))
        patch(bottleneck, "_SMALL", 0)
        yield seen
