import math

import pytest
import torch
from large_tensors import LargeTensors

from cbm.kernels import gumbel, gumbel_noise, gumbel_topk_gate, soft_khot, topk_gate

DRAWS = 200_000


def rows(n, k, seed=0, scale=1.0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


# the law


def test_largest_of_z_plus_noise_is_a_draw_from_the_softmax():
    z = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    gated = gumbel_topk_gate(z.expand(DRAWS, 5) + 10, 1, 1.0, seed=3)  # + 10: no score is 0, the law is the same
    expected = z.double().softmax(0) * DRAWS
    chi_square = ((gated.count_nonzero(0) - expected).square() / expected).sum()
    assert float(torch.special.gammaincc(torch.tensor(2.0).double(), chi_square / 2)) > 1e-3  # 4 degrees of freedom


@pytest.mark.parametrize("tau", [0.1, 2.0])
def test_the_k_largest_are_drawn_without_replacement(tau):
    z = torch.tensor([1.5, 0.5, 0.2, -0.3, -1.0])
    p = z.double().softmax(0).tolist()
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(5) if j != i) for i in range(5)]
    kept = (gumbel_topk_gate(z.expand(DRAWS, 5) + 10, 2, tau, seed=4) != 0).double()
    assert bool((kept.sum(1) == 2).all())
    for frequency, probability in zip(kept.mean(0).tolist(), expected):
        assert abs(frequency - probability) < 4 * math.sqrt(probability * (1 - probability) / DRAWS)


# the relaxation


def naive_khot(row, k, tau):
    keys, total = list(row), [0.0] * len(row)
    for _ in range(k):
        weights = [math.exp((x - max(keys)) / tau) for x in keys]
        p = [w / sum(weights) for w in weights]
        total = [a + b for a, b in zip(total, p)]
        keys = [x + math.log(max(1 - q, 1e-300)) for x, q in zip(keys, p)]
    return total


@pytest.mark.parametrize(
    ("n", "count", "k", "tau"), [(3, 6, 1, 1.0), (3, 6, 2, 0.5), (2, 5, 5, 0.7), (4, 7, 3, 5.0), (1, 1, 1, 0.3)]
)
def test_soft_khot_equals_a_loop(n, count, k, tau):
    keys = rows(n, count)
    out = soft_khot(keys, k, tau)
    expected = torch.tensor([naive_khot(row, k, tau) for row in keys.tolist()], dtype=torch.float64)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.sum(1), torch.full((n,), float(k)).double(), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: soft_khot(x, k, tau), keys.requires_grad_())


@pytest.mark.parametrize("noisy", [False, True])
def test_soft_khot_limits_of_the_temperature(noisy):
    order = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i)) for i in range(30)])
    keys = order * 0.1
    if noisy:
        keys = keys + gumbel_noise(30, 20, seed=0)
        gap = keys.topk(2).values.diff().abs().amax(1)
        keys = keys[gap >= 0.1]
        assert len(keys) > 20
    one_hot = torch.nn.functional.one_hot(keys.argmax(1), 20).float()
    torch.testing.assert_close(soft_khot(keys, 1, 1e-3), one_hot, rtol=0, atol=1e-6)
    assert float((soft_khot(keys, 1, 1e6) - 1 / 20).abs().max()) < 1e-4
    three = torch.zeros_like(order, dtype=torch.float32).scatter(1, order.topk(3).indices, 1.0)
    torch.testing.assert_close(soft_khot(order * 0.1, 3, 1e-3), three, rtol=0, atol=1e-6)


def test_soft_khot_takes_no_entry_twice_where_a_softmax_rounds_to_one():
    """fp32: 1 - p is 0 for a gap of 30, and its gradient is needed all the same."""
    keys = torch.tensor([[60.0, 30.0, 0.0, -30.0]], requires_grad=True)
    out = soft_khot(keys, 2, 0.5)
    torch.testing.assert_close(out, torch.tensor([[1.0, 1.0, 0.0, 0.0]]), rtol=0, atol=1e-6)
    exact = keys.detach().double().requires_grad_()
    upstream = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    for k, tau in ((2, 0.5), (3, 1.0), (4, 2.0)):
        fine = torch.autograd.grad(soft_khot(exact, k, tau), exact, upstream.double())[0]
        coarse = torch.autograd.grad(soft_khot(keys, k, tau), keys, upstream)[0]
        torch.testing.assert_close(coarse.double(), fine, rtol=1e-4, atol=1e-5)


# the gates


def brute_gate(z, keys, k):
    out = torch.zeros_like(z)
    for b, row in enumerate(keys.tolist()):
        for j in sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]:
            out[b, j] = z[b, j]
    return out


