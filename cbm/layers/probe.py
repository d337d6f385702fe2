"""A linear classifier on the features themselves: the black box that a bottleneck is compared with."""

from torch import Tensor, nn

from cbm.kernels import class_logits


class LinearProbe(nn.Module):
    """``x W^T + b`` with no concepts in between.

    Args:
        weight: weights ``[C, D]``.
        bias: biases ``[C]``.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.matrix = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, D]`` to logits ``[N, C]``."""
        return class_logits(x, self.matrix, self.bias)
