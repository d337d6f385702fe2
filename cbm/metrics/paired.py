"""Two classifiers on the same test images: is one better, and would other images or other seeds say the same?

The sample is the test images (their subjects, where these are known), not the seeds: three seeds of a method in which
nothing is random agree exactly, and prove nothing about images that were not tested.

*Images.* Exchange test: if the two were equally good, each image could as well have been decided by the one as by the
other (by subject: all its images together). For the accuracy of one decision each that is McNemar's exact test; for
means over seeds, classes or subjects the exchanges are drawn. Unlike quantiles of a bootstrap it is right also where
the two differ in three images. The calibration error is no mean: its difference is drawn by a paired bootstrap.

*Seeds* are a second level. What is compared is the mean over the seeds, on the same images; the variance of that
difference over the seeds (paired, where the seeds are the same) is added to that over the images, and the sum is
compared with a t distribution (degrees of freedom: Satterthwaite, Biometrics 1946). With seeds that agree nothing is
added; where seeds differ more than images can, it is the paired t-test over seeds. Resampling seeds instead would make
the spread of three too small by a third.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbm.metrics.bootstrap import Units, bootstrap, calibration_error
from cbm.metrics.classification import mcnemar_p

DRAWS = 9999
"""Random exchanges of a test."""
EXACT, MANY = 13, 1000
"""Differences up to which all exchanges are tried, and from which on their sum is as good as normal."""


@dataclass(frozen=True)
class Judged:
    """What one seed of a method got right.

    Attributes:
        right: whether every image is decided rightly, ``[N]`` bool.
        confidence: probability ``[N]`` of the decision.
    """

    right: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Images:
    """The N images that both classifiers decided.

    Attributes:
        labels: class indices ``[N]``.
        subjects: subject ``[N]`` of each image; None if every image is its own.
    """

    labels: np.ndarray
    subjects: np.ndarray | None = None

    def equal_classes(self) -> np.ndarray:
        """Weights ``[N]`` under which every class that has images counts the same; their sum is 1."""
        counts = np.bincount(self.labels)
        return 1 / (counts[self.labels] * np.count_nonzero(counts))

    def by_subject(self, values: np.ndarray) -> np.ndarray:
        """Sums ``[S, ...]`` over the images of a subject of values ``[N, ...]``."""
        if self.subjects is None:
            return values
        _, member = np.unique(self.subjects, return_inverse=True)
        sums = np.zeros((member.max(initial=-1) + 1, *values.shape[1:]))
        np.add.at(sums, member, values)
        return sums


def mean_p(one: dict[int, Judged], other: dict[int, Judged], images: Images, *, macro: bool = False) -> float:
    """How likely two classifiers of equal accuracy would differ so much, in either direction.

    Args:
        one: decisions of one method by seed.
        other: decisions of the other by seed.
        images: the images.
        macro: compare the mean of the classes instead of the accuracy.

    Returns:
        The p value; 1 where no decision differs.

    Example:
        >>> a, b = np.ones(8, dtype=bool), np.array([1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
        >>> runs = ({0: Judged(right, np.ones(8))} for right in (a, b))
        >>> round(mean_p(*runs, Images(np.zeros(8, dtype=int))), 9)  # three differ, all in one direction: 2 / 2 ** 3
        0.25
    """
    weights = images.equal_classes() if macro else np.full(len(images.labels), 1 / max(len(images.labels), 1))
    one, other = _shared(one, other)
    means = [np.mean([run.right for run in seeds.values()], axis=0) for seeds in (one, other)]
    each = images.by_subject(weights * (means[0] - means[1]))
    each = each[np.abs(each) > 1e-12]
    p = _exchange_p(each)
    accuracy = [{seed: float(weights @ run.right) for seed, run in seeds.items()} for seeds in (one, other)]
    variance, freedom = _seed_variance(*accuracy)
    if variance < 1e-20:
        return p
    return max(p, _two_levels(float(each.sum()), float((each**2).sum()), variance, freedom))


def calibration_p(one: dict[int, Judged], other: dict[int, Judged], images: Images) -> float:
    """The same for the expected calibration error (15 bins), the mean over the seeds.

    Args:
        one: decisions of one method by seed.
        other: decisions of the other by seed.
        images: the images.
    """
    one, other = _shared(one, other)
    statistics = {
        f"{side} {seed}": calibration_error(run.confidence, run.right)
        for side, seeds in enumerate((one, other))
        for seed, run in seeds.items()
    }
    drawn = bootstrap(Units(images.labels, images.subjects), statistics)
    once = np.ones((1, len(images.labels)), dtype=np.float32)
    found = [
        {seed: float(statistics[f"{i} {seed}"](once)[0]) for seed in seeds} for i, seeds in enumerate((one, other))
    ]
    means = [np.mean([drawn[f"{i} {seed}"] for seed in seeds], axis=0) for i, seeds in enumerate((one, other))]
    difference = float(np.mean(list(found[0].values())) - np.mean(list(found[1].values())))
    return _two_levels(difference, float((means[0] - means[1]).var()), *_seed_variance(*found))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979), in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _shared(one: dict[int, Judged], other: dict[int, Judged]) -> tuple[dict[int, Judged], dict[int, Judged]]:
    """The seeds that both have, if these are two or more; else all."""
    both = sorted(one.keys() & other.keys())
    if len(both) < 2:
        return one, other
    return {seed: one[seed] for seed in both}, {seed: other[seed] for seed in both}


def _exchange_p(each: np.ndarray) -> float:
    """Share of the exchanges under which a sum of differences ``[S]``, none of them 0, is as large as it is."""
    if not len(each):
        return 1.0
    sizes = np.abs(each)
    if sizes.max() - sizes.min() <= 1e-12:
        return mcnemar_p(int((each > 0).sum()), int((each < 0).sum()))
    total = abs(float(each.sum())) - 1e-12
    if len(each) <= EXACT:
        signs = 1 - 2.0 * ((np.arange(2 ** len(each))[:, None] >> np.arange(len(each))) & 1)
        return float((np.abs(signs @ each) >= total).mean())
    if len(each) > MANY:
        return math.erfc(max(total, 0.0) / math.sqrt(2 * float((each**2).sum())))
    signs = 1 - 2.0 * np.random.default_rng(0).integers(0, 2, (DRAWS, len(each)), dtype=np.int8)
    return (1 + int((np.abs(signs @ each) >= total).sum())) / (1 + DRAWS)


def _seed_variance(one: dict[int, float], other: dict[int, float]) -> tuple[float, float]:
    """Variance of the difference of two means over seeds, and its degrees of freedom; 0 where no seed says anything."""
    if one.keys() == other.keys():
        samples = [np.array([one[seed] - other[seed] for seed in one])]
    else:
        samples = [np.array(list(values.values())) for values in (one, other)]
    parts = [(float(each.var(ddof=1)) / len(each), len(each) - 1) for each in samples if len(each) > 1]
    total = sum(part for part, _ in parts)
    if total < 1e-20:
        return 0.0, math.inf
    return total, total**2 / sum(part**2 / freedom for part, freedom in parts)


def _two_levels(difference: float, over_images: float, over_seeds: float, freedom: float) -> float:
    """p of a difference whose variance is that over images and that over seeds together."""
    total = over_images + over_seeds
    if abs(difference) < 1e-12 or total <= 0:
        return 1.0
    z = abs(difference) / math.sqrt(total)
    if over_seeds <= 0:
        return math.erfc(z / math.sqrt(2))
    from scipy.special import stdtr

    return float(2 * stdtr(freedom * (total / over_seeds) ** 2, -z))
