"""Gates between two domains."""

import math

import pytest
import torch

from cbm.editing.domains.gate import fit_gate, load_gate
from cbm.errors import UserError


def pictures(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    x = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    x[:, 3] += shift
    return x


def test_few_pictures_of_the_source_pass_and_most_of_the_target():
    alpha, n = 0.05, 5000
    shares = []
    for seed in range(10):
        gate = fit_gate(pictures(1000, seed), pictures(20, 100 + seed, 4.0), alpha=alpha, seed=seed)
        shares.append(float(gate(pictures(n, 200 + seed)).double().mean()))
        assert float(gate(pictures(n, 300 + seed, 4.0)).double().mean()) > 0.9
    held = 500  # the threshold is itself drawn: the share varies from gate to gate, its mean does not exceed alpha
    assert sum(shares) / 10 <= alpha + 3 * math.sqrt(alpha * (1 - alpha) * (1 / n + 1 / held) / 10)
    assert max(shares) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) * (1 / n + 1 / held))


def test_batches_are_told_apart_where_single_pictures_are_not():
    source, target = pictures(2000, 0), pictures(40, 1, 0.7)
    alone, together = fit_gate(source, target), fit_gate(source, target, batch=50)
    fresh = pictures(2000, 2, 0.7)
    assert float(alone(fresh).double().mean()) < 0.5
    assert float(together(fresh).double().mean()) > 0.9
    assert float(together(pictures(2000, 3)).double().mean()) <= 0.15
    assert together(fresh[:0]).shape == (0,)


def test_too_few_source_pictures_to_calibrate_let_nothing_pass(tmp_path):
    gate = fit_gate(pictures(20, 0), pictures(20, 1, 9.0))
    assert gate.threshold == math.inf
    assert not gate(pictures(10, 2, 9.0)).any()
    gate = fit_gate(pictures(200, 0), pictures(20, 1, 4.0))
    gate.save(tmp_path / "gate.safetensors")
    back = load_gate(tmp_path / "gate.safetensors")
    x = pictures(100, 5, 2.0)
    assert torch.equal(back(x), gate(x))
    (tmp_path / "other").write_bytes(b"no gate")
    for name, message in (("other", "damaged or was not written by cbm"), ("absent", "cannot read a gate")):
        with pytest.raises(UserError, match=message):
            load_gate(tmp_path / name)
    for bad in (0.0, 1.0):
        with pytest.raises(UserError, match="expected a share between 0 and 1"):
            fit_gate(x, x, alpha=bad)
    with pytest.raises(UserError, match="needs four or more"):
        fit_gate(x[:3], x)
