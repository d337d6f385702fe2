"""The losses of stochastic bottlenecks, on M samples of the concepts' logits.

Vandenhirtz et al., "Stochastic Concept Bottleneck Models", NeurIPS 2024, section 3.2.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits, nll_loss


def sampled_logits(mean: Tensor, factor: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Samples ``[M, B, K]`` of N(mean, L L^T).

    Args:
        mean: means ``[B, K]``.
        factor: lower triangles L ``[B or 1, K, K]``.
        samples: number M of samples.
        generator: source of randomness; torch's own by default.
    """
    noise = torch.randn(samples, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + (factor @ noise[..., None])[..., 0]


def sampled_concept_loss(eta: Tensor, concepts: Tensor) -> Tensor:
    """``-log mean_m exp(-sum_k BCE(eta_mk, c_k))``, its mean over pictures: unlike the mean of the samples' losses it
    is lower if concepts vary together as their labels do. The released code leaves out the constant log M.

    Args:
        eta: samples ``[M, B, K]`` of logits.
        concepts: labels ``[B, K]``: 1, 0, or NaN if unknown, which counts for nothing.

    Example:
        >>> sampled_concept_loss(torch.zeros(5, 1, 2), torch.tensor([[1.0, float("nan")]]))
        tensor(0.6931)
    """
    target = concepts.nan_to_num().to(eta).expand_as(eta)
    losses = binary_cross_entropy_with_logits(eta, target, reduction="none")
    together = torch.where(concepts.isnan(), 0.0, losses).sum(dim=2)
    return (math.log(len(eta)) - torch.logsumexp(-together, dim=0)).mean()


def relaxed_bernoulli(eta: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draws of 1 with probability ``sigmoid(eta)`` and 0, with the gradient of the relaxed draw (Maddison et al., "The
    Concrete distribution", ICLR 2017), any shape.

    Args:
        eta: logits.
        temperature: temperature of the relaxation; it changes the gradient only.
        generator: source of randomness; torch's own by default.
    """
    u = torch.rand(eta.shape, generator=generator, device=eta.device, dtype=eta.dtype).clamp(1e-6, 1 - 1e-6)
    soft = ((eta + torch.logit(u)) / temperature).sigmoid()
    return (soft > 0.5).to(eta) + soft - soft.detach()


def sampled_label_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the mean probability over samples.

    Args:
        logits: logits ``[M, B, C]``.
        y: class indices ``[B]``, or labels ``[B, C]``: 1, 0, or NaN if unknown.

    Example:
        >>> sampled_label_loss(torch.zeros(3, 1, 2), torch.tensor([1]))
        tensor(0.6931)
    """
    if y.ndim == 1:
        return nll_loss((logits.softmax(dim=2).mean(dim=0) + 1e-6).log(), y)
    known = ~y.isnan()
    chance = logits.sigmoid().mean(dim=0).clamp(1e-6, 1 - 1e-6)
    return binary_cross_entropy(chance[known], y[known].to(chance)) if bool(known.any()) else logits.sum() * 0.0


def precision_penalty(factor: Tensor) -> Tensor:
    """Mean size of the entries of ``(L L^T)^-1`` that are not on its diagonal, over ``K (K - 1)`` of them, 0-d.

    Args:
        factor: lower triangles L ``[B or 1, K, K]``.

    Example:
        >>> precision_penalty(torch.eye(3)[None])
        tensor(0.)
    """
    count = factor.shape[-1]
    if count < 2:
        return factor.sum() * 0.0
    inverse = torch.linalg.solve_triangular(factor, torch.eye(count).to(factor).expand_as(factor), upper=False)
    precision = inverse.mT @ inverse
    size = precision.abs().sum(dim=(1, 2)) - precision.abs().diagonal(dim1=1, dim2=2).sum(dim=1)
    return size.mean() / (count * (count - 1))
