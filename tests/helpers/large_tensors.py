"""Which big tensors an operation makes: the memory promise of a kernel, checked without measuring memory."""

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode


class LargeTensors(TorchDispatchMode):
    """Counts storages for ``entries`` or more elements that operations return, other than those of known tensors."""

    def __init__(self, entries: int, *known: torch.Tensor):
        super().__init__()
        self.entries, self.made = entries, set()
        self.known = {x.untyped_storage().data_ptr() for x in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cbm":  # look inside our own operations
            with self:
                out = OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= self.entries * x.element_size():
                self.made |= {x.untyped_storage().data_ptr()} - self.known
        return out
