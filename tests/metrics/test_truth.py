"""Scores against labels: AUROC by ranks, within classes, and names exchanged."""

import pytest
import torch
from scipy.stats import mannwhitneyu, rankdata
from sklearn.metrics import roc_auc_score

from cbm.metrics.truth import auroc_matrix, concept_truth, holm, mid_ranks


def labelled(n: int = 300, m: int = 6, seed: int = 0, strength: float = 1.0):
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, m, generator=g) < torch.rand(m, generator=g) * 0.6 + 0.2).float()
    return strength * labels + torch.randn(n, m, generator=g), labels


def test_every_entry_is_sklearns():
    scores, labels = labelled()
    scores = scores.round(decimals=1)  # ties
    labels[::7, 1] = float("nan")
    labels[::5, 2] = float("nan")
    found, variance = auroc_matrix(scores, labels)
    for j in range(6):
        for k in range(6):
            known = ~labels[:, k].isnan()
            assert float(found[j, k]) == pytest.approx(roc_auc_score(labels[known, k], scores[known, j]), abs=1e-12)
    n1 = float(labels[:, 0].sum())
    assert float(variance[0]) == pytest.approx((300 + 1) / (12 * n1 * (300 - n1)))


def test_within_classes_is_the_mean_over_pairs_of_one_class():
    scores, labels = labelled(n=120, m=3)
    y = torch.arange(120) % 4
    found = auroc_matrix(scores, labels, y)[0]
    for k in range(3):
        right = pairs = 0
        for a in range(120):
            for b in range(120):
                if y[a] == y[b] and labels[a, k] == 1 and labels[b, k] == 0:
                    right, pairs = right + int(scores[a, k] > scores[b, k]), pairs + 1
        assert float(found[k, k]) == pytest.approx(right / pairs)


def test_a_score_that_only_knows_the_class_fails_within_it():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 6
    likely = torch.rand(6, 8, generator=g)
    labels = (torch.rand(600, 8, generator=g) < likely[y]).float()
    scores = likely[y] + 0.01 * torch.randn(600, 8, generator=g)
    overall, within = concept_truth(scores, labels), concept_truth(scores, labels, y)
    assert overall.passed
    assert abs(within.mean - 0.5) < 0.05
    assert not within.passed


def test_true_names_pass_and_exchanged_names_do_not():
    scores, labels = labelled(n=600, m=12, strength=1.5)
    found = concept_truth(scores, labels)
    assert found.passed
    assert found.above == 1.0
    assert found.p == pytest.approx(1 / 200)
    order = torch.arange(12).roll(1)
    exchanged = concept_truth(scores[:, order], labels)
    assert not exchanged.passed
    assert abs(exchanged.mean - 0.5) < 0.03


def test_the_share_of_false_alarms_is_that_of_the_level():
    flagged = [concept_truth(*labelled(seed=s, strength=0.0), draws=99, seed=s).p < 0.05 for s in range(80)]
    assert sum(flagged) <= 10  # binomial(80, .05)


def test_significance_against_scipy():
    scores, labels = labelled(n=400, m=1, strength=0.3)
    found = concept_truth(scores, labels)
    z = float((found.auroc[0] - 0.5) / found.error[0])
    p = mannwhitneyu(
        scores[labels[:, 0] == 1, 0], scores[labels[:, 0] == 0, 0], alternative="greater", use_continuity=False
    ).pvalue
    assert 0.5 * torch.erfc(torch.tensor(z / 2**0.5, dtype=torch.float64)).item() == pytest.approx(p, rel=1e-6)


def test_labels_without_both_values_are_left_out():
    scores, labels = labelled(n=50, m=3)
    labels[:, 0] = 1.0
    found = concept_truth(scores, labels)
    assert found.auroc[0].isnan()
    assert not torch.tensor(found.mean).isnan()
    assert concept_truth(scores, torch.ones(50, 3)) is None
    assert concept_truth(scores, torch.full((50, 3), float("nan"))) is None


def test_ranks_are_scipys():
    values = torch.randn(40, 3).round(decimals=1)
    assert torch.equal(mid_ranks(values), torch.tensor(rankdata(values.numpy(), axis=0)))


def test_holm():
    assert holm([0.001, 0.2, 0.02, 0.012], 0.05) == [True, False, True, True]
    assert holm([0.02, 0.03], 0.05) == [True, True]
    assert holm([0.03, 0.03], 0.05) == [False, False]
    assert holm([], 0.05) == []
