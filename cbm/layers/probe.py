"""A linear classifier on the features themselves: the black box that a bottleneck is compared with."""

from torch import Tensor, nn

from cbm.kernels import class_logits
from cbm.layers.link import Link, Linked


class LinearProbe(Linked):
    """``x W^T + b`` with no concepts in between.

    Args:
        weight: weights ``[C, D]``.
        bias: biases ``[C]``.
        link: ``softmax`` for one of C classes, ``sigmoid`` for any number of labels.
    """

    def __init__(self, weight: Tensor, bias: Tensor, link: Link = "softmax"):
        super().__init__(link)
        self.matrix = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, D]`` to logits ``[N, C]``."""
        return class_logits(x, self.matrix, self.bias)
