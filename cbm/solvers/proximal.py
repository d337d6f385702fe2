"""Accelerated proximal steps for the elastic net on a few columns, for more weights than Newton's method can couple."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.solvers.elastic_net import Problem, loss_and_gradient, mean_loss, penalty
from cbm.solvers.scores import LinearScores

_METRIC_ROWS = 16  # rows per column the metric of the proximal steps is estimated from
_CHECK = 4  # proximal steps between two tests of their size
_PATIENCE = 60  # proximal steps without progress: rounding


def proximal(
    problem: Problem,
    scores: LinearScores,
    weight: Tensor,
    bias: Tensor,
    lam: Tensor,
    aim: float,
    allowed: Tensor | None,
    max_passes: float,
) -> tuple[Tensor, Tensor, float]:
    """Accelerated proximal quasi-Newton steps on A columns, until the optimality conditions hold to ``aim``.

    Step (theta = [W, b], extrapolated point V, gradient g, metric M [A+1, A+1], h_c the curvature of class c in it):

        U = argmin  <g, U - V> + L / 2 sum_c h_c |U_c - V_c|^2_M + penalty(U)
        V = U + momentum * (U - U_before), restarted when the step goes against the gradient

    L is found by testing the quadratic bound now and then.
    """
    rho = problem.l1_ratio
    penalised = F.pad(torch.ones_like(weight[:, :1]), (0, 1))  # [S, 1, A + 1]; the last place is the bias
    l1 = (lam * rho).to(weight)[:, None, None] * penalised
    l2 = (lam * (1 - rho)).to(weight)[:, None, None] * penalised
    free = None if allowed is None else F.pad(allowed, (0, 1), value=True)
    theta = point = torch.cat([weight, bias[:, :, None]], dim=2)
    metric, largest, curvature = _metric(problem, scores, theta)
    unit = metric / largest
    momentum = lipschitz = torch.ones_like(largest)
    kept, lowest = theta, torch.full_like(lam, torch.inf)
    passes, step, since, smallest = 0.0, 0, 0, torch.inf
    while True:
        loss, gradient, bias_gradient = loss_and_gradient(problem, scores, point[:, :, :-1], point[:, :, -1])
        slope = torch.cat([gradient, bias_gradient[:, :, None]], dim=2)
        passes += 1
        while True:
            new = _proximal_step(point, slope, unit, 1 / (lipschitz * curvature * largest), l1, l2, free)
            change = new - point
            turn = curvature * (change @ metric)
            if step % _CHECK:
                break
            ahead = mean_loss(problem, scores, new[:, :, :-1], new[:, :, -1])
            passes += 0.5
            length = (turn * change).sum(dim=(1, 2)).double()
            needed = 2 * (ahead - loss - (slope * change).sum(dim=(1, 2))) / length.clamp(min=1e-30)
            known = length > 2e-6 * loss  # else the difference of the losses is rounding
            now = lipschitz.flatten().double()
            broken = known & (needed > now) & (now < 1e6)
            eased = torch.where(known, torch.maximum(1.1 * needed, 0.8 * now).minimum(now), now)
            lipschitz = torch.where(broken, 1.2 * needed, eased).to(lipschitz)[:, None, None]
            if not broken.any():
                break
        if step % _CHECK == 0:
            value = ahead + penalty(new[:, :, :-1], lam, rho)
            worse = (value > lowest * (1 + 1e-6))[:, None, None]
            if bool(worse.any()):  # momentum over an L that was too small: back to the best point
                new = torch.where(worse, kept, new)
                theta, point = torch.where(worse, new, theta), torch.where(worse, new, point)
                lipschitz = torch.where(worse, 2 * lipschitz, lipschitz)
                momentum = torch.where(worse, 1.0, momentum)
                turn = torch.where(worse, torch.inf, turn)
            kept, lowest = new, torch.minimum(value, lowest)
        against = (turn * (new - theta)).sum(dim=(1, 2), keepdim=True) < 0
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        point = torch.where(against, new, new + (momentum - 1) / following * (new - theta))
        theta, momentum = new, torch.where(against, 1.0, following)
        step += 1
        residual = float(((lipschitz * turn).abs().amax(dim=(1, 2)) / l1[:, 0, 0]).max())
        if residual < 0.7 * smallest:
            smallest, since = residual, step
        if residual < aim or passes >= max_passes or step - since > _PATIENCE:
            return theta[:, :, :-1], theta[:, :, -1], passes


def _proximal_step(
    point: Tensor, slope: Tensor, metric: Tensor, step: Tensor, l1: Tensor, l2: Tensor, free: Tensor | None
) -> Tensor:
    """argmin_U <slope, U - V> + |U - V|^2_metric / (2 step) + l1 |U| + l2 / 2 U^2, V = point: FISTA with restart.

    ``metric`` [S, A+1, A+1] has a largest eigenvalue of one. No data is touched.
    """
    descent, threshold, shrink = slope * step, step * l1, 1 / (1 + step * l2)
    if free is not None:
        shrink = shrink * free
    best = ahead = point
    momentum = 1.0
    for turn in range(60):
        moved = ahead - descent - (ahead - point) @ metric
        new = (moved - torch.clamp(moved, -threshold, threshold)) * shrink
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        change = new - best
        proposal = torch.add(new, change, alpha=(momentum - 1) / following)
        if turn % 5 == 4:
            if float(change.abs().max()) < 0.03 * float((new - point).abs().max()) + 1e-30:
                return new
            if float(((ahead - new) * change).sum()) > 0:
                proposal, following = new, 1.0
        best, ahead, momentum = new, proposal, following
    return best


def _metric(problem: Problem, scores: LinearScores, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments of [z, 1] over the rows, [S, A+1, A+1], the undecided rows counting most; their largest eigenvalue
    [S, 1, 1]; and the mean curvature of every class [S, C, 1] in their units."""
    count = min(len(scores), _METRIC_ROWS * theta.shape[2])
    rows = torch.arange(count, device=scores.device) * len(scores) // count
    z = F.pad(scores.block(rows), (0, 1), value=1.0)
    logits = (z @ theta.flatten(0, 1).T).unflatten(1, theta.shape[:2])
    p = logits.softmax(dim=2) if problem.link == "softmax" else logits.sigmoid()
    weights = problem.row_weights(rows)
    weights = weights / weights.sum(dim=0) if isinstance(weights, Tensor) else 1 / count
    variance = p * (1 - p) * weights  # [n, S, C]
    undecided = variance.sum(dim=2)
    undecided = undecided + 0.1 * undecided.mean(dim=0)  # decided rows may turn
    undecided = undecided / undecided.sum(dim=0)
    metric = torch.stack([(z * undecided[:, s, None]).T @ z for s in range(len(theta))])
    metric.diagonal(dim1=1, dim2=2).mul_(1 + 1e-4)
    probe = metric.diagonal(dim1=1, dim2=2)[:, :, None].sqrt()
    for _ in range(20):
        probe = F.normalize(metric @ probe, dim=1)
    largest = (metric @ probe).norm(dim=1, keepdim=True) * 1.05
    curvature = variance.sum(dim=0)[:, :, None]
    return metric, largest, curvature.clamp(min=1e-3 * float(curvature.max()))
