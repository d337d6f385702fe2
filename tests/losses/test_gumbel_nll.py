import math

import pytest
import torch
from large_tensors import LargeTensors

from cbm.kernels import gumbel, gumbel_noise
from cbm.losses import gumbel_nll

SIZES = [(3, 5), (4, 4), (7, 3), (1, 4), (4, 1), (1, 1), (70, 6), (6, 70)]  # B, K


def normal(b, k, seed=0):
    return torch.randn(b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values):
    weights = [math.exp(v - max(values)) for v in values]
    return [w / sum(weights) for w in weights]


def naive(z, g1, g0, tau, pairing):
    """The two formulas with softmaxes and loops."""
    b, k = z.shape
    m = min(b, k)
    if pairing == "diagonal":
        z, g1, g0, b, k = z[:m, :m], g1[:m, :m], g0[:m, :m], m, m
    y1 = [softmax([float(z[i, j] + g1[i, j]) / tau for j in range(k)]) for i in range(b)]
    y0 = [softmax([float(z[i, j] + g0[i, j]) / tau for i in range(b)]) for j in range(k)]
    pairs = [(i, i) for i in range(m)] if pairing == "diagonal" else [(i, j) for i in range(b) for j in range(k)]
    return -sum(math.log(y1[i][j]) + math.log(y0[j][i]) for i, j in pairs) / (2 * len(pairs))


def closed_form(z, g1, g0, tau, pairing):
    b, k = z.shape
    out = torch.zeros_like(z)
    m = min(b, k)
    if pairing == "diagonal":
        z, g1, g0, b, k = z[:m, :m], g1[:m, :m], g0[:m, :m], m, m
    targets = (torch.eye(m).double(),) * 2 if pairing == "diagonal" else (1 / k, 1 / b)
    y1, y0 = ((z + g1) / tau).softmax(1), ((z + g0) / tau).softmax(0)
    out[:b, :k] = ((y1 - targets[0]) / b + (y0 - targets[1]) / k) / (2 * tau)
    return out


@pytest.mark.parametrize("pairing", ["diagonal", "all"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("b", "k"), SIZES)
def test_loss_equals_loops_and_gradient_the_closed_form(b, k, tau, pairing):
    z, g1, g0 = normal(b, k).requires_grad_(), normal(b, k, 1), normal(b, k, 2)
    loss = gumbel_nll(z, tau, noise=(g1, g0), pairing=pairing)
    assert float(loss.detach()) == pytest.approx(naive(z.detach(), g1, g0, tau, pairing), rel=1e-12, abs=1e-14)
    (gradient,) = torch.autograd.grad(3 * loss, z)
    torch.testing.assert_close(gradient, 3 * closed_form(z.detach(), g1, g0, tau, pairing), rtol=0, atol=1e-12)
    if b * k < 100:
        assert torch.autograd.gradcheck(lambda x: gumbel_nll(x, tau, noise=(g1, g0), pairing=pairing), z)
        assert torch.autograd.gradcheck(lambda x: gumbel_nll(x, tau, seed=1, pairing=pairing), z)


@pytest.mark.parametrize("pairing", ["diagonal", "all"])
def test_a_seed_draws_streams_0_and_1_in_both_passes(pairing):
    z = normal(70, 70).requires_grad_()
    noise = tuple(gumbel_noise(70, 70, 9, stream=i, dtype=torch.float64) for i in (0, 1))
    drawn, given = gumbel_nll(z, 0.7, seed=9, pairing=pairing), gumbel_nll(z, 0.7, noise=noise, pairing=pairing)
    assert float(drawn.detach()) == float(given.detach())
    assert torch.equal(torch.autograd.grad(drawn, z)[0], torch.autograd.grad(given, z)[0])
    assert float(drawn.detach()) != float(gumbel_nll(z.detach(), 0.7, seed=10, pairing=pairing))


def mean_at_constant(b, k, tau, runs):
    return sum(float(gumbel_nll(torch.full((b, k), 0.3), tau, seed=i, pairing="all")) for i in range(runs)) / runs


@pytest.mark.parametrize(("tau", "small", "large"), [(0.5, 7.44, 10.24), (1.0, 4.60, 6.24), (2.0, 3.72, 5.13)])
def test_floor_of_all_pairs(tau, small, large):
    """f(n, tau) = E logsumexp(g / tau) - E g / tau of n draws; a constant Z costs the mean of f(B) and f(K)."""
    assert mean_at_constant(32, 32, tau, 400) == pytest.approx(small, abs=0.05)
    assert mean_at_constant(128, 128, tau, 100) == pytest.approx(large, abs=0.05)
    assert mean_at_constant(32, 128, tau, 200) == pytest.approx((small + large) / 2, abs=0.05)


def entropy(z):
    return float(-(z.softmax(1) * z.log_softmax(1)).sum(1).mean())


def test_descent_on_all_pairs_makes_the_outputs_flat():
    """What the published code minimises works against sparsity."""
    z = (3 * normal(16, 32)).float().requires_grad_()
    before, spread = entropy(z.detach()), float(z.detach().std())
    adam = torch.optim.Adam([z], lr=0.05)
    for step in range(400):
        adam.zero_grad()
        gumbel_nll(z, seed=step, pairing="all").backward()
        adam.step()
    assert before < 2
    assert entropy(z.detach()) > 3.2 > 0.9 * math.log(32)
    assert float(z.detach().std()) < spread / 4


@pytest.mark.parametrize("pairing", ["diagonal", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_are_finite(dtype, pairing):
    z = (100 * normal(64, 900)).to(dtype).requires_grad_()
    loss = gumbel_nll(z, seed=0, pairing=pairing)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())
    exact = gumbel_nll(z.detach().double(), seed=0, pairing=pairing)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)


def test_row_term_does_not_see_a_constant_per_row():
    """The gradient of a term that is invariant sums to 0 over each row; the column term is silent in a batch of 1."""
    z = normal(1, 9).requires_grad_()
    losses = [float(gumbel_nll(z + shift, 0.5, seed=0, pairing="all")) for shift in (0.0, 5.0, -40.0)]
    assert losses[0] > 0.5
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)
    z, shift = normal(6, 9), 10 * normal(6, 1, 1)
    silent = torch.zeros(6, 9).double()
    rows = normal(6, 9, 2)
    change = [
        float(gumbel_nll(x, noise=(rows, silent), pairing="all") - gumbel_nll(x, noise=(silent, silent), pairing="all"))
        for x in (z, z + shift)  # the difference has the row term only
    ]
    assert change[0] == pytest.approx(change[1], rel=1e-11)
    assert abs(change[0]) > 0.01


