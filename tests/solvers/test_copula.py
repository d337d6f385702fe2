"""The Gaussian copula of yes or no, against scipy's integrals, counting, and a planted world of correlated concepts."""

import functools

import numpy as np
import pytest
import torch
from correlated_concepts import COUNT, TRUE_01, TRUE_23, drawn
from scipy.stats import multivariate_normal, norm
from sklearn.linear_model import LogisticRegression

from cbm.solvers.copula import (
    bivariate_normal,
    fit_correlation,
    nearest_correlation,
    pair_correlations,
    thresholds,
    told_probabilities,
)

R4 = torch.tensor([[1, 0.6, 0.3, -0.2], [0.6, 1, 0.4, 0], [0.3, 0.4, 1, 0.5], [-0.2, 0, 0.5, 1]]).double()
P4 = torch.tensor([[0.3, 0.6, 0.2, 0.7]]).double()


@pytest.mark.parametrize("r", [-0.9, -0.3, 0.0, 0.5, 0.9])
def test_the_bivariate_normal_is_scipys(r):
    for a in (-3.0, -0.5, 0.0, 2.0):
        for b in (-2.0, 0.3, 2.5):
            expected = multivariate_normal.cdf([a, b], cov=[[1, r], [r, 1]])
            found = bivariate_normal(torch.tensor(a), torch.tensor(b), torch.tensor(r))
            assert float(found) == pytest.approx(expected, abs=1e-6)


def orthant(answers: dict[int, int], p: torch.Tensor, r: torch.Tensor) -> float:
    """Probability of some answers, by scipy's integral of the multivariate normal density."""
    index = list(answers)
    sign = np.array([1.0 if answers[k] else -1.0 for k in index])
    z, within = norm.ppf(p.numpy()[index]), r.numpy()[np.ix_(index, index)]
    if len(index) == 1:
        return float(norm.cdf(sign * z)[0])
    return float(multivariate_normal.cdf(sign * z, cov=sign[:, None] * within * sign, abseps=1e-9, releps=1e-9))


@pytest.mark.parametrize("known", [{0: 1}, {2: 0}, {0: 1, 1: 0}, {1: 1, 3: 0}, {0: 1, 1: 0, 2: 1}])
def test_what_follows_from_answers_is_a_ratio_of_integrals(known):
    told, answers = torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4)
    for k, value in known.items():
        told[0, k], answers[0, k] = True, value
    found = told_probabilities(P4, told, answers, R4, sweeps=2048)[0]
    for k in range(4):
        if k in known:
            assert float(found[k]) == known[k]
            continue
        expected = orthant({**known, k: 1}, P4[0], R4) / orthant(known, P4[0], R4)
        assert float(found[k]) == pytest.approx(expected, abs=1e-6 if len(known) == 1 else 3e-3)


def test_a_row_is_answered_alone_and_what_has_no_company_stays():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(40, 5, generator=generator)
    r = torch.eye(5).double()
    r[:4, :4] = R4
    told = torch.rand(40, 5, generator=generator) < 0.5
    answers = (torch.rand(40, 5, generator=generator) < 0.5).float()
    found = told_probabilities(p, told, answers, r)
    assert found.dtype == p.dtype
    alone = torch.cat([told_probabilities(p[i : i + 1], told[i : i + 1], answers[i : i + 1], r) for i in range(40)])
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)
    order = torch.randperm(40, generator=generator)
    torch.testing.assert_close(told_probabilities(p[order], told[order], answers[order], r), found[order])
    assert torch.equal(found[~told[:, 4], 4], p[~told[:, 4], 4])
    nothing = ~told.any(dim=1)
    assert torch.equal(found[nothing], p[nothing])
    assert torch.equal(told_probabilities(p, torch.ones_like(told), answers, r), answers)


@pytest.mark.parametrize("logit", [-12.0, -5.0, -1.0, 0.0, 1.0, 5.0, 12.0])
def test_a_concept_never_moves_against_what_was_told(logit):
    """However sure the model was of it already: here conditioning a fixed logit of 2.94 goes the wrong way."""
    p = torch.tensor([[logit, 0.3, -1.0]]).double().sigmoid()
    r = torch.tensor([[1, 0.5, -0.5], [0.5, 1, 0.0], [-0.5, 0.0, 1]]).double()
    told = torch.tensor([[True, False, False]])
    present, absent = (told_probabilities(p, told, torch.full((1, 3), value), r)[0] for value in (1.0, 0.0))
    assert present[1] >= p[0, 1] >= absent[1]
    assert present[2] <= p[0, 2] <= absent[2]
    assert float(present[1] - absent[1]) > 0.05


def test_the_nearest_correlation_matrix_is_nearer_than_others_and_repairs_nothing_sound():
    generator = torch.Generator().manual_seed(0)
    broken = torch.eye(6).double()
    upper = torch.triu(torch.rand(6, 6, generator=generator, dtype=torch.float64) * 1.8 - 0.9, diagonal=1)
    broken = broken + upper + upper.T
    assert float(torch.linalg.eigvalsh(broken).min()) < -0.1
    found = nearest_correlation(broken)
    assert torch.equal(found.diagonal(), torch.ones(6).double())
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-9
    distance = float((found - broken).norm())
    for step in range(200):
        factor = torch.randn(6, 6, generator=generator, dtype=torch.float64) * (0.02 if step % 2 else 1.0)
        root = torch.linalg.cholesky(found + 1e-7 * torch.eye(6)) + factor
        other = root @ root.T
        other = other / other.diagonal().sqrt()[:, None] / other.diagonal().sqrt()
        assert float((other - broken).norm()) >= distance - 1e-6
    torch.testing.assert_close(nearest_correlation(R4), R4, atol=1e-7, rtol=0)


