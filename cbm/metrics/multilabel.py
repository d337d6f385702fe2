"""Many labels a picture: how well they are ranked, decided and believed, where some are not known.

A label is *scored* if the images hold at least one that is known to have it and one that is known not to: means over
labels are means over these, and ``labels_scored`` says how many they are. An unknown entry counts nowhere. A label is
said to be present where its logit is *above* its threshold; thresholds come from validation images
(``choose_thresholds``), never from the images that are measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cbm.metrics.bootstrap import BINS, DRAWS, SEED, Statistic, Units, bootstrap, percentile_interval, share_interval
from cbm.metrics.paired import Images, Judged, holm, mean_p

ENOUGH = 20
"""Known positives below which a label's own threshold would be chosen by chance."""


def known(y: Tensor) -> Tensor:
    """Number of images ``[L]`` of which each label is known; labels ``[N, L]``: 1, 0, or NaN if unknown."""
    return (~y.isnan()).sum(dim=0)


def positives(y: Tensor) -> Tensor:
    """Number of images ``[L]`` that are known to have each label; labels ``[N, L]``: 1, 0, or NaN if unknown."""
    return (y == 1).sum(dim=0)


def prevalence(y: Tensor) -> Tensor:
    """Share ``[L]`` of the images with each label among those of which it is known, float64; NaN if of none.

    >>> prevalence(torch.tensor([[1.0, 0.0], [0.0, float("nan")]])).tolist()
    [0.5, 0.0]
    """
    return positives(y).double() / known(y)  # 0/0 is NaN


def scored(y: Tensor) -> Tensor:
    """Whether each label is known to be present in an image and absent in another, ``[L]`` bool; labels ``[N, L]``."""
    return (positives(y) > 0) & (positives(y) < known(y))


def choose_thresholds(logits: Tensor, y: Tensor) -> Tensor:
    """The threshold of every label with the highest F1 on validation images.

    The highest F1 of few positives is found by chance (Lipton, Elkan and Naryanaswamy, ECML 2014), so labels with fewer
    than ``ENOUGH`` share one: the best for the F1 of all their entries together, or of the entries of all labels if
    none of theirs is positive. Without any positive it is 0, a probability of one half.

    Args:
        logits: logits ``[N, L]`` of validation images.
        y: their labels ``[N, L]``: 1, 0, or NaN if unknown.

    Returns:
        Thresholds ``[L]`` in units of the logits: midway between two logits, the higher one where F1 is the same.

    Example:
        >>> logits = torch.linspace(-1, 1, 101)[:, None]
        >>> round(float(choose_thresholds(logits, (logits > 0.5).float())), 2)  # 25 positives
        0.51
    """
    count, there = positives(y), ~y.isnan()
    few = count < ENOUGH
    pool = there & (few if bool(count[few].any()) else torch.ones_like(few))
    shared = best_cut(logits[pool], y[pool] == 1) if bool(few.any()) else 0.0
    cuts = [
        shared if rare else best_cut(z[mask], target[mask] == 1)
        for z, target, mask, rare in zip(logits.T, y.T, there.T, few.tolist())
    ]
    return torch.tensor(cuts, dtype=logits.dtype, device=logits.device)


def best_cut(logits: Tensor, present: Tensor) -> float:
    """The threshold with the highest F1 of ``logit > threshold``; 0 if nothing is present.

    Args:
        logits: logits ``[n]``.
        present: whether each label is present, ``[n]`` bool.
    """
    if not bool(present.any()):
        return 0.0
    values, order = logits.sort()
    above = present[order].flip(0).cumsum(0).flip(0)  # present ones at this place and higher
    said = torch.arange(len(values), 0, -1, device=values.device)
    score = 2 * above.double() / (said + above[0])
    score[1:][values[1:] == values[:-1]] = -1  # equal logits are decided alike
    best = int((score == score.max()).nonzero()[-1])
    if best == 0:
        return float(values[0]) - 1
    low, high = values[best - 1], values[best]
    middle = ((low.double() + high.double()) / 2).to(values.dtype)
    return float(middle if middle < high else low)  # neighbouring numbers have none between them


def auroc(logits: Tensor, y: Tensor) -> Tensor:
    """Area under the ROC curve of every label (Mann and Whitney, Ann. Math. Stat. 1947); equal logits count one half.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.

    Returns:
        The areas ``[L]``, float64; NaN for a label that is not scored.

    Example:
        >>> y = torch.tensor([[1.0], [0.0], [1.0], [float("nan")]])
        >>> auroc(torch.tensor([[0.3], [0.3], [0.9], [5.0]]), y).tolist()
        [0.75]
    """
    return _by_label(_auroc, logits, y)


