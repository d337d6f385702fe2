"""The confidence region of interventions: where the logits of told concepts may lie, and which of them say it best.

Vandenhirtz et al., "Stochastic Concept Bottleneck Models", NeurIPS 2024, section 3.3: logits are Gaussian around what
the picture shows, eta ~ N(mu, Sigma), and concepts S are told c. Their logits become the solution of

    minimise    sum_k log(1 + exp(-s_k eta_k)),     s_k = 1 if c_k = 1, else -1
    such that   (eta_S - mu_S)^T Sigma_SS^-1 (eta_S - mu_S) <= chi2_{level, |S|},     s_k (eta_k - mu_k) >= 0

With d = s (eta - mu) >= 0 and Q = Sigma_SS^-1 with its signs turned alike, the region is ``d^T Q d <= r^2``, and always
reached. For a multiplier l, ``f(d) + l/2 d^T Q d`` over d >= 0 is solved by Newton's method on the free variables with
a line search along the bounds (Bertsekas, "Projected Newton methods", SIAM J. Control Optim. 1982); l is found by
Newton's method on ``log d^T Q d``, as a function of log l, within a bracket that is halved where it would leave it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

LEVEL = 0.99
"""Probability of the region, as in the released configuration."""
OUTER, INNER, HALVINGS = 60, 50, 40
EXACT = 1e-9  # relative: of the gradient, and of the square of the region's radius
AT_ONCE = 2**22  # numbers


def chi2_quantile(level: float, freedom: Tensor) -> Tensor:
    """Quantiles of chi-squared distributions, float64, by bisection.

    Args:
        level: probability from 0 to 1, exclusive.
        freedom: degrees of freedom, any shape, 1 or more.

    Example:
        >>> round(float(chi2_quantile(0.99, torch.tensor(1.0))), 4)
        6.6349
    """
    half = freedom.double() / 2
    low, high = torch.zeros_like(half), torch.ones_like(half)
    while bool((grow := torch.special.gammainc(half, high) < level).any()):
        high = torch.where(grow, 2 * high, high)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(half, middle) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low + high


def confidence_region(
    mean: Tensor, told: Tensor, answers: Tensor, covariance: Tensor, *, level: float = LEVEL
) -> Tensor:
    """Logits of told concepts: as sure of the answers as the confidence region allows.

    Args:
        mean: means ``[N, K]`` of the logits.
        told: which concepts ``[N, K]`` bool are told.
        answers: answers ``[N, K]``, 1 or 0; only those of told concepts are read.
        covariance: covariance ``[K, K]``, or one for every row ``[N, K, K]``; positive definite.
        level: probability of the region.

    Returns:
        ``[N, K]``: told concepts at the solution, float64 in the precision of ``mean``; the others at their mean.

    Example:
        >>> told = torch.tensor([[True, False]])
        >>> confidence_region(torch.zeros(1, 2), told, torch.ones(1, 2), torch.eye(2))[0].tolist()
        [2.575829267501831, 0.0]
    """
    if not bool(told.any()):
        return mean.clone()
    most = int(told.sum(dim=1).max())
    index = (~told).int().argsort(dim=1, stable=True)[:, :most]  # told first, in the order of the columns
    real = told.gather(1, index)
    sign = torch.where(answers > 0.5, 1.0, -1.0).double().gather(1, index)
    radius = chi2_quantile(level, torch.arange(1, most + 1))[(real.sum(dim=1) - 1).clamp(min=0)]
    moved = torch.zeros_like(sign)
    for rows in real.any(dim=1).nonzero().flatten().split(max(1, AT_ONCE // most**2)):
        at = index[rows]
        if covariance.ndim == 3:
            within = covariance[rows[:, None, None], at[:, :, None], at[:, None, :]].double()
        else:
            within = covariance.double()[at[:, :, None], at[:, None, :]]
        both = real[rows][:, :, None] & real[rows][:, None, :]
        within = within * both + torch.diag_embed((~real[rows]).double())
        within = within * sign[rows][:, :, None] * sign[rows][:, None, :]
        start = sign[rows] * mean[rows].double().gather(1, at)
        moved[rows] = sign[rows] * _furthest(start, within, radius[rows], real[rows])
    return mean.double().scatter_add(1, index, moved.masked_fill(~real, 0.0)).to(mean)


def _furthest(start: Tensor, within: Tensor, radius: Tensor, real: Tensor) -> Tensor:
    """The shifts d [n, m] that are 0 or more, from ``start`` [n, m], in regions of squared radius [n]; padding is not
    ``real`` and stays at 0. The objective is divided by its largest slope, or what is sure already would not count."""
    precision = torch.linalg.inv(within)
    steep = torch.sigmoid(-start) * real
    unit = steep.max(dim=1).values.clamp(min=1e-300)
    steep = steep / unit[:, None]
    # the gradient at the solution lies between `steep` and exp(-largest shift) times that
    reach = (radius[:, None] * within.diagonal(dim1=1, dim2=2) * real).max(dim=1).values.sqrt()
    alone = (steep / (precision.diagonal(dim1=1, dim2=2) * radius[:, None]).sqrt()).max(dim=1).values
    low = alone.log() - reach
    high = 0.5 * ((steep[:, None] @ within @ steep[:, :, None])[:, 0, 0] / radius).log()
    step, shift = high.clone(), torch.zeros_like(start)
    open_rows = torch.arange(len(start))
    for _ in range(OUTER):
        own = open_rows
        shift[own], free, hessian = _penalised(
            shift[own], start[own], precision[own], step[own].exp(), unit[own], real[own]
        )
        towards = (precision[own] @ shift[own][:, :, None])[:, :, 0]
        size = (shift[own] * towards).sum(dim=1)
        away = (size / radius[own]).clamp(min=1e-300).log()
        low[own], high[own] = torch.where(away > 0, step[own], low[own]), torch.where(away > 0, high[own], step[own])
        change = torch.linalg.solve(hessian, (towards * free)[:, :, None])[:, :, 0]
        slope = -2 * step[own].exp() * (towards * free * change).sum(dim=1) / size.clamp(min=1e-300)
        next_step = step[own] - away / slope
        inside = (next_step > low[own]) & (next_step < high[own])
        step[own] = torch.where(inside, next_step, (low[own] + high[own]) / 2)
        open_rows = own[away.abs() > EXACT]
        if not len(open_rows):
            break
    size = (shift * (precision @ shift[:, :, None])[:, :, 0]).sum(dim=1)
    return shift * (radius / size.clamp(min=1e-300)).sqrt().clamp(max=1.0)[:, None]


def _penalised(
    shift: Tensor, start: Tensor, precision: Tensor, multiplier: Tensor, unit: Tensor, real: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``f(d) / unit + multiplier / 2 d^T precision d`` over d >= 0, from ``shift`` [n, m] on; returns the
    solution, which variables are free [n, m], and the Hessian [n, m, m] with ones for those that are not."""
    quadratic = multiplier[:, None, None] * precision

    def value(d: Tensor, rows: Tensor) -> Tensor:
        bent = (d[:, None] @ quadratic[rows] @ d[:, :, None])[:, 0, 0] / 2
        return (softplus(-(start[rows] + d)) * real[rows]).sum(dim=1) / unit[rows] + bent

    for _ in range(INNER):
        chance = torch.sigmoid(-(start + shift)) / unit[:, None]
        gradient = (quadratic @ shift[:, :, None])[:, :, 0] - chance
        free = real & ((shift > 0) | (gradient < 0))
        curve = torch.sigmoid(start + shift) * chance
        hessian = (quadratic + torch.diag_embed(curve)) * (free[:, :, None] & free[:, None, :])
        hessian = hessian + torch.diag_embed((~free).double())
        if float((gradient * free).abs().max()) <= EXACT:
            break
        newton = torch.linalg.solve(hessian, -(gradient * free)[:, :, None])[:, :, 0]
        length = torch.ones(len(shift), dtype=torch.float64)
        rows = (gradient * free).abs().max(dim=1).values.gt(EXACT).nonzero().flatten()
        found = shift.clone()
        before = value(shift, torch.arange(len(shift)))
        for _ in range(HALVINGS):
            tried = (shift[rows] + length[rows, None] * newton[rows]).clamp(min=0)
            gain = (gradient[rows] * (tried - shift[rows])).sum(dim=1)
            good = value(tried, rows) <= before[rows] + 1e-4 * gain + 1e-14 * before[rows].abs()
            found[rows[good]] = tried[good]
            rows = rows[~good]
            if not len(rows):
                break
            length[rows] /= 2
        shift = found
    return shift, free, hessian
