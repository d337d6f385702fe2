"""``ConceptCovariance``: how the logits of concepts vary together, one matrix for all pictures or one for each.

Vandenhirtz et al., "Stochastic Concept Bottleneck Models", NeurIPS 2024, section 3.1: eta ~ N(mu(x), L(x) L(x)^T) with
a lower triangle L whose diagonal is positive. The probability of a concept is the mean of sigmoid(eta_k), which is
close to sigmoid(mu_k / sqrt(1 + pi Sigma_kk / 8)) (MacKay, "The evidence framework applied to classification networks",
Neural Computation 1992): ``stretch`` is that root.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

LEAST = 1e-6  # of the diagonal of L


class ConceptCovariance(nn.Module):
    """Lower triangles L of covariances ``L L^T`` of K logits.

    Args:
        bias: entries ``[K (K + 1) / 2]`` of the triangle, row by row; softplus makes the diagonal positive.
        weight: what features add to them ``[K (K + 1) / 2, D]``; None for one covariance of all pictures.

    Example:
        >>> ConceptCovariance(torch.tensor([0.5413, 1.0, 0.5413])).matrix(torch.zeros(1, 4))
        tensor([[[1.0000, 1.0000],
                 [1.0000, 2.0000]]])
    """

    def __init__(self, bias: Tensor, weight: Tensor | None = None):
        super().__init__()
        self.bias = nn.Parameter(bias.clone())
        self.weight = None if weight is None else nn.Parameter(weight.clone())
        self.count = (math.isqrt(8 * len(bias) + 1) - 1) // 2

    def factor(self, x: Tensor) -> Tensor:
        """L of pictures ``[N, D]``: ``[N, K, K]``, or ``[1, K, K]`` where it is that of all pictures."""
        entries = self.bias[None] if self.weight is None else linear(x, self.weight, self.bias)
        row, column = torch.tril_indices(self.count, self.count, device=entries.device)
        entries = torch.where(row == column, softplus(entries) + LEAST, entries)
        return entries.new_zeros(len(entries), self.count, self.count).index_put(
            (torch.arange(len(entries), device=entries.device)[:, None], row, column), entries
        )

    def matrix(self, x: Tensor) -> Tensor:
        """Covariances of pictures ``[N, D]``: ``[N, K, K]`` or ``[1, K, K]``."""
        factor = self.factor(x)
        return factor @ factor.mT


def stretch(variance: Tensor) -> Tensor:
    """By how much a Gaussian logit's mean exceeds the logit of its mean probability: ``sqrt(1 + pi v / 8)``.

    Args:
        variance: variances v of logits, any shape.
    """
    return (1 + math.pi / 8 * variance).sqrt()
