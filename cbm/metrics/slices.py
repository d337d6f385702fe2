"""Where a model errs more often, in words: pictures that show some concepts, or do not, and are decided wrongly.

A slice is named by one literal or two: "water" is high (its score is in the top quarter of the validation pictures),
"long beak" is low (in the bottom quarter); present or absent where the data set labels the concept. Of all slices with
``ENOUGH`` pictures on both sides, those are found whose error rate stands out most on the validation pictures,

    z = (e_in - e_out) / sqrt(e (1 - e) (1 / n_in + 1 / n_out))            e: the error rate of all pictures

against the largest z of any slice when the errors are dealt out at random (Westfall and Young's max-T), because the
most striking of twenty thousand slices is striking by chance. What was found is confirmed on the test pictures, which
chose nothing: Fisher's exact test, Holm over the slices that are shown. Domino and CB-SLICE fit mixtures and name them
afterwards; a conjunction of concepts is its own name, and the search is exhaustive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbm.metrics.paired import holm

ENOUGH = 10
"""Pictures that a slice needs, inside and outside."""
QUARTER = 0.25
"""Share of the validation pictures on which a score is high, and on which it is low."""
DRAWS = 200
"""Random orders of the errors."""
LEVEL = 0.05
MOST = 10
"""Slices that are shown."""


@dataclass(frozen=True)
class Decided:
    """Pictures, what is known of their concepts, and whether they are decided wrongly.

    Attributes:
        scores: scores ``[N, K]``.
        wrong: whether each is decided wrongly, ``[N]`` bool.
        truth: labels ``[N, K]``: 1, 0, or NaN if unknown; a column of NaN for concepts without labels.
    """

    scores: np.ndarray
    wrong: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Literal:
    """A concept that is shown, or is not.

    Attributes:
        concept: column of the concept.
        shown: whether it is present (high), or absent (low).
        cut: score at which it is high (or low); None if the labels say whether it is there.
    """

    concept: int
    shown: bool
    cut: float | None

    def holds(self, pictures: Decided) -> np.ndarray:
        """Of which pictures it is true, ``[N]`` bool."""
        if self.cut is None:
            return pictures.truth[:, self.concept] == (1 if self.shown else 0)
        score = pictures.scores[:, self.concept]
        return score >= self.cut if self.shown else score <= self.cut

    def said(self, names: Sequence[str]) -> str:
        """The literal in words: ``'water' is high``."""
        words = ("absent", "present") if self.cut is None else ("low", "high")
        return f"'{names[self.concept]}' is {words[self.shown]}"


@dataclass(frozen=True)
class Counted:
    """Errors inside and outside a slice.

    Attributes:
        count: pictures inside.
        inside: error rate inside.
        outside: error rate of the others.
    """

    count: int
    inside: float
    outside: float


@dataclass(frozen=True)
class Slice:
    """Pictures that are decided wrongly more often than the others.

    Attributes:
        literals: what they have in common: one literal, or two.
        found: errors on the validation pictures.
        z: how far the error rate inside stands out there.
        p: how likely any slice would stand out as far if the errors had nothing to do with concepts.
        tested: errors on the test pictures.
        test_p: p value of Fisher's exact test there, one-sided, Holm over the slices.
    """

    literals: tuple[Literal, ...]
    found: Counted
    z: float
    p: float
    tested: Counted
    test_p: float

    @property
    def confirmed(self) -> bool:
        """Whether the test pictures say so too."""
        return self.test_p <= LEVEL

    def holds(self, pictures: Decided) -> np.ndarray:
        """Which pictures belong to it, ``[N]`` bool."""
        return np.logical_and.reduce([literal.holds(pictures) for literal in self.literals])

    def said(self, names: Sequence[str]) -> str:
        """The slice in words: ``'water' is high and 'long beak' is low``."""
        return " and ".join(literal.said(names) for literal in self.literals)


def error_slices(val: Decided, test: Decided, *, seed: int = 0) -> list[Slice]:
    """Slices that stand out on validation pictures, the most striking first, with what test pictures say of them.

    Args:
        val: the validation pictures, which find slices.
        test: the test pictures, which confirm them.
        seed: random seed for the orders of the errors.

    Returns:
        At most ``MOST`` slices with p <= ``LEVEL``, each with half of its pictures in none of those before it; empty if
        there are fewer than ``ENOUGH`` errors.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> def pictures(n):
        ...     scores = generator.normal(size=(n, 5))
        ...     wrong = generator.random(n) < np.where((scores[:, 1] > 0.7) & (scores[:, 3] < -0.7), 0.8, 0.05)
        ...     return Decided(scores, wrong, np.full((n, 5), np.nan))
        >>> first = error_slices(pictures(1000), pictures(1000))[0]
        >>> first.said("abcde"), first.confirmed
        ("'b' is high and 'd' is low", True)
    """
    literals = _literals(val)
    if not literals or val.wrong.sum() < ENOUGH or (~val.wrong).sum() < ENOUGH:
        return []
    member = np.stack([literal.holds(val) for literal in literals], axis=1).astype(np.float32)
    counts = member.T @ member
    z = _standing_out(member, counts, val.wrong)
    generator = np.random.default_rng(seed)
    chance = np.array([_standing_out(member, counts, generator.permutation(val.wrong)).max() for _ in range(DRAWS)])
    chosen: list[tuple[tuple[Literal, ...], float, float]] = []
    covered = np.zeros(len(val.wrong), dtype=bool)
    order = np.argsort(-z, axis=None, kind="stable")
    for place in order.tolist():
        a, b = divmod(place, len(literals))
        p = float((1 + (chance >= z[a, b]).sum()) / (1 + DRAWS))
        if p > LEVEL or len(chosen) == MOST:
            break
        inside = (member[:, a] * member[:, b]).astype(bool)
        if covered[inside].mean() > 0.5:
            continue
        covered |= inside
        chosen.append(((literals[a],) if a == b else (literals[a], literals[b]), float(z[a, b]), p))
    return _confirmed(chosen, val, test)


def _confirmed(chosen: Sequence[tuple[tuple[Literal, ...], float, float]], val: Decided, test: Decided) -> list[Slice]:
    """The slices with what the test pictures say."""
    from scipy.stats import fisher_exact

    parts, p_values = [], []
    for literals, z, p in chosen:
        inside = [np.logical_and.reduce([each.holds(part) for each in literals]) for part in (val, test)]
        here, wrong = inside[1], test.wrong
        table = [[int((here & wrong).sum()), int((here & ~wrong).sum())],
                 [int((~here & wrong).sum()), int((~here & ~wrong).sum())]]  # fmt: skip
        p_values.append(float(fisher_exact(table, alternative="greater").pvalue))
        parts.append((literals, _counted(inside[0], val.wrong), z, p, _counted(here, wrong)))
    return [Slice(*part, test_p) for part, test_p in zip(parts, holm(p_values))]


def _literals(val: Decided) -> list[Literal]:
    """Both literals of every concept, with the cuts of the validation scores."""
    found = []
    for k in range(val.scores.shape[1]):
        if not np.isnan(val.truth[:, k]).all():
            found += [Literal(k, True, None), Literal(k, False, None)]
            continue
        low, high = np.quantile(val.scores[:, k], [QUARTER, 1 - QUARTER])
        if high > low:  # else it is the same on nearly all pictures
            found += [Literal(k, True, float(high)), Literal(k, False, float(low))]
    return found


def _standing_out(member: np.ndarray, counts: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """z ``[M, M]`` of all pairs of M literals (a literal alone on the diagonal); -inf below it, and of small slices.

    One product of the rows that are wrong counts the errors of all pairs.
    """
    total, errors = len(wrong), int(wrong.sum())
    rows = member[wrong]
    inside = rows.T @ rows
    outside = total - counts
    rate = errors / total
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = inside / counts - (errors - inside) / outside
        z = gap / np.sqrt(rate * (1 - rate) * (1 / counts + 1 / outside))
    enough = (counts >= ENOUGH) & (outside >= ENOUGH) & np.triu(np.ones(counts.shape, dtype=bool))
    return np.where(enough, z, -np.inf)


def _counted(inside: np.ndarray, wrong: np.ndarray) -> Counted:
    """Errors inside and outside, NaN where there are no pictures."""
    rates = [float(wrong[rows].mean()) if rows.any() else float("nan") for rows in (inside, ~inside)]
    return Counted(int(inside.sum()), *rates)
