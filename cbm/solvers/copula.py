"""A Gaussian copula of yes or no: which concepts go together beyond what their probabilities say.

    z_k = Phi^-1(p_k),    c_k = 1[e_k < z_k],    e ~ N(0, R)

with a correlation matrix R. Whatever R is, P(c_k = 1) = p_k: the copula adds dependence and leaves the probabilities
alone. The probability of two answers is Phi(z_i) Phi(z_j) + the integral from 0 to R_ij of the bivariate normal density
at (z_i, z_j), negative where the answers differ (Plackett, "A reduction formula for normal multivariate integrals",
Biometrika 1954; Gauss-Legendre nodes as in Drezner and Wesolowsky, 1990). R is estimated pair by pair by maximum
likelihood, made a correlation matrix (Higham, "Computing the nearest correlation matrix", IMA J. Numer. Anal. 2002) and
shrunk towards no dependence.

What follows from some answers is exact for one (the formula above), and for several the mean over draws of their
normal variables given the answers (Gibbs sampling of a truncated normal; Geweke, 1991).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix

CERTAIN = 1e-6  # probabilities closer to 0 or 1 count as this
EDGE, POINTS = 0.9, 37  # of the grid of correlations
EXPECTED = 5.0  # pictures of every pair of answers that a correlation is estimated from, at least
PER_CONCEPT = 50.0  # rows per concept at which a correlation is halved
ROUNDS = 200  # of alternating projections
WARM_UP = 8  # sweeps
AT_ONCE = 2**22  # numbers


@cache
def _nodes(count: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return ((x + 1) / 2).tolist(), (w / 2).tolist()


def _excess(a: Tensor, b: Tensor, low: Tensor | float, high: Tensor | float, count: int) -> Tensor:
    """The integral of the bivariate normal density at (a, b) over the correlations from ``low`` to ``high``."""
    product, squares = a * b, a.square() + b.square()
    total = torch.zeros_like(product)
    for node, weight in zip(*_nodes(count)):
        t = torch.as_tensor(low + (high - low) * node, dtype=product.dtype)
        room = 1 - t.square()
        total += weight / room.sqrt() * torch.exp((2 * t * product - squares) / (2 * room))
    return total * (high - low) / (2 * math.pi)


def bivariate_normal(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """P(A < a, B < b) of standard normal variables with correlation r: 16 Gauss-Legendre nodes, float64.

    Args:
        a: bounds of the first, any shape.
        b: bounds of the second, of a shape that fits.
        r: correlations from -1 to 1, exclusive; the error is below 1e-5 up to 0.95.

    Example:
        >>> half = torch.tensor(0.0)
        >>> round(float(bivariate_normal(half, half, torch.tensor(0.5))), 6)  # 1/4 + arcsin(1/2) / 2 pi
        0.333333
    """
    a, b, r = a.double(), b.double(), r.double()
    return torch.special.ndtr(a) * torch.special.ndtr(b) + _excess(a, b, 0.0, r, 16)


def thresholds(p: Tensor) -> Tensor:
    """``Phi^-1`` of probabilities, float64, that are at most ``1 - 1e-6`` and at least ``1e-6``."""
    return torch.special.ndtri(p.double().clamp(CERTAIN, 1 - CERTAIN))


def pair_correlations(p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely correlation of every pair, each by itself: a grid, and a parabola through its best three points.

    Args:
        p: probabilities ``[N, K]`` from models that did not see these rows.
        c: answers ``[N, K]``: 1, 0, or NaN if unknown; a row counts for a pair if it knows both.

    Returns:
        Correlations ``[K, K]`` float64, symmetric, 1 on the diagonal, from -0.9 to 0.9 elsewhere; and which pairs
        ``[K, K]`` bool are 0 because some pair of answers is expected in fewer than 5 rows.
    """
    n, count = check_matrix("p", p).shape
    if c.shape != p.shape:
        raise ValueError(f"c has shape {list(c.shape)}; expected [{n}, {count}]")
    z, known, right = thresholds(p), ~c.isnan(), torch.where(c == 1, 1.0, -1.0).double()
    sure = torch.special.ndtr(right * z)  # probability of the answer by itself
    inside = p.double().clamp(CERTAIN, 1 - CERTAIN)
    found, few = torch.eye(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.bool)
    grid = torch.linspace(-EDGE, EDGE, POINTS, dtype=torch.float64)
    middle = POINTS // 2
    for i in range(1, count):
        rows = known[:, i]
        both = (known[:, :i] & rows[:, None])[rows].double()
        own, other = inside[rows, i, None], inside[rows, :i]
        cells = (own * other, own * (1 - other), (1 - own) * other, (1 - own) * (1 - other))
        expected = torch.stack([(cell * both).sum(dim=0) for cell in cells]).min(dim=0).values
        few[i, :i] = expected < EXPECTED
        a, b = z[rows, i, None], z[rows, :i]
        sign, apart = right[rows, i, None] * right[rows, :i], sure[rows, i, None] * sure[rows, :i]
        likely = torch.empty(POINTS, i, dtype=torch.float64)
        for steps in (range(middle, POINTS), range(middle, -1, -1)):  # from no correlation outwards, adding up
            excess = torch.zeros_like(b)
            for at, step in enumerate(steps):
                if at:
                    excess += _excess(a, b, float(grid[steps[at - 1]]), float(grid[step]), 4)
                chance = (apart + sign * excess).clamp(min=1e-12)
                likely[step] = (chance.log() * both).sum(dim=0)
        found[i, :i] = _peak(grid, likely).masked_fill(few[i, :i], 0.0)
        found[:i, i] = found[i, :i]
    return found, few | few.T