def average_precision(logits: Tensor, y: Tensor) -> Tensor:
    """Average precision of every label: precision summed over the steps of recall, equal logits being one step.

    No line is drawn between the steps: that would be too good (Davis and Goadrich, ICML 2006).

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.

    Returns:
        The average precisions ``[L]``, float64; NaN for a label that is not scored.

    Example:
        >>> average_precision(torch.zeros(4, 1), torch.tensor([[1.0], [0.0], [0.0], [0.0]])).tolist()
        [0.25]
    """
    return _by_label(_average_precision, logits, y)


def f1(logits: Tensor, y: Tensor, thresholds: Tensor) -> Tensor:
    """F1 of every label, ``2 TP / (2 TP + FP + FN)``.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        thresholds: logits ``[L]`` above which a label is said to be present.

    Returns:
        F1 ``[L]``, float64; NaN for a label that is not scored.
    """
    return _f1(_outcomes(logits, y, thresholds)).masked_fill(~scored(y), math.nan)


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of the probability of every label from 1 or 0 (Brier, Monthly Weather Review 1950).

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.

    Returns:
        Scores ``[L]``, float64, smaller is better; NaN for a label that is not scored.
    """
    return (logits.double().sigmoid() - y).square().nanmean(dim=0).masked_fill(~scored(y), math.nan)


def ece(logits: Tensor, y: Tensor, subjects: np.ndarray | None = None) -> Tensor:
    """Expected calibration error of every label, without what the noise of few images adds to it.

    The images are put into ``BINS`` bins of equally many by their logit (Nixon et al., CVPR workshops 2019; equal
    logits stay together; bins of equal width would leave nearly all images of a rare label in the first). The error is
    the sum over the bins of ``|sum of (probability - y)| / n``. Noise makes it too large, and once more so in a
    bootstrap; as for one class a picture, ``2 * error - mean error of the draws`` is returned, and 0 if that is less.
    The mean is the one that many draws tend to: that of the absolute value of a normal number, for every bin. Of a
    calibrated model, where all of the error is noise, this takes away some 40 %.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        subjects: subject ``[N]`` of each image; None if every image is its own.

    Returns:
        Errors ``[L]``, float64; NaN for a label that is not scored.
    """
    member = None if subjects is None else torch.from_numpy(np.unique(subjects, return_inverse=True)[1])
    values = torch.full((y.shape[1],), math.nan, dtype=torch.float64)
    by_label, targets = logits.T.double().cpu().contiguous(), y.T.double().cpu().contiguous()
    for k in scored(y).nonzero().flatten().tolist():
        rows = ~targets[k].isnan()
        values[k] = _ece(by_label[k, rows], targets[k, rows], None if member is None else member[rows])
    return values


def multilabel_metrics(
    logits: Tensor, y: Tensor, thresholds: Tensor, subjects: np.ndarray | None = None
) -> dict[str, float]:
    """All of it for one model: ranking, decisions, calibration and loss.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        thresholds: logits ``[L]`` above which a label is said to be present, from other images.
        subjects: subject ``[N]`` of each image, for ``ece_macro``; None if every image is its own.

    Returns:
        Means over the labels that are scored: ``auroc_macro``, ``map`` (average precision), ``f1_macro``,
        ``f1_macro_half`` (thresholds at a probability of one half), ``balanced_accuracy_macro`` (mean of sensitivity
        and specificity), ``ece_macro``, ``brier_macro``. Over all their entries together: ``auroc_micro``,
        ``f1_micro``. Over everything that is known: ``hamming``, the share of entries that are decided wrongly;
        ``exact_match``, the share of images without a wrong label, among those of which every label is known;
        ``loss``, the mean over the labels of the mean binary cross-entropy in nats of their entries.
        ``labels_scored``. What is not defined (an ``exact_match`` without such images) is left out.

    Example:
        >>> y = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, float("nan")]])
        >>> values = multilabel_metrics(torch.tensor([[2.0, -1], [-1, 1], [0.5, 0]]), y, torch.tensor([1.0, 0.0]))
        >>> values["labels_scored"], values["auroc_macro"], values["exact_match"], values["hamming"]
        (1.0, 1.0, 0.5, 0.4)
    """
    counted, there = scored(y), ~y.isnan()
    outcomes = _outcomes(logits, y, thresholds)
    used = there & counted
    right, complete = (logits > thresholds) == (y == 1), there.all(dim=1)
    z = logits.double()
    entropy = torch.nn.functional.softplus(z) - y * z  # NaN where unknown
    values: dict[str, float | Tensor] = {
        "auroc_macro": auroc(logits, y).nanmean(),
        "auroc_micro": _auroc(logits[used], y[used] == 1),
        "map": average_precision(logits, y).nanmean(),
        "f1_macro": f1(logits, y, thresholds).nanmean(),
        "f1_micro": _f1(outcomes[:, counted].sum(dim=1)),
        "f1_macro_half": f1(logits, y, torch.zeros_like(thresholds)).nanmean(),
        "balanced_accuracy_macro": (_sensitivity(outcomes) + _specificity(outcomes)).nanmean() / 2,
        "ece_macro": ece(logits, y, subjects).nanmean(),
        "brier_macro": brier(logits, y).nanmean(),
        "exact_match": right[complete].all(dim=1).double().mean(),
        "hamming": (~right[there]).double().mean(),
        "loss": entropy.nanmean(dim=0).nanmean(),
        "labels_scored": counted.sum(),
    }
    return {key: float(value) for key, value in values.items() if not math.isnan(value)}


def label_table(
    logits: Tensor, y: Tensor, thresholds: Tensor, names: Sequence[str], subjects: np.ndarray | None = None
) -> list[dict[str, str | int | float]]:
    """A row for every label, as in ``label_metrics.csv``.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        thresholds: logits ``[L]`` above which a label is said to be present, from other images.
        names: L names.
        subjects: subject ``[N]`` of each image, for the calibration error; None if every image is its own.

    Returns:
        L rows: ``name``, ``known``, ``positives``, ``prevalence``, ``auroc``, ``ap``, ``f1``, ``threshold``, ``ece``,
        ``brier``, ``sensitivity`` (share of the positives that are found) and ``specificity`` (share of the negatives
        that are left alone); NaN for what is not defined.
    """
    outcomes = _outcomes(logits, y, thresholds)
    columns = {
        "known": known(y),
        "positives": positives(y),
        "prevalence": prevalence(y),
        "auroc": auroc(logits, y),
        "ap": average_precision(logits, y),
        "f1": f1(logits, y, thresholds),
        "threshold": thresholds,
        "ece": ece(logits, y, subjects),
        "brier": brier(logits, y),
        "sensitivity": _sensitivity(outcomes),
        "specificity": _specificity(outcomes),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"name": name, **dict(zip(columns, row))} for name, row in zip(names, rows, strict=True)]


def auroc_macro_interval(
    logits: Tensor, y: Tensor, subjects: np.ndarray | None = None, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """The 95 % interval of ``auroc_macro`` over images, or over subjects, by the bootstrap.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        subjects: subject ``[N]`` of each image; None if every image is its own.
        draws: number of draws.
        seed: random seed for the draws.

    Returns:
        Lower and upper end; NaN if no label is scored. Where all draws agree (every label is ranked perfectly) it is
        Wilson's interval of a share of so many units.
    """
    if not bool(scored(y).any()):
        return math.nan, math.nan
    units = Units(np.zeros(len(y), dtype=np.int64), subjects)
    drawn = bootstrap(units, {"auroc": macro_auroc(logits, y)}, draws, seed)["auroc"]
    drawn = drawn[~np.isnan(drawn)]
    return share_interval(float(auroc(logits, y).nanmean()), drawn if len(drawn) else None, units.count)


@dataclass(frozen=True)
class AurocDifference:
    """How much better one model ranks than another, on the same images.

    Attributes:
        value: ``auroc_macro`` of the one minus that of the other.
        low: lower end of its 95 % interval.
        high: upper end.
        p: how likely draws of images would put the difference on the other side of 0, in either direction.
    """

    value: float
    low: float
    high: float
    p: float


def auroc_macro_difference(
    logits: Tensor | Sequence[Tensor],
    other: Tensor | Sequence[Tensor],
    y: Tensor,
    subjects: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
) -> AurocDifference | None:
    """Difference of ``auroc_macro`` between two models by a paired bootstrap: both see the same draws.

    Args:
        logits: logits ``[N, L]`` of the one, or of every run of it: then their mean counts, and every draw of images
            draws runs too.
        other: logits ``[N, L]`` of the other, or of every run of it.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        subjects: subject ``[N]`` of each image; None if every image is its own.
        draws: number of draws.
        seed: random seed for the draws.

    Returns:
        The difference; None if no label is scored, here or in any draw.

    Example:
        >>> y, noise = torch.arange(40).remainder(2)[:, None].float(), torch.randn(40, 1)
        >>> found = auroc_macro_difference(noise, noise, y)
        >>> found.value, found.low, found.high, found.p
        (0.0, 0.0, 0.0, 1.0)
    """
    if not bool(scored(y).any()):
        return None
    units = Units(np.zeros(len(y), dtype=np.int64), subjects)
    sides = [[each] if isinstance(each, Tensor) else list(each) for each in (logits, other)]
    statistics = {f"{side} {run}": macro_auroc(z, y) for side, runs in enumerate(sides) for run, z in enumerate(runs)}
    drawn = bootstrap(units, statistics, draws, seed)
    generator = np.random.default_rng(seed)
    means = [
        _mean_of_drawn_runs([drawn[f"{side} {run}"] for run in range(len(sides[side]))], generator) for side in (0, 1)
    ]
    apart = means[0] - means[1]
    apart = apart[~np.isnan(apart)]
    if not len(apart):
        return None
    beyond = min(int((apart <= 1e-12).sum()), int((apart >= -1e-12).sum()))
    one, two = (float(np.mean([float(auroc(z, y).nanmean()) for z in runs])) for runs in sides)
    value = one - two
    return AurocDifference(value, *percentile_interval(apart), min(1.0, 2 * (1 + beyond) / (1 + len(apart))))


def _mean_of_drawn_runs(drawn: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Mean over as many runs as there are, drawn anew for every draw of images; of one run, that run."""
    if len(drawn) == 1:
        return drawn[0]
    values = np.stack(drawn)
    chosen = generator.integers(0, len(values), values.shape)
    return np.take_along_axis(values, chosen, axis=0).mean(axis=0)


