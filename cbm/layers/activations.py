"""Activations: what a bottleneck makes of its concept scores before the head reads them."""

import torch
from torch import Tensor, nn

from cbm.kernels import topk_gate


class Activation(nn.Module):
    """``phi(scores - offset)``, row by row.

    Args:
        offset: ``[K]`` taken from every score first.

    Attributes:
        rests_at_zero: most concepts of a picture are exactly zero, and zero is where a removed concept is held.
    """

    offset: Tensor
    rests_at_zero = False

    def __init__(self, offset: Tensor):
        super().__init__()
        self.register_buffer("offset", offset.clone())

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` scores to ``[N, K]`` activations."""
        raise NotImplementedError


class TopK(Activation):
    """The k concepts with the largest scores; the others are exactly zero (ties: the lower index).

    Args:
        offset: ``[K]``.
        k: concepts per picture.
    """

    k: Tensor
    rests_at_zero = True

    def __init__(self, offset: Tensor, k: int):
        super().__init__(offset)
        self.register_buffer("k", torch.tensor(int(k)))

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` scores to ``[N, K]`` activations, k of them kept."""
        return topk_gate(scores - self.offset, int(self.k))


class Largest(Activation):
    """One for the concept with the largest score, zero for the others (ties: the lower index)."""

    rests_at_zero = True

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` scores to ``[N, K]`` one-hot rows."""
        best = (scores - self.offset).argmax(dim=1, keepdim=True)
        return torch.zeros_like(scores).scatter(1, best, 1.0)


class Cube(Activation):
    """The cube of every score."""

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` to ``[N, K]``."""
        return (scores - self.offset) ** 3


class Sigmoid(Activation):
    """The probability of a concept whose score is its log-odds."""

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` to ``[N, K]`` in (0, 1)."""
        return (scores - self.offset).sigmoid()


ACTIVATIONS: dict[str, type[Activation]] = {kind.__name__: kind for kind in (TopK, Largest, Cube, Sigmoid)}
