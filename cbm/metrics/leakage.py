"""Do the scores say only what their names say? How much they tell about the class beyond the concepts.

A score is a number, and a number can carry more than the yes or no it is named after: a head then decides by something
that no reader of the names knows (Mahinpei et al., "Promises and Pitfalls of Black-Box Concept Learning Models", 2021).
It is measured against the true concepts, as a share of what these leave open about the class:

    own leak     I(s_k; y | c_k) / H(y | c_k)     what a score says of the class beyond its own concept
    inter leak   I(s_k; c_j | c_k) / H(c_j | c_k) what it says of another concept
    joint leak   1 - H(y | c, s) / H(y | c)       what all scores say beyond all true concepts: the one that decides

An honest detector of one concept on correlated features has some own leak, since it responds to other named concepts
too. Only joint leak is beyond all names. It is no fault by itself: where the concepts do not determine the class, a
model needs it to be accurate, and should say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit, spaced
from cbm.layers import ConceptBottleneck, EnergyBottleneck, predict_logits
from cbm.metrics.classification import mcnemar_p
from cbm.metrics.information import Crosstalk, Told, crosstalk, told
from cbm.metrics.truth import mid_ranks
from cbm.solvers import fit_logistic

IMAGES = 4000
"""Pictures on which it is measured, at most: at even distances."""
CONCEPTS = 200
"""Concepts, at most: at even distances."""
POOLED = 5
"""Pictures of a class below which it is pooled with others of the kind."""
LEAST = 100
"""Pictures from which on something is said about all concepts together."""
FOLDS = 5
PENALTIES = (1.0, 0.1, 0.01, 0.001)
OPEN = 0.02
"""Share of the class that the true concepts have to leave open: of less, a share is noise."""
LEVEL, SIZE = 0.01, 0.02
"""Joint leak from which on it is said: p below the one, and at least the other."""


@dataclass(frozen=True)
class Leakage:
    """What K scores tell about the class beyond the concepts they are named after.

    Attributes:
        names: names of the concepts.
        own: own leak, concept by concept.
        inter: inter leak of all pairs.
        joint: joint leak by cross-fitted logistic regression, a lower bound on average; NaN if it was not measured.
        joint_low: lower end of its one-sided 95 % interval.
        joint_p: how likely scores that tell nothing would seem to tell so much.
        ceiling: accuracy of the best classifier that sees only the true concepts; NaN without.
        ceiling_p: how likely a model that is no better would be right so much more often on the same pictures; NaN
            if the accuracy of the model is not known.
        released: leak as it was published (``released_leak``).
        count: number of pictures.
        classes: class of every value of ``Told.by_value`` and ``pull``; -1 for the classes with fewer than ``POOLED``
            pictures, which count as one.
        pull: mean ``[K, C]`` over the pictures of a class of how much higher a score is than of other pictures with the
            same answer, in standard deviations.
        why: why nothing was measured; empty if it was. Then the arrays are empty.
    """

    names: tuple[str, ...] = ()
    own: Told | None = None
    inter: Crosstalk | None = None
    joint: float = float("nan")
    joint_low: float = float("nan")
    joint_p: float = float("nan")
    ceiling: float = float("nan")
    ceiling_p: float = float("nan")
    released: float = float("nan")
    count: int = 0
    classes: tuple[int, ...] = ()
    pull: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    why: str = ""

    @property
    def significant(self) -> float:
        """Share of the measured concepts whose score significantly tells the class beyond the concept."""
        if self.own is None:
            return float("nan")
        known = ~np.isnan(self.own.p_any)
        return float((self.own.p_any[known] < 0.05).mean())

    @property
    def _largest_pair(self) -> float:
        known = np.empty(0) if self.inter is None else self.inter.share[~np.isnan(self.inter.share)]
        return float(known.max()) if len(known) else float("nan")

    @property
    def leaks(self) -> bool:
        """Whether the scores tell more about the class than all true concepts do."""
        return (self.joint_p < LEVEL and self.joint >= SIZE) or self.ceiling_p < LEVEL

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        if self.own is None:
            return f"whether the scores say only what their names say is not measurable: {self.why}"
        if self.leaks:
            said = "the scores tell more about the class than the concepts they are named after"
            if self.joint_p < LEVEL and self.joint >= SIZE:
                return f"{said} (at least {self.joint:.0%} of what the true concepts leave open)"
            return f"{said} (the model is right more often than true concepts allow, {self.ceiling:.1%})"
        if np.isnan(self.joint):
            return (
                "whether all scores together tell more about the class than their names was not measured: the true "
                "concepts leave almost nothing open, or too few pictures have all of them labelled"
            )
        return "the scores are not seen to tell more about the class than the concepts they are named after"

    def metrics(self) -> dict[str, float]:
        """The numbers with keys ``leak/...``; nothing if nothing was measured."""
        if self.own is None:
            return {}
        values = {
            "own_mean": self.own.mean,
            "own_mean_low": self.own.low,
            "own_mean_high": self.own.high,
            "own_significant": self.significant,
            "inter_max": self._largest_pair,
            "joint": float(np.maximum(self.joint, 0.0)),  # NaN stays
            "joint_low": float(np.maximum(self.joint_low, 0.0)),
            "joint_p": self.joint_p,
            "ceiling": self.ceiling,
            "ceiling_p": self.ceiling_p,
            "ctl_released": self.released,
            "n": float(self.count),
        }
        return {f"leak/{key}": float(value) for key, value in values.items() if value == value}


def measure_leakage(
    scores: np.ndarray,
    truth: np.ndarray,
    y: np.ndarray,
    names: tuple[str, ...] = (),
    *,
    right: np.ndarray | None = None,
    trained_on: tuple[np.ndarray, np.ndarray] | None = None,
    subjects: np.ndarray | None = None,
    seed: int = 0,
) -> Leakage:
    """What scores tell about the class beyond the true concepts.

    Args:
        scores: scores ``[N, K]``, on any scale: monotone transforms change nothing.
        truth: labels ``[N, K]`` of the same concepts: 1, 0 (or levels), NaN if unknown.
        y: class indices ``[N]``.
        names: names of the concepts.
        right: whether the model decides every picture rightly, ``[N]`` bool.
        trained_on: labels ``[M, K]`` and classes ``[M]`` of the training pictures, from which the ceiling may be
            learned too: otherwise a model that saw more pictures would seem to be above it.
        subjects: subject ``[N]`` of each picture, or None.
        seed: random seed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, 600)
        >>> c = (rng.random((600, 4)) < 0.2 + 0.3 * np.eye(3, 4)[y] * 2).astype(float)
        >>> honest, leaky = c + 0.5 * rng.standard_normal(c.shape), c + 0.4 * y[:, None] + 0.5 * rng.random(c.shape)
        >>> measure_leakage(honest, c, y).leaks, measure_leakage(leaky, c, y).leaks
        (False, True)
    """
    target, classes = _pooled(y)
    names, count = tuple(names), len(y)
    if why := _undefined(truth, target):
        return Leakage(names, count=count, classes=classes, why=why)
    own = told(scores, truth, target, subjects=subjects, seed=seed)
    if np.isnan(own.mean):
        return Leakage(names, count=count, classes=classes, why="too few pictures with known concepts")
    residual = _residuals(scores, truth)
    whole = ~np.isnan(truth).any(axis=1)
    joint, low, p = _joint(truth[whole], residual[whole], target[whole], seed)
    ceiling, ceiling_p = float("nan"), float("nan")
    if whole.sum() >= LEAST and (-1 not in classes or trained_on is not None):
        ceiling, ceiling_p = _ceiling(truth[whole], y[whole], None if right is None else right[whole], trained_on, seed)
    inter, released = crosstalk(scores, truth, seed=seed), released_leak(scores, truth, y)
    pull = _means(residual, target)
    return Leakage(names, own, inter, joint, low, p, ceiling, ceiling_p, released, count, classes, pull)


def released_leak(scores: np.ndarray, truth: np.ndarray, y: np.ndarray) -> float:
    """Concept-task leakage as it was published and released (Parisini et al., 2025), for comparison.

    ``mean_k max(0, I(s_k; y) - I(c_k; y)) / H(y)``, the first by three nearest neighbours (Ross, PLoS ONE 2014), the
    second from counts. It compares a noisy score with a noiseless truth, so it is nearly 0 for scores that carry a
    third of what the concepts leave open; its bias depends on the number of pictures.

    Args:
        scores: scores ``[N, K]``.
        truth: labels ``[N, K]``; concepts that are not known of all pictures are measured on those where they are.
        y: class indices ``[N]``.
    """
    from sklearn.metrics import mutual_info_score

    found = []
    for score, label in zip(scores.T, truth.T):
        known = ~np.isnan(label)
        if not known.any() or (entropy := mutual_info_score(y[known], y[known])) < 1e-9:
            continue
        if np.allclose(score[known] % 1, 0):
            said = mutual_info_score(score[known], y[known])
        else:
            said = neighbour_information(score[known], y[known])
        found.append(max(0.0, said - mutual_info_score(label[known], y[known])) / entropy)
    return float(np.mean(found)) if found else float("nan")


def neighbour_information(score: np.ndarray, y: np.ndarray, neighbours: int = 3) -> float:
    """Mutual information in nats of a number and a class, by nearest neighbours (Ross, PLoS ONE 2014); not below 0.

    Args:
        score: numbers ``[N]``.
        y: class indices ``[N]``.
        neighbours: neighbours of the same class that make the distance in which all are counted.
    """
    from scipy.special import digamma

    counted, sizes, used = [], [], []
    values, counts = np.unique(y, return_counts=True)
    everything = np.sort(score[np.isin(y, values[counts > 1])])
    for value in values[counts > 1]:
        x = np.sort(score[y == value])
        k, distance = min(neighbours, len(x) - 1), np.full(len(x), np.inf)
        for below in range(k + 1):  # windows of k + 1 neighbours in order, of which so many lie below
            at = np.arange(below, len(x) - k + below)
            distance[at] = np.minimum(distance[at], np.maximum(x[at] - x[at - below], x[at - below + k] - x[at]))
        within = distance * (1 - 1e-9)
        counted.append(np.searchsorted(everything, x + within, "right") - np.searchsorted(everything, x - within))
        sizes.append(np.full(len(x), len(x)))
        used.append(np.full(len(x), k))
    if not counted:
        return 0.0
    part = [float(digamma(np.concatenate(each)).mean()) for each in (used, sizes, counted)]
    return max(0.0, float(digamma(len(everything))) + part[0] - part[1] - part[2])


@torch.no_grad()
def model_leakage(
    model: nn.Module, bank: ConceptBank | None, data: FeatureData, name: str = "test", seed: int = 0
) -> Leakage | None:
    """``measure_leakage`` of what the head of a model reads; None if the data set labels none of its concepts.

    Args:
        model: a bottleneck.
        bank: the concepts of its columns.
        data: encoded splits of one class an image.
        name: name of the split.
        seed: random seed.
    """
    split = data.splits[name]
    pairs = labelled_columns(bank, data, split)
    if not pairs or not isinstance(model, ConceptBottleneck | EnergyBottleneck) or bank is None:
        return None
    pairs = [pairs[i] for i in spaced(torch.arange(len(pairs)), CONCEPTS).tolist()]
    columns, numbers = ([pair[i] for pair in pairs] for i in (0, 1))
    split = split.take(spaced(torch.arange(len(split)), IMAGES).numpy())
    assert split.concepts is not None
    scores = scores_of(model, split.x, columns)
    right = (predict_logits(model, split.x).argmax(dim=1) == split.y).numpy()
    train = data.splits.get("train")
    seen = None
    if train is not None and train.concepts is not None and name != "train":
        few = train.take(spaced(torch.arange(len(train)), IMAGES).numpy())
        assert few.concepts is not None
        seen = (few.concepts[:, numbers].double().numpy(), few.y.numpy())
    return measure_leakage(
        scores.double().numpy(),
        split.concepts[:, numbers].double().numpy(),
        split.y.numpy(),
        tuple(bank.texts[k] for k in columns),
        right=right,
        trained_on=seen,
        subjects=split.subjects,
        seed=seed,
    )


def labelled_columns(bank: ConceptBank | None, data: FeatureData, split: FeatureSplit) -> list[tuple[int, int]]:
    """Concepts of a bank that a split labels with yes and no or with levels: column of the model and of the labels.
    Numbers (ages, sizes) are left out."""
    if bank is None or split.concepts is None:
        return []
    numbers = {column for spec in data.value_specs for column in spec.columns}
    pairs = match_concepts(bank.phrases, data.concept_names)
    return [(column, truth) for column, truth in pairs if data.concept_names[truth] not in numbers]


@torch.no_grad()
def scores_of(model: ConceptBottleneck | EnergyBottleneck, x: Tensor, columns: list[int]) -> Tensor:
    """What the head reads of some concepts, ``[N, M]``: activations, or the probabilities of an energy-based model."""
    if isinstance(model, EnergyBottleneck):
        found = [model.infer(part).concept_probability[:, columns] for part in x.split(16384)]
    else:
        found = [model.activations(part)[:, columns] for part in x.split(4096)]
    return torch.cat(found).float()


# ------------------------------------------------------------------------------------------------- all concepts at once


def _pooled(y: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Numbers ``[N]`` of the classes from 0, those of few pictures being one, the last; and which class every number
    is, -1 for the pooled ones."""
    values, number, counts = np.unique(y, return_inverse=True, return_counts=True)
    few = counts < POOLED
    place = np.where(few, (~few).sum(), (~few).cumsum() - 1)
    return place[number.ravel()], (*values[~few].tolist(), *([-1] if few.any() else []))


