"""From no concept to many: the elastic-net path, exact numbers of concepts per class, and a certificate for each point.

Published numbers "at NEC = 5" (number of effective concepts: non-zero weights per class, Srivastava et al., VLG-CBM,
NeurIPS 2024) come from solvers that stop early, on the first penalty that is sparse enough, cut off at five. Here the
penalty is bisected until the optimum itself has five, and every point says how far from its optimum it can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cbm.kernels.shapes import check_answers, check_labels
from cbm.solvers.elastic_net import (
    Link,
    Problem,
    State,
    duality_gap,
    full_pass,
    kkt_residual,
    lambda_max,
    objective,
    polish_bias,
    start,
)
from cbm.solvers.scores import LinearScores
from cbm.solvers.working_set import solve

_STRIDE = 0.25  # largest step down the penalties in one solve
_LOOSE = 0.1  # relative gap of the steps in between
_AGAIN = 0.05  # share of the tolerance for a solution that missed it
_NEC_TOL = 1e-5  # relative gap where the number of non-zero weights is what is asked for
_ROUNDS = 16  # solves per bisection
_TOGETHER = 20  # labels that are solved together: with more, the columns that any of them uses would be all there are


@dataclass(frozen=True)
class SparsePoint:
    """A sparse classifier on standardised scores, ``logits = z W^T + b``, with its certificate.

    Attributes:
        lam: penalty.
        index: positions [M] of the non-zero weights in the flattened [C, K] matrix.
        value: values [M] of these weights.
        bias: biases [C].
        shape: shape (C, K) of the weights.
        objective: F at the point, evaluated in float64.
        gap: bound on ``(F - min F) / F`` from the dual problem, in float64.
        kkt: largest violation of the optimality conditions, as a share of ``lam * rho``, in float64.
        passes: number of passes over the working set.
        cut: number of weights that were removed to meet an exact number; the other weights are optimal without them.
    """

    lam: float
    index: Tensor
    value: Tensor
    bias: Tensor
    shape: tuple[int, int]
    objective: float
    gap: float
    kkt: float
    passes: float
    cut: int = 0

    @property
    def nec(self) -> float:
        """Non-zero weights per class."""
        return len(self.index) / self.shape[0]

    def weight(self) -> Tensor:
        """The weights W [C, K]."""
        flat = self.value.new_zeros(self.shape[0] * self.shape[1])
        flat[self.index] = self.value
        return flat.view(self.shape)


@dataclass(frozen=True)
class SparsePath:
    """Solutions from sparse to dense.

    Attributes:
        points: solutions by falling penalty.
        at_nec: solutions by requested number of concepts per class. If the path ends before that number, its last
            point: ``point.nec`` is the actual number.
    """

    points: tuple[SparsePoint, ...]
    at_nec: dict[int, SparsePoint]


def elastic_net_path(
    scores: LinearScores, y: Tensor, *, num_classes: int, row_weights: Tensor | None = None, **settings
) -> SparsePath:
    """The path of one problem; see ``elastic_net_paths``.

    Args:
        scores: standardised scores, N rows of K.
        y: class indices [N], int64.
        num_classes: number of classes C >= 2.
        row_weights: weights [N] of the rows, or None.
        settings: further arguments of ``elastic_net_paths``.

    Raises:
        ValueError: A shape does not fit or a number is out of range.
    """
    rows = None if row_weights is None else row_weights[None]
    return elastic_net_paths(scores, y, num_classes=num_classes, row_weights=rows, **settings)[0]


@torch.no_grad()
def elastic_net_paths(
    scores: LinearScores,
    y: Tensor,
    *,
    num_classes: int,
    row_weights: Tensor | None = None,
    l1_ratio: float = 0.99,
    link: Link = "softmax",
    lambdas: Sequence[float] | None = None,
    n_lambdas: int = 50,
    lambda_ratio: float = 1 / 500,
    max_nec: float | None = None,
    nec: Sequence[int] = (),
    tol: float = 1e-4,
    until: Callable[[list[SparsePoint]], bool] | None = None,
    allowed: Tensor | None = None,
) -> list[SparsePath]:
    """Solve S elastic-net problems (``cbm.solvers.elastic_net``) down a path of penalties, together.

    Args:
        scores: standardised scores, N rows of K, shared by all problems.
        y: class indices [N], int64; 0 and 1 for every problem [S, N] if the link is ``binary``.
        num_classes: number of classes C >= 2; 1 if the link is ``binary``.
        row_weights: weights [S, N] >= 0 of the rows: folds or few-shot subsets (0 or 1), bootstraps (counts), known
            answers (1, else 0). None for equal weights.
        l1_ratio: share rho of the l1 norm in the penalty, in (0, 1].
        link: ``softmax``, ``ova`` (one logistic loss per class, summed) or ``binary`` (one yes or no a problem).
        lambdas: penalties; by default ``n_lambdas``, evenly spaced in the logarithm from the smallest that makes all
            weights zero (of each problem) down to ``lambda_ratio`` times that.
        n_lambdas: number of penalties.
        lambda_ratio: ratio of the smallest to the largest penalty.
        max_nec: number of non-zero weights per class at which the path ends, once every problem has more.
        nec: numbers of non-zero weights per class for which an exact solution is found too, by bisection.
        tol: relative duality gap at which a solve stops; bisection uses 1e-5 if that is smaller.
        until: function of the newest point of every problem that returns whether the path ends.
        allowed: [S, K] bool, the columns that every problem may use; None is all. The others are as good as not there:
            neither the path nor the certificate sees them.

    Returns:
        A path per problem, with certificates.

    Raises:
        ValueError: A shape does not fit or a number is out of range.
    """
    problem = _problem(scores, y, num_classes, row_weights, l1_ratio, link)
    state = start(problem)
    within = _within(problem, allowed)
    top = lambda_max(problem, state, within)
    if lambdas is None:
        steps = torch.logspace(0, math.log10(lambda_ratio), n_lambdas, dtype=torch.float64).to(top.device)
        grid = list(steps[:, None] * top)
    else:
        if not lambdas or not all(value > 0 for value in lambdas):
            raise ValueError(f"lambdas is {lambdas}; expected numbers > 0")
        grid = [torch.full_like(top, value) for value in sorted(lambdas, reverse=True)]
    before = torch.maximum(top, grid[0])
    paths: list[list[SparsePoint]] = [[] for _ in range(problem.size)]
    wanted = max(nec, default=0)
    enough = max_nec if max_nec is not None else wanted if nec else math.inf
    for lam in grid:
        which = torch.tensor([not path or path[-1].nec <= enough for path in paths]).nonzero().flatten().to(top.device)
        if link != "binary":
            which = torch.arange(len(paths), device=top.device)
        elif not len(which):
            break
        part, inside = problem.take(which), None if within is None else within[which]
        here, passes = _descend(part, state.take(which), before[which], lam[which], tol, inside)
        newest = _certify(part, here, lam[which], passes, inside)
        if max(point.gap for point in newest) > tol:  # the certificate has the best bias, a solve has not
            here, more = solve(part, lam[which], here, tol=_AGAIN * tol, allowed=inside)
            newest = _certify(part, here, lam[which], passes + more, inside)
        state, before = state.put(which, here), lam
        for s, point in zip(which.tolist(), newest):
            paths[s].append(point)
        if until is not None and until([path[-1] for path in paths]):
            break
        if min(path[-1].nec for path in paths) > enough:
            break
    targets = {count: _at_nec(problem, paths, count, min(tol, _NEC_TOL), within) for count in sorted(set(nec))}
    return [SparsePath(tuple(path), {m: found[s] for m, found in targets.items()}) for s, path in enumerate(paths)]


def label_paths(scores: LinearScores, y: Tensor, *, allowed: Tensor | None = None, **settings) -> list[SparsePath]:
    """A path for every label: yes or no by a few concepts each, with exactly so many for every one of them.

    Labels share nothing but the scores, and are solved together by the same passes; what is unknown of one counts for
    the others.

    Args:
        scores: standardised scores, N rows of K.
        y: labels [N, L]: 1, 0, or NaN if unknown.
        allowed: [L, K] bool, the columns that every label may use; None is all.
        settings: further arguments of ``elastic_net_paths``; ``until`` sees some labels at a time.

    Raises:
        ValueError: A shape does not fit, a label is neither 1, 0 nor NaN, or nothing is known of one.
    """
    if y.dim() != 2:
        raise ValueError(f"y has shape {list(y.shape)}; expected [{len(scores)}, L]")
    known = ~y.isnan()
    if bool((known & (y != 0) & (y != 1)).any()):
        raise ValueError("y has entries other than 1, 0 and NaN")
    if allowed is not None and allowed.shape != (y.shape[1], scores.count):
        raise ValueError(f"allowed has shape {list(allowed.shape)}; expected [{y.shape[1]}, {scores.count}]")
    paths: list[SparsePath] = []
    for part in torch.arange(y.shape[1]).split(_TOGETHER):
        answers, weights = y[:, part].nan_to_num().T.long(), known[:, part].T
        paths += elastic_net_paths(
            scores,
            answers,
            num_classes=1,
            row_weights=weights.float(),
            link="binary",
            allowed=None if allowed is None else allowed[part],
            **settings,
        )
    return paths


def _problem(
    scores: LinearScores, y: Tensor, num_classes: int, row_weights: Tensor | None, l1_ratio: float, link: Link
) -> Problem:
    """Checked arguments."""
    if link == "binary":
        check_answers(y, len(scores), num_classes)
        row_weights = y.new_ones(y.shape) if row_weights is None else row_weights
    else:
        check_labels(y, len(scores), num_classes)
    if not 0 < l1_ratio <= 1:
        raise ValueError(f"l1_ratio is {l1_ratio}; expected a number in (0, 1]")
    if link not in ("softmax", "ova", "binary"):
        raise ValueError(f"link is {link!r}; expected 'softmax', 'ova' or 'binary'")
    if row_weights is not None:
        if row_weights.dim() != 2 or row_weights.shape[1] != len(scores) or bool((row_weights < 0).any()):
            raise ValueError(
                f"row_weights has shape {list(row_weights.shape)}; expected [S, {len(scores)}] and no negative weight"
            )
        if link == "binary" and len(row_weights) != len(y):
            raise ValueError(f"row_weights has shape {list(row_weights.shape)}; expected that of y, {list(y.shape)}")
        totals = row_weights.double().sum(dim=1, keepdim=True)
        if bool((totals == 0).any()):
            raise ValueError("row_weights has a problem in which every row counts zero")
        row_weights = (row_weights.double() / totals).to(scores.device)
    return Problem(scores, y.to(scores.device), num_classes, l1_ratio, link, row_weights)


def _within(problem: Problem, allowed: Tensor | None) -> Tensor | None:
    """The columns [S, K] that problems may use as weights [S, C, K] that may differ from zero; None is all."""
    if allowed is None:
        return None
    if allowed.dtype != torch.bool or allowed.shape != (problem.size, problem.scores.count):
        raise ValueError(
            f"allowed is {allowed.dtype} {list(allowed.shape)}; expected bool [{problem.size}, {problem.scores.count}]"
        )
    return allowed.to(problem.scores.device)[:, None].expand(-1, problem.num_classes, -1)


def _descend(
    problem: Problem, state: State, before: Tensor, lam: Tensor, tol: float, allowed: Tensor | None
) -> tuple[State, float]:
    """Solve at ``lam``, by way of loose solutions in between if it is far below ``before``; all [S]."""
    total = 0.0
    while bool((before * _STRIDE > lam * 1.001).any()):
        before = torch.maximum(before * _STRIDE, lam)
        state, passes = solve(problem, before, state, tol=_LOOSE, allowed=allowed)
        total += passes
    state, passes = solve(problem, lam, state, tol=tol, allowed=allowed)
    return state, total + passes


def _certify(
    problem: Problem, state: State, lam: Tensor, passes: float, allowed: Tensor | None = None
) -> list[SparsePoint]:
    """The S points of a state, judged in float64 with the best bias for their weights."""
    exact = replace(problem, scores=problem.scores.to(torch.float64))
    judged = polish_bias(exact, replace(state, weight=state.weight.double(), bias=state.bias.double()))
    value = objective(exact, judged, lam)
    gap = (duality_gap(exact, judged, lam, allowed) / value).tolist()
    kkt = kkt_residual(exact, judged, lam, allowed).tolist()
    points = []
    for s, weight in enumerate(state.weight):
        flat = weight.flatten()
        index = flat.nonzero().flatten()
        points.append(
            SparsePoint(
                float(lam[s]),
                index,
                flat[index],
                judged.bias[s].to(flat),
                tuple(weight.shape),
                float(value[s]),
                gap[s],
                kkt[s],
                passes,
            )
        )
    return points


def _at_nec(
    problem: Problem, paths: list[list[SparsePoint]], nec: int, tol: float, within: Tensor | None
) -> list[SparsePoint]:
    """The solutions with exactly ``nec`` non-zero weights per class, for all problems together.

    Between the points of the path on either side, by interpolation of the number of non-zero weights over the logarithm
    of the penalty, safeguarded as bisection. The number can jump by more than one, or not be monotone: what is left
    over after the last round is cut, smallest weights first, and the others are solved again among themselves.
    """
    count = nec * problem.num_classes
    dense = [next((i for i, p in enumerate(path) if len(p.index) >= count), len(path) - 1) for path in paths]
    sparse_points = [path[max(i - 1, 0)] for path, i in zip(paths, dense)]
    dense_points = [path[i] for path, i in zip(paths, dense)]
    if all(len(point.index) <= count for point in dense_points):  # met, or the path ends before
        return dense_points
    low, high = _lambdas(problem, sparse_points), _lambdas(problem, dense_points)
    state, best = _state(problem, sparse_points), _state(problem, dense_points)
    open_ = _nonzero(best) > count
    passes = 0.0
    for turn in range(_ROUNDS):
        if not bool(open_.any()):
            break
        fewer, more = _nonzero(state).double(), _nonzero(best).double()
        share = ((count - fewer) / (more - fewer).clamp(min=1)).clamp(0.1, 0.9) if turn % 3 < 2 else 0.5
        middle = torch.where(open_, low * (high / low) ** share, high)
        which = open_.nonzero().flatten()
        inside = None if within is None else within[which]
        part, used = solve(problem.take(which), middle[which], state.take(which), tol=tol, allowed=inside)
        found = state.put(which, part)
        passes += used
        enough = open_ & (_nonzero(found) >= count)
        too_few = open_ & ~enough
        best, high = _where(enough, found, best), torch.where(enough, middle, high)
        state, low = _where(too_few, found, state), torch.where(too_few, middle, low)
        open_ = open_ & (_nonzero(found) != count)
    points = _certify(problem, best, high, passes, within)
    excess = [max(0, len(point.index) - count) for point in points]
    if not any(excess):
        return points
    kept = _state(problem, [_cut(point, count) for point in points])
    allowed = kept.weight != 0
    again, used = solve(problem, high, kept, tol=tol, allowed=allowed)
    solved = _certify(problem, again, high, passes + used, allowed)
    return [replace(new, cut=n) if n else old for old, new, n in zip(points, solved, excess)]


def _nonzero(state: State) -> Tensor:
    """Non-zero weights of every problem, [S]."""
    return (state.weight != 0).sum(dim=(1, 2))


def _lambdas(problem: Problem, points: list[SparsePoint]) -> Tensor:
    """Their penalties, [S]."""
    return torch.tensor([point.lam for point in points], dtype=torch.float64, device=problem.scores.device)


def _state(problem: Problem, points: list[SparsePoint]) -> State:
    """A full pass at S points."""
    return full_pass(
        problem, torch.stack([point.weight() for point in points]), torch.stack([point.bias for point in points])
    )


def _where(mask: Tensor, yes: State, no: State) -> State:
    """The problems of ``yes`` where the mask [S] is true, else those of ``no``."""
    return State(
        torch.where(mask[:, None, None], yes.weight, no.weight),
        torch.where(mask[:, None], yes.bias, no.bias),
        torch.where(mask[:, None, None], yes.gradient, no.gradient),
        torch.where(mask[:, None], yes.bias_gradient, no.bias_gradient),
        torch.where(mask, yes.loss, no.loss),
        torch.where(mask, yes.dual_entropy, no.dual_entropy),
    )


def _cut(point: SparsePoint, count: int) -> SparsePoint:
    """Only the ``count`` largest weights (scores are standardised, so the largest weights matter most)."""
    if len(point.index) <= count:
        return point
    largest = point.value.abs().topk(count).indices.sort().values
    return replace(point, index=point.index[largest], value=point.value[largest])
