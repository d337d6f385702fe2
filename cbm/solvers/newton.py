"""Proximal Newton steps for the elastic net on a few columns: a handful of passes, for up to some thousand weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.solvers.elastic_net import Problem, State, kkt_residual, loss_and_gradient, mean_loss, objective, penalty
from cbm.solvers.scores import LinearScores

_NEWTON_ROWS = 8192  # rows the second derivatives are summed over, at least (if there are so many)
_PATIENCE = 20  # steps without progress: rounding
_HALVINGS = 20  # of a step that does not lower F
_INNER = 600  # FISTA steps on a second-order model
_EXACT = 20  # exact solutions of the model between two changes of sign


def newton(
    problem: Problem,
    scores: LinearScores,
    weight: Tensor,
    bias: Tensor,
    lam: Tensor,
    aim: float,
    allowed: Tensor | None,
    max_passes: float,
) -> tuple[Tensor, Tensor, float]:
    """Proximal Newton steps on A columns, until the optimality conditions hold to ``aim``.

    A step minimises the second-order model of the loss plus the penalty over the weights that are not zero, those whose
    gradient asks them to leave zero, and all biases, together (classes are coupled through the softmax), and is halved
    until F falls.
    """
    rho = problem.l1_ratio
    l1, l2 = ((lam * part).to(weight)[:, None, None] for part in (rho, 1 - rho))
    passes, step_count, since, smallest = 0.0, 0, 0, torch.inf
    while True:
        loss, gradient, bias_gradient = loss_and_gradient(problem, scores, weight, bias)
        passes += 1
        state = State(weight, bias, gradient, bias_gradient, loss, loss)
        residuals = kkt_residual(problem, state, lam, allowed)
        residual = float(residuals.max())
        if residual < 0.9 * smallest:
            smallest, since = residual, step_count
        if residual < aim or passes >= max_passes or step_count - since > _PATIENCE:
            return weight, bias, passes
        step_count += 1
        value = objective(problem, state, lam)
        step, bias_step = torch.zeros_like(weight), torch.zeros_like(bias)
        open_ = (residuals >= aim).nonzero().flatten().tolist()
        free = {
            s: _candidates(weight[s], gradient[s], float(l1[s]), None if allowed is None else allowed[s]) for s in open_
        }
        for s, hessian in _hessians(problem, scores, weight, bias, free).items():
            step[s], bias_step[s] = _model_step(
                hessian, weight[s], gradient[s], bias_gradient[s], free[s], float(l1[s]), float(l2[s])
            )
        size = torch.ones_like(l1)
        moving = residuals >= aim
        for _ in range(_HALVINGS):
            moved, shifted = weight + size * step, bias + size[:, :, 0] * bias_step
            ahead = mean_loss(problem, scores, moved, shifted) + penalty(moved, lam, rho)
            passes += 0.5
            worse = (moving & (ahead > value))[:, None, None]
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        if bool(worse[moving].all()):  # rounding
            return weight, bias, passes
        weight = torch.where(worse, weight, moved)
        bias = torch.where(worse[:, :, 0], bias, shifted)


def _candidates(weight: Tensor, gradient: Tensor, l1: float, allowed: Tensor | None) -> Tensor:
    """The weights [C, A] bool a Newton step may move: those in use, and about as many of the steepest others."""
    used = weight != 0
    steep = gradient.abs() * ~used
    if allowed is not None:
        steep = steep * allowed
    count = min(int((steep > 0.95 * l1).sum()), int(used.sum()) + 2 * len(weight))
    free = used.flatten().clone()
    free[steep.flatten().topk(count).indices] = True
    return free.view_as(weight)


def _hessians(
    problem: Problem, scores: LinearScores, weight: Tensor, bias: Tensor, free: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Second derivatives [M + C, M + C] of the mean loss of some problems, over their M free weights and all biases.

    They are sums over the rows of ``p_c (1[c = d] - p_d) z_j z_k`` for the weights (c, j) and (d, k); of very many rows
    a regular sample is taken. All problems look at the same rows, which are made once.
    """
    places = {s: _Place.of(mask, scores.count) for s, mask in free.items()}
    total, count = len(scores), bias.shape[1]
    sample = min(total, max(_NEWTON_ROWS, *(6 * (place.size - count) for place in places.values())))
    rows = torch.arange(sample, device=scores.device) * total // sample
    largest = max(place.size for place in places.values())
    sums = {
        s: torch.zeros(place.size, place.size, dtype=torch.float64, device=scores.device) for s, place in places.items()
    }
    for part in rows.split(max(256, 2**22 // largest)):
        z = F.pad(scores.block(part), (0, 1), value=1.0)
        for s, place in places.items():
            logits = torch.addmm(bias[s], z[:, :-1], weight[s].T)
            p = logits.softmax(dim=1) if problem.link == "softmax" else logits.sigmoid()
            weights = 1 / sample if problem.rows is None else problem.rows[s, part].to(z)[:, None] * (total / sample)
            picked = z[:, place.columns]
            spread = p if problem.link == "softmax" else p * (1 - p)
            block = torch.block_diag(
                *(b.T @ (b * (spread[:, c : c + 1] * weights)) for c, b in enumerate(picked.split(place.sizes, dim=1)))
            )
            if problem.link == "softmax":
                picked = picked * p[:, place.owners]
                block.addmm_((picked * weights).T, picked, alpha=-1)
            sums[s] += block
    return {s: hessian[places[s].inverse][:, places[s].inverse] for s, hessian in sums.items()}


@dataclass(frozen=True)
class _Place:
    """Where the free weights and biases of a problem stand while its second derivatives are summed: class by class, the
    bias last.

    Attributes:
        columns: their columns in the scores, whose last one is the constant 1.
        owners: their classes.
        sizes: how many every class has.
        inverse: from the order of the weights, then of the biases, to this one.
    """

    columns: Tensor
    owners: Tensor
    sizes: list[int]
    inverse: Tensor

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.columns)

    @classmethod
    def of(cls, free: Tensor, count: int) -> _Place:
        """Of free weights [C, A] bool, A being ``count``."""
        classes, columns = free.nonzero(as_tuple=True)
        owner = torch.cat([classes, torch.arange(len(free), device=classes.device)])
        order = owner.argsort(stable=True)
        place = torch.cat([columns, columns.new_full((len(free),), count)])[order]
        sizes = torch.bincount(owner, minlength=len(free)).tolist()
        return cls(place, owner[order], sizes, order.argsort())


def _model_step(
    hessian: Tensor, weight: Tensor, gradient: Tensor, bias_gradient: Tensor, free: Tensor, l1: float, l2: float
) -> tuple[Tensor, Tensor]:
    """The step [C, A], [C] that minimises the second-order model plus the penalty over the free weights and biases."""
    count = len(bias_gradient)
    here = torch.cat([weight[free].double(), bias_gradient.new_zeros(count).double()])
    slope = torch.cat([gradient[free], bias_gradient]).double()
    diagonal = hessian.diagonal()
    diagonal += 1e-7 * diagonal.mean() + 1e-12
    ridge, lasso = torch.full_like(here, l2), torch.full_like(here, l1)
    ridge[-count:] = lasso[-count:] = 0
    model, linear = hessian + torch.diag(ridge), slope - hessian @ here
    change = _settle_signs(model, linear, lasso, _minimise_model(model, linear, lasso, here)) - here
    step = torch.zeros_like(weight)
    step[free] = change[:-count].to(weight)
    return step, change[-count:].to(weight)


def _minimise_model(model: Tensor, linear: Tensor, lasso: Tensor, here: Tensor) -> Tensor:
    """Approximately argmin_u u.model.u / 2 + linear.u + lasso.|u| from ``here``, by FISTA with restart.

    In float32, in units in which the model's diagonal is one.
    """
    scale = model.diagonal().sqrt()
    unit = (model / torch.outer(scale, scale)).float()
    tilt, threshold = (linear / scale).float(), (lasso / scale).float()
    probe = torch.ones_like(tilt)
    for _ in range(20):
        probe = F.normalize(unit @ probe, dim=0)
    step = 1 / (1.05 * float((unit @ probe).norm()))
    enough = 0.01 * float(threshold[threshold > 0].min()) if bool((threshold > 0).any()) else 0.0
    best = ahead = (here * scale).float()
    momentum = 1.0
    for turn in range(_INNER):
        moved = torch.add(ahead, torch.addmv(tilt, unit, ahead), alpha=-step)
        new = moved - torch.clamp(moved, -step * threshold, step * threshold)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        change = new - best
        proposal = torch.add(new, change, alpha=(momentum - 1) / following)
        if turn % 10 == 9:
            if float(change.abs().max()) < step * enough:
                return new.double() / scale
            if float((ahead - new) @ change) > 0:
                proposal, following = new, 1.0
        best, ahead, momentum = new, proposal, following
    return best.double() / scale


def _settle_signs(model: Tensor, linear: Tensor, lasso: Tensor, best: Tensor) -> Tensor:
    """From an approximate minimum of the model to the exact one on its non-zero weights, in float64.

    As far as the first weight that would change its sign, which then stays at zero, and again without it.
    """
    for _ in range(_EXACT):
        inside = (best != 0) | (lasso == 0)
        target = -(linear + best.sign() * lasso)[inside]
        solution, failed = torch.linalg.solve_ex(model[inside][:, inside], target)
        if failed:  # not told apart by rounding: the approximate minimum will do
            return best
        exact = torch.zeros_like(best)
        exact[inside] = solution
        turned = (exact * best <= 0) & inside & (lasso > 0)
        if not turned.any():
            return exact
        share = best[turned] / (best[turned] - exact[turned])
        best = best + share.min() * (exact - best)
        best[turned.nonzero().flatten()[share <= share.min()]] = 0
    return best