def _undefined(truth: np.ndarray, y: np.ndarray) -> str:
    """Why nothing can be measured; empty if it can."""
    if not len(y) or len(np.unique(y)) < 2:
        return f"no two classes have {POOLED} pictures"
    if np.isnan(truth).all():
        return "no concept labels"
    for column in truth.T:
        known = ~np.isnan(column)
        pairs = np.unique(np.stack([y[known], column[known]]), axis=1)
        if pairs.shape[1] > len(np.unique(y[known])):
            return ""
    return "the labels are those of classes, not of pictures, and leave nothing open"


def _residuals(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Normal scores ``[N, K]`` minus their mean over the pictures with the same answer; NaN where it is unknown."""
    from scipy.special import ndtri

    z = ndtri((mid_ranks(torch.from_numpy(scores)).numpy() - 0.5) / len(scores))
    found = np.full(z.shape, np.nan)
    for k in range(z.shape[1]):
        for value in np.unique(truth[~np.isnan(truth[:, k]), k]):
            rows = truth[:, k] == value
            found[rows, k] = z[rows, k] - z[rows, k].mean()
    return found


def _means(residual: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Means ``[K, C]`` of the residuals over the pictures of a class; 0 where none is known."""
    known, each = ~np.isnan(residual), np.eye(int(target.max()) + 1)[target]
    return (np.nan_to_num(residual).T @ each) / np.maximum(known.T.astype(float) @ each, 1)


def _joint(truth: np.ndarray, residual: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Joint leak, its lower end and its p value, from held-out log-losses of two logistic regressions: on the true
    concepts, and on these and what is left of the scores."""
    if len(y) < LEAST or len(np.unique(y)) < 2:
        return float("nan"), float("nan"), float("nan")
    concepts = _standardised(truth)
    fold = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    alone = _cross_fitted(concepts, y, fold)[0]
    both = _cross_fitted(np.concatenate([concepts, _standardised(residual)], axis=1), y, fold)[0]
    gained, open_ = alone - both, float(alone.mean())
    if open_ < OPEN * np.log(int(y.max()) + 1):
        return float("nan"), float("nan"), float("nan")
    joint = float(gained.mean()) / open_
    error = float((gained - joint * alone).std(ddof=1)) / np.sqrt(len(y)) / open_  # of a ratio
    spread = float(gained.std(ddof=1)) / np.sqrt(len(y))
    p = NormalDist().cdf(-float(gained.mean()) / spread) if spread > 0 else 1.0
    return joint, joint - 1.6449 * error, p


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1; those that never vary say nothing, and are all 0 instead of rounding."""
    spread = values.std(axis=0)
    away = np.where(spread > 1e-9, values - values.mean(axis=0), 0.0)
    return (away / np.where(spread > 1e-9, spread, 1)).astype(np.float32)


def _cross_fitted(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-loss ``[N]`` of every picture and decision ``[N]`` about it, by logistic regressions that did not see it."""
    loss, decided, classes = np.empty(len(y)), np.empty(len(y), dtype=np.int64), int(y.max()) + 1
    for part in range(FOLDS):
        away, here = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        inner, held = away[np.arange(len(away)) % 4 > 0], away[::4]
        tried = _logistic(x[inner], y[inner], classes, PENALTIES)
        losses = [float(_log_loss(x[held], y[held], *head)[0].mean()) for head in tried]
        best = PENALTIES[int(np.argmin(losses))]
        (head,) = _logistic(x[away], y[away], classes, [best])
        loss[here], decided[here] = _log_loss(x[here], y[here], *head)
    return loss, decided


def _logistic(x: np.ndarray, y: np.ndarray, classes: int, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    return fit_logistic(torch.from_numpy(x), torch.from_numpy(y), l2=penalties, num_classes=classes, tol=1e-3)


def _log_loss(x: np.ndarray, y: np.ndarray, weight: Tensor, bias: Tensor) -> tuple[np.ndarray, np.ndarray]:
    logits = torch.from_numpy(x) @ weight.T + bias
    chances = logits.double().log_softmax(dim=1)
    own = chances.gather(1, torch.from_numpy(y)[:, None]).squeeze(1)
    return -own.clamp(min=np.log(1e-6)).numpy(), logits.argmax(dim=1).numpy()


def _ceiling(
    truth: np.ndarray,
    y: np.ndarray,
    right: np.ndarray | None,
    trained_on: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
) -> tuple[float, float]:
    """Accuracy of the best of some classifiers that see only the true concepts, and the p value (exact, paired,
    one-sided) of a model that is right more often: logistic regression, cross-fitted on the pictures themselves; and
    it and a random forest from the training pictures (without these, the forest is cross-fitted too)."""
    from sklearn.ensemble import RandomForestClassifier

    forest = {"n_estimators": 50, "min_samples_leaf": 2, "random_state": seed}
    fold = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    found = [_cross_fitted(_standardised(truth), y, fold)[1] == y]
    labels, classes = (truth[:0], y[:0]) if trained_on is None else trained_on
    whole = ~np.isnan(labels).any(axis=1)
    if whole.sum() >= LEAST and len(np.unique(classes[whole])) > 1:
        found.append(RandomForestClassifier(**forest).fit(labels[whole], classes[whole]).predict(truth) == y)
        mean, spread = labels[whole].mean(axis=0), labels[whole].std(axis=0)
        scale = np.where(spread > 1e-9, spread, 1)
        seen, shown = (((part - mean) / scale).astype(np.float32) for part in (labels[whole], truth))
        (head,) = _logistic(seen, classes[whole], int(max(classes.max(), y.max())) + 1, [0.001])
        found.append(_log_loss(shown, y, *head)[1] == y)
    else:
        hit = np.empty(len(y), dtype=bool)
        for part in range(FOLDS):
            away, here = fold != part, fold == part
            hit[here] = RandomForestClassifier(**forest).fit(truth[away], y[away]).predict(truth[here]) == y[here]
        found.append(hit)
    best = max(found, key=lambda each: float(each.mean()))
    if right is None:
        return float(best.mean()), float("nan")
    more, less = int((right & ~best).sum()), int((best & ~right).sum())
    p = mcnemar_p(more, less) / 2 if more > less else 1.0
    return float(best.mean()), p
