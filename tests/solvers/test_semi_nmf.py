import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch.nn.functional import normalize

from cbm.solvers import semi_nmf
from cbm.solvers.semi_nmf import _error, _update_atoms, _update_weights


def planted(n=2000, d=24, k=10, active=2, noise=0.02, seed=0):
    """Sums of few signed atoms, with weights >= 0: (pictures, atoms, weights)."""
    g = torch.Generator().manual_seed(seed)
    atoms = normalize(torch.randn(k, d, generator=g), dim=1)
    weights = torch.zeros(n, k)
    for row in range(n):
        weights[row, torch.randperm(k, generator=g)[: 1 + row % active]] = 1.0
    weights *= 0.5 + torch.rand(n, k, generator=g)
    return weights @ atoms + noise * torch.randn(n, d, generator=g) / d**0.5, atoms, weights


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finds_planted_atoms_that_stand_alone(seed):
    x, atoms, _ = planted(active=1, seed=seed)
    assert bool((x < 0).any())
    found, error = semi_nmf(x, 10, seed=0)
    cosine = atoms @ found.T
    assert float(cosine.amax(1).min()) > 0.99
    assert len(set(cosine.argmax(1).tolist())) == 10
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("active", [1, 2, 3])
def test_explains_mixed_atoms_as_well_as_the_planted_ones(active):
    x, atoms, weights = planted(active=active)
    truth = float((x - weights @ atoms).square().sum() / x.square().sum())
    _, error = semi_nmf(x, 10, seed=0)
    assert float(error[-1]) < truth + 1e-4


@pytest.mark.parametrize("k", [3, 17, 80])
def test_the_error_never_rises(k):
    x, _, _ = planted(n=600, noise=1.0)
    _, error = semi_nmf(x, k, seed=0, passes=40, tol=0.0)
    assert error.dtype == torch.float64
    assert len(error) > 5
    assert bool((error[1:] <= error[:-1]).all())
    assert 0 < float(error[-1]) < float(error[0]) < 1


def test_weights_reach_the_optimum_of_a_slow_reference():
    x, atoms, _ = planted(n=30, d=12, k=7, noise=0.5)
    x, atoms = x.double(), atoms.double()
    weights = torch.zeros(30, 7, dtype=torch.float64)
    _update_weights(x, weights, atoms, 400, chunk=11)
    for row in range(30):
        np.testing.assert_allclose(weights[row].numpy(), nnls(atoms.T.numpy(), x[row].numpy())[0], atol=1e-8)


def test_one_sweep_is_coordinate_descent():
    x, _, _ = planted(n=9, d=150, k=5)
    x = x.double()
    atoms = normalize(torch.randn(130, 150, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    weights = torch.zeros(9, 130, dtype=torch.float64)
    _update_weights(x, weights, atoms, 1, chunk=4)  # 130 atoms: three blocks
    slow = torch.zeros(9, 130, dtype=torch.float64)
    for k in range(130):
        slow[:, k] = (slow[:, k] + (x - slow @ atoms) @ atoms[k]).clamp(min=0)
    torch.testing.assert_close(weights, slow)


def test_atoms_are_least_squares():
    x, _, weights = planted(n=200, noise=0.3)
    x, weights = x.double(), weights.double()
    kept = weights.clone()
    atoms = _update_atoms(x, kept, torch.zeros(10, 24, dtype=torch.float64), chunk=64)
    best = torch.linalg.lstsq(weights, x).solution
    torch.testing.assert_close(atoms, normalize(best, dim=1))
    torch.testing.assert_close(kept @ atoms, weights @ best)
    assert _error(x, kept, atoms, 50) == pytest.approx(float((x - weights @ best).square().sum()))


def test_atoms_that_say_the_same_and_atoms_without_weight():
    x, _, weights = planted(n=200, noise=0.3)
    weights[:, 1] = weights[:, 0]
    weights[:, 2] = 0
    before = float((x - weights @ torch.linalg.lstsq(weights.double(), x.double()).solution.float()).square().sum())
    atoms = _update_atoms(x, weights, torch.zeros(10, 24), chunk=64)
    assert bool(atoms.isfinite().all())
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(10))  # the one without weight is a picture's rest
    _update_weights(x, weights, atoms, 3, 64)
    assert _error(x, weights, atoms, 64) < before


def test_same_bits_again_chunks_and_a_sample_of_the_rows():
    x, atoms, _ = planted(active=1)
    first = semi_nmf(x, 10, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first, semi_nmf(x, 10, seed=5)))
    torch.testing.assert_close(semi_nmf(x, 10, seed=5, chunk=333)[0], first[0], atol=1e-3, rtol=0)
    some, _ = semi_nmf(x.half(), 10, seed=5, rows=800, passes=200, tol=1e-9)
    assert some.dtype == torch.float32
    assert float((atoms @ some.T).amax(1).min()) > 0.98
    assert not torch.equal(some, semi_nmf(x, 10, seed=6, rows=800, passes=200, tol=1e-9)[0])


def test_more_atoms_than_needed():
    x = torch.eye(3)[torch.arange(30) % 3]
    atoms, error = semi_nmf(x, 6, seed=0)
    assert bool(atoms.isfinite().all())
    assert float(error[-1]) < 1e-10


def test_mistakes_are_named():
    x, _, _ = planted(n=50)
    with pytest.raises(ValueError, match=r"k is 31; expected 1 <= k <= 30, the number of rows that are fitted"):
        semi_nmf(x, 31, seed=0, rows=30)
    with pytest.raises(ValueError, match="passes, chunk, rows, tol"):
        semi_nmf(x, 3, seed=0, chunk=0)
    with pytest.raises(ValueError, match="x has shape"):
        semi_nmf(x[0], 3, seed=0)
    x[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        semi_nmf(x, 3, seed=0)