# ---------------------------------------------------------------------------------------------------- a planted world


def out_of_fold(x: np.ndarray, c: np.ndarray, seed: int) -> np.ndarray:
    fold, p = np.random.default_rng(seed).integers(0, 5, len(x)), np.empty(c.shape)
    for j in range(5):
        for k in range(c.shape[1]):
            model = LogisticRegression(C=1.0).fit(x[fold != j], c[fold != j, k])
            p[fold == j, k] = model.predict_proba(x[fold == j])[:, 1]
    return p


@functools.cache
def planted(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, c = drawn(2000, seed)
    return torch.from_numpy(out_of_fold(x, c, seed)), torch.from_numpy(c)


def test_a_planted_correlation_is_found_and_the_others_are_small():
    raw = [pair_correlations(*planted(seed))[0] for seed in range(5)]
    shrunk = [fit_correlation(*planted(seed))[0] for seed in range(5)]
    others = torch.triu(torch.ones(COUNT, COUNT), diagonal=1).bool()
    others[0, 1] = others[2, 3] = False
    for r in raw:
        assert abs(float(r[0, 1]) - TRUE_01) <= 0.1
        assert abs(float(r[2, 3]) - TRUE_23) <= 0.1
    for matrices in (raw, shrunk):
        mean = torch.stack(matrices).mean(dim=0)
        assert abs(float(mean[0, 1]) - TRUE_01) <= 0.1
        assert abs(float(mean[2, 3]) - TRUE_23) <= 0.1
        assert abs(float(mean[others].mean())) <= 0.03
    for seed, (one, other) in enumerate(zip(raw, shrunk)):
        p = planted(seed)[0]
        said = [float((4 * (p[:, i] * (1 - p[:, i]) * p[:, j] * (1 - p[:, j])).sqrt()).sum())
                for i in range(COUNT) for j in range(COUNT)]  # fmt: skip
        factor = 1 - 1 / (1 + np.mean(said) / (50 * COUNT))
        torch.testing.assert_close(other, factor * nearest_correlation(one) + (1 - factor) * torch.eye(COUNT))
        assert float(torch.linalg.eigvalsh(other).min()) > 0


def test_being_told_one_concept_makes_its_partner_more_certain_and_the_opposite_does_the_reverse():
    r, (x, c), (new, truth) = fit_correlation(*planted(0))[0], drawn(2000, 0), drawn(3000, 999)
    p = torch.from_numpy(np.stack([LogisticRegression(C=1.0).fit(x, c[:, k]).predict_proba(new)[:, 1]
                                   for k in range(COUNT)], axis=1))  # fmt: skip
    answers = torch.from_numpy(truth)
    told = torch.zeros(p.shape, dtype=torch.bool)
    told[:, 0] = True

    def loss(q: torch.Tensor) -> float:
        return float(torch.nn.functional.binary_cross_entropy(q[:, 1], answers[:, 1]))

    right = told_probabilities(p, told, answers, r)
    wrong = told_probabilities(p, told, 1 - answers, r)
    assert loss(right) <= loss(p) - 0.005
    assert loss(wrong) > loss(p)
    assert torch.equal((right - p)[:, 1].sign(), -(wrong - p)[:, 1].sign())


def test_the_order_of_rows_and_of_concepts_does_not_matter_and_unknown_answers_do_not_count():
    p, c = planted(0)
    p, c = p[:600], c[:600].clone()
    c[torch.rand(c.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = torch.nan
    r = pair_correlations(p, c)[0]
    rows = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pair_correlations(p[rows], c[rows])[0], r, atol=1e-9, rtol=0)
    turn = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(pair_correlations(p[:, turn], c[:, turn])[0], r[turn][:, turn], atol=1e-9, rtol=0)
    both = ~c[:, 0].isnan() & ~c[:, 1].isnan()
    torch.testing.assert_close(pair_correlations(p[both, :2], c[both, :2])[0], r[:2, :2], atol=1e-9, rtol=0)


def test_the_correlation_of_a_pair_has_the_largest_likelihood():
    """Against scipy's cells on a grid ten times as fine."""
    p, c = (tensor[:150, :2] for tensor in planted(1))
    z, sign = norm.ppf(p.numpy()), 2 * c.numpy() - 1

    def likelihood(r: float) -> float:
        chances = [
            multivariate_normal.cdf(s * a, cov=[[1, r * s[0] * s[1]], [r * s[0] * s[1], 1]]) for a, s in zip(z, sign)
        ]
        return float(np.log(chances).sum())

    found = float(pair_correlations(p, c)[0][0, 1])
    best = likelihood(found)
    assert all(best >= likelihood(found + away) for away in (-0.05, -0.02, 0.02, 0.05))


def test_pairs_that_hardly_ever_meet_are_left_at_zero():
    p, c = planted(0)
    p, c = p.clone(), c.clone()
    p[:, 5], c[:, 5] = 0.001, 0.0
    c[:2, 5] = 1.0
    r, few = pair_correlations(p, c)
    assert few[5, :5].all()
    assert not few[:5, :5].any()
    assert (r[5, :5] == 0).all()
    assert torch.equal(few, few.T)


def test_thresholds_are_finite():
    assert thresholds(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([norm.ppf(1e-6), 0, -norm.ppf(1e-6)])
