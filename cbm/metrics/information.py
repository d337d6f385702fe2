"""What a score tells about something, beyond what is known already: conditional mutual information of few pictures.

Mutual information that is computed from counts ("plug-in") is too large, by far more than the effects that matter: a
score that knows nothing of 20 classes seems to know a tenth of what is open about them on 200 pictures. Here its mean
under permutations of the score *within the strata* (pictures of the same known answer) is subtracted. Such permutations
keep everything but the dependence that is asked about, so they are an exact test as well.

Scores are divided into six bins of as many pictures each, one set for all strata, so that no monotone transform of a
score changes anything. Binning and few pictures lose some information and add none: what is found is "at least".
"""

from dataclasses import dataclass

import numpy as np

from cbm.metrics.paired import holm

BINS = 6
"""Bins of a score; of one with fewer values, these."""
STRATUM = 20
"""Pictures with the same known answer from which on they are compared."""


@dataclass(frozen=True)
class Told:
    """What K scores tell about a target, given a known answer each.

    Attributes:
        share: information as a share ``[K]`` of what the answer leaves open, without bias; NaN where nothing is left
            open, or too little is known.
        p: how likely ``[K]`` a score that tells nothing would seem to tell so much.
        p_any: the same, adjusted for the number of scores: the largest of all is compared (Westfall and Young 1993).
        by_value: contribution ``[K, C]`` of every value of the target to ``share``.
        mean: mean of ``share``.
        low: lower end of its 95 % interval over pictures (half-samples).
        high: upper end.
    """

    share: np.ndarray
    p: np.ndarray
    p_any: np.ndarray
    by_value: np.ndarray
    mean: float
    low: float
    high: float


def binned(score: np.ndarray, count: int = BINS) -> np.ndarray:
    """Number of the bin of every score ``[N]``, from 0; equal scores are in the same one.

    Args:
        score: scores ``[N]``.
        count: bins of as many pictures each, at most; a score of so few values has a bin for each.

    >>> binned(np.array([5.0, 1.0, 5.0, 0.2])).tolist()
    [2, 1, 2, 0]
    """
    values = np.unique(score)
    if len(values) <= count:
        return np.searchsorted(values, score)
    edges = np.quantile(score, np.arange(1, count) / count)
    return np.unique(np.searchsorted(edges, score, side="right"), return_inverse=True)[1]


def told(
    scores: np.ndarray,
    known: np.ndarray,
    target: np.ndarray,
    *,
    draws: int = 100,
    halves: int = 200,
    subjects: np.ndarray | None = None,
    seed: int = 0,
) -> Told:
    """``I(s_k; target | known_k) / H(target | known_k)`` of every score.

    Args:
        scores: scores ``[N, K]``.
        known: the known answer ``[N, K]`` for each (a concept's label): values are strata, NaN leaves a picture out, as
            does a stratum of fewer than ``STRATUM``.
        target: numbers ``[N]`` from 0 of what may be told (the class).
        draws: permutations.
        halves: half-samples for the interval.
        subjects: subject ``[N]`` of each picture, which half-samples take or leave whole; None if each is its own.
            Permutations exchange single pictures.
        seed: random seed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y, c = rng.integers(0, 4, 400), rng.integers(0, 2, (400, 1))
        >>> found = told(np.stack([y, rng.random(400)], axis=1), c[:, [0, 0]], y)
        >>> found.share.round(1).tolist(), (found.p_any < 0.05).tolist()
        ([1.0, 0.0], [True, False])
    """
    generator = np.random.default_rng(seed)
    count, values = scores.shape[1], int(target.max(initial=0)) + 1
    keys = generator.random((draws, len(target)), dtype=np.float32)
    sampled = _half_samples(len(target), halves, subjects, generator)
    share, p = np.full(count, np.nan), np.full(count, np.nan)
    by_value = np.full((count, values), np.nan)
    z, null = np.full(count, -np.inf), np.full((draws, count), -np.inf)
    spread = np.full((halves, count), np.nan)
    for k in range(count):
        strata = _strata(known[:, k])
        total, bins = sum(map(len, strata)), binned(scores[:, k])
        open_ = sum(len(rows) * _entropy(target[rows], values) for rows in strata) / max(total, 1)
        if open_ < 1e-6:
            continue
        each, drawn = np.zeros((1, values)), np.zeros((draws, values))
        for rows in strata:
            weight, here = len(rows) / total, bins[rows]
            each += weight * _by_value(here[None], target[rows], values)
            drawn += weight * _by_value(here[keys[:, rows].argsort(axis=1)], target[rows], values)
        seen, chance = float(each.sum()), drawn.sum(axis=1)
        share[k] = (seen - chance.mean()) / open_
        by_value[k] = (each[0] - drawn.mean(axis=0)) / open_
        p[k] = (1 + int((chance >= seen - 1e-12).sum())) / (1 + draws)
        if (deviation := float(chance.std())) > 1e-12:
            z[k], null[:, k] = (seen - chance.mean()) / deviation, (chance - chance.mean()) / deviation
        spread[:, k] = _of_half_samples(bins, known[:, k], target, sampled, values)
    measured = ~np.isnan(share)
    if not measured.any():
        return Told(share, p, p.copy(), by_value, np.nan, np.nan, np.nan)
    largest = null[:, measured].max(axis=1)
    p_any = np.where(measured, (1 + (largest[:, None] >= z - 1e-9).sum(axis=0)) / (1 + draws), np.nan)
    mean = float(share[measured].mean())
    # A half-sample without replacement has the variance of the whole (delete-half jackknife: Shao and Wu, Ann. Stat.
    # 1989); a bootstrap would repeat pictures, and a repeated picture looks like information.
    error = float(np.nanmean(spread[:, measured], axis=1).std(ddof=1)) if halves > 1 else np.nan
    return Told(share, p, p_any, by_value, mean, mean - 1.96 * error, mean + 1.96 * error)