def test_the_chunk_does_not_matter(monkeypatch):
    z = normal(300, 150).requires_grad_()

    def both(chunk, pairing):
        monkeypatch.setitem(gumbel._CHUNK, "cpu", chunk)
        loss = gumbel_nll(z, 0.5, seed=1, pairing=pairing)
        return loss, torch.autograd.grad(loss, z)[0]

    for pairing in ("diagonal", "all"):
        for a, b in zip(both(1, pairing), both(10**9, pairing)):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-16)


def test_keeps_only_z_and_makes_only_the_gradient(monkeypatch):
    monkeypatch.setitem(gumbel._CHUNK, "cpu", 1)
    z, saved = torch.randn(1000, 50, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        with LargeTensors(z.numel(), z) as forward:
            loss = gumbel_nll(z, seed=0, pairing="all")
        with LargeTensors(z.numel(), z) as backward:
            gradient = torch.autograd.grad(loss, z)[0]
    assert sorted(x.numel() for x in saved) == [50, 1000, 50_000]
    assert forward.made == set()
    assert backward.made == {gradient.untyped_storage().data_ptr()}


def test_errors():
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="hard is True; expected False"):
        gumbel_nll(z, seed=0, hard=True)
    with pytest.raises(ValueError, match="tau is 0; expected > 0"):
        gumbel_nll(z, 0, seed=0)
    with pytest.raises(ValueError, match="pairing is 'full'; expected 'diagonal' or 'all'"):
        gumbel_nll(z, seed=0, pairing="full")
    with pytest.raises(ValueError, match=r"noise has shape \[3, 2\].*\[2, 3\]"):
        gumbel_nll(z, noise=(z, z.T))
    for arguments in ({}, {"seed": 0, "noise": (z, z)}):
        with pytest.raises(ValueError, match="seed and noise: expected exactly one"):
            gumbel_nll(z, **arguments)
    with pytest.raises(ValueError, match=r"z has shape \[3\]"):
        gumbel_nll(torch.zeros(3), seed=0)