def macro_auroc(logits: Tensor, y: Tensor) -> Statistic:
    """``auroc_macro`` of weighted images, for ``bootstrap``.

    Every label is sorted once. A draw then needs only the running sum of the weights of the negatives. Labels that a
    draw leaves without a positive or a negative do not count in it.

    Args:
        logits: logits ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
    """
    plans = []
    for z, target in zip(logits.detach().double().cpu().numpy().T, y.cpu().numpy().T):
        negative, positive = np.flatnonzero(target == 0), np.flatnonzero(target == 1)
        if len(negative) and len(positive):
            negative = negative[z[negative].argsort()]
            passed = (z[negative].searchsorted(z[positive], side=side) for side in ("left", "right"))
            plans.append((negative, positive, *passed))

    def statistic(weights: np.ndarray) -> np.ndarray:
        of_image = np.ascontiguousarray(weights.T)  # an image's weights lie together: they are moved as one
        total, labels = np.zeros((2, len(weights)))
        for negative, positive, below, up_to in plans:
            running = np.zeros((len(negative) + 1, len(weights)))
            np.cumsum(of_image[negative], axis=0, dtype=np.float64, out=running[1:])
            mine = of_image[positive].astype(np.float64)
            wins = np.einsum("nb,nb->b", mine, running[below]) + np.einsum("nb,nb->b", mine, running[up_to])
            pairs = running[-1] * mine.sum(axis=0)
            there = pairs > 0
            total += np.divide(wins, 2 * pairs, out=np.zeros_like(wins), where=there)
            labels += there
        return np.divide(total, labels, out=np.full_like(total, np.nan), where=labels > 0)

    return statistic


