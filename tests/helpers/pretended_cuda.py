"""Tensors that say they are on a GPU and hold their values on the CPU, to find what was left on the CPU.

Every operation between one of them and a CPU tensor of one dimension or more is refused, as CUDA does; values can be
read, so solvers and training, which look at numbers, run as they would there. What they make with ``device="cuda"`` is
such a tensor. (``FakeTensorMode`` of PyTorch does the same for code that reads no values.)
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cbm.kernels import backend

CUDA = torch.device("cuda", 0)
_MAKES_ITS_OWN = {
    torch.nn.functional.one_hot,
    Tensor.new_tensor,
}  # C++ makes a tensor where it takes the argument to be
_READS = {"aten._local_scalar_dense.default", "aten.item.default", "aten.equal.default", "aten.is_nonzero.default"}


class MixedDevices(RuntimeError):
    """What CUDA would have refused."""


class OnGpu(Tensor):
    """A tensor that says ``cuda:0``; ``held`` has its values.

    Only Python is told so: C++ takes it for a CPU tensor, since its autograd would ask a driver for streams.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="cpu", requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held.detach()
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        """Values as Python's."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As on a GPU: only if it is asked to copy."""
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.held.numpy()

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        options = options or {}
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _moved(function, *arguments, **options)
        if function in _MAKES_ITS_OWN:
            return OnGpu(function(arguments[0].held, *arguments[1:], **options))
        return super().__torch_function__(function, types, arguments, options)

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return _run(operation, arguments, options or {})


class _Move(torch.autograd.Function):
    """From one device to the other; the gradient goes back."""

    @staticmethod
    def forward(ctx, tensor: Tensor, to_gpu: bool) -> Tensor:
        ctx.from_gpu = isinstance(tensor, OnGpu)
        held = tensor.held if isinstance(tensor, OnGpu) else tensor
        return OnGpu(held.clone()) if to_gpu else held.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        return _Move.apply(upstream, ctx.from_gpu), None


def _moved(function: Any, tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """``to``, ``cpu`` and ``cuda`` of tensors of either kind."""
    device, dtype = tensor.device, None
    if function is not Tensor.to:
        device = torch.device("cpu") if function is Tensor.cpu else CUDA
    elif arguments and isinstance(arguments[0], Tensor):
        device, dtype = arguments[0].device, arguments[0].dtype
    else:
        found, dtype, *_ = torch._C._nn._parse_to(*arguments, **{n: v for n, v in options.items() if n != "copy"})
        device = device if found is None else found
    if dtype is not None and dtype != tensor.dtype:
        tensor = tensor.type(dtype)
    if device.type == tensor.device.type:
        return tensor.clone() if options.get("copy") else tensor
    return _Move.apply(tensor, device.type == "cuda")


def _run(operation: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """On the values, if all that is there is on one device."""
    flat, _ = tree_flatten((arguments, options))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    on_gpu = any(isinstance(value, OnGpu) for value in tensors)
    name = str(operation)
    if on_gpu and name != "aten.copy_.default":
        for value in tensors:
            if isinstance(value, OnGpu) or value.ndim == 0:
                continue
            if name.startswith("aten.index") and value is not arguments[0] and not value.is_floating_point():
                continue  # CUDA tensors take indices of the CPU
            raise MixedDevices(f"{name}: a tensor {list(value.shape)} on the CPU meets one on cuda:0")
    wanted = options.get("device")
    goes_to_gpu = on_gpu or (wanted is not None and torch.device(wanted).type == "cuda")
    if name == "aten.copy_.default":
        goes_to_gpu = isinstance(arguments[0], OnGpu)
    if wanted is not None:
        options = options | {"device": torch.device("cpu")}
    if options.get("pin_memory"):
        options = options | {"pin_memory": False}
    held = tree_map(lambda value: value.held if isinstance(value, OnGpu) else value, (arguments, options))
    result = operation(*held[0], **held[1])
    if name in _READS or not goes_to_gpu:
        return result
    given = {id(value.held): value for value in tensors if isinstance(value, OnGpu)}
    return tree_map(lambda value: given.get(id(value), OnGpu(value)) if isinstance(value, Tensor) else value, result)


class _Factories(TorchDispatchMode):
    """``torch.zeros(.., device="cuda")`` makes such tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.seen.add(str(operation))
        return _run(operation, arguments, options or {})


class _Moves(TorchFunctionMode):
    """``.to("cuda")`` of a CPU tensor makes one, too."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _moved(function, *arguments, **options)
        device = options.get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "cuda":
            return _Move.apply(function(*arguments, **(options | {"device": "cpu"})), True)
        return function(*arguments, **options)


@contextlib.contextmanager
def pretended_cuda() -> Iterator[set[str]]:
    """Within it ``device="cuda"`` is there; gives the names of the operations that ran."""
    mode = _Factories()
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as FakeTensorMode has it
    no_triton = mock.patch.object(backend, "triton_runs_on", return_value=False)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # modules moved there get new parameters
    try:
        with mock.patch.object(torch.cuda, "_lazy_init"), no_triton, mode, _Moves():
            yield mode.seen
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