def test_topk_gate_keeps_the_k_largest_and_of_ties_the_first():
    z = torch.randint(-2, 3, (200, 9), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    for k in (1, 4, 9):
        out = topk_gate(z, k)
        assert torch.equal(out, brute_gate(z, z, k))
        (gradient,) = torch.autograd.grad(out, z, torch.ones_like(z))
        assert torch.equal(gradient.sum(1), torch.full((200,), float(k)).double())
        assert torch.equal(out, z * gradient)
    assert topk_gate(torch.tensor([[0.0, 0.0]]).bfloat16(), 1).dtype == torch.float32


@pytest.mark.parametrize(("n", "count"), [(3, 8), (8, 8), (9, 4), (1, 5), (5, 1), (150, 6)])
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_gumbel_gate_is_straight_through(n, count, tau):
    k = min(3, count)
    z, g, u = rows(n, count).requires_grad_(), rows(n, count, 1), rows(n, count, 2)
    out = gumbel_topk_gate(z, k, tau, noise=g)
    assert torch.equal(out, brute_gate(z.detach(), (z + g).detach(), k))
    assert bool((out.count_nonzero(1) == k).all())
    hard = (out != 0).double()
    soft = soft_khot(z + g, k, tau)
    explicit = (hard + soft - soft.detach()) * z
    wanted = torch.autograd.grad(explicit, z, u)[0]
    torch.testing.assert_close(torch.autograd.grad(out, z, u)[0], wanted, rtol=1e-10, atol=1e-10)
    if k == 1:
        p = ((z + g) / tau).softmax(1).detach()
        v = u * z.detach()
        by_hand = hard * u + p * (v - (p * v).sum(1, keepdim=True)) / tau
        torch.testing.assert_close(wanted, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gumbel_gate_draws_the_same_noise_twice(dtype):
    z, u = rows(200, 6).to(dtype).requires_grad_(), rows(200, 6, 1).float()
    noise = gumbel_noise(200, 6, seed=11, dtype=torch.promote_types(dtype, torch.float32))
    u = u.to(noise.dtype)
    drawn, given = gumbel_topk_gate(z, 2, 0.5, seed=11), gumbel_topk_gate(z, 2, 0.5, noise=noise)
    assert drawn.dtype == noise.dtype
    assert torch.equal(drawn, given)
    first, second = torch.autograd.grad(drawn, z, u)[0], torch.autograd.grad(given, z, u)[0]
    assert first.dtype == dtype
    assert torch.equal(first, second)
    assert not torch.equal(drawn, gumbel_topk_gate(z, 2, 0.5, seed=12))


def test_gumbel_gate_does_not_depend_on_the_chunk(monkeypatch):
    z, u = rows(300, 10).requires_grad_(), rows(300, 10, 1)

    def both(chunk):
        monkeypatch.setitem(gumbel._CHUNK, "cpu", chunk)
        out = gumbel_topk_gate(z, 3, 0.5, seed=1)
        return out, torch.autograd.grad(out, z, u)[0]

    for a, b in zip(both(1), both(10**9)):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_gumbel_gate_keeps_only_z_and_makes_only_its_results(monkeypatch):
    monkeypatch.setitem(gumbel._CHUNK, "cpu", 1)
    z, u, saved = torch.randn(200, 50, requires_grad=True), torch.randn(200, 50), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        with LargeTensors(z.numel(), z, u) as forward:
            out = gumbel_topk_gate(z, 5, 1.0, seed=0)
        with LargeTensors(z.numel(), z, u, out) as backward:
            gradient = torch.autograd.grad(out, z, u)[0]
    assert [x.data_ptr() for x in saved if x is not None and x.numel() >= z.numel()] == [z.data_ptr()]
    assert forward.made == {out.untyped_storage().data_ptr()}
    assert backward.made == {gradient.untyped_storage().data_ptr()}


def test_gate_errors():
    z = torch.zeros(2, 3)
    for k in (0, 4):
        for gate in (topk_gate, lambda z, k: gumbel_topk_gate(z, k, 1.0, seed=0), lambda z, k: soft_khot(z, k, 1.0)):
            with pytest.raises(ValueError, match=f"k is {k}; expected 1 <= k <= 3"):
                gate(z, k)
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"tau is {tau}; expected > 0"):
            gumbel_topk_gate(z, 1, tau, seed=0)
        with pytest.raises(ValueError, match=f"tau is {tau}; expected > 0"):
            soft_khot(z, 1, tau)
    for arguments in ({}, {"seed": 0, "noise": z}):
        with pytest.raises(ValueError, match="seed and noise: expected exactly one"):
            gumbel_topk_gate(z, 1, 1.0, **arguments)
    with pytest.raises(ValueError, match=r"noise has shape \[3, 2\]"):
        gumbel_topk_gate(z, 1, 1.0, noise=z.T)
    with pytest.raises(ValueError, match=r"z has shape \[3\]"):
        topk_gate(torch.zeros(3), 1)