def _peak(grid: Tensor, likely: Tensor) -> Tensor:
    """Where a function [P, M] on a grid [P] is largest, by the parabola through the best point and its neighbours."""
    best = likely.argmax(dim=0)
    inner = best.clamp(1, len(grid) - 2)
    low, here, high = (likely.gather(0, (inner + shift)[None])[0] for shift in (-1, 0, 1))
    bend = low - 2 * here + high
    step = torch.where(bend < 0, 0.5 * (low - high) / bend, 0.0).clamp(-1, 1)
    return torch.where(best == inner, grid[inner] + step * (grid[1] - grid[0]), grid[best])


def nearest_correlation(matrix: Tensor) -> Tensor:
    """The correlation matrix that is nearest to a symmetric one in the Frobenius norm (Higham's alternating projections
    with Dykstra's correction).

    Args:
        matrix: symmetric ``[K, K]``.

    Example:
        >>> found = nearest_correlation(torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]]))
        >>> [round(value, 4) for value in found[0].tolist()]  # Higham's example
        [1.0, 0.7607, 0.1573]
    """
    current = matrix.double().clone()
    correction = torch.zeros_like(current)
    for _ in range(ROUNDS):
        before = current
        values, vectors = torch.linalg.eigh(current - correction)
        positive = (vectors * values.clamp(min=0)) @ vectors.T
        correction = positive - (before - correction)
        current = positive.clone()
        current.fill_diagonal_(1.0)
        if float((current - before).abs().max()) < 1e-9:
            break
    values, vectors = torch.linalg.eigh(current)
    inside = (vectors * values.clamp(min=0)) @ vectors.T
    scale = inside.diagonal().rsqrt()
    inside = scale[:, None] * inside * scale
    return ((inside + inside.T) / 2).fill_diagonal_(1.0)


