"""Multinomial logistic regression with an L2 penalty, full batch, by preconditioned L-BFGS.

    minimise over W [C, D], b [C]     mean cross-entropy(x W^T + b, y)  +  l2 / 2 * |W|^2          b is not penalised

Two things make it quick on CLIP features, whose covariance spans many orders of magnitude. Features are centred (in
the algebra, without a copy): the bias absorbs the shift. And the inverse Hessian that L-BFGS starts from in every step
is (p cov(x) + l2 I)^-1 with p the mean of p_c (1 - p_c), instead of a multiple of the identity.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from cbm.kernels.shapes import check_labels, check_matrix

_HISTORY = 10  # pairs kept by L-BFGS
_LOGITS = 2**22  # logits per block of rows: bounds the memory of one pass
_COVARIANCE_ROWS = 16  # rows per dimension that the preconditioner's covariance is estimated from


def fit_logistic(
    x: Tensor,
    y: Tensor,
    *,
    l2: float | Sequence[float],
    num_classes: int,
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> list[tuple[Tensor, Tensor]]:
    """Fit one classifier per penalty, from the strongest penalty to the weakest, each started at the one before.

    Args:
        x: Features [N, D], float32 or float64 (half precision is upcast block by block).
        y: Class of every row [N], int64 in 0 .. num_classes - 1.
        l2: Penalty or penalties, > 0. scikit-learn's ``C`` is ``1 / (N * l2)``.
        num_classes: C, >= 2. A class without a row ends with a very negative bias.
        max_iter: Iterations per penalty, each about one pass over ``x``.
        tol: Stop when the gradient's norm is below ``tol`` times its norm at all-zero weights. In float32 rounding
            sets in near 1e-6; a fit that can go no lower stops there.

    Returns:
        (weight [C, D], bias [C]) for every penalty, in the order given.

    Warns:
        RuntimeWarning: If a fit runs out of iterations before it reaches ``tol``.

    Raises:
        ValueError: If a shape does not fit or a number is out of range.
    """
    check_matrix("x", x)
    check_labels(y, len(x), num_classes)
    penalties = [float(l2)] if isinstance(l2, int | float) else [float(p) for p in l2]
    if not penalties or not all(p > 0 for p in penalties):
        raise ValueError(f"l2 is {l2}; expected numbers > 0")

    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _fitted(_Objective(x, y, num_classes), penalties, max_iter, tol)


def fit_labels(
    x: Tensor, y: Tensor, *, l2: Sequence[float], max_iter: int = 1000, tol: float = 1e-6
) -> list[tuple[Tensor, Tensor]]:
    """Fit a yes or no for every label, all together, for each penalty.

    They share nothing but the features: an unknown label counts for none of them, and each has the weights that it
    would have alone.

    Args:
        x: Features [N, D], float32 or float64.
        y: Labels [N, L]: 1, 0, or NaN if unknown.
        l2: Penalties, > 0, each on the mean loss over a label's known entries.
        max_iter: Iterations per penalty.
        tol: As for ``fit_logistic``, of all labels together.

    Returns:
        (weight [L, D], bias [L]) for every penalty, in the order given.

    Raises:
        ValueError: If a shape does not fit, a number is out of range, or nothing is known of a label.
    """
    check_matrix("x", x)
    if y.ndim != 2 or len(y) != len(x):
        raise ValueError(f"y has shape {list(y.shape)}; expected [{len(x)}, L]")
    if not l2 or not all(p > 0 for p in l2):
        raise ValueError(f"l2 is {l2}; expected numbers > 0")
    if bool(y.isnan().all(dim=0).any()):
        raise ValueError("y has a label of which nothing is known")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _fitted(_LabelObjective(x, y), list(l2), max_iter, tol)


def _fitted(objective: _Objective, penalties: list[float], max_iter: int, tol: float) -> list[tuple[Tensor, Tensor]]:
    """A classifier per penalty, the strongest first."""
    theta = objective.x.new_zeros(objective.count, objective.x.shape[1] + 1, dtype=objective.dtype)
    _, null_gradient = objective(theta, 0.0)
    goal = tol * float(null_gradient.norm())
    fitted: dict[float, tuple[Tensor, Tensor]] = {}
    for penalty in sorted(set(penalties), reverse=True):
        theta = _minimise(objective, theta, penalty, max_iter, goal)
        weight, bias = theta[:, :-1], theta[:, -1]
        fitted[penalty] = weight.clone(), bias - weight @ objective.mean
    return [fitted[penalty] for penalty in penalties]


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and axes; in float64 where float32 finds none (single-threaded LAPACK may, with many equal ones)."""
    try:
        values, axes = torch.linalg.eigh(covariance)
    except torch.linalg.LinAlgError:
        values, axes = torch.linalg.eigh(covariance.double())
    return values.to(covariance), axes.to(covariance)


