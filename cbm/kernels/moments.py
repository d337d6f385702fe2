"""Mean and standard deviation of every concept score, without computing a score.

A score is linear in the features, s_k = t_k . x, so its moments follow from those of x alone:

    mean_k = t_k . mean(x)            var_k = t_k^T cov(x) t_k

One pass over x for the D x D covariance serves any number of concepts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix, compute_dtype

_ROWS = 4096  # rows of x per step: 8 MB of float32 at D = 512
_CONCEPTS = 4096  # concepts per step of the quadratic form


def score_moments(x: Tensor, concepts: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the rows of ``x`` of the scores ``x @ concepts.T``.

    ``x`` is read in row chunks, each moved to the device of ``concepts``, so it may be a memory-mapped tensor larger
    than memory. Chunks are centred, their products are float32 and are merged in float64.
    A second, float64 pass is made when some concept varies so little (variance below 1e-4 of the covariance's
    Frobenius norm) that float32 products would not resolve it.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        ddof: 1 for the unbiased estimate, 0 for the population value.

    Returns:
        Mean [K] and standard deviation [K].

    Raises:
        ValueError: If a shape does not fit, or ``x`` has no more rows than ``ddof``.
    """
    check_matrix("x", x)
    check_matrix("concepts", concepts, columns=x.shape[1])
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}; expected 0 or 1")
    if len(x) <= ddof:
        raise ValueError(f"x has shape {list(x.shape)}; expected more than ddof={ddof} rows")
    dtype = compute_dtype(x, concepts)

    with torch.no_grad(), torch.autocast(concepts.device.type, enabled=False):
        center, covariance = _covariance(x, concepts.device, dtype, ddof)
        variance = _quadratic_form(concepts, covariance)
        smallest = 1e-4 * covariance.norm() * concepts.double().square().sum(1)
        if dtype != torch.float64 and bool((variance < smallest).any()):
            center, covariance = _covariance(x, concepts.device, torch.float64, ddof)
            variance = _quadratic_form(concepts, covariance)
        mean = concepts.double() @ center
    return mean.to(dtype), variance.clamp(min=0).sqrt().to(dtype)


def _covariance(x: Tensor, device: torch.device, dtype: torch.dtype, ddof: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of the rows in float64, from chunk products in ``dtype``.

    Each chunk is centred at its own mean and merged by the pairwise rule of Chan, Golub and LeVeque (1983), so a large
    common mean, or chunks with means far apart, cancel nowhere.
    """
    n, d = x.shape
    mean = torch.zeros(d, dtype=torch.float64, device=device)
    products = torch.zeros(d, d, dtype=torch.float64, device=device)
    for seen in range(0, n, _ROWS):
        rows = x[seen : seen + _ROWS].to(device, dtype)
        center = rows.mean(0)
        rows = rows - center
        residual = rows.mean(0, dtype=torch.float64)  # what rounding left of the chunk's mean
        share = len(rows) / (seen + len(rows))
        offset = center + residual - mean
        products += rows.T @ rows
        products += torch.outer(offset, offset) * (seen * share) - torch.outer(residual, residual) * len(rows)
        mean += offset * share
    return mean, products / (n - ddof)


def _quadratic_form(concepts: Tensor, covariance: Tensor) -> Tensor:
    """``t_k^T covariance t_k`` for every concept [K], in float64."""
    return torch.cat([((t @ covariance) * t).sum(1) for t in (c.double() for c in concepts.split(_CONCEPTS))])