def fit_correlation(p: Tensor, c: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The correlation matrix R of the copula.

    Args:
        p: probabilities ``[N, K]`` from models that did not see these rows.
        c: answers ``[N, K]``: 1, 0, or NaN if unknown.
        apart: pairs ``[K, K]`` bool that are left at 0, because they are always told together; none by default.

    Returns:
        R ``[K, K]`` float64: the nearest correlation matrix to that of the pairs, shrunk towards the identity by
        ``1 / (1 + N' / 50 K)``; and which pairs ``[K, K]`` bool have too
        few rows to say anything (``pair_correlations``). N' is the mean over pairs of the rows that know both, each
        counted as ``4 sqrt(p_i (1 - p_i) p_j (1 - p_j))``: what is certain anyway says nothing about dependence.
    """
    pairs, few = pair_correlations(p, c)
    if apart is not None:
        pairs = pairs.masked_fill(apart & ~torch.eye(len(pairs), dtype=torch.bool), 0.0)
    inside = p.double().clamp(CERTAIN, 1 - CERTAIN)
    says = torch.where(c.isnan(), 0.0, 2 * (inside * (1 - inside)).sqrt())  # 1 where p is one half
    rows = float((says.T @ says).mean())
    keep = 1 - 1 / (1 + rows / (PER_CONCEPT * p.shape[1]))
    found = keep * nearest_correlation(pairs)
    return found.fill_diagonal_(1.0), few


def told_probabilities(
    p: Tensor, told: Tensor, answers: Tensor, correlation: Tensor, *, sweeps: int = 64, seed: int = 0
) -> Tensor:
    """Probabilities of all concepts once some are known.

    Args:
        p: probabilities ``[N, K]``.
        told: which concepts ``[N, K]`` bool are known.
        answers: answers ``[N, K]``, 1 or 0; only those of told concepts are read.
        correlation: R ``[K, K]``, positive definite.
        sweeps: draws of the told concepts' variables where more than one is told.
        seed: random seed for the draws, which are the same for every row.

    Returns:
        ``[N, K]``: told concepts at their answer, the others at P(c_j = 1 | answers). A concept that goes with none of
        those told keeps its probability bit by bit.

    Example:
        >>> r = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> told = torch.tensor([[True, False]])
        >>> told_probabilities(torch.tensor([[0.5, 0.5]]), told, torch.ones(1, 2), r)[0].tolist()
        [1.0, 0.6666666865348816]
    """
    correlation, answers = correlation.double(), answers.double()
    count = told.sum(dim=1)
    found = p.double().clone()
    one = (count == 1).nonzero().flatten()
    if len(one):
        found[one] = _after_one(found[one], told[one], answers[one], correlation)
    generator = torch.Generator().manual_seed(seed)
    warm = torch.rand(WARM_UP, p.shape[1], generator=generator, dtype=torch.float64)
    order = torch.rand(sweeps, p.shape[1], generator=generator, dtype=torch.float64).argsort(dim=0)
    uniform = torch.cat([warm, (order + 0.5) / sweeps])  # each variable's draws are spread evenly
    more = (count > 1).nonzero().flatten()
    if len(more):
        most = int(count[more].max())
        for rows in more.split(max(1, AT_ONCE // (most * p.shape[1]))):
            found[rows] = _after_several(found[rows], told[rows], answers[rows], correlation, uniform)
    moved = ~told & ((told.double() @ (correlation != 0).double()) > 0)
    return torch.where(told, answers.to(p), torch.where(moved, found.clamp(0, 1).to(p), p))


def _after_one(p: Tensor, told: Tensor, answers: Tensor, correlation: Tensor) -> Tensor:
    """Probabilities [n, K] after exactly one concept of every row is told: no probability moves against its sign."""
    which = told.float().argmax(dim=1, keepdim=True)
    z = thresholds(p)
    chance = p.gather(1, which).clamp(CERTAIN, 1 - CERTAIN)
    shared = correlation[which[:, 0]].masked_fill(told, 0.0)
    excess = _excess(z.gather(1, which), z, 0.0, shared, 16)
    return p + torch.where(answers.gather(1, which) > 0.5, excess / chance, -excess / (1 - chance))


def _after_several(p: Tensor, told: Tensor, answers: Tensor, correlation: Tensor, uniform: Tensor) -> Tensor:
    """Probabilities [n, K] after up to m concepts of every row are told, from draws of their variables.

    Variables of concepts that are absent change their sign, so that each lies below its bound.
    """
    most = int(told.sum(dim=1).max())
    index = (~told).int().argsort(dim=1, stable=True)[:, :most]  # told first, in the order of the columns
    real = told.gather(1, index)
    z, sign = thresholds(p), torch.where(answers > 0.5, 1.0, -1.0).double().gather(1, index)
    bound = torch.where(real, sign * z.gather(1, index), torch.inf)
    within = correlation[index[:, :, None], index[:, None, :]] * (real[:, :, None] & real[:, None, :])
    within = within + torch.diag_embed((~real).double())
    inverse = torch.linalg.inv(within)
    towards = correlation[:, index].permute(1, 0, 2) * real[:, None]  # [n, K, m]
    weights = towards @ inverse
    room = (1 - (weights * towards).sum(dim=2)).clamp(min=1e-12).sqrt()
    inverse = inverse * sign[:, :, None] * sign[:, None, :]
    spread = inverse.diagonal(dim1=1, dim2=2).rsqrt().T.contiguous()  # [m, n]: a variable of all rows lies together
    others = (inverse / inverse.diagonal(dim1=1, dim2=2)[:, :, None]).permute(1, 2, 0).contiguous()
    for i in range(most):
        others[i, i] = 0.0
    bound = bound.T.contiguous()
    drawn = torch.special.ndtri(0.5 * torch.special.ndtr(bound).clamp(min=1e-300))
    total = torch.zeros_like(z)
    for sweep in range(len(uniform)):
        chance = uniform[sweep][index.T]
        for i in range(most):
            mean = -(others[i] * drawn).sum(dim=0)
            below = torch.special.ndtr((bound[i] - mean) / spread[i]).clamp(min=1e-300)
            drawn[i] = mean + spread[i] * torch.special.ndtri(chance[i] * below)
        if sweep >= WARM_UP:
            shift = (weights @ (sign * drawn.T)[:, :, None])[:, :, 0]
            total += torch.special.ndtr((z - shift) / room)
    return total / (len(uniform) - WARM_UP)
