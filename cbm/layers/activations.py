"""Activations: functions of the concept scores that the head reads.

Every activation also computes logits from features without the ``[N, K]`` matrix of activations, by the operation of
``cbm.kernels`` that is made for it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from cbm.kernels import concept_scores, fused_bottleneck_logits, topk_concepts, topk_gate
from cbm.kernels.scores import ACTIVATIONS as POINTWISE
from cbm.kernels.scores import Activation as Function


class Activation(nn.Module):
    """``phi(scores - offset)``, row by row.

    Args:
        offset: offset ``[K]`` that is subtracted from the scores first.

    Attributes:
        rests_at_zero: whether most activations of an image are exactly zero, and removed concepts are held at zero.
    """

    offset: Tensor
    rests_at_zero = False

    def __init__(self, offset: Tensor):
        super().__init__()
        self.register_buffer("offset", offset.clone())

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, K]`` to activations ``[N, K]``."""
        raise NotImplementedError

    def encode(self, x: Tensor, concepts: Tensor) -> Tensor:
        """Activations ``[N, K]`` of images; arguments as for ``logits``."""
        return self(concept_scores(x, concepts))

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits ``phi(x T^T - offset) W^T + b``, ``[N, C]``.

        Args:
            x: features ``[N, D]``.
            concepts: concept directions T ``[K, D]``.
            weights: weights W ``[C, K]``.
            bias: biases b ``[C]``, or None.
        """
        raise NotImplementedError


class TopK(Activation):
    """The k concepts with the largest scores; the others are exactly zero (ties: the lower index).

    Args:
        offset: offset ``[K]`` that is subtracted from the scores first.
        k: number of concepts per image.
    """

    k: Tensor
    rests_at_zero = True

    def __init__(self, offset: Tensor, k: int):
        super().__init__(offset)
        self.register_buffer("k", torch.tensor(int(k)))

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, K]`` to activations ``[N, K]``, of which k per row are kept."""
        return topk_gate(scores - self.offset, int(self.k))

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits from the k columns of the head that an image uses; arguments as for ``Activation.logits``."""
        values, columns = topk_concepts(x, concepts, int(self.k), beta=-self.offset)
        logits = embedding_bag(columns, weights.T.contiguous(), per_sample_weights=values, mode="sum")
        return logits if bias is None else logits + bias


class Largest(Activation):
    """One for the concept with the largest score, zero for the others (ties: the lower index)."""

    rests_at_zero = True

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, K]`` to one-hot rows ``[N, K]``."""
        best = (scores - self.offset).argmax(dim=1, keepdim=True)
        return torch.zeros_like(scores).scatter(1, best, 1.0)

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits from the one column of the head that an image uses; arguments as for ``Activation.logits``."""
        best = topk_concepts(x, concepts, 1, beta=-self.offset)[1][:, 0]
        logits = weights.T[best]
        return logits if bias is None else logits + bias


class Pointwise(Activation):
    """A function of every score alone.

    Attributes:
        function: name of the function in ``cbm.kernels``.
    """

    function: Function = "identity"

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, K]`` to activations ``[N, K]``."""
        return POINTWISE[self.function](scores - self.offset)

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits, computed in chunks of images; arguments as for ``Activation.logits``."""
        return fused_bottleneck_logits(x, concepts, weights, activation=self.function, beta=-self.offset, bias=bias)


class Cube(Pointwise):
    """The cube of every score."""

    function: Function = "cube"


class Sigmoid(Pointwise):
    """The probability of a concept whose score is its log-odds."""

    function: Function = "sigmoid"


class Valued(Sigmoid):
    """Concepts of several kinds: probabilities, values that exclude each other, and numbers.

    Args:
        offset: offset ``[K]`` that is subtracted from the scores first.
        number: which concepts are numbers ``[K]`` bool, whose activation is the score itself (in standard deviations).
        group: number of the attribute ``[K]`` int64 of values that exclude each other, whose probabilities sum to one;
            -1 for the others.
    """

    number: Tensor
    group: Tensor

    def __init__(self, offset: Tensor, number: Tensor, group: Tensor):
        super().__init__(offset)
        self.register_buffer("number", number.clone())
        self.register_buffer("group", group.clone())

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, K]`` to activations ``[N, K]``."""
        z = scores - self.offset
        found = torch.where(self.number, z, z.sigmoid())
        for group in self.group.unique().tolist():
            if group >= 0:
                columns = (self.group == group).nonzero().flatten()
                found[:, columns] = z[:, columns].softmax(dim=1)
        return found

    def logits(self, x: Tensor, concepts: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Logits in chunks of images; arguments as for ``Activation.logits``."""
        rows = max(1, 2**22 // max(len(concepts), 1))
        parts = [torch.nn.functional.linear(self.encode(part, concepts), weights, bias) for part in x.split(rows)]
        return torch.cat(parts)
