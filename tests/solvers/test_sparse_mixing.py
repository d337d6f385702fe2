"""Acceptance test 7 of the l1 bottleneck: exact optima along the penalty, with H fixed (12 concepts, 12 pictures)."""

import math

import pytest
import torch
from torch.nn import functional as F

from cbm.solvers import ProximalAdam, solve_mixing

N, D, K, C = 12, 12, 12, 4


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x, concepts, head = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((N, D), (K, D), (C, K)))
    return x, torch.arange(N) % C, concepts / D**0.5, head


def solve(lam_share: float, **settings):
    return solve_mixing(*problem(), lam_share=lam_share, tol=1e-7, max_steps=200_000, **settings)


def test_lam_max_is_the_formula_and_zero_is_optimal_from_there_on():
    x, y, concepts, head = problem()
    s = x @ concepts.T
    gradient = sum(
        torch.outer(head.T @ (1 / C - F.one_hot(y[n], C).double()), s[n]) for n in range(N)
    ) / N  # fmt: skip
    above, below = solve(1.01), solve(0.99)
    assert above.lam_max == pytest.approx(K * float(gradient.abs().max()), rel=1e-12)
    assert not above.weight.any()
    assert 1 <= int((below.weight != 0).sum()) <= 3


def test_along_the_path_the_norm_grows_and_the_loss_falls():
    points = [solve(share) for share in (1.01, 0.99, 0.6, 0.3, 0.1, 0.03)]
    assert all(point.kkt < 1e-6 for point in points)
    norms, losses = [float(p.weight.abs().sum()) for p in points], [p.loss for p in points]
    assert norms == sorted(norms)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(math.log(C))


def test_kkt_conditions_by_autograd_with_offset_and_bias():
    x, y, concepts, head = problem()
    g = torch.Generator().manual_seed(1)
    offset, bias = (torch.randn(n, generator=g, dtype=torch.float64) for n in (K, C))
    found = solve(0.2, offset=offset, bias=bias, start=torch.eye(K, dtype=torch.float64))
    weight = found.weight.clone().requires_grad_()
    loss = F.cross_entropy((x @ concepts.T - offset) @ weight.T @ head.T + bias, y)
    (gradient,) = torch.autograd.grad(loss, weight)
    penalty = 0.2 * found.lam_max / K
    active = found.weight != 0
    assert float(loss.detach()) == pytest.approx(found.loss, rel=1e-12)
    torch.testing.assert_close(gradient[active], -penalty * found.weight[active].sign(), atol=1e-6 * penalty, rtol=0)
    assert float(gradient[~active].abs().max()) <= penalty * (1 + 1e-6)
    assert active.any()
    assert not active.all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = solve(0.3)
    monkeypatch.setattr("cbm.solvers.sparse_mixing._ROWS", 5)
    torch.testing.assert_close(solve(0.3).weight, whole.weight, atol=1e-8, rtol=1e-8)


def test_proximal_adam_has_exact_zeros_near_the_optimum_and_a_subgradient_has_none():
    x, y, concepts, head = problem()
    s, exact = x @ concepts.T, solve(0.3)
    penalty = 0.3 * exact.lam_max / K
    found = {}
    for name in ("proximal", "subgradient"):
        weight = torch.full((K, K), 0.01, dtype=torch.float64, requires_grad=True)
        l1 = penalty if name == "proximal" else 0.0
        optimizer = ProximalAdam([{"params": [weight], "l1": l1}], lr=0.003)
        for _ in range(3000):
            loss = F.cross_entropy(s @ weight.T @ head.T, y)
            if name == "subgradient":
                loss = loss + penalty * weight.abs().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = weight.detach()
    assert int((found["subgradient"] == 0).sum()) == 0
    assert int((found["proximal"] == 0).sum()) > K * K / 2
    torch.testing.assert_close(found["proximal"], exact.weight, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("settings", [{}, {"lam": 1.0, "lam_share": 0.5}, {"lam": 0.0}, {"lam_share": -1.0}])
def test_one_positive_penalty_is_needed(settings: dict[str, float]):
    with pytest.raises(ValueError, match="expected one of them"):
        solve_mixing(*problem(), **settings)
