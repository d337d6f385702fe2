import numpy as np
import pytest
import torch

from cbm.metrics import ConceptAlignment

N, D, K = 200, 12, 9


def measure(directions: torch.Tensor, names: torch.Tensor, x: torch.Tensor, *, chunk: int = N) -> dict[str, float]:
    metric = ConceptAlignment(directions, names)
    for part in x.split(chunk):
        metric.update(part)
    return {key: float(value) for key, value in metric.compute().items()}


def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D) + 3.0, torch.randn(K, D), torch.randn(K, K)


def test_against_numpy():
    x, names, mixing = features()
    directions = mixing @ names
    full = np.corrcoef((x @ directions.T).double().numpy().T, (x @ names.T).double().numpy().T)[:K, K:]
    expected = {
        "alignment": float(full.diagonal().mean()),
        "self_rank": float((full.argmax(1) == np.arange(K)).mean()),
    }
    assert measure(directions, names, x) == pytest.approx(expected, abs=1e-5)
    assert measure(directions, names, x, chunk=17) == pytest.approx(expected, abs=1e-5)


def test_names_themselves_are_aligned_and_a_cycle_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cbm.metrics.alignment.BLOCK", 4)
    x, names, _ = features()
    assert measure(names, names, x) == pytest.approx({"alignment": 1.0, "self_rank": 1.0})
    assert measure(names * torch.arange(1.0, K + 1)[:, None], names, x)["alignment"] == pytest.approx(1.0)
    assert measure(names.roll(1, 0), names, x)["self_rank"] == 0.0
    assert measure(-names, names, x)["alignment"] == pytest.approx(-1.0)


def test_dead_concepts_follow_nothing_and_twins_do_not_lose():
    x, names, _ = features()
    dead = names.clone()
    dead[0] = 0.0
    values = measure(dead, names, x)
    assert values["self_rank"] == pytest.approx((K - 1) / K)
    assert values["alignment"] == pytest.approx((K - 1) / K)
    twins = names.clone()
    twins[1] = twins[0]
    assert measure(twins, twins, x)["self_rank"] == 1.0


def test_shapes_have_to_fit():
    with pytest.raises(ValueError, match="directions has shape"):
        ConceptAlignment(torch.randn(3, 4), torch.randn(3, 5))