@dataclass(frozen=True)
class Crosstalk:
    """What scores tell about the answers of other concepts, given their own.

    Attributes:
        share: information ``[K, K]`` of score k about answer j, as a share of what answer k leaves open of it; NaN on
            the diagonal and where nothing is open.
        p: p values ``[K, K]``, adjusted for the number of pairs (Holm).
    """

    share: np.ndarray
    p: np.ndarray


def crosstalk(scores: np.ndarray, known: np.ndarray, *, draws: int = 30, seed: int = 0) -> Crosstalk:
    """``I(s_k; c_j | c_k) / H(c_j | c_k)`` of all pairs of concepts of yes and no.

    For so many pairs a few permutations have to do. Their mean is the bias; p values are those of the likelihood ratio
    test (twice the information of independent counts is about chi-square), stretched to that mean where it is larger,
    as it is for rare answers.

    Args:
        scores: scores ``[N, K]``.
        known: answers ``[N, K]``: 1, 0, or NaN if unknown; a concept with others is told about by none.
        draws: permutations.
        seed: random seed.
    """
    from scipy.special import gammaincc

    count = scores.shape[1]
    generator = np.random.default_rng(seed)
    keys = generator.random((draws, len(scores)), dtype=np.float32)
    plain = np.array([set(np.unique(column[~np.isnan(column)])) <= {0.0, 1.0} for column in known.T])
    there, yes = ~np.isnan(known), np.nan_to_num(known) == 1
    share, p = np.full((count, count), np.nan), np.full((count, count), np.nan)
    for k in range(count):
        bins = binned(scores[:, k])
        levels = int(bins.max(initial=0)) + 1
        told_, open_, total = np.zeros((1 + draws, count)), np.zeros(count), np.zeros(count)
        strata = _strata(known[:, k])
        for rows in strata:
            here = bins[rows]
            moved = np.concatenate([here[None], here[keys[:, rows].argsort(axis=1)]])
            shown = (moved[:, None, :] == np.arange(levels)[:, None]).reshape(-1, len(rows)).astype(np.float32)
            sizes = (shown @ there[rows].astype(np.float32)).reshape(1 + draws, levels, count).astype(np.float64)
            hits = (shown @ yes[rows].astype(np.float32)).reshape(1 + draws, levels, count).astype(np.float64)
            number, positive = there[rows].sum(axis=0), yes[rows].sum(axis=0)
            before = _binary_entropy(positive, number)  # times the number of pictures, as are the others
            told_ += before - _binary_entropy(hits, sizes).sum(axis=1)
            open_ += before
            total += number
        usable = (open_ > 1e-3 * np.maximum(total, 1)) & plain
        usable[k] = False
        seen, bias = told_[0, usable], told_[1:, usable].mean(axis=0)
        share[k, usable] = (seen - bias) / open_[usable]
        freedom = (levels - 1) * len(strata)  # twice the information is about chi-square under the null hypothesis
        scale = np.maximum(bias, freedom / 2) / max(freedom / 2, 0.5)
        p[k, usable] = gammaincc(freedom / 2, seen / scale) if freedom else 1.0
    pairs = ~np.isnan(p)
    p[pairs] = holm(p[pairs].tolist())
    return Crosstalk(share, p)


