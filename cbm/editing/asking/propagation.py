"""Update concepts that are correlated with an answer, without training.

Vandenhirtz et al., "Stochastic Concept Bottleneck Models", NeurIPS 2024, equation 3, with their "empirical" covariance:
activations are Gaussian around what the image shows, with the covariance of the source domain; once some are known,
the others move to their conditional mean,

    mu_U' = mu_U + S_UI S_II^-1 (eta_I - mu_I)
"""

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

NUMBERS_AT_ONCE = 2**24


def source_covariance(a: Tensor) -> Tensor:
    """Shrunk covariance ``[K, K]`` of activations ``[M, K]`` (Ledoit and Wolf, 2004), in float64."""
    return torch.from_numpy(ledoit_wolf(a.double().numpy())[0])


def propagate(activation: Tensor, told: Tensor, values: Tensor, covariance: Tensor) -> Tensor:
    """Activations ``[N, K]`` after some of them are set.

    Args:
        activation: activations ``[N, K]`` from the images.
        told: which activations ``[N, K]`` (bool) are set.
        values: new values ``[N, K]``; only those that are set are read.
        covariance: covariance ``[K, K]`` of the activations, positive semi-definite.

    Returns:
        Exactly the new values for the activations that are set, the conditional mean for the others.
    """
    covariance = covariance.to(activation.device, torch.float64)
    jitter = 1e-9 * covariance.diagonal().mean().clamp(min=1e-30)
    most = int(told.sum(dim=1).max()) if len(told) else 0
    if not most:
        return activation.clone()
    parts = []
    rows = max(1, NUMBERS_AT_ONCE // (most * most + most * activation.shape[1]))
    for a, known, value in zip(activation.split(rows), told.split(rows), values.split(rows)):
        index = known.float().topk(most, dim=1).indices  # told first, then fillers
        real = known.gather(1, index)
        inner = covariance[index[:, :, None], index[:, None, :]]
        inner = inner * (real[:, :, None] & real[:, None, :])
        inner = inner + torch.diag_embed(torch.where(real, jitter, 1.0))
        surprise = torch.where(real, (value - a).double().gather(1, index), 0.0)
        weight = torch.linalg.solve(inner, surprise[..., None])[..., 0]
        moved = (covariance[index] * weight[..., None]).sum(dim=1)
        parts.append(torch.where(known, value, (a + moved).to(a)))
    return torch.cat(parts)
