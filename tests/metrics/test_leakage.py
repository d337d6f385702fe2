"""Leakage: what all scores say beyond all concepts, the ceiling, the published number, and the words for it."""

import numpy as np
import pytest
import torch
from leaky_scores import Leaky
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif
from sklearn.metrics import mutual_info_score

from cbm.concepts.bank import Concept, ConceptBank
from cbm.data.dataset import ConceptSpec
from cbm.data.features import FeatureData, FeatureSplit
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.metrics.leakage import (
    LEAST,
    POOLED,
    Leakage,
    _residuals,
    _standardised,
    measure_leakage,
    model_leakage,
    neighbour_information,
    released_leak,
)


@pytest.mark.parametrize(("classes", "n"), [(4, 200), (4, 500), (20, 500)])
def test_scores_that_leak_nothing_are_never_accused(classes: int, n: int):
    for seed in range(2):
        found = measure_leakage(*Leaky(classes, 1.2, 0).draw(n, seed), seed=seed)
        assert found.joint_low <= 0  # joint <= 0 + 1.64 standard errors
        assert found.joint_p > 0.05
        assert not found.leaks
        assert "not seen to tell more" in found.sentence
        assert found.metrics()["leak/joint"] >= 0


def test_what_all_scores_say_is_found_and_not_exaggerated():
    problem = Leaky(4, 1.2, 0.35)
    truth = problem.joint_leak()
    found = [measure_leakage(*problem.draw(500, seed), seed=seed) for seed in range(3)]
    joint = float(np.mean([each.joint for each in found]))
    assert 0.5 * truth <= joint <= truth + 0.02
    more = measure_leakage(*problem.draw(2000, 9))
    assert joint - 0.05 < more.joint <= truth + 0.05
    assert more.leaks
    assert f"at least {more.joint:.0%} of what the true concepts leave open" in more.sentence
    assert more.joint_low < more.joint


def test_with_many_classes_it_is_a_lower_bound_too():
    problem = Leaky(20, 0.6, 0.7)
    found = measure_leakage(*problem.draw(500, 0))
    assert 0.15 <= found.joint <= problem.joint_leak() + 0.02
    assert found.leaks


def test_nothing_but_the_order_of_scores_and_the_names_of_classes_count():
    scores, c, y = Leaky(4, 1.2, 0.35).draw(300, 0)
    found = measure_leakage(scores, c, y)
    moved = measure_leakage(scores**3, c, y)
    assert moved.metrics() == pytest.approx({**found.metrics(), "leak/ctl_released": moved.released}, abs=1e-6)
    renamed = measure_leakage(scores, c, np.array([7, 2, 0, 5])[y])
    assert renamed.own.mean == pytest.approx(found.own.mean)
    assert renamed.joint == pytest.approx(found.joint, abs=0.01)


def test_a_model_above_the_ceiling_leaks():
    """The class is a toss given the concept; whoever is right more often saw something else."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 4, 400)
    c = (y[:, None] < 2) * np.ones((400, 2))
    c[generator.random((400, 2)) < 0.1] = 1 - c[generator.random((400, 2)) < 0.1].mean()
    c = np.round(c)
    honest = c + 0.1 * generator.standard_normal(c.shape)
    right = generator.random(400) < 0.9
    found = measure_leakage(honest, c, y, right=right)
    assert 0.3 < found.ceiling < 0.65
    assert found.ceiling_p < 1e-6
    assert found.leaks
    assert "right more often than true concepts allow" in found.sentence
    assert not measure_leakage(honest, c, y, right=generator.random(400) < found.ceiling).leaks


def test_the_ceiling_may_be_learned_from_the_training_pictures():
    """Few test pictures teach little: a model that saw more would seem to leak."""
    problem = Leaky(20, 1.2, 0)
    _, c, y = problem.draw(150, 0)
    _, seen, classes = problem.draw(4000, 1)
    chance = np.stack([np.where(c == 1, np.log(p), np.log(1 - p)).sum(1) for p in problem.chance], axis=1)
    best = chance.argmax(axis=1) == y
    without = measure_leakage(c + 0.0, c, y, right=best)
    with_them = measure_leakage(c + 0.0, c, y, right=best, trained_on=(seen, classes))
    assert np.isnan(without.ceiling) or without.ceiling < with_them.ceiling
    assert with_them.ceiling == pytest.approx(best.mean(), abs=0.08)
    assert not with_them.leaks


def test_levels_and_unknown_answers():
    scores, c, y = Leaky(4, 1.2, 0.35).draw(500, 0)
    levels = c.copy()
    levels[:, 0] += c[:, 1]  # 0, 1 or 2
    levels[:100, 2] = np.nan
    found = measure_leakage(scores, levels, y)
    assert not np.isnan(found.own.share).any()
    assert found.count == 500
    assert not np.isnan(found.joint)
    levels[: 500 - LEAST + 1, 2] = np.nan
    few = measure_leakage(scores, levels, y)
    assert np.isnan(few.joint)
    assert "was not measured" in few.sentence
    assert "leak/joint" not in few.metrics()
    assert "leak/own_mean" in few.metrics()


@pytest.mark.parametrize(
    ("truth", "y", "why"),
    [
        (np.array([[0.0], [1.0]] * 50), np.arange(100) % 2, "those of classes, not of pictures"),
        (np.full((100, 2), np.nan), np.arange(100) % 2, "no concept labels"),
        (np.arange(100.0)[:, None] % 2, np.arange(100), f"no two classes have {POOLED} pictures"),
        (np.arange(100.0)[:, None] % 2, np.zeros(100, int), f"no two classes have {POOLED} pictures"),
    ],
    ids=["class labels", "no labels", "classes of one picture", "one class"],
)
def test_where_nothing_can_be_measured_it_says_why(truth: np.ndarray, y: np.ndarray, why: str):
    scores = np.random.default_rng(0).standard_normal(truth.shape)
    found = measure_leakage(scores, truth, y)
    assert why in found.sentence
    assert found.metrics() == {}
    assert not found.leaks


def test_rare_classes_count_as_one():
    scores, c, y = Leaky(4, 0.6, 0.7).draw(400, 0)
    rare = np.where(np.arange(400) < 4, 10 + np.arange(400) % 2, y)
    found = measure_leakage(scores, c, rare)
    assert found.classes == (0, 1, 2, 3, -1)
    assert found.own.by_value.shape == found.pull.shape == (8, 5)


def test_the_pull_of_a_class_is_its_mean_above_the_same_answer():
    problem = Leaky(4, 0.6, 0.7)
    found = measure_leakage(*problem.draw(2000, 0))
    for k in range(8):
        assert np.corrcoef(found.pull[k], problem.pull[:, k])[0, 1] > 0.9


# -------------------------------------------------------------------------------------------------------- as published


def slowly(score: np.ndarray, y: np.ndarray) -> float:
    """Ross's estimator, picture by picture."""
    terms = []
    for i in range(len(y)):
        alike = np.sort(np.abs(score[(y == y[i]) & (np.arange(len(y)) != i)] - score[i]))
        k = min(3, len(alike))
        within = int((np.abs(score - score[i]) < alike[k - 1]).sum())
        terms.append(digamma(k) - digamma(len(alike) + 1) - digamma(within))
    return max(0.0, float(digamma(len(y)) + np.mean(terms)))


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_are_counted_as_in_the_paper_and_by_sklearn(seed: int):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 7, 300)
    score = generator.standard_normal(300) + 0.3 * y
    assert neighbour_information(score, y) == pytest.approx(slowly(score, y), abs=1e-9)
    reference = mutual_info_classif(score[:, None], y, n_neighbors=3, random_state=0)[0]
    assert neighbour_information(score, y) == pytest.approx(reference, abs=1e-9)
    assert neighbour_information(score[:1], y[:1]) == 0


