import math

import pytest

from cbm.metrics import TopConceptStability


def measure(*runs: list[list[str]]) -> float:
    metric = TopConceptStability()
    for run in runs:
        metric.update(run)
    return float(metric.compute())


def test_overlap_of_pairs():
    a, b, c = [["x", "y"], ["u", "v"]], [["y", "x"], ["u", "w"]], [["p", "q"], ["r", "s"]]
    assert measure(a, a) == 1.0
    assert measure(a, b) == pytest.approx((1 + 1 / 3) / 2)
    assert measure(a, c) == 0.0
    assert measure(a, b, c) == pytest.approx((1 + 1 / 3) / 6)


def test_a_single_run_and_runs_of_other_classes():
    assert math.isnan(measure([["x"]]))
    with pytest.raises(ValueError, match="1 rows"):
        measure([["x"], ["y"]], [["x"]])
