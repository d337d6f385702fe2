import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit
from cbm.editing import Comparison
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.metrics import (
    chance_accuracy,
    class_accuracies,
    classification_metrics,
    concept_label_metrics,
    effective_concepts,
    grounding_gap,
    mcnemar,
    nonzero_concepts,
    top_concepts,
    truncated_weights,
    unequal,
)
from cbm.metrics.concept_labels import best_threshold
from cbm.metrics.evaluate import cut_points, evaluate_split
from cbm.metrics.integrity import renamed_accuracy


def test_accuracy_macro_and_calibration():
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[9.0, 0], [9, 0], [9, 0], [9, 0]])
    values = classification_metrics(logits, labels)
    assert values["accuracy"] == pytest.approx(0.75)
    assert values["accuracy_macro"] == pytest.approx(0.5)
    assert values["ece"] == pytest.approx(1 / (1 + math.exp(-9)) - 0.75, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_macro_is_a_mean_over_classes_with_images(seed: int):
    """Against scikit-learn, with classes that are predicted and have no image, and tiny ones."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0] * 40 + [2] * 7 + [5])
    logits = torch.randn(len(labels), 8, generator=g)
    right = [float((logits.argmax(1) == labels)[labels == c].double().mean()) for c in (0, 2, 5)]
    assert classification_metrics(logits, labels)["accuracy_macro"] == pytest.approx(sum(right) / 3)
    found = class_accuracies(logits.argmax(1), labels, 8)
    assert found.isnan().tolist() == [c not in (0, 2, 5) for c in range(8)]
    assert chance_accuracy(labels) == pytest.approx(40 / 48)
    assert unequal(labels)
    assert not unequal(torch.tensor([0] * 3 + [4]))
    comparison = Comparison(logits, logits, labels, [str(c) for c in range(8)])
    assert comparison.metrics()["edits/accuracy_macro_before"] == pytest.approx(sum(right) / 3)


def test_cut_points_come_from_the_run():
    """Labels of the tested images choose nothing: other labels give the same cut points, none give no accuracy."""
    torch.manual_seed(0)
    x, concepts = normalize(torch.randn(400, 6), dim=1), torch.eye(6)[:2]
    truth = (x[:, :2] > torch.tensor([0.1, -0.2])).float()
    bottleneck = model(torch.randn(2, 2), concepts, x)
    bank = ConceptBank("b", "b", (Concept("red"), Concept("long")), "e", concepts)
    y = torch.arange(400) % 2
    home, shifted = FeatureSplit(x, y, [], truth), FeatureSplit(x, y, [], (x[:, :2] > 0.4).float())
    data = FeatureData({"val": home, "test": home}, ["a", "b"], concept_names=["red", "long"])
    cuts = cut_points(bottleneck, bank, data)
    assert cuts == pytest.approx({"red": 0.1, "long": -0.2}, abs=0.05)
    card = FeatureData({"val": shifted, "test": shifted}, ["a", "b"], concept_names=["red", "long"])
    found = evaluate_split(bottleneck, bank, card, "test", cuts=cuts)
    expected = [float(((x[:, k] > cuts[name]) == (x[:, k] > 0.4)).double().mean()) for k, name in enumerate(cuts)]
    assert found["test/concept_accuracy"] == pytest.approx(sum(expected) / 2)
    assert (
        found["test/concept_accuracy"] < 0.85 < evaluate_split(bottleneck, bank, card, "test")["test/concept_accuracy"]
    )
    alone = FeatureData({"test": shifted}, ["a", "b"], concept_names=["red", "long"])
    for cut in ({}, None):
        values = evaluate_split(bottleneck, bank, alone, "test", cuts=cut)
        assert "test/concept_accuracy" not in values
        assert values["test/concept_auroc"] == pytest.approx(1)


def test_mcnemar_against_the_binomial():
    from scipy.stats import binomtest

    a = torch.tensor([True] * 30 + [False] * 12 + [True] * 50)
    b = torch.tensor([False] * 30 + [True] * 12 + [True] * 50)
    assert mcnemar(a, b) == pytest.approx(binomtest(12, 42).pvalue)
    assert mcnemar(a, a) == 1.0


def model(weight: torch.Tensor, concepts: torch.Tensor, x: torch.Tensor) -> ConceptBottleneck:
    scores = x @ concepts.T
    return ConceptBottleneck(concepts, LinearHead(weight), reference=scores.mean(0), spread=scores.std(0))


def test_truncation_keeps_the_most_important_and_the_total():
    torch.manual_seed(0)
    x, concepts = normalize(torch.randn(50, 8), dim=1), normalize(torch.randn(20, 8), dim=1)
    bottleneck = model(torch.randn(3, 20), concepts, x)
    importance = (bottleneck.weights() * bottleneck.spread).abs()
    assert torch.equal(top_concepts(bottleneck, 5), importance.argsort(dim=1, descending=True)[:, :5])
    torch.testing.assert_close(truncated_weights(bottleneck, 20), bottleneck.weights())
    five = truncated_weights(bottleneck, 5)
    assert ((five != 0).sum(dim=1) == 5).all()
    totals = ((weights * bottleneck.spread).abs().sum(dim=1) for weights in (five, bottleneck.weights()))
    torch.testing.assert_close(*totals)
    mean = bottleneck.logits(x, five).mean(0)
    torch.testing.assert_close(mean, bottleneck(x).mean(0), rtol=1e-4, atol=1e-5)  # cut concepts are held at their mean


def test_counting_concepts():
    assert nonzero_concepts(torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 1]])) == 1.5
    assert effective_concepts(torch.tensor([[1.0, -1, 1, 1], [0, 0, 3, 0]])) == pytest.approx(2.5)


def test_grounding_gap_against_loops():
    torch.manual_seed(1)
    x, y = normalize(torch.randn(60, 6), dim=1), torch.arange(60) % 3
    concepts, owners = normalize(torch.randn(5, 6), dim=1), torch.rand(3, 5) < 0.5
    owners[:, 0] = torch.tensor([True, False, True])
    owners[:, 4] = False
    gaps, standard = [], []
    for k in range(5):
        inside = [float(x[i] @ concepts[k]) for i in range(60) if owners[y[i], k]]
        outside = [float(x[i] @ concepts[k]) for i in range(60) if not owners[y[i], k]]
        if inside and outside:
            gaps.append(sum(inside) / len(inside) - sum(outside) / len(outside))
            standard.append(gaps[-1] / float((x @ concepts[k]).std()))
    gap, gap_std = grounding_gap(x, y, concepts, owners)
    assert gap == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert gap_std == pytest.approx(sum(standard) / len(standard), abs=1e-4)
    assert math.isnan(grounding_gap(x, y, concepts, torch.zeros(3, 5, dtype=torch.bool))[0])


def test_concepts_are_matched_by_name():
    assert match_concepts(["A yellow belly.", "red wing", "sky"], ["red wing", "yellow belly"]) == [(0, 1), (1, 0)]


def test_concept_metrics_with_unknown_labels():
    torch.manual_seed(0)
    truth = (torch.rand(80, 3) < 0.4).float()
    truth[:, 2] = 1.0  # never absent: no AUROC
    scores = truth + 0.6 * torch.randn(80, 3)
    truth[:10, 0] = float("nan")
    values, aurocs = concept_label_metrics(scores, truth, scores, truth)
    known = ~truth[:, 0].isnan()
    expected = [roc_auc_score(truth[known, 0], scores[known, 0]), roc_auc_score(truth[:, 1], scores[:, 1])]
    assert aurocs[:2] == pytest.approx(expected, abs=1e-5)
    assert math.isnan(aurocs[2])
    assert values["concepts_matched"] == 2
    assert values["concept_auroc"] == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_best_threshold_is_the_best_of_all():
    torch.manual_seed(0)
    scores, truth = torch.randn(40), (torch.rand(40) < 0.5).float()
    found = ((scores > best_threshold(scores, truth)) == truth.bool()).float().mean()
    every = [((scores > t) == truth.bool()).float().mean() for t in [*(scores - 1e-6), scores.max() + 1]]
    assert found == max(every)


def test_renaming_destroys_a_model_that_listens_to_its_concepts():
    torch.manual_seed(0)
    concepts = torch.eye(12)
    y = torch.arange(600) % 12
    x = normalize(concepts[y] + 0.1 * torch.randn(600, 12), dim=1)
    bottleneck = model(5 * torch.eye(12), concepts, x)
    assert float((bottleneck(x).argmax(1) == y).float().mean()) > 0.99
    assert renamed_accuracy(bottleneck, x, y) < 0.05