def test_the_published_number_is_nearly_blind():
    """Scores that carry 15 % of what their concepts leave open have a published leak of .02."""
    problem = Leaky(4, 0.6, 0.7)
    scores, c, y = problem.draw(500, 0)
    entropy = mutual_info_score(y, y)
    by_hand = [
        max(0.0, mutual_info_classif(scores[:, [k]], y, n_neighbors=3)[0] - mutual_info_score(c[:, k], y)) / entropy
        for k in range(8)
    ]
    assert released_leak(scores, c, y) == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert released_leak(scores, c, y) < 0.25 * problem.own_leak().mean()
    assert released_leak(c, c, y) == 0
    assert np.isnan(released_leak(scores, np.full_like(c, np.nan), y))


# --------------------------------------------------------------------------------------------------------- of a model


def model_of(n: int, **changes) -> tuple[ConceptBottleneck, ConceptBank, FeatureData]:
    """A bottleneck on features whose first coordinates are the concepts' scores, unmixed."""
    splits = {}
    for number, name in enumerate(("train", "val", "test")):
        scores, c, y = Leaky(4, 1.2, 0.35).draw(n, number)
        splits[name] = FeatureSplit(
            torch.from_numpy(scores).float(), torch.from_numpy(y), [f"{name} {i}" for i in range(n)],
            torch.from_numpy(c).float(),
        )  # fmt: skip
    names = [f"concept {k}" for k in range(8)]
    data = FeatureData(splits, list("abcd"), concept_names=names, **changes)
    head = LinearHead(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4))
    bank = ConceptBank("planted", "test", tuple(map(Concept, names)))
    return ConceptBottleneck(torch.eye(8), head).requires_grad_(False), bank, data


def test_a_model_is_measured_on_what_its_head_reads():
    model, bank, data = model_of(400)
    found = model_leakage(model, bank, data)
    test = data.test
    by_hand = measure_leakage(test.x.double().numpy(), test.concepts.double().numpy(), test.y.numpy())
    assert found.own.mean == by_hand.own.mean
    assert found.joint == by_hand.joint
    assert found.names == tuple(bank.texts)
    assert found.ceiling >= by_hand.ceiling - 0.1
    assert model_leakage(model, bank, data).metrics() == found.metrics()


def test_without_labelled_concepts_nothing_is_said():
    model, bank, data = model_of(50)
    data.test.concepts = None
    assert model_leakage(model, bank, data) is None
    assert model_leakage(model, None, data) is None
    numbers = [ConceptSpec(f"concept {k}", "continuous", [f"concept {k}"]) for k in range(8)]
    model, bank, data = model_of(50, specs=numbers)
    assert model_leakage(model, bank, data) is None


def test_an_empty_finding_has_words():
    assert "not measurable: because" in Leakage(why="because").sentence


def test_scores_that_never_vary_say_nothing():
    """As of concepts that a gate never lets through: what rounding leaves of them is not read."""
    scores, truth, y = Leaky(4, 1.2, 0).draw(500, 0)
    still = scores.copy()
    still[:, 4:] = 0.3
    assert not _standardised(_residuals(still, truth)[:, 4:]).any()
    assert np.isfinite(measure_leakage(still, truth, y).joint)
