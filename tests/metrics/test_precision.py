"""The share of used concepts that are true, and its interval."""

import math

import numpy as np
import pytest

from cbm.data.concept_answers import ConceptAnswer
from cbm.metrics.intervals import wilson_interval
from cbm.metrics.precision import precision_of


def answers(**by_class: list[bool | None]) -> list[ConceptAnswer]:
    return [
        ConceptAnswer(f"{name}{n}", name, "val", "x", shown)
        for name, given in by_class.items()
        for n, shown in enumerate(given)
    ]


def test_equal_classes_are_wilson_over_all_answers():
    found = precision_of(answers(a=[True] * 8 + [False] * 2, b=[True] * 4 + [False] * 6, c=[None]))
    assert (found.count, found.yes, found.classes, found.skipped) == (20, 12, 2, 1)
    assert (found.value, found.low, found.high) == pytest.approx((0.6, *wilson_interval(0.6, 20)))
    assert not found.passed  # too few, and the interval holds one half


def test_every_class_counts_the_same():
    found = precision_of(answers(a=[True] * 90, b=[False] * 10))
    assert found.value == 0.5
    assert (found.low, found.high) == wilson_interval(0.5, 36)  # 4 / (1 / 90 + 1 / 10)


def test_without_answers():
    found = precision_of(answers(a=[None]))
    assert math.isnan(found.value)
    assert (found.low, found.high, found.count, found.spoken) == (0.0, 1.0, 0, "no answers yet")


@pytest.mark.parametrize("counts", [(10, 10, 10), (3, 20, 40)])
def test_the_interval_holds_the_truth(counts: tuple[int, ...]):
    truth, generator = np.array([0.95, 0.7, 0.3]), np.random.default_rng(0)
    held = 0
    for _ in range(400):
        drawn = {f"c{c}": (generator.random(n) < p).tolist() for c, (n, p) in enumerate(zip(counts, truth))}
        found = precision_of(answers(**drawn))
        held += found.low <= truth.mean() <= found.high
    assert held >= 0.93 * 400