# ------------------------------------------------------------------------------------------------------------ counting


def _strata(known: np.ndarray) -> list[np.ndarray]:
    """Rows with the same known answer, if there are enough of them."""
    found = (np.flatnonzero(known == value) for value in np.unique(known[~np.isnan(known)]))
    return [rows for rows in found if len(rows) >= STRATUM]


def _entropy(target: np.ndarray, values: int) -> float:
    shares = np.bincount(target, minlength=values) / max(len(target), 1)
    return -float((shares * np.log(np.where(shares > 0, shares, 1))).sum())


def _binary_entropy(positive: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Entropy of yes and no in nats, times the number of pictures."""
    found = np.zeros(np.broadcast_shapes(np.shape(positive), np.shape(number)))
    for part in (positive, number - positive):
        ratio = np.divide(part, number, out=np.ones_like(found), where=number > 0)
        found -= part * np.log(np.where(ratio > 0, ratio, 1))
    return found


def _by_value(bins: np.ndarray, target: np.ndarray, values: int) -> np.ndarray:
    """Plug-in information ``[R, C]`` of R assignments of bins ``[R, n]`` about a target ``[n]``, by its values."""
    levels = int(bins.max(initial=0)) + 1
    cell = bins * values + target + (np.arange(len(bins)) * levels * values)[:, None]
    counts = np.bincount(cell.ravel(), minlength=len(bins) * levels * values).reshape(len(bins), levels, values)
    return _information(counts)


def _information(counts: np.ndarray) -> np.ndarray:
    """The same from counts ``[R, B, C]``; 0 where there are none."""
    total = counts.sum(axis=(1, 2), keepdims=True)
    expected = counts.sum(axis=2, keepdims=True) * counts.sum(axis=1, keepdims=True)
    ratio = np.divide(counts * total, expected, out=np.ones(counts.shape), where=counts > 0)
    return (counts / np.maximum(total, 1) * np.log(ratio)).sum(axis=1)


def _half_samples(count: int, draws: int, subjects: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Rows ``[draws, N]`` bool of half of the pictures, or of the pictures of half of the subjects."""
    member = np.arange(count) if subjects is None else np.unique(subjects, return_inverse=True)[1].ravel()
    units = int(member.max(initial=-1)) + 1
    order = generator.random((draws, units), dtype=np.float32).argsort(axis=1)
    return (order < units // 2)[:, member]


def _of_half_samples(
    bins: np.ndarray, known: np.ndarray, target: np.ndarray, sampled: np.ndarray, values: int
) -> np.ndarray:
    """Plug-in shares ``[draws]`` of half-samples: their bias is the same in all, and their spread is what is used."""
    levels, draws = int(bins.max(initial=0)) + 1, len(sampled)
    found, open_, total = np.zeros(draws), np.zeros(draws), np.zeros(draws)
    for rows in _strata(known):
        which, place = sampled[:, rows].nonzero()
        cell = (which * levels + bins[rows][place]) * values + target[rows][place]
        counts = np.bincount(cell, minlength=draws * levels * values).reshape(draws, levels, values)
        size, shares = counts.sum(axis=(1, 2)), counts.sum(axis=1)
        ratio = np.divide(shares, size[:, None], out=np.ones(shares.shape), where=shares > 0)
        found += size * _information(counts).sum(axis=1)
        open_ -= (shares * np.log(ratio)).sum(axis=1)
        total += size
    return np.divide(found, open_, out=np.full(draws, np.nan), where=open_ > 1e-9 * np.maximum(total, 1))