class _Objective:
    """Penalised cross-entropy and its gradient at theta = [W, b] (C, D + 1), for features centred at their mean."""

    def __init__(self, x: Tensor, y: Tensor, num_classes: int):
        self.x, self.y, self.count = x, y, num_classes
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.block = max(1024, _LOGITS // num_classes)
        self.mean = sum(part.to(self.dtype).sum(0).double() for part in x.split(65536)).div(len(x)).to(self.dtype)
        sample = x[:: max(1, len(x) // (_COVARIANCE_ROWS * x.shape[1]))].to(self.dtype) - self.mean
        self.eigenvalues, self.axes = _eigh(sample.T @ sample / len(sample))
        self.eigenvalues.clamp_(min=0)
        self.curvature = (1 - 1 / num_classes) / num_classes  # mean of p (1 - p), at theta = 0 for a start

    def __call__(self, theta: Tensor, penalty: float) -> tuple[float, Tensor]:
        weight, bias = theta[:, :-1], theta[:, -1]
        offset = bias - weight @ self.mean
        loss, squares = 0.0, 0.0
        products = torch.zeros_like(weight)
        errors = torch.zeros_like(bias)
        for x, y in zip(self.x.split(self.block), self.y.split(self.block)):
            x = x.to(self.dtype)
            log_p = torch.addmm(offset, x, weight.T).log_softmax(1)
            loss -= float(log_p.gather(1, y[:, None]).sum(dtype=torch.float64))
            p = log_p.exp_()
            squares += float(p.square().sum())
            p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))
            products.addmm_(p.T, x)
            errors += p.sum(0)
        n = len(self.x)
        self.curvature = max((1 - squares / n) / len(bias), 1e-3 / len(bias))
        gradient = torch.addr(products, errors, self.mean, alpha=-1).div_(n).add_(weight, alpha=penalty)
        loss = loss / n + 0.5 * penalty * float(weight.double().square().sum())
        return loss, torch.cat([gradient, (errors / n)[:, None]], 1)

    def precondition(self, gradient: Tensor, penalty: float, curvature: float) -> Tensor:
        """(curvature * cov + penalty * I)^-1 on the weights, 1 / curvature on the bias."""
        weight = (gradient[:, :-1] @ self.axes) / (curvature * self.eigenvalues + penalty) @ self.axes.T
        return torch.cat([weight, gradient[:, -1:] / curvature], 1)


class _LabelObjective(_Objective):
    """The sum over the labels [N, L] of their own objectives."""

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__(x, y, y.shape[1])
        self.known = (~y.isnan()).sum(0).to(self.dtype)
        self.curvature = 0.25

    def __call__(self, theta: Tensor, penalty: float) -> tuple[float, Tensor]:
        weight, bias = theta[:, :-1], theta[:, -1]
        offset = bias - weight @ self.mean
        loss = squares = 0.0
        products, errors = torch.zeros_like(weight), torch.zeros_like(bias)
        for x, y in zip(self.x.split(self.block), self.y.split(self.block)):
            x, known, target = x.to(self.dtype), ~y.isnan(), y.nan_to_num().to(self.dtype)
            logits = torch.addmm(offset, x, weight.T)
            shares = known / self.known
            losses = torch.nn.functional.softplus(logits) - target * logits
            loss += float((losses * shares).sum(dtype=torch.float64))
            p = logits.sigmoid()
            squares += float((p * (1 - p) * shares).sum())
            p = (p - target).mul_(shares)
            products.addmm_(p.T, x)
            errors += p.sum(0)
        self.curvature = max(squares / len(bias), 1e-3)
        gradient = torch.addr(products, errors, self.mean, alpha=-1).add_(weight, alpha=penalty)
        loss = loss + 0.5 * penalty * float(weight.double().square().sum())
        return loss, torch.cat([gradient, errors[:, None]], 1)


def _minimise(objective: _Objective, theta: Tensor, penalty: float, max_iter: int, goal: float) -> Tensor:
    """L-BFGS with backtracking from ``theta`` until the gradient's norm is at most ``goal``."""
    loss, gradient = objective(theta, penalty)
    curvature = objective.curvature
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_HISTORY)
    rounding = 4 * torch.finfo(objective.dtype).eps
    for _ in range(max_iter):
        if float(gradient.norm()) <= goal:
            return theta
        direction = -_two_loops(objective, gradient, pairs, penalty, curvature)
        slope = float((direction * gradient).sum(dtype=torch.float64))
        step = 1.0
        while True:
            candidate = torch.add(theta, direction, alpha=step)
            new_loss, new_gradient = objective(candidate, penalty)
            if new_loss <= loss + 1e-4 * step * slope + rounding * abs(loss):
                break
            step *= 0.5
            if step < 1e-6:  # rounding: no descent left along this direction
                if not pairs:
                    return theta
                pairs.clear()
                break
        if step < 1e-6:
            continue
        change, turn = candidate - theta, new_gradient - gradient
        product = float((change * turn).sum(dtype=torch.float64))
        stalled = -slope * step <= rounding * abs(loss) and float(new_gradient.norm()) >= float(gradient.norm())
        if product > 0:
            pairs.append((change, turn, product))
        theta, loss, gradient, curvature = candidate, new_loss, new_gradient, objective.curvature
        if stalled:
            return theta
    if float(gradient.norm()) > goal:
        warnings.warn(
            f"logistic regression with l2={penalty:g} stopped after {max_iter} iterations at gradient norm "
            f"{float(gradient.norm()):.1e}, wanted {goal:.1e}",
            RuntimeWarning,
            stacklevel=3,
        )
    return theta


def _two_loops(objective: _Objective, gradient: Tensor, pairs: deque, penalty: float, curvature: float) -> Tensor:
    """The L-BFGS inverse Hessian times ``gradient`` (Nocedal & Wright, algorithm 7.4)."""
    result = gradient.clone()
    weights = []
    for change, turn, product in reversed(pairs):
        weight = float((change * result).sum()) / product
        result.sub_(turn, alpha=weight)
        weights.append(weight)
    result = objective.precondition(result, penalty, curvature)
    if pairs:
        _, turn, product = pairs[-1]
        result *= product / float((turn * objective.precondition(turn, penalty, curvature)).sum())
    for (change, turn, product), weight in zip(pairs, reversed(weights)):
        result.add_(change, alpha=weight - float((turn * result).sum()) / product)
    return result
