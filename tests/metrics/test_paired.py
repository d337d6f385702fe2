"""Tests of two methods on the same images, against scipy and planted truths."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from cbm.metrics.classification import mcnemar_p
from cbm.metrics.paired import Images, Judged, calibration_p, holm, mean_p


def judged(*rights: np.ndarray, confidence: float = 0.8) -> dict[int, Judged]:
    return {seed: Judged(right, np.full(len(right), confidence)) for seed, right in enumerate(rights)}


def test_mcnemar_is_the_binomial_test():
    for a, b in ((0, 0), (3, 0), (10, 4), (45, 40), (0, 30), (300, 361)):
        expected = binomtest(a, a + b).pvalue if a + b else 1.0
        assert mcnemar_p(a, b) == pytest.approx(expected)
        right = np.zeros((2, a + b + 50), dtype=bool)
        right[0, :a] = right[1, a : a + b] = True
        images = Images(np.zeros(a + b + 50, dtype=int))
        assert mean_p(judged(right[0]), judged(right[1]), images) == pytest.approx(expected)
        assert mean_p(judged(right[0]), judged(right[1]), images, macro=True) == pytest.approx(expected)


def test_seeds_that_agree_add_nothing_and_prove_nothing():
    """82.5 against 83.1 % of 800 images, 45 and 40 decisions apart, in each of three equal seeds."""
    one, other = np.ones((2, 800), dtype=bool)
    one[:45] = other[45:85] = False
    images = Images(np.arange(800) % 20)
    once = mean_p(judged(one), judged(other), images)
    assert once == pytest.approx(0.6646, abs=1e-3)
    assert mean_p(judged(one, one, one), judged(other, other, other), images) == pytest.approx(once)


def test_where_seeds_differ_more_than_images_it_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    level = [np.array([0.5, 0.7, 0.9]), np.array([0.55, 0.68, 0.97])]
    runs = [[generator.permutation(40_000) < share * 40_000 for share in each] for each in level]
    p = mean_p(judged(*runs[0]), judged(*runs[1]), Images(np.zeros(40_000, dtype=int)))
    assert p == pytest.approx(ttest_rel(*level).pvalue, rel=0.15)
    assert p > 0.3


def test_equal_methods_are_called_unequal_in_five_per_cent():
    generator, found = np.random.default_rng(1), {"images": [], "subjects": [], "seeds": [], "ece": []}
    images, subjects = Images(np.arange(150) % 3), Images(np.arange(150) % 3, np.arange(150) // 5)
    for _ in range(300):
        a, b = generator.random((2, 150)) < 0.8
        found["images"].append(mean_p(judged(a), judged(b), images))
        a, b = np.repeat(generator.random((2, 30)) < 0.8, 5, axis=1)
        found["subjects"].append(mean_p(judged(a), judged(b), subjects, macro=True))
        level = np.clip(generator.normal(0.7, 0.05, (2, 3, 1)), 0, 1)
        a, b = generator.random((2, 3, 150)) < level
        found["seeds"].append(mean_p(judged(*a), judged(*b), images))
    for _ in range(100):
        a, b = generator.random((2, 150)) < 0.7
        found["ece"].append(calibration_p(judged(a), judged(b), images))
    shares = {name: np.mean(np.array(values) < 0.05) for name, values in found.items()}
    assert shares["images"] <= 0.06
    assert shares["subjects"] <= 0.08
    assert shares["seeds"] <= 0.08
    assert shares["ece"] <= 0.11


def test_real_differences_are_found():
    generator = np.random.default_rng(2)
    images = Images(np.arange(400) % 4)
    good, bad = generator.random(400) < 0.9, generator.random(400) < 0.7
    assert mean_p(judged(good), judged(bad), images) < 1e-6
    assert mean_p(judged(good, good), judged(bad), images) < 1e-6
    assert calibration_p(judged(good, confidence=0.9), judged(good, confidence=0.6), images) < 1e-6
    assert calibration_p(judged(good), judged(good), images) == 1


def test_holm_by_its_definition():
    generator = np.random.default_rng(3)
    for count in (1, 2, 7):
        p = generator.random(count) ** 3
        ordered = np.sort(p)
        stepped = np.minimum(1, np.maximum.accumulate((count - np.arange(count)) * ordered))
        expected = stepped[np.argsort(np.argsort(p))]
        np.testing.assert_allclose(holm(p.tolist()), expected)
    assert holm([]) == []
