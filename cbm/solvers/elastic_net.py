"""Logistic regression with an elastic-net penalty on concept scores, at one penalty: a few concepts per class, exactly.

    F(W, b) = mean_i loss(W z_i + b, y_i) + lam * rho * |W|_1 + lam * (1 - rho) / 2 * |W|_2^2       b is not penalised

with softmax cross-entropy (``link="softmax"``, the sparse final layer of Label-free CBM and VLG-CBM), one logistic
loss per class (``link="ova"``, the one-vs-all head of post-hoc CBM), or the logistic loss of one yes or no
(``link="binary"``). z are standardised scores [N, K], linear in the features (``LinearScores``).

Several problems on the same scores (folds, subsets, seeds: other row weights, other penalties; labels: other answers)
are solved together, S at a time, by the same passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.solvers.scores import LinearScores

Link = Literal["softmax", "ova", "binary"]

_HELD = 2**24  # logits that are kept between Newton steps on the biases: 128 MB of float64
# how far labels are mixed with predictions in the dual points that are tried
SHARES = tuple(1 - e for e in (0, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3))


@dataclass
class Problem:
    """S elastic-net problems that share scores, and labels unless they are ``binary``.

    Attributes:
        scores: standardised scores, N rows of K.
        y: class indices [N]; 0 and 1 for every problem [S, N] if the link is ``binary``.
        num_classes: number of classes C; 1 if the link is ``binary``.
        l1_ratio: share rho of the l1 norm in the penalty, in (0, 1].
        link: ``softmax``, ``ova`` or ``binary``.
        rows: weights [S, N] of every row in every problem, which sum to 1 in each; None for 1/N and S = 1.
    """

    scores: LinearScores
    y: Tensor
    num_classes: int
    l1_ratio: float
    link: Link
    rows: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of problems S."""
        return 1 if self.rows is None else len(self.rows)

    def take(self, which: Tensor) -> Problem:
        """Some of the problems."""
        y = self.y[which] if self.link == "binary" else self.y
        return replace(self, y=y, rows=None if self.rows is None else self.rows[which])

    def row_weights(self, rows: slice | Tensor) -> Tensor | float:
        """Weights of some rows, [n, S, 1]."""
        return 1 / len(self.scores) if self.rows is None else self.rows[:, rows].T[:, :, None].to(self.scores.dtype)

    def targets(self, rows: slice | Tensor) -> Tensor:
        """What some rows are, [n, S, 1]: their classes, or 1 and 0 if the link is ``binary``."""
        if self.link == "binary":
            return self.y[:, rows].T[:, :, None]
        return self.y[rows, None, None].expand(-1, self.size, 1)

    def known(self) -> Tensor:
        """Weights [S, N] of every row in every problem, float64."""
        return torch.full_like(self.y, 1 / len(self.scores), dtype=torch.float64) if self.rows is None else self.rows

    def shares(self) -> Tensor:
        """Shares of the classes, [S, C] float64."""
        shares = torch.zeros(self.size, self.num_classes, dtype=torch.float64, device=self.y.device)
        if self.link == "binary":
            shares[:, 0] = (self.known() * self.y).sum(dim=1)
        elif self.rows is None:
            shares[0] = torch.bincount(self.y, minlength=self.num_classes).double() / len(self.y)
        else:
            shares.index_add_(1, self.y, self.rows.double())
        return shares


