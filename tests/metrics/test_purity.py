"""Purity of concepts: chance is 0, perfection what the name promises, and what the published forms say instead."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from reported_run import Run
from sklearn.metrics import mutual_info_score, roc_auc_score

from cbm.metrics.information import binned
from cbm.metrics.purity import (
    alignment_score,
    contribution_counts,
    disentanglement,
    fewest,
    niche_impurity,
    oracle_impurity,
    purity_matrix,
    quality_metrics,
)

K = 8


def planted(n: int, kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and concepts: ``pure`` (each its own concept and noise), ``leaky`` (and a neighbour's), ``noise``,
    ``perfect``."""
    g = torch.Generator().manual_seed(seed)
    truth = (torch.rand(n, K, generator=g) < 0.5).float()
    noise = torch.randn(n, K, generator=g)
    own = 1.2 * (2 * truth - 1) + noise
    scores = {"pure": own, "leaky": own + 0.7 * (2 * truth.roll(1, 1) - 1), "noise": noise, "perfect": truth}
    return scores[kind], truth


def mean_of(measure, n: int, kind: str) -> float:
    return float(np.mean([measure(*planted(n, kind, seed)) for seed in range(3)]))


def test_every_entry_is_sklearns_with_a_direction_of_other_pictures():
    scores, truth = planted(200, "leaky")
    scores[:, 0] *= -1
    found = purity_matrix(scores, truth, seed=3)
    fold = torch.randperm(200, generator=torch.Generator().manual_seed(3)) % 5
    for k, j in ((0, 0), (1, 0), (2, 5), (7, 7)):
        by_hand = []
        for part in range(5):
            away, here = fold != part, fold == part
            sign = 1 if roc_auc_score(truth[away, j], scores[away, k]) >= 0.5 else -1
            by_hand.append(roc_auc_score(truth[here, j], sign * scores[here, k]))
        assert float(found[k, j]) == pytest.approx(np.mean(by_hand))


def test_a_concept_without_both_labels_has_no_entry():
    scores, truth = planted(100, "pure")
    truth[:, 2] = 1
    found = purity_matrix(scores, truth)
    assert found[:, 2].isnan().all()
    assert not found[:, 3].isnan().any()
    assert not math.isnan(oracle_impurity(scores, truth))
    assert math.isnan(oracle_impurity(scores[:, :1], truth[:, :1]))


@pytest.mark.parametrize("n", [200, 500])
def test_impurity_is_0_of_pure_scores_and_of_noise(n: int):
    for kind in ("pure", "noise", "perfect"):
        assert mean_of(oracle_impurity, n, kind) <= 0.05
        assert abs(mean_of(niche_impurity, n, kind)) <= 0.07 if n == 200 else 0.05
    assert mean_of(oracle_impurity, n, "leaky") > 0.1
    assert mean_of(niche_impurity, n, "leaky") > 0.1


def test_without_the_adjustment_pure_scores_are_impure_the_more_the_fewer_pictures():
    raw = {}
    for n, floor in (
        (200, 0.108),
        (500, 0.067),
        (2000, 0.031),
    ):  # the floors measured with other planted scores, five folds
        found = []
        for seed in range(3):
            scores, truth = planted(n, "pure", seed)
            oracle = purity_matrix(truth, truth, seed).fill_diagonal_(1)
            found.append(float((purity_matrix(scores, truth, seed) - oracle).norm()) / (K / 2))
        raw[n] = np.mean(found)
        assert raw[n] == pytest.approx(floor, abs=0.02)
    assert raw[200] > raw[500] > raw[2000]
    assert mean_of(oracle_impurity, 500, "pure") < 0.5 * raw[500]


@pytest.mark.parametrize("n", [200, 1000])
def test_alignment_of_noise_is_0_and_of_perfect_scores_1(n: int):
    assert abs(mean_of(alignment_score, n, "noise")) <= 0.05
    assert mean_of(alignment_score, n, "perfect") == pytest.approx(1)
    scores, truth = planted(n, "pure")
    assert alignment_score(truth + 0.01 * scores, truth) > 0.95
    assert 0.2 < alignment_score(scores, truth) < 0.9


def test_as_published_noise_is_aligned():
    """Homogeneity of clusters, up to as many as pictures: with one for each picture it is 1, whatever the scores."""
    scores, truth = (each[:, 0].numpy() for each in planted(200, "noise"))
    entropy = mutual_info_score(truth, truth)
    counts = np.linspace(2, 200, 50).astype(int)
    area = np.mean([mutual_info_score(truth, binned(scores, count)) / entropy for count in counts])
    assert area > 0.4


def test_disentanglement():
    perfect = disentanglement(*planted(400, "perfect"))
    assert perfect.disentanglement > 0.98
    assert perfect.completeness > 0.98
    assert perfect.informativeness == 1
    noise = [disentanglement(*planted(400, "noise", seed)) for seed in range(4)]
    assert abs(np.mean([each.disentanglement for each in noise])) <= 0.05
    assert abs(np.mean([each.completeness for each in noise])) <= 0.05
    assert np.mean([each.informativeness for each in noise]) == pytest.approx(0.5, abs=0.05)
    pure, leaky = disentanglement(*planted(1000, "pure")), disentanglement(*planted(1000, "leaky"))
    assert leaky.disentanglement < pure.disentanglement
    assert pure.disentanglement > 0.7


def test_the_fewest_contributions():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(50, 12, generator=generator) * (torch.rand(50, 12, generator=generator) < 0.6)
    for tau in (0.5, 0.95, 1.0):
        for row, found in zip(sizes.tolist(), fewest(sizes, tau).tolist()):
            ordered, total, count = sorted(row, reverse=True), sum(row), 0
            while total and sum(ordered[:count]) < tau * total * (1 - 1e-9):
                count += 1
            assert found == count
    assert (fewest(sizes, 1.0) == (sizes > 0).sum(1)).all()  # of all, those that are not zero
    counts = [fewest(sizes, tau / 10) for tau in range(1, 11)]
    assert all(bool((less <= more).all()) for less, more in pairwise(counts))


def test_contributions_are_counted_from_the_reference():
    run = Run(["finch", "wren", "owl"])
    x = run.data.test.x
    found = contribution_counts(run.model, x, 0.9)
    predicted = run.model(x).argmax(1)
    own = fewest(run.model.contributions(x, predicted).abs(), 0.9).double().mean()
    every = torch.stack(
        [fewest(run.model.contributions(x, torch.full_like(predicted, c)).abs(), 0.9) for c in range(3)]
    )
    assert found["ncc"] == pytest.approx(float(own))
    assert found["ncc_all"] == pytest.approx(float(every.double().mean()))
    with pytest.raises(ValueError, match="tau is 0"):
        contribution_counts(run.model, x, 0)


def test_the_numbers_of_a_run():
    run = Run(["finch", "wren", "owl"], per_class=30)
    found = quality_metrics(run.model, run.bank, run.data)
    assert set(found) == {"purity/ois", "purity/ois_n", "purity/ncc", "purity/ncc_all"}
    assert found["purity/ois_n"] == 90
    run.data.test.concepts = None
    assert quality_metrics(run.model, run.bank, run.data) == {}
