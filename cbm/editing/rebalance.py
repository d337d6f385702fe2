"""Remove concepts that must not decide, and fit the head again as if they had nothing to do with the class.

Concepts that are removed leave look-alikes behind: other phrases for the same background, which a head that is fitted
anew on the same images uses in their place. The images are the reason, since what was removed goes with the class
there. CBDebug (Enouen and Galhotra, ICLR 2026) weights them so that it does not: with V the activations of the removed
concepts, every image counts ``p(y) / p(y | V)``, its density where class and V are independent, over that where it was
drawn.

    u_i = p(y_i) / p(y_i | V_i)            by 5-fold logistic regressions, every image by one that did not see it
    u_i = min(u_i, cap)                    the largest cap at which the rows count as ``LEAST_ROWS`` N equal ones
    head = elastic net of the other concepts, rows weighted by u, classes balanced; with a certificate

What is published permutes the class among the images and boosts trees on (y, V), where the class is one number, so
that its order matters, and the weights have no limit. The logistic regression gives the same ratio without either.
A column of groups (site, background) can stand in place of V: then ``u = p(y) p(g) / p(y, g)``, from counts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cbm.data.features import FeatureSplit
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck
from cbm.solvers import LinearScores, SparsePoint, elastic_net_path, fit_logistic

FOLDS = 5
PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
LEAST_ROWS = 0.05
"""Effective number of rows that a cap must leave, as a share of their number."""
LEAST_AUROC = 0.6
"""How well V must tell the class: below, they do not go together, and there is nothing to rebalance."""
LEAST_CONCEPTS = 2
"""Concepts that must be left for every class."""
POINTS = 25
"""Penalties on the path, from no weight at all to a thousandth of that penalty."""
MOST_CONCEPTS = 30.0
"""Concepts per class at which the path ends: more than anybody reads."""
PATIENCE = 4
"""Points of the path without a lower validation loss after which it ends."""


@dataclass(frozen=True)
class DensityRatio:
    """How much every image counts where its class has nothing to do with V.

    Attributes:
        u: ratios ``[N]`` float64, without a cap.
        auroc: how well V tells the class of an image that was not looked at: mean over the classes of the area under
            the curve, each against the others; 0.5 is not at all.
    """

    u: Tensor
    auroc: float


def density_ratio(v: Tensor, y: Tensor, num_classes: int, *, seed: int = 0) -> DensityRatio:
    """``p(y) / p(y | v)`` of every image, by regressions that did not see it.

    Args:
        v: activations ``[N, R]`` of the removed concepts.
        y: class indices ``[N]``.
        num_classes: number of classes C; a class is told by its index alone, never by its size or order.
        seed: random seed for the folds, which are stratified by class.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> y = torch.arange(400) % 2
        >>> water = torch.where(torch.rand(400, generator=generator) < 0.9, y, 1 - y)  # goes with the class in 90 %
        >>> ratio = density_ratio(water[:, None] + 0.0, y, 2)
        >>> [round(float(ratio.u[rows].mean()), 1) for rows in (water == y, water != y)]  # .5 / .9 and .5 / .1
        [0.6, 5.0]
    """
    v = v.double()
    spread = v.std(dim=0, correction=0)
    v = ((v - v.mean(dim=0)) / torch.where(spread > 1e-9, spread, 1.0)).float()
    fold, chances = _folds(y, seed), torch.zeros(len(y), num_classes, dtype=torch.float64)
    prior = torch.zeros_like(chances)
    for part in range(FOLDS):
        seen, here = fold != part, fold == part
        l2 = _best_penalty(v[seen], y[seen], fold[seen], num_classes)
        chances[here] = _log_chances(v[here], _fitted(v[seen], y[seen], [l2], num_classes)[0]).exp()
        prior[here] = y[seen].bincount(minlength=num_classes).double() / int(seen.sum())
    own, before = chances.gather(1, y[:, None]).squeeze(1), prior.gather(1, y[:, None]).squeeze(1)
    u = torch.where(before > 0, before / own.clamp(min=1e-300), 1.0)  # a class that its fold alone shows has no ratio
    return DensityRatio(u, _auroc(chances, y))


def count_ratio(groups: np.ndarray, y: Tensor, num_classes: int) -> DensityRatio:
    """``p(y) p(g) / p(y, g)`` of every image from counts, every pair of class and group counted once more.

    Args:
        groups: values ``[N]`` of a column; of images without one (-1) nothing is known, and they count 1.
        y: class indices ``[N]``.
        num_classes: number of classes C.

    Example:
        >>> ratio = count_ratio(np.array([0] * 8 + [1, 0] + [1] * 8 + [-1]), torch.tensor([0] * 9 + [1] * 9 + [0]), 2)
        >>> [round(float(u), 2) for u in ratio.u[[0, 8, 9, 10, 18]]]
        [0.61, 2.75, 2.75, 0.61, 1.0]
    """
    known = torch.from_numpy(groups >= 0)
    values, index = np.unique(groups[groups >= 0], return_inverse=True)
    if len(values) < 2:
        raise UserError(f"the column of groups has {len(values)} value(s) in the training images: expected 2 or more")
    g = torch.zeros(len(y), dtype=torch.long)
    g[known] = torch.from_numpy(index)
    counts = torch.ones(num_classes, len(values), dtype=torch.float64)
    counts.index_put_((y[known], g[known]), torch.ones(int(known.sum()), dtype=torch.float64), accumulate=True)
    joint = counts / counts.sum()
    ratio = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0) / joint
    chances = (joint / joint.sum(dim=0)).T[g]
    return DensityRatio(torch.where(known, ratio[y, g], 1.0), _auroc(chances[known], y[known]))


def effective_rows(weights: Tensor) -> float:
    """How many rows of equal weight tell as much: ``(sum u)^2 / sum u^2`` (Kish).

    >>> effective_rows(torch.ones(50)), effective_rows(torch.tensor([1.0, 0.0, 0.0]))
    (50.0, 1.0)
    """
    return float(weights.double().sum().square() / weights.double().square().sum())


def capped(u: Tensor, share: float = LEAST_ROWS) -> tuple[Tensor, float]:
    """Weights under the largest cap that leaves ``share`` N effective rows, and the cap; infinity if none is needed.

    Never a quantile: the few rows with large weights are the ones that say what the class is without V.

    Args:
        u: weights ``[N]`` > 0.
        share: smallest effective number of rows, as a share of their number.
    """
    u, least = u.double(), share * len(u)
    if effective_rows(u) >= least:
        return u, float("inf")
    low, high = float(u.min()), float(u.max())  # all weights are equal at the one, and too unequal at the other
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if effective_rows(u.clamp(max=middle)) >= least else (low, middle)
    return u.clamp(max=low), low


def class_balanced(weights: Tensor, y: Tensor) -> Tensor:
    """The weights ``[N]`` with the same sum in every class that is there, 1 on average."""
    totals = torch.zeros(int(y.max()) + 1, dtype=torch.float64).index_add_(0, y, weights.double())
    return weights.double() / totals[y] * len(y) / int((totals > 0).sum())


@dataclass(frozen=True)
class Refit:
    """A head that was fitted again without some concepts.

    Attributes:
        model: the bottleneck with this head; removed concepts have no weight in any class.
        point: the solution with its certificate: duality gap and violation of the optimality conditions.
        rows: effective number of training rows.
    """

    model: ConceptBottleneck
    point: SparsePoint
    rows: float


@torch.no_grad()
def refit_without(
    model: ConceptBottleneck,
    removed: Tensor,
    train: FeatureSplit,
    val: FeatureSplit,
    weights: Tensor | None = None,
    val_weights: Tensor | None = None,
    *,
    l1_ratio: float = 0.99,
    tol: float = 1e-4,
) -> Refit:
    """Solve the elastic net on all concepts but the removed ones, and keep the penalty with the lowest validation loss.

    Args:
        model: a bottleneck whose concepts stay as they are; only its head is fitted.
        removed: concepts ``[K]`` bool that no class may use.
        train: the training images.
        val: images that choose the penalty.
        weights: how much every training image counts, ``[N]``; all the same by default. Classes are balanced after it.
        val_weights: the same of the validation images: as the images are weighted, so is what chooses.
        l1_ratio: share of the l1 norm in the penalty.
        tol: relative duality gap at which a solve stops.

    Raises:
        UserError: too few concepts would be left.
    """
    check_enough_left(removed)
    columns = (~removed).nonzero().flatten()
    scores = _scores(model, train.x, columns)
    shown = model.activations(val.x)[:, columns]
    rows = class_balanced(torch.ones(len(train.y)) if weights is None else weights, train.y)
    judges = class_balanced(torch.ones(len(val.y)) if val_weights is None else val_weights, val.y)
    losses: list[float] = []

    def past_best(newest: list[SparsePoint]) -> bool:
        weight, bias = scores.on_raw(newest[0].weight(), newest[0].bias)
        each = cross_entropy((shown @ weight.T + bias).double(), val.y, reduction="none")
        losses.append(float((judges * each).mean()))
        return losses.index(min(losses)) < len(losses) - PATIENCE

    path = elastic_net_path(
        scores,
        train.y,
        num_classes=len(model.biases()),
        row_weights=rows,
        l1_ratio=l1_ratio,
        n_lambdas=POINTS,
        lambda_ratio=1e-3,
        max_nec=MOST_CONCEPTS,
        tol=tol,
        until=past_best,
    )
    point = path.points[losses.index(min(losses))]
    weight, bias = scores.on_raw(point.weight(), point.bias)
    whole = weight.new_zeros(len(weight), len(removed))
    whole[:, columns] = weight
    return Refit(model.with_weights(whole, bias), point, effective_rows(rows))


@dataclass(frozen=True)
class Rebalanced:
    """A head without some concepts, fitted again twice: on the images as they are, and rebalanced.

    Attributes:
        refit: the head that counts every image of a class the same.
        rebalanced: the head that counts images as if the removed concepts had nothing to do with the class.
        auroc: how well the class is told from what is removed (``DensityRatio.auroc``).
        cap: the largest weight of a training image; infinity if none had to be cut.
    """

    refit: Refit
    rebalanced: Refit
    auroc: float
    cap: float


def rebalance(
    model: ConceptBottleneck,
    removed: Tensor,
    train: FeatureSplit,
    val: FeatureSplit,
    *,
    column: str | None = None,
    seed: int = 0,
) -> Rebalanced:
    """Fit the head again without some concepts, as if these had nothing to do with the class.

    Args:
        model: a bottleneck that decides by its concepts alone.
        removed: concepts ``[K]`` bool that no class may use.
        train: the training images.
        val: images that choose the penalties, weighted by ratios of their own.
        column: a column of ``train.groups`` to balance, in place of the removed concepts.
        seed: random seed for the folds.

    Raises:
        UserError: the model has a residual, too few concepts would be left, or what is removed does not go with the
            class.
    """
    if model.residual is not None:
        raise UserError(
            "the model decides past its concepts too (a residual): what is removed would come back there; train with "
            "method.residual=false"
        )
    check_enough_left(removed)
    if column is None and not bool(removed.any()):
        raise UserError("no concept is removed: name one or more, or a column of groups")
    classes = len(model.biases())

    def ratio(split: FeatureSplit) -> DensityRatio:
        if column is not None:
            return count_ratio(split.groups[column], split.y, classes)
        return density_ratio(model.activations(split.x)[:, removed], split.y, classes, seed=seed)

    found = ratio(train)
    what = f"{int(removed.sum())} removed concept(s)" if column is None else f"column '{column}'"
    check_goes_with_class(found, what)
    weights, cap = capped(found.u)
    plain = refit_without(model, removed, train, val)
    return Rebalanced(
        plain, refit_without(model, removed, train, val, weights, capped(ratio(val).u)[0]), found.auroc, cap
    )


def check_enough_left(removed: Tensor) -> None:
    """Refuse to remove nearly everything.

    Args:
        removed: concepts ``[K]`` bool.

    Raises:
        UserError: fewer than ``LEAST_CONCEPTS`` concepts are left for a class.
    """
    left = int((~removed).sum())
    if left < LEAST_CONCEPTS:
        raise UserError(
            f"removing {int(removed.sum())} of {len(removed)} concepts leaves {left}: expected {LEAST_CONCEPTS} or "
            "more for every class"
        )


def check_goes_with_class(ratio: DensityRatio, what: str) -> None:
    """Refuse to rebalance what is balanced already.

    Args:
        ratio: what was found on the training images.
        what: the removed concepts, or the column, in words.

    Raises:
        UserError: the class cannot be told from it.
    """
    if ratio.auroc < LEAST_AUROC:
        raise UserError(
            f"{what}: the class is told from it with AUROC {ratio.auroc:.2f}, expected {LEAST_AUROC} or more: it does "
            "not go with the class, so there is nothing to rebalance"
        )


# ---------------------------------------------------------------------------------------------------- regressions


def _folds(y: Tensor, seed: int) -> Tensor:
    """Fold ``[N]`` of every image: those of a class are dealt out in turn, in random order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    order = order[y[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(y)) % FOLDS
    return fold


def _fitted(v: Tensor, y: Tensor, l2: list[float], num_classes: int) -> list[tuple[Tensor, Tensor]]:
    return fit_logistic(v, y, l2=l2, num_classes=num_classes, tol=1e-3)


def _log_chances(v: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
    """Logarithm ``[n, C]`` of the chance of every class, float64."""
    return (v @ head[0].T + head[1]).double().log_softmax(dim=1)


def _best_penalty(v: Tensor, y: Tensor, fold: Tensor, num_classes: int) -> float:
    """The penalty with the lowest log-loss on the folds that are left, each held out once."""
    total = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for part in fold.unique():
        seen, here = fold != part, fold == part
        present = here & torch.isin(y, y[seen].unique())  # what a regression never saw says nothing of its penalty
        for number, head in enumerate(_fitted(v[seen], y[seen], list(PENALTIES), num_classes)):
            own = _log_chances(v[present], head).gather(1, y[present, None])
            total[number] -= own.clamp(min=-50.0).sum()
    return PENALTIES[int(total.argmin())]


def _auroc(chances: Tensor, y: Tensor) -> float:
    """Mean over the classes of the area under the curve of their own chances ``[N, C]``, each against the others."""
    from sklearn.metrics import roc_auc_score

    present = [c for c in y.unique().tolist() if not bool((y == c).all())]
    areas = [roc_auc_score((y == c).numpy(), chances[:, c].numpy()) for c in present]
    return float(np.mean(areas)) if areas else 0.5


def _scores(model: ConceptBottleneck, x: Tensor, columns: Tensor) -> LinearScores:
    """Standardised activations at some columns, as the solver reads them."""
    if model.activation is None:
        return LinearScores(x, model.concepts[columns])
    return LinearScores(model.activations(x)[:, columns])
