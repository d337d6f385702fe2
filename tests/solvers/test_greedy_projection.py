import math

import pytest
import torch
from torch.nn.functional import normalize

from cbm.solvers import greedy_projection


def problem(n=400, d=24, m=200, seed=0, dtype=torch.float32):
    """Centred pictures with a falling spectrum, and unit words that share some of it."""
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -0.7
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * spectrum
    words = torch.randn(m, d, generator=g, dtype=torch.float64) * spectrum.sqrt()
    x = x - x.mean(0)
    return x.to(dtype), normalize(words, dim=1).to(dtype)


def energy(x, words):
    """Share of the energy of x in the span of some words, by an orthogonal basis."""
    basis = torch.linalg.qr(words.double().T).Q
    return float((x.double() @ basis).square().sum() / x.double().square().sum())


def brute_force(x, words, count):
    picks = []
    for _ in range(count):
        rest = [i for i in range(len(words)) if i not in picks]
        picks.append(max(rest, key=lambda i: energy(x, words[[*picks, i]])))
    return picks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_picks_are_those_of_brute_force(dtype):
    x, words = problem(dtype=dtype)
    chosen, shares = greedy_projection(x.T @ x, words, 10)
    assert chosen.tolist() == brute_force(x, words, 10)
    for m in range(1, 11):
        assert float(shares[m - 1]) == pytest.approx(energy(x, words[chosen[:m]]), abs=1e-5)


def test_better_than_random_words_and_worse_than_principal_directions():
    x, words = problem(n=2000, d=96, m=1500)
    moment = x.T @ x / len(x)
    chosen, shares = greedy_projection(moment, words, 40)
    assert len(set(chosen.tolist())) == 40
    at_random = energy(x, words[torch.randperm(1500, generator=torch.Generator().manual_seed(1))[:40]])
    values = torch.linalg.eigvalsh(moment.double())
    assert at_random + 0.05 < float(shares[-1]) < float(values[-40:].sum() / values.sum())
    assert bool((shares[1:] >= shares[:-1]).all())


def test_same_picks_whatever_the_order_and_the_units():
    x, words = problem()
    chosen, shares = greedy_projection(x.T @ x, words, 12)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    other, same = greedy_projection(x.T @ x / 7, words[order], 12)
    assert torch.equal(order[other], chosen)
    assert torch.allclose(shares, same, atol=1e-6)
    assert torch.equal(greedy_projection(x.T @ x, words, 12)[0], chosen)


def test_fewer_where_nothing_is_left():
    x, words = problem(d=6)
    chosen, shares = greedy_projection(x.T @ x, words, 50)
    assert len(chosen) <= 6
    assert float(shares[-1]) > 0.99
    flat = words[:4].repeat(5, 1)  # 4 words, five times each
    assert sorted(greedy_projection(x.T @ x, flat, 20)[0].tolist()) == [0, 1, 2, 3]
    assert not len(greedy_projection(torch.zeros(6, 6), words, 3)[0])
    assert not len(greedy_projection(x.T @ x, torch.zeros(5, 6), 3)[0])
    near = torch.stack([words[0], normalize(words[0] + 0.05 * words[1], dim=0)])  # 0.25 % of it points elsewhere
    assert len(greedy_projection(x.T @ x, near, 2)[0]) == 1
    assert len(greedy_projection(x.T @ x, near, 2, tol=1e-4)[0]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 201}, "count is 201"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"tol": math.nan}, "tol is nan"),
        ({"moment": torch.ones(3, 3)}, "moment has shape"),
        ({"moment": torch.full((24, 24), torch.nan)}, "moment has a NaN"),
        ({"candidates": torch.ones(4)}, "candidates has shape"),
    ],
)
def test_what_is_not_accepted_is_named(change, message):
    x, words = problem()
    with pytest.raises(ValueError, match=message):
        greedy_projection(**({"moment": x.T @ x, "candidates": words, "count": 5} | change))