@dataclass
class State:
    """A point (weights and biases) with the loss and gradients of a full pass.

    Attributes:
        weight: weights [S, C, K].
        bias: biases [S, C].
        gradient: gradient of the mean loss by the weights, [S, C, K].
        bias_gradient: gradient of the mean loss by the biases, [S, C].
        loss: mean loss, [S], float64.
        dual_entropy: mean entropy of the labels mixed with the predictions, ``(1 - s) y + s p``, at every s of
            ``SHARES``, [G, S] float64.
    """

    weight: Tensor
    bias: Tensor
    gradient: Tensor
    bias_gradient: Tensor
    loss: Tensor
    dual_entropy: Tensor

    def take(self, which: Tensor) -> State:
        """The point of some of the problems."""
        return State(
            self.weight[which],
            self.bias[which],
            self.gradient[which],
            self.bias_gradient[which],
            self.loss[which],
            self.dual_entropy[:, which],
        )

    def put(self, which: Tensor, point: State) -> State:
        """Another point for some of the problems."""
        entropy = self.dual_entropy.clone()
        entropy[:, which] = point.dual_entropy
        return State(
            self.weight.index_put((which,), point.weight),
            self.bias.index_put((which,), point.bias),
            self.gradient.index_put((which,), point.gradient),
            self.bias_gradient.index_put((which,), point.bias_gradient),
            self.loss.index_put((which,), point.loss),
            entropy,
        )


def start(problem: Problem) -> State:
    """Zero weights with the biases of the class shares: the solution for any penalty of ``lambda_max`` or more."""
    scores = problem.scores
    prior = problem.shares().clamp(min=0.5 / len(scores))  # a class without a row gets half of one
    bias = prior.log() if problem.link == "softmax" else (prior / (1 - prior).clamp(min=0.5 / len(scores))).log()
    weight = torch.zeros(problem.size, problem.num_classes, scores.count, dtype=scores.dtype, device=scores.device)
    return full_pass(problem, weight, bias.to(scores.dtype))


def full_pass(problem: Problem, weight: Tensor, bias: Tensor) -> State:
    """Loss, gradient and dual entropies at a point, over all scores, in the dtype of ``problem.scores``."""
    dual_entropy = torch.zeros(len(SHARES), problem.size, dtype=torch.float64, device=weight.device)
    loss, gradient, bias_gradient = loss_and_gradient(problem, problem.scores, weight, bias, dual_entropy)
    return State(weight, bias, gradient, bias_gradient, loss, dual_entropy)


def lambda_max(problem: Problem, origin: State, allowed: Tensor | None = None) -> Tensor:
    """The smallest penalty with all weights zero, [S] float64, from the state that ``start`` returned.

    Args:
        problem: S problems.
        origin: where they start.
        allowed: [S, C, K] bool, the weights that may differ from zero; None is all.
    """
    steep = origin.gradient.abs() if allowed is None else origin.gradient.abs() * allowed
    return steep.amax(dim=(1, 2)).double() / problem.l1_ratio


def objective(problem: Problem, state: State, lam: Tensor) -> Tensor:
    """The objective F [S], float64."""
    return state.loss + penalty(state.weight, lam, problem.l1_ratio)


def kkt_violation(problem: Problem, state: State, lam: Tensor, allowed: Tensor | None = None) -> Tensor:
    """How far every weight is from its optimality condition, as a share of ``lam * rho``: [S, C, K].

    On W != 0 the gradient must equal the penalty's slope, on W = 0 be at most lam * rho.

    Args:
        problem: S problems.
        state: a point and its gradients.
        lam: [S].
        allowed: [S, C, K] bool, the weights that may differ from zero; None is all.
    """
    l1 = (lam * problem.l1_ratio).to(state.weight)[:, None, None]
    l2 = (lam * (1 - problem.l1_ratio)).to(state.weight)[:, None, None]
    slope = state.gradient + l2 * state.weight
    off = torch.where(state.weight != 0, (slope + l1 * state.weight.sign()).abs(), (slope.abs() - l1).clamp(min=0))
    return (off if allowed is None else off * allowed) / l1


