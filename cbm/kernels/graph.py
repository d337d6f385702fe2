"""Small training steps as CUDA graphs: a step of a few dozen kernels takes less time than it takes to launch them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function that does the same work by replaying a recording of it.

    Args:
        step: Works on CUDA tensors that stay where they are, and returns one; values are read anew in every replay,
            Python is not: a learning rate, a seed or the step number of ``association_adam_`` stays what it was.
            It is called three times before it is recorded. Gradients that it leaves must be set to None at its
            beginning.

    Returns:
        A function without arguments; its result is the same tensor every time, overwritten.

    Raises:
        ValueError: If there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device: a step is captured as a CUDA graph; expected to call it as it is")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
