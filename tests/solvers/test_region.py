"""The confidence region of interventions, against scipy's SLSQP and the conditions of an optimum."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2

from cbm.solvers.region import chi2_quantile, confidence_region


def problem(m: int, seed: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, a covariance with strong correlations, and answers."""
    draw = np.random.default_rng(seed)
    root = draw.standard_normal((m, m)) * 0.7
    return draw.standard_normal(m) * spread, root @ root.T + 0.3 * np.eye(m), (draw.random(m) < 0.5).astype(float)


def solved(mean: np.ndarray, covariance: np.ndarray, answers: np.ndarray, level: float = 0.99) -> np.ndarray:
    found = confidence_region(
        torch.from_numpy(mean)[None], torch.ones(1, len(mean), dtype=torch.bool), torch.from_numpy(answers)[None],
        torch.from_numpy(covariance), level=level,
    )  # fmt: skip
    return found[0].numpy()


def loss(eta: np.ndarray, answers: np.ndarray) -> float:
    return float(np.logaddexp(0, -(2 * answers - 1) * eta).sum())


def test_quantiles_are_scipys():
    freedom = torch.tensor([1, 2, 5, 20, 112])
    for level in (0.5, 0.9, 0.99):
        np.testing.assert_allclose(chi2_quantile(level, freedom), chi2.ppf(level, freedom.numpy()), rtol=1e-10)


@pytest.mark.parametrize("m", [1, 2, 5, 20])
def test_the_solution_is_no_worse_than_that_of_slsqp(m):
    """Fifty problems of each size, 200 in all."""
    compared = 0
    for seed in range(50):
        mean, covariance, answers = problem(m, 1000 * m + seed)
        sign, inverse, radius = 2 * answers - 1, np.linalg.inv(covariance), chi2.ppf(0.99, m)

        def size(eta: np.ndarray, mean=mean, inverse=inverse) -> float:
            return float((eta - mean) @ inverse @ (eta - mean))

        other = minimize(
            loss, mean + 1e-4 * sign, args=(answers,), method="SLSQP",
            jac=lambda eta, answers, sign=sign: -sign / (1 + np.exp(sign * eta)),
            constraints={"type": "ineq", "fun": lambda eta, size=size, radius=radius: radius - size(eta),
                         "jac": lambda eta, mean=mean, inverse=inverse: -2 * inverse @ (eta - mean)},
            bounds=[(v, None) if s > 0 else (None, v) for v, s in zip(mean, sign)],
            options={"maxiter": 200, "ftol": 1e-10},
        )  # fmt: skip
        found = solved(mean, covariance, answers)
        assert (sign * (found - mean) >= 0).all()
        assert size(found) <= radius * (1 + 1e-9)
        if size(other.x) <= radius * (1 + 1e-6):
            compared += 1
            assert loss(found, answers) <= loss(other.x, answers) + 1e-4
    assert compared >= 40


@pytest.mark.parametrize("m", [1, 5, 20, 60])
@pytest.mark.parametrize("spread", [0.5, 2.0, 15.0])
def test_the_conditions_of_an_optimum_hold(m, spread):
    """Stationary, complementary, on the rim: in units of the largest slope, since sure concepts have a tiny one."""
    for seed in range(10):
        mean, covariance, answers = problem(m, seed, spread)
        sign, found = 2 * answers - 1, solved(mean, covariance, answers)
        shift, precision = sign * (found - mean), np.linalg.inv(covariance) * np.outer(sign, sign)
        slope = 1 / (1 + np.exp(sign * found))
        unit = (1 / (1 + np.exp(sign * mean))).max()
        multiplier = shift @ slope / chi2.ppf(0.99, m)
        left = (multiplier * precision @ shift - slope) / unit
        assert shift @ precision @ shift == pytest.approx(chi2.ppf(0.99, m), rel=1e-6)
        assert left.min() >= -1e-6
        assert np.abs(np.where(shift > 0, left, 0.0)).max() <= 1e-6


def test_one_told_concept_has_a_formula():
    mean = torch.tensor([[0.3, 8.0, -2.0]]).double().repeat(3, 1)
    covariance = torch.tensor([[1.0, 0.5, 0.2], [0.5, 2.0, 0.1], [0.2, 0.1, 0.7]]).double()
    for answer, sign in ((1.0, 1), (0.0, -1)):
        found = confidence_region(mean, torch.eye(3).bool(), torch.full((3, 3), answer), covariance, level=0.9)
        expected = mean + sign * torch.diag((chi2.ppf(0.9, 1) * covariance.diagonal()).sqrt())
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_a_batch_is_its_rows_whatever_is_told_and_every_row_may_have_its_covariance():
    draw = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(30, 7, generator=draw, dtype=torch.float64)
    root = torch.randn(30, 7, 7, generator=draw, dtype=torch.float64)
    covariance = root @ root.mT + 0.2 * torch.eye(7)
    told, answers = (torch.rand(30, 7, generator=draw) < 0.5 for _ in range(2))
    told[0] = False
    answers = answers.double()
    found = confidence_region(mean, told, answers, covariance)
    assert torch.equal(found[~told], mean[~told])
    for i in range(30):
        alone = confidence_region(mean[i : i + 1], told[i : i + 1], answers[i : i + 1], covariance[i])
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-6, rtol=0)