@dataclass(frozen=True)
class LabelTest:
    """Decisions of two models about one label.

    Attributes:
        only_one: number of images on which only the first is right.
        only_other: number of images on which only the second is.
        p: how likely two equally good models would differ so unevenly; 1 where nothing is known.
        p_holm: the same, adjusted for the number of labels of which something is known.
    """

    only_one: int
    only_other: int
    p: float
    p_holm: float


def label_tests(one: Tensor, other: Tensor, y: Tensor, subjects: np.ndarray | None = None) -> list[LabelTest]:
    """Which labels are decided better by one of two models: exact tests of McNemar (Psychometrika 1947) with Holm.

    Args:
        one: whether the one says that a label is present, ``[N, L]`` bool.
        other: the same for the other.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        subjects: subject ``[N]`` of each image, all of whose images are then exchanged together (``paired.mean_p``);
            None if every image is its own.

    Returns:
        L tests.

    Example:
        >>> one, other = torch.ones(8, 1, dtype=torch.bool), torch.zeros(8, 1, dtype=torch.bool)
        >>> label_tests(one, other, torch.tensor([[1.0]] * 5 + [[float("nan")]] * 3))
        [LabelTest(only_one=5, only_other=0, p=0.0625, p_holm=0.0625)]
    """
    counts, p_values = [], []
    for a, b, target in zip(*(each.cpu().numpy().T for each in (one, other, y)), strict=True):
        rows = ~np.isnan(target)
        right, right_other = a[rows] == (target[rows] == 1), b[rows] == (target[rows] == 1)
        counts.append((int((right & ~right_other).sum()), int((right_other & ~right).sum())))
        sure = np.ones(len(right))
        images = Images(np.zeros(len(right), dtype=np.int64), None if subjects is None else subjects[rows])
        p_values.append(mean_p({0: Judged(right, sure)}, {0: Judged(right_other, sure)}, images))
    family = known(y).nonzero().flatten().tolist()
    adjusted = dict(zip(family, holm([p_values[k] for k in family])))
    return [LabelTest(*each, p, adjusted.get(k, 1.0)) for k, (each, p) in enumerate(zip(counts, p_values))]


