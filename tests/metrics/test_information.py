"""Information of scores: counts against slow loops, planted truth, no bias without a leak, and exact tests."""

import numpy as np
import pytest
from leaky_scores import CONCEPTS, Leaky
from scipy.stats import kstest
from sklearn.metrics import mutual_info_score

from cbm.metrics.information import STRATUM, binned, crosstalk, told

SEEDS = range(5)


def test_bins_hold_as_many_pictures_each_and_equal_scores_together():
    score = np.random.default_rng(0).standard_normal(600)
    assert np.bincount(binned(score)).tolist() == [100] * 6
    assert binned(np.r_[np.zeros(500), np.arange(1, 101)])[:500].max() == 0  # a sparse code: most are silent
    np.testing.assert_array_equal(binned(np.array([0.5, -1.0, 0.5])), [1, 0, 1])


def test_the_estimate_is_the_plug_in_minus_its_mean_under_exchange():
    """By sklearn, stratum by stratum, with permutations of its own: the two differ by the noise of the permutations."""
    scores, c, y = Leaky(4, 0.6, 0.7).draw(400, 0)
    found = told(scores[:, :2], c[:, :2], y, draws=400, halves=2)
    generator = np.random.default_rng(5)
    for k in range(2):
        bins, seen, open_, null = binned(scores[:, k]), 0.0, 0.0, np.zeros(400)
        for value in (0, 1):
            rows = c[:, k] == value
            seen += rows.mean() * mutual_info_score(bins[rows], y[rows])
            open_ += rows.mean() * mutual_info_score(y[rows], y[rows])
            null += [rows.mean() * mutual_info_score(generator.permutation(bins[rows]), y[rows]) for _ in range(400)]
        error = 4 * null.std() / np.sqrt(400) / open_ * np.sqrt(2)
        assert found.share[k] == pytest.approx((seen - null.mean()) / open_, abs=error)
        assert found.by_value[k].sum() == pytest.approx(found.share[k])


@pytest.mark.parametrize("classes", [4, 20])
def test_scores_that_leak_nothing_have_none(classes: int):
    means = [told(*Leaky(classes, 1.2, 0).draw(500, seed), halves=2).mean for seed in SEEDS]
    assert abs(np.mean(means)) <= 0.005


def test_counts_alone_would_accuse_scores_that_leak_nothing():
    scores, c, y = Leaky(20, 1.2, 0).draw(200, 0)
    raw = []
    for k in range(CONCEPTS):
        bins, parts = binned(scores[:, k]), [c[:, k] == value for value in (0, 1)]
        told_, open_ = (
            sum(rows.mean() * mutual_info_score(other[rows], y[rows]) for rows in parts) for other in (bins, y)
        )
        raw.append(told_ / open_)
    assert np.mean(raw) == pytest.approx(0.12, abs=0.02)


@pytest.mark.parametrize(("classes", "a", "b"), [(4, 1.2, 0.35), (4, 0.6, 0.7), (20, 1.2, 0.35), (20, 0.6, 0.7)])
def test_a_planted_leak_is_found_and_not_exaggerated(classes: int, a: float, b: float):
    problem = Leaky(classes, a, b)
    truth = float(problem.own_leak().mean())
    found = [told(*problem.draw(500, seed), halves=2) for seed in SEEDS]
    mean = float(np.mean([each.mean for each in found]))
    assert mean <= truth + 0.01
    assert mean >= truth * (0.7 if classes == 4 else 0.5)  # with 20 classes, 500 pictures show less of it
    assert np.mean([each.p_any < 0.05 for each in found]) > (0.9 if b == 0.7 else 0.3)


def test_without_a_leak_p_values_are_uniform():
    p = np.concatenate([told(*Leaky(4, 1.2, 0).draw(300, seed), halves=2, seed=seed).p for seed in range(25)])
    assert len(p) == 25 * CONCEPTS
    assert kstest(p - 0.5 / 101, "uniform").pvalue > 0.01


def test_all_concepts_together_give_few_false_alarms():
    alarms = [(told(*Leaky(4, 1.2, 0).draw(300, seed), halves=2, seed=seed).p_any < 0.05).any() for seed in range(40)]
    assert sum(alarms) <= 7  # of 40 at 5 %: 8 or more have a chance of 1 in 1,000


