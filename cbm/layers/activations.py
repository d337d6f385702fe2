"""Activations: what a bottleneck makes of its concept scores before the head reads them.

Every activation also knows how to get from features to logits without the ``[N, K]`` matrix of activations, by the
operation of ``cbm.kernels`` that is made for it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from cbm.kernels import fused_bottleneck_logits, topk_concepts, topk_gate
from cbm.kernels.scores import ACTIVATIONS as POINTWISE
from cbm.kernels.scores import Activation as Function


class Activation(nn.Module):
    """``phi(scores - offset)``, row by row.

    Args:
        offset: ``[K]`` taken from every score first.

    Attributes:
        rests_at_zero: most concepts of an image are exactly zero, and zero is where a removed concept is held.
    """

    offset: Tensor
    rests_at_zero = False

    def __init__(self, offset: Tensor):
        super().__init__()
        self.register_buffer("offset", offset.clone())

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` scores to ``[N, K]`` activations."""
        raise NotImplementedError

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """``phi(x T^T - offset) W^T + b`` ``[N, C]``: features ``[N, D]``, concepts ``[K, D]``, weights ``[C, K]``."""
        raise NotImplementedError


class TopK(Activation):
    """The k concepts with the largest scores; the others are exactly zero (ties: the lower index).

    Args:
        offset: ``[K]``.
        k: concepts per image.
    """

    k: Tensor
    rests_at_zero = True

    def __init__(self, offset: Tensor, k: int):
        super().__init__(offset)
        self.register_buffer("k", torch.tensor(int(k)))

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` scores to ``[N, K]`` activations, k of them kept."""
        return topk_gate(scores - self.offset, int(self.k))

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Of the k columns of the head that an image's concepts vote by."""
        values, columns = topk_concepts(x, concepts, int(self.k), beta=-self.offset)
        logits = embedding_bag(columns, weights.T.contiguous(), per_sample_weights=values, mode="sum")
        return logits if bias is None else logits + bias


class Largest(Activation):
    """One for the concept with the largest score, zero for the others (ties: the lower index)."""

    rests_at_zero = True

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` scores to ``[N, K]`` one-hot rows."""
        best = (scores - self.offset).argmax(dim=1, keepdim=True)
        return torch.zeros_like(scores).scatter(1, best, 1.0)

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """The column of the head of an image's concept."""
        best = topk_concepts(x, concepts, 1, beta=-self.offset)[1][:, 0]
        logits = weights.T[best]
        return logits if bias is None else logits + bias


class Pointwise(Activation):
    """A function of every score alone.

    Attributes:
        function: its name in ``cbm.kernels``.
    """

    function: Function = "identity"

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K]`` to ``[N, K]``."""
        return POINTWISE[self.function](scores - self.offset)

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """In chunks of images."""
        return fused_bottleneck_logits(x, concepts, weights, activation=self.function, beta=-self.offset, bias=bias)


class Cube(Pointwise):
    """The cube of every score."""

    function: Function = "cube"


class Sigmoid(Pointwise):
    """The probability of a concept whose score is its log-odds."""

    function: Function = "sigmoid"


ACTIVATIONS: dict[str, type[Activation]] = {kind.__name__: kind for kind in (TopK, Largest, Cube, Sigmoid)}