def _by_label(measure: Callable[[Tensor, Tensor], float], logits: Tensor, y: Tensor) -> Tensor:
    """A measure of the known logits ``[n]`` of every label and its presence ``[n]`` bool; NaN if it is not scored."""
    values = torch.full((y.shape[1],), math.nan, dtype=torch.float64)
    by_label, targets = logits.T.contiguous(), y.T.contiguous()
    for k in scored(y).nonzero().flatten().tolist():
        rows = ~targets[k].isnan()
        values[k] = measure(by_label[k, rows], targets[k, rows] == 1)
    return values


def _auroc(logits: Tensor, present: Tensor) -> float:
    """Share of the pairs of a positive and a negative in which the positive has the higher logit."""
    negative, positive = logits[~present].sort().values, logits[present]
    pairs = len(negative) * len(positive)
    below, up_to = (torch.searchsorted(negative, positive, right=right).sum() for right in (False, True))
    return int(below + up_to) / (2 * pairs) if pairs else math.nan


def _average_precision(logits: Tensor, present: Tensor) -> float:
    values, order = logits.sort(descending=True)
    hits = present[order].cumsum(0).double()
    ends = torch.cat([(values[1:] != values[:-1]).nonzero().flatten(), order.new_tensor([len(order) - 1])])
    precision = hits[ends] / (ends + 1)
    return float((hits[ends].diff(prepend=hits.new_zeros(1)) * precision).sum() / hits[-1])


def _ece(logits: Tensor, target: Tensor, member: Tensor | None) -> float:
    """Of the known entries ``[n]`` of a label, see ``ece``; ``member`` holds the number of each image's subject."""
    n = len(logits)
    ordered = logits.sort().values
    below, up_to = (torch.searchsorted(ordered, logits, right=right) for right in (False, True))
    bins = (below + up_to) * BINS // (2 * n)  # by the middle of equal ones
    surplus = torch.zeros(n, BINS, dtype=torch.float64)
    surplus[torch.arange(n), bins] = logits.sigmoid() - target
    mean = surplus.mean(dim=0)
    apart = surplus - mean
    if member is not None:
        places = member.unique(return_inverse=True)[1]
        apart = torch.zeros(int(places.max()) + 1, BINS, dtype=torch.float64).index_add(0, places, apart)
    units = len(apart)
    spread = (apart.square().sum(dim=0) * units / max(units - 1, 1)).sqrt() / n
    z = mean.abs() / spread.clamp(min=1e-300)
    drawn = spread * math.sqrt(2 / math.pi) * (-z.square() / 2).exp() + mean.abs() * (z / math.sqrt(2)).erf()
    return max(0.0, float((2 * mean.abs() - drawn).sum()))


def _outcomes(logits: Tensor, y: Tensor, thresholds: Tensor) -> Tensor:
    """Numbers ``[4, L]`` of true positives, false positives, false negatives and true negatives, float64."""
    said = logits > thresholds
    cells = [(said, 1), (said, 0), (~said, 1), (~said, 0)]
    return torch.stack([(answer & (y == truth)).sum(dim=0) for answer, truth in cells]).double()


def _f1(outcomes: Tensor) -> Tensor:
    hit, invented, missed = outcomes[0], outcomes[1], outcomes[2]
    return 2 * hit / (2 * hit + invented + missed)


def _sensitivity(outcomes: Tensor) -> Tensor:
    return outcomes[0] / (outcomes[0] + outcomes[2])


def _specificity(outcomes: Tensor) -> Tensor:
    return outcomes[3] / (outcomes[3] + outcomes[1])
