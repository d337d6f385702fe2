import math

import pytest
import torch

from cbm.metrics import ImageSparsity


def naive(a: list[float]) -> dict[str, float]:
    k, size = len(a), sorted(abs(v) for v in a)
    l1, l2 = sum(size), math.sqrt(sum(v * v for v in size))
    shares = [math.exp(v - max(a)) for v in a]
    shares = [v / sum(shares) for v in shares]
    pairs = sum(abs(x - y) for x in size for y in size)
    return {
        "l0": sum(v > 0 for v in size),
        "l0_1pct": sum(v > 0.01 * size[-1] for v in size),
        "hoyer": (math.sqrt(k) - l1 / l2) / (math.sqrt(k) - 1),
        "participation": l1**2 / l2**2,
        "entropy_concepts": math.exp(-sum(p * math.log(p) for p in shares)),
        "gini": pairs / (2 * k * l1),  # half the mean absolute difference over the mean
    }


def measure(*parts: torch.Tensor) -> dict[str, float]:
    metric = ImageSparsity()
    for part in parts:
        metric.update(part)
    return {key: float(value) for key, value in metric.compute().items()}


def test_against_definitions():
    torch.manual_seed(0)
    values = torch.randn(7, 12, dtype=torch.float64) * (torch.rand(7, 12) < 0.6)
    values[0, 0] = 0.001
    rows = [naive(row) for row in values.tolist()]
    expected = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    assert measure(values) == pytest.approx(expected, abs=1e-12)
    assert measure(values[:3], values[3:]) == pytest.approx(expected, abs=1e-12)


def test_ends_of_the_scales():
    one = measure(torch.tensor([[0.0, 0, -5, 0]]))
    assert (one["l0"], one["hoyer"], one["participation"], one["gini"]) == pytest.approx((1, 1, 1, 0.75))
    equal = measure(torch.tensor([[2.0, -2, 2, 2]]))
    assert (equal["l0"], equal["hoyer"], equal["participation"], equal["gini"]) == pytest.approx(
        (4, 0, 4, 0), abs=1e-12
    )
    none = measure(torch.zeros(1, 4))
    assert (none["l0"], none["hoyer"], none["participation"], none["gini"]) == (0, 1, 0, 0.75)
    assert none["entropy_concepts"] == pytest.approx(4)
    assert measure(torch.tensor([[3.0]]))["hoyer"] == 1


@pytest.mark.parametrize("key", ["l0", "l0_1pct", "hoyer", "participation", "gini"])
def test_a_factor_changes_nothing(key: str):
    torch.manual_seed(1)
    values = torch.randn(5, 9)
    assert measure(values)[key] == pytest.approx(measure(37 * values)[key], rel=1e-6)
