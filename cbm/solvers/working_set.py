"""Solving one elastic-net problem, or S that share their scores, at one penalty.

What makes it quick where SAGA is slow, on scores that are strongly correlated:

- a working set: almost all weights are zero, so almost all passes touch a few columns only. A full gradient,
  re-associated through the features, finds what was wrongly left out;
- proximal Newton steps: the second-order model of all non-zero weights, coupled through the softmax, is minimised
  together with the penalty on a small matrix, without touching the data. Five to ten passes reach rounding;
- beyond some thousand non-zero weights, where that matrix grows too large, accelerated proximal steps in the metric of
  the scores' second moments (on the working set, weighted by how undecided each image still is, scaled per class);
- a warm start down a path of penalties (``cbm.solvers.sparse_path``).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cbm.solvers.elastic_net import Problem, State, duality_gap, full_pass, kkt_violation, objective
from cbm.solvers.newton import newton
from cbm.solvers.proximal import proximal
from cbm.solvers.scores import LinearScores

_ROOM = 0.3  # share of the tolerance that a solve stops at: the certificate has another bias, the exact one
_HOPEFUL = 0.8  # a column joins the working set if a gradient in it is above this share of lam * rho
_FIRST_AIM = 0.05  # residual of the first solution on a working set, as a share of lam * rho
_NEWTON = {"cpu": 3000, "cuda": 20000}  # non-zero weights up to which Newton steps are taken


def solve(
    problem: Problem,
    lam: Tensor,
    state: State,
    *,
    tol: float,
    allowed: Tensor | None = None,
    max_passes: int = 5000,
) -> tuple[State, float]:
    """Minimise F at one penalty per problem.

    Args:
        problem: S problems.
        lam: penalties [S], float64.
        state: where to start.
        tol: stop when the duality gap is estimated at ``tol`` times F, in every problem.
        allowed: [S, C, K] bool, the weights that may differ from zero; None is all.
        max_passes: passes over the working set, at most.

    Returns:
        The solution with its gradients, and how many passes over the working set it took.
    """
    state, passes, done = _solve(problem, lam, state, tol, allowed, max_passes)
    if done or problem.scores.dtype == torch.float64:
        return state, passes
    # float32 can go no further: the rest in float64
    exact = replace(problem, scores=problem.scores.to(torch.float64))
    state = full_pass(exact, state.weight.double(), state.bias.double())
    state, more, _ = _solve(exact, lam, state, tol, allowed, max_passes)
    return full_pass(problem, state.weight.to(problem.scores.dtype), state.bias.to(problem.scores.dtype)), passes + more


def _solve(
    problem: Problem, lam: Tensor, state: State, tol: float, allowed: Tensor | None, max_passes: int
) -> tuple[State, float, bool]:
    """``solve`` in one precision; also whether more precision would be no help.

    Problems that are solved wait for the others without being worked on.
    """
    gaps = duality_gap(problem, state, lam, allowed) / objective(problem, state, lam)
    unsolved = (gaps > _ROOM * tol).nonzero().flatten()
    if 0 < len(unsolved) < problem.size:
        within = None if allowed is None else allowed[unsolved]
        part, passes, done = _solve(
            problem.take(unsolved), lam[unsolved], state.take(unsolved), tol, within, max_passes
        )
        return state.put(unsolved, part), passes, done
    hopeful = _HOPEFUL * (lam * problem.l1_ratio).to(state.weight)[:, None, None]
    columns, held = None, problem.scores
    passes, aim, best, stalled = 0.0, _FIRST_AIM, torch.inf, 0
    while True:
        violation = kkt_violation(problem, state, lam, allowed)
        gap = float((duality_gap(problem, state, lam, allowed) / objective(problem, state, lam)).max())
        if gap <= _ROOM * tol or passes >= max_passes:
            return state, passes, True
        if columns is not None and float(violation[:, :, columns].max()) > 0.5 * float(violation.max()):
            stalled = stalled + 1 if gap > 0.7 * best else 0
            if stalled == 3:
                return state, passes, False
            aim *= min(0.3, max(0.03, (_ROOM * tol / gap) ** 0.5))
        best = min(best, gap)
        wanted = _working_set(state, hopeful, allowed)
        held, columns = _narrow(problem.scores, held, columns, wanted)
        inside = None if allowed is None else allowed[:, :, columns]
        nonzero = int((state.weight != 0).sum(dim=(1, 2)).max())
        method = newton if nonzero <= _NEWTON[held.device.type] else proximal
        weight, bias, used = method(
            problem, held, state.weight[:, :, columns], state.bias, lam, aim, inside, max_passes - passes
        )
        passes += used
        full = torch.zeros_like(state.weight)
        full[:, :, columns] = weight
        state = full_pass(problem, full, bias)


def _working_set(state: State, hopeful: Tensor, allowed: Tensor | None) -> Tensor:
    """Columns in use, and of those whose gradient is above ``hopeful`` the steepest, as many again and a few more."""
    steep = state.gradient.abs() / hopeful
    if allowed is not None:
        steep = steep * allowed
    used = (state.weight != 0).flatten(0, 1).any(dim=0)
    steep = steep.flatten(0, 1).amax(dim=0)
    count = min(int((used | (steep > 1)).sum()), 50 + 2 * int(used.sum()))
    return torch.where(used, torch.inf, steep).topk(count).indices.sort().values


def _narrow(
    everything: LinearScores, held: LinearScores, columns: Tensor | None, wanted: Tensor
) -> tuple[LinearScores, Tensor]:
    """The scores at ``wanted``, from the ``held`` ones at ``columns`` if they are all there."""
    if columns is not None and bool(torch.isin(wanted, columns).all()):
        if len(wanted) > 0.7 * len(columns):
            return held, columns
        return held.take(torch.searchsorted(columns, wanted)), wanted
    return everything.take(wanted), wanted
