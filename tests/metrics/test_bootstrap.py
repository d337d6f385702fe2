"""Intervals over images and subjects: coverage on planted truth, and what must not change them."""

import numpy as np
import pytest
import torch

from cbm.metrics import classification_metrics
from cbm.metrics.bootstrap import (
    Units,
    auroc_interval,
    bootstrap,
    calibration_error,
    mean_of,
    mean_of_classes,
    noise_of_calibrated,
    percentile_interval,
    reflected_interval,
    share_interval,
)

TRIALS = 400


def covered(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def test_weights_are_draws_within_classes_or_of_whole_subjects():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = np.concatenate(list(Units(labels).weights(500)))
    assert weights.shape == (500, 10)
    for c, count in enumerate((6, 3, 1)):
        np.testing.assert_allclose(weights[:, labels == c].sum(axis=1), count, rtol=1e-5)
    subjects = np.array(list("aabbbcdddd"))
    weights = np.concatenate(list(Units(labels, subjects).weights(500)))
    assert all(len(np.unique(row[subjects == name])) == 1 for row in weights for name in "abcd")
    assert weights.mean(axis=0) == pytest.approx(np.ones(10), abs=0.15)


def test_the_spread_is_that_of_the_mean():
    """Also of a class of three images, where plain draws would see two thirds of the variance."""
    values = np.array([0.0, 0.0, 1.0])
    drawn = bootstrap(Units(np.zeros(3, dtype=int)), {"m": mean_of(values)}, 20_000)["m"]
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)


def test_statistics_of_weights_are_those_of_repeated_images():
    generator = np.random.default_rng(0)
    labels, confidence = generator.integers(0, 4, 60), generator.random(60)
    right, counts = generator.random(60) < 0.7, generator.integers(0, 4, 60)
    counts[labels == 3] = 0  # a class that is not drawn
    rows, weights = np.repeat(np.arange(60), counts), counts[None].astype(np.float32)
    assert mean_of(right)(weights)[0] == pytest.approx(right[rows].mean())
    classes = [right[rows][labels[rows] == c].mean() for c in range(3)]
    assert mean_of_classes(right, labels)(weights)[0] == pytest.approx(np.mean(classes))
    repeated = calibration_error(confidence[rows], right[rows])(np.ones((1, len(rows)), dtype=np.float32))
    assert calibration_error(confidence, right)(weights)[0] == pytest.approx(repeated[0], abs=1e-6)


def test_the_calibration_error_is_that_of_the_metrics():
    logits, labels = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * 4, torch.arange(300) % 5
    logits[:20] *= 1000  # certain
    confidence = logits.softmax(dim=1).amax(dim=1).numpy()
    right = (logits.argmax(dim=1) == labels).numpy()
    found = calibration_error(confidence, right)(np.ones((1, 300), dtype=np.float32))[0]
    assert found == pytest.approx(classification_metrics(logits, labels)["ece"], abs=1e-5)


def test_coverage_of_accuracies_at_two_hundred_images():
    """Of images in classes of unlike accuracy, and of forty subjects whose five images agree."""
    generator, labels = np.random.default_rng(1), np.arange(200) % 4
    chance, subjects = np.array([0.95, 0.8, 0.7, 0.6]), np.arange(200) // 5
    found = {"wilson": 0, "macro": 0, "subjects": 0}
    for _ in range(TRIALS):
        right = generator.random(200) < chance[labels]
        found["wilson"] += covered(share_interval(right.mean(), None, 200), chance.mean())
        drawn = bootstrap(Units(labels), {"m": mean_of_classes(right, labels)}, 400)["m"]
        found["macro"] += covered(share_interval(right.mean(), drawn, 200), chance.mean())
        alike = np.repeat(generator.random(40) < 0.75, 5) ^ (generator.random(200) < 0.05)
        drawn = bootstrap(Units(labels, subjects), {"m": mean_of(alike)}, 400)["m"]
        found["subjects"] += covered(share_interval(alike.mean(), drawn, 40), 0.75 * 0.95 + 0.25 * 0.05)
    assert 0.93 <= found["wilson"] / TRIALS <= 0.98  # stratified: a little narrower in truth
    assert 0.92 <= found["macro"] / TRIALS <= 0.97
    assert 0.91 <= found["subjects"] / TRIALS <= 0.97


