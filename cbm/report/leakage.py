"""The panel of a report that asks whether scores say only what their names say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbm.metrics.leakage import Leakage
from cbm.report.result import RunResult
from cbm.report.wording import clip

WORST = 10
"""Concepts, and pairs of concepts, that are shown."""
CLASSES = 3
"""Classes that a concept's score points to."""


@dataclass(frozen=True)
class LeakyConcept:
    """A concept whose score tells the class beyond the concept.

    Attributes:
        name: its name.
        share: own leak.
        significant: whether that is more than chance gives the largest of all concepts.
        classes: class and whether its pictures score higher than others with the same answer.
    """

    name: str
    share: float
    significant: bool
    classes: list[tuple[str, bool]]


@dataclass(frozen=True)
class LeakyPair:
    """A score that tells another concept.

    Attributes:
        name: the concept whose score it is.
        other: the concept that it tells.
        share: inter leak.
    """

    name: str
    other: str
    share: float


@dataclass(frozen=True)
class LeakSection:
    """What the page says about leakage.

    Attributes:
        sentence: what was found.
        good: whether nothing was found; None where it was not measured.
        numbers: name, value and meaning of every number.
        concepts: the worst concepts.
        pairs: the worst pairs of concepts.
        count: number of pictures.
        pooled: whether rare classes count as one.
    """

    sentence: str
    good: bool | None
    numbers: Sequence[tuple[str, str, str]]
    concepts: Sequence[LeakyConcept]
    pairs: Sequence[LeakyPair]
    count: int
    pooled: bool


def describe_leakage(result: RunResult) -> LeakSection | None:
    """The panel of a run; None if its data set labels none of its concepts."""
    found = result.leakage
    if found is None:
        return None
    sentence = f"{found.sentence[:1].upper()}{found.sentence[1:]}."
    if found.own is None:
        return LeakSection(sentence, None, [], [], [], found.count, False)
    good = None if np.isnan(found.joint) and not found.leaks else not found.leaks
    return LeakSection(
        sentence,
        good,
        numbers(found, result.metrics),
        worst_concepts(found, result.data.classes),
        worst_pairs(found),
        found.count,
        -1 in found.classes,
    )


def numbers(found: Leakage, metrics: dict[str, float]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the numbers that are known."""
    assert found.own is not None
    rows = []
    if not np.isnan(found.joint):
        rows.append(
            (
                "Joint leak, at least",
                f"{max(0.0, found.joint):.1%}",
                "What all scores say about the class beyond all true concepts, as a share of what these leave open; on "
                f"pictures that were not learned from. One-sided 95% interval from {max(0.0, found.joint_low):.1%}.",
            )
        )
    if not np.isnan(found.ceiling):
        beside = f" This model: {metrics['test/accuracy']:.1%}." if "test/accuracy" in metrics else ""
        rows.append(
            (
                "Ceiling",
                f"{found.ceiling:.1%}",
                "Accuracy of the best classifier that sees only the true concepts: a model that is right significantly "
                f"more often saw something else.{beside}",
            )
        )
    low, high = max(0.0, found.own.low), max(0.0, found.own.high)
    rows.append(
        (
            "Own leak, mean",
            f"{found.own.mean:.1%}".replace("-", "−"),
            f"What a score says about the class beyond its own concept ({low:.1%} to {high:.1%}); 0 is what a score "
            f"that says nothing more has. {found.significant:.0%} of {len(found.names)} concepts have more than that.",
        )
    )
    if "purity/ois" in metrics:
        rows.append(
            (
                "Impurity",
                f"{metrics['purity/ois']:.3f}",
                "How much more scores tell of each other's concepts than these tell of each other (OIS, without what "
                "scores of one concept each would have; 0 is pure).",
            )
        )
    if "purity/ncc" in metrics:
        rows.append(
            (
                "Contributing concepts",
                f"{metrics['purity/ncc']:.1f}",
                "The fewest concepts that make up 95% of what moves the logit of the predicted class, mean of the "
                "pictures (NCC; not the concepts per class of NEC).",
            )
        )
    rows.append(
        (
            "As published",
            f"{found.released:.3f}",
            "Concept-task leakage (CTL), for tables: it compares a noisy score with a noiseless truth and is nearly "
            "blind.",
        )
    )
    return rows


def worst_concepts(found: Leakage, classes: Sequence[str]) -> list[LeakyConcept]:
    """The concepts with the largest own leak, and the classes that most of it is about."""
    own = found.own
    assert own is not None
    order = np.argsort(-np.nan_to_num(own.share, nan=-np.inf), kind="stable")[:WORST]
    rows = []
    for k in order.tolist():
        if not own.share[k] > 0:
            continue
        most = np.argsort(-own.by_value[k], kind="stable")[:CLASSES].tolist()
        pointed = [(most_, found.classes[most_]) for most_ in most if own.by_value[k, most_] > 0]
        named = [
            ("rare classes" if number < 0 else clip(classes[number]), bool(found.pull[k, place] > 0))
            for place, number in pointed
        ]
        rows.append(LeakyConcept(clip(found.names[k]), float(own.share[k]), bool(own.p_any[k] < 0.05), named))
    return rows


def worst_pairs(found: Leakage) -> list[LeakyPair]:
    """The largest significant inter leaks."""
    if found.inter is None:
        return []
    share = np.where(np.nan_to_num(found.inter.p, nan=1.0) < 0.05, found.inter.share, -np.inf)
    order = np.argsort(-share, axis=None, kind="stable")[:WORST].tolist()
    pairs = [divmod(place, share.shape[1]) for place in order]
    return [
        LeakyPair(clip(found.names[k]), clip(found.names[j]), float(share[k, j]))
        for k, j in pairs
        if np.isfinite(share[k, j])
    ]