def test_nothing_but_the_order_of_scores_counts():
    scores, c, y = Leaky(4, 0.6, 0.7).draw(300, 0)
    found = told(scores, c, y)
    moved = told(np.exp(scores) * 7 - 3, c, y)
    np.testing.assert_array_equal(moved.share, found.share)
    renamed = told(scores, 1 - c, (y + 1) % 4)
    np.testing.assert_allclose(renamed.share, found.share, atol=1e-12)
    order = np.random.default_rng(0).permutation(300)
    again = told(scores[order], c[order], y[order])
    np.testing.assert_allclose(again.share, found.share, atol=0.02)  # other permutations, the same counts


def test_a_constant_score_tells_nothing():
    _, c, y = Leaky(4, 0.6, 0.7).draw(300, 0)
    found = told(np.ones((300, 1)), c[:, :1], y)
    assert (found.share[0], found.p[0], found.p_any[0]) == (0, 1, 1)


def test_small_strata_and_unknown_answers_are_left_out():
    scores, c, y = Leaky(4, 0.6, 0.7).draw(300, 0)
    some = c[:, :1].copy()
    some[200:] = np.nan
    kept = told(scores[:200, :1], c[:200, :1], y[:200], draws=20, halves=2)
    assert told(scores[:, :1], some, y, draws=20, halves=2).share[0] == pytest.approx(kept.share[0], abs=0.03)
    rare = np.zeros((300, 1))
    rare[: STRATUM - 1] = 1
    assert not np.isnan(told(scores[:, :1], rare, y).share[0])
    assert np.isnan(told(scores[:10, :1], rare[:10], y[:10]).mean)
    assert np.isnan(told(scores[:, :1], c[:, :1], np.zeros(300, int)).mean)  # nothing is open about one class


def test_the_interval_covers_the_mean_over_draws():
    problem = Leaky(4, 0.6, 0.7)
    found = [told(*problem.draw(300, seed), draws=20, halves=100, seed=seed) for seed in range(30)]
    centre = np.mean([each.mean for each in found])
    assert sum(each.low <= centre <= each.high for each in found) >= 26


def test_halves_take_subjects_whole():
    scores, c, y = Leaky(4, 0.6, 0.7).draw(100, 0)
    again = [np.repeat(each, 5, axis=0) for each in (scores, c, y)]
    by_subject = told(*again, subjects=np.repeat(np.arange(100), 5), draws=10)
    alone = told(*again, draws=10)
    assert by_subject.high - by_subject.low > 1.5 * (alone.high - alone.low)


def planted_pair(n: int, a: float, b: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    c = (generator.random((n, 2)) < 0.5).astype(float)
    scores = a * (2 * c - 1) + generator.standard_normal((n, 2))
    scores[:, 0] += b * (2 * c[:, 1] - 1)
    return scores, c


@pytest.mark.parametrize(("a", "b"), [(1.2, 0.0), (1.2, 0.35), (0.6, 0.7)])
def test_a_score_that_knows_another_concept(a: float, b: float):
    """Against the integral: the first score knows of the second concept, not the other way round."""
    grid = np.linspace(-10, 10, 4001)
    density = np.stack([np.exp(-0.5 * (grid - sign * b) ** 2) / np.sqrt(2 * np.pi) / 2 for sign in (-1, 1)])
    truth = float((density * np.log(2 * density / density.sum(0))).sum() * (grid[1] - grid[0])) / np.log(2)
    found = [crosstalk(*planted_pair(500, a, b, seed), seed=seed) for seed in range(20)]
    told_, other = (np.mean([each.share[i] for each in found]) for i in ((0, 1), (1, 0)))
    assert truth * 0.8 - 0.005 <= told_ <= truth + 0.01
    assert abs(other) < 0.005
    assert np.isnan(found[0].share[0, 0])
    assert np.mean([each.p[0, 1] < 0.05 for each in found]) == pytest.approx(1 if b else 0, abs=0.1)


def test_many_pairs_give_few_false_alarms():
    alarms = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        c = (generator.random((300, 20)) < generator.choice([0.1, 0.3, 0.5], 20)).astype(float)
        alarms += bool((crosstalk(c + generator.standard_normal(c.shape), c, seed=seed).p < 0.05).any())
    assert alarms <= 4  # of 20 at 5 %: 5 or more have a chance of 1 in 400


def test_pairs_with_levels_or_without_labels_are_left_out():
    scores, c = planted_pair(300, 1.2, 0.7, 0)
    levels = np.stack([c[:, 0], c[:, 1] + c[:, 0], np.full(300, np.nan)], axis=1)
    found = crosstalk(np.concatenate([scores, scores[:, :1]], axis=1), levels)
    assert np.isnan(found.share[:, 1]).all()
    assert np.isnan(found.share[:, 2]).all()
    assert not np.isnan(found.share[1, 0])