def kkt_residual(problem: Problem, state: State, lam: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The largest of ``kkt_violation`` and of the bias gradient, as a share of ``lam * rho``: [S] float64."""
    weights = kkt_violation(problem, state, lam, allowed).amax(dim=(1, 2)).double()
    return torch.maximum(weights, state.bias_gradient.abs().amax(dim=1).double() / (lam * problem.l1_ratio))


def duality_gap(problem: Problem, state: State, lam: Tensor, allowed: Tensor | None = None) -> Tensor:
    """F minus the best dual value that was tried, [S] float64: a bound on how far F is above its minimum.

    Every ``(1 - s) y + s p`` is a dual point, feasible if the bias gradient is zero (``polish_bias`` sees to that); its
    value is the entropy minus ``sum (s |g| - lam rho)_+^2 / (2 lam (1 - rho))``. With rho = 1 a dual point needs
    ``s |g| <= lam``. Where the bias gradient is not zero, the bound is on the minimum over W with this bias.

    Args:
        problem: S problems.
        state: a point and what a full pass found there.
        lam: [S].
        allowed: [S, C, K] bool, the weights that may differ from zero; None is all.
    """
    steep = state.gradient.abs().double()
    if allowed is not None:
        steep = steep * allowed
    l1 = (lam * problem.l1_ratio)[:, None, None]
    held = (state.bias_gradient.double() * state.bias.double()).sum(dim=1)
    best = torch.full_like(state.loss, -torch.inf)
    for s, entropy in zip(SHARES, state.dual_entropy):
        excess = (s * steep - l1).clamp(min=0)
        entropy = entropy + s * held
        if problem.l1_ratio < 1:
            value = entropy - excess.square().sum(dim=(1, 2)) / (2 * lam * (1 - problem.l1_ratio))
        else:
            value = torch.where(excess.amax(dim=(1, 2)) <= 1e-12 * lam, entropy, -torch.inf)
        best = torch.maximum(best, value)
    return objective(problem, state, lam) - best


def polish_bias(problem: Problem, state: State) -> State:
    """The same weights with the bias that is best for them, and a full pass there: Newton's method on C numbers.

    Makes the dual point of ``duality_gap`` feasible. For the softmax the last class's bias is held.
    """
    weight, bias = state.weight, state.bias
    scores = problem.scores
    vectors, offset = scores.vectors(weight.flatten(0, 1), torch.zeros_like(bias).flatten())
    held: dict[int, Tensor] = {}  # logits without the biases, where they fit
    for _ in range(20):
        gradient = torch.zeros_like(bias)
        hessian = torch.zeros(*bias.shape, bias.shape[1], dtype=bias.dtype, device=bias.device)
        for rows in scores.chunks(len(vectors)):
            if (fixed := held.get(rows.start)) is None:
                fixed = scores.logits(scores.part(rows), vectors, offset).unflatten(1, bias.shape)
                if len(scores) * len(vectors) <= _HELD:
                    held[rows.start] = fixed
            logits = fixed + bias
            p = logits.softmax(dim=2) if problem.link == "softmax" else logits.sigmoid()
            weighted = p * problem.row_weights(rows)
            if problem.link == "softmax":
                hessian -= torch.einsum("nsc,nsd->scd", weighted, p)
            else:
                hessian -= torch.diag_embed((weighted * p).sum(dim=0))
            hessian += torch.diag_embed(weighted.sum(dim=0))
            gradient += weighted.sum(dim=0)
        gradient -= problem.shares().to(gradient)
        if float(gradient.abs().max()) < 1e-13:
            break
        if problem.link == "softmax":  # adding a number to all biases changes nothing
            hessian += 1 / bias.shape[1]
        step = torch.linalg.lstsq(hessian, gradient[:, :, None]).solution.squeeze(2)
        bias = bias - step.clamp(-2, 2)
    return full_pass(problem, weight, bias)


def loss_and_gradient(
    problem: Problem, scores: LinearScores, weight: Tensor, bias: Tensor, dual_entropy: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss [S], its gradient [S, C, A] and bias gradient [S, C] at a point, one pass over the rows.

    ``dual_entropy`` [G, S], if given, is added to (see ``State``).
    """
    shape = bias.shape
    vectors, offset = scores.vectors(weight.flatten(0, 1), bias.flatten())
    products = torch.zeros_like(vectors)
    sums = torch.zeros_like(offset)
    loss = torch.zeros(shape[0], dtype=torch.float64, device=scores.device)
    for rows in scores.chunks(len(vectors)):
        part, weights = scores.part(rows), problem.row_weights(rows)
        y = problem.targets(rows)
        logits = scores.logits(part, vectors, offset).unflatten(1, shape)
        if problem.link == "softmax":
            log_p = logits.log_softmax(dim=2)
            own = log_p.gather(2, y)
            losses = -own
            if dual_entropy is not None:
                mixed = _mixed_entropy(own, -(log_p * log_p.exp()).sum(dim=2, keepdim=True))
            p = log_p.exp_()
        else:
            sign = 1 - 2 * y.to(logits) if problem.link == "binary" else torch.ones_like(logits).scatter_(2, y, -1.0)
            losses, p = F.softplus(sign * logits).sum(dim=2, keepdim=True), logits.sigmoid()
            if dual_entropy is not None:
                own, other = F.logsigmoid(-sign * logits), F.logsigmoid(sign * logits)
                entropy = -(own.exp() * own + other.exp() * other)
                mixed = (part.sum(dim=2, keepdim=True) for part in _mixed_entropy(own, entropy))
        loss += (losses * weights).sum(dim=(0, 2), dtype=torch.float64)
        if dual_entropy is not None:
            for total, entropies in zip(dual_entropy, mixed):
                total += (entropies * weights).sum(dim=(0, 2), dtype=torch.float64)
        if problem.link == "binary":
            p -= y
        else:
            p.scatter_add_(2, y, p.new_full((), -1.0).expand(y.shape))
        p = (p.mul_(weights) if isinstance(weights, Tensor) else p).flatten(1)
        scores.collect(products, p, part)
        sums += p.sum(dim=0)
    if problem.rows is None:
        products, sums = products / len(scores), sums / len(scores)
    return loss, scores.pull(products, sums).unflatten(0, shape), sums.unflatten(0, shape)


def _mixed_entropy(log_own: Tensor, entropy: Tensor) -> Iterator[Tensor]:
    """Entropy of ``(1 - s) y + s p`` for every s of ``SHARES``.

    All classes but the true one are scaled by s, so two numbers per row are enough: the true class's log-probability
    and the entropy of p.
    """
    own = log_own.exp()
    rest = entropy + own * log_own  # - sum of p log p over the other classes
    for s in SHARES:
        mixed = 1 - s + s * own
        yield s * rest - s * math.log(s) * (1 - own) - torch.special.xlogy(mixed, mixed)


def mean_loss(problem: Problem, scores: LinearScores, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean loss [S]."""
    vectors, offset = scores.vectors(weight.flatten(0, 1), bias.flatten())
    loss = torch.zeros(len(bias), dtype=torch.float64, device=scores.device)
    for rows in scores.chunks(len(vectors)):
        logits = scores.logits(scores.part(rows), vectors, offset).unflatten(1, bias.shape)
        y = problem.targets(rows)
        own = logits * y if problem.link == "binary" else logits.gather(2, y)
        total = logits.logsumexp(dim=2, keepdim=True) if problem.link == "softmax" else F.softplus(logits).sum(2, True)
        loss += ((total - own) * problem.row_weights(rows)).sum(dim=(0, 2), dtype=torch.float64)
    return loss


def penalty(weight: Tensor, lam: Tensor, rho: float) -> Tensor:
    """lam * (rho |W|_1 + (1 - rho) / 2 |W|^2), [S] float64."""
    w = weight.double()
    return lam * (rho * w.abs().sum(dim=(1, 2)) + 0.5 * (1 - rho) * w.square().sum(dim=(1, 2)))