@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_coverage_of_the_auroc(shift: float):
    """Of three scores of the same images, at two hundred images of which every fifth shows the concept."""
    generator, truth = np.random.default_rng(2), (np.arange(200) % 5 == 0).astype(float)[:, None].repeat(3, axis=1)
    area = 0.5 * (1 + torch.erf(torch.tensor(shift / 2)).item())  # Phi(shift / sqrt 2)
    hits = 0
    for _ in range(TRIALS):
        shared = generator.standard_normal((200, 1))
        scores = 0.6 * shared + 0.8 * generator.standard_normal((200, 3)) + shift * truth
        hits += covered(auroc_interval(scores, truth), area)
    assert 0.93 <= hits / TRIALS <= 0.97


def test_images_of_a_subject_that_are_there_twice_change_nothing():
    generator = np.random.default_rng(3)
    subjects, labels = np.arange(60) // 2, np.arange(60) // 2 % 3
    right, confidence = generator.random(60) < 0.7, generator.random(60)
    scores, truth = generator.random((60, 2)), (generator.random((60, 2)) < 0.5).astype(float)

    def intervals(rows: np.ndarray) -> np.ndarray:
        units = Units(labels[rows], subjects[rows])
        drawn = bootstrap(units, {
            "a": mean_of(right[rows]), "m": mean_of_classes(right[rows], labels[rows]),
            "e": calibration_error(confidence[rows], right[rows]),
        })  # fmt: skip
        areas = auroc_interval(scores[rows], truth[rows], subjects[rows])
        return np.array([*(percentile_interval(values) for values in drawn.values()), areas])

    np.testing.assert_allclose(intervals(np.repeat(np.arange(60), 3)), intervals(np.arange(60)), atol=1e-5)
    alone = auroc_interval(np.repeat(scores, 3, axis=0), np.repeat(truth, 3, axis=0))
    assert alone[1] - alone[0] < 0.7 * np.ptp(auroc_interval(scores, truth))  # without subjects they count as images


@pytest.mark.parametrize("gap", [0.0, 0.03, 0.1])
def test_coverage_of_the_calibration_error(gap: float):
    """Its value is biased upwards, and that of the draws twice: their quantiles hardly ever cover a small one."""
    generator, hits, plain = np.random.default_rng(4), 0, 0
    for _ in range(200):
        confidence = generator.choice(np.array([0.55, 0.65, 0.75, 0.85, 0.95]), 200)
        right = generator.random(200) < confidence - gap
        statistic = calibration_error(confidence, right)
        value = float(statistic(np.ones((1, 200), dtype=np.float32))[0])
        drawn = bootstrap(Units(np.zeros(200, dtype=int)), {"e": statistic}, 400)["e"]
        low, high = reflected_interval(value, drawn)
        hits += covered((0.0 if value <= noise_of_calibrated(confidence) else low, high), gap)
        plain += covered(percentile_interval(drawn), gap)
    assert hits / 200 >= 0.85
    assert gap == 0.1 or plain / 200 < 0.5


def test_everything_right_is_no_certainty():
    right = np.ones(30, dtype=bool)
    drawn = bootstrap(Units(np.arange(30) % 3), {"m": mean_of_classes(right, np.arange(30) % 3)})["m"]
    assert share_interval(1.0, drawn, 30)[0] == pytest.approx(0.8865, abs=1e-3)
    scores = np.arange(20.0)[:, None]
    low, high = auroc_interval(scores, (scores >= 10).astype(float))
    assert low < 0.9
    assert high == 1
    assert np.isnan(auroc_interval(scores, np.zeros((20, 1)))).all()
