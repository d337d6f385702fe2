"""The evidence for concepts of several labels: planted names, and against slow references."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from labels_run import label_model
from sklearn.metrics import roc_auc_score

from cbm.layers import LinearProbe
from cbm.metrics.evaluate import deleted_logits, macro, outside_share
from cbm.metrics.integrity import Evidence, Integrity, integrity_from_json, truth_test
from cbm.metrics.label_integrity import control_test, other_label_facts, renamed_auroc, shown_by_owners
from cbm.metrics.label_reader import labels_by_owners, read_labels
from cbm.metrics.multilabel import auroc_macro_difference
from cbm.metrics.truth import concept_truth
from cbm.solvers import Codes

LABELS, PER = 4, 5


def planted(seed: int = 0, n: int = 400) -> tuple[Codes, torch.Tensor, torch.Tensor]:
    """Images of any number of four labels, five words each, three quarters of them for a label that the image has."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, LABELS, generator=g) < 0.4).float()
    owners = torch.eye(LABELS, dtype=torch.bool).repeat_interleave(PER, dim=1)
    chance = (owners.float().T @ y.T).T + 0.1
    columns = torch.multinomial(chance, 5, generator=g)
    values = 0.5 + torch.rand(n, 5, generator=g)
    y[torch.rand(n, LABELS, generator=g) < 0.1] = torch.nan
    return Codes(values, columns, *torch.zeros(2, n, dtype=torch.float64), 1), y, owners


def slow_auroc(ranked: np.ndarray, y: np.ndarray) -> float:
    known = [~np.isnan(column) for column in y.T]
    return float(np.mean([roc_auc_score(y[k, i], ranked[k, i]) for i, k in enumerate(known)]))


def test_names_that_say_the_labels_are_read_and_others_are_not():
    words, y, owners = planted()
    right = read_labels(words, labels_by_owners(owners), y, "owners")
    assert right is not None
    by_hand = np.zeros((len(y), LABELS))
    for i in range(len(y)):
        for value, column in zip(words.values[i].tolist(), words.columns[i].tolist()):
            by_hand[i] += value * owners[:, column].numpy()
    assert right.accuracy == pytest.approx(slow_auroc(by_hand, y.numpy()), abs=1e-9)
    assert right.passed
    assert right.low < right.accuracy < right.high
    assert right.null == pytest.approx(0.5, abs=0.05)
    wrong = owners[:, torch.randperm(owners.shape[1], generator=torch.Generator().manual_seed(5))]
    dealt = read_labels(words, labels_by_owners(wrong), y, "owners")
    assert dealt is not None
    assert not dealt.passed


def test_a_reader_of_nothing_known_reads_nothing():
    words, y, owners = planted(n=20)
    assert read_labels(words, labels_by_owners(owners), torch.full_like(y, torch.nan), "owners") is None


def test_everything_deleted_ranks_by_chance_exactly():
    model, x = label_model(n=80)
    y = (model(x) > 0).float()
    assert macro(deleted_logits(model, x), y) == 0.5
    assert macro(model(x), y) == 1.0
    lead = auroc_macro_difference(model(x), deleted_logits(model, x), y)
    facts = {each.key: each for each in other_label_facts(1.0, 0.5, 0.6, lead)}
    assert facts["deleted"].status == "fact"
    noise = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
    none = auroc_macro_difference(noise, deleted_logits(model, x), y)
    assert {each.key: each.status for each in other_label_facts(0.5, 0.5, 0.5, none)}["deleted"] == "failed"


def test_scores_dealt_out_anew():
    """Every concept's weights on the score of the next one of a seeded order, image by image."""
    model, x = label_model(n=80)
    y = (model(x) > 0).float()
    scores, weights, found = model.activations(x).double(), model.weights().double(), []
    for seed in range(5):
        order = torch.randperm(len(model.concepts), generator=torch.Generator().manual_seed(seed)).tolist()
        other = {order[i]: order[i - 1] for i in range(len(order))}
        ranked = sum(scores[:, [other[k]]] * weights[:, k] for k in range(len(order)))
        found.append(slow_auroc(ranked.numpy(), y.numpy()))
    assert renamed_auroc(model, x, y) == pytest.approx(sum(found) / 5, abs=1e-6)
    assert sum(found) / 5 < 0.9


def test_what_bypasses_the_concepts_is_centred_over_images_only():
    """A residual that adds the same to all labels of an image: nothing between classes, much between images."""
    model, x = label_model(n=50)
    assert outside_share(model, x) == 0.0
    model.residual = LinearProbe(torch.ones(4, x.shape[1]), torch.zeros(4), "sigmoid").requires_grad_(False)
    concepts, added = model.concept_path()(x).double(), (x.sum(dim=1, keepdim=True)).double().expand(-1, 4)

    def size(logits: torch.Tensor) -> float:
        return float((logits - logits.mean(dim=0)).abs().mean())

    assert outside_share(model, x) == pytest.approx(size(added) / (size(added) + size(concepts)), rel=1e-4)
    model.link = "softmax"
    assert outside_share(model, x) == pytest.approx(0.0, abs=1e-5)


def test_a_concept_is_shown_where_a_label_of_its_owners_is():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (50, 3), generator=g).float()
    y[y == 2] = torch.nan
    owners = torch.rand(3, 6, generator=g) < 0.5
    found = shown_by_owners(y, owners)
    for i in range(50):
        for k in range(6):
            mine = [float(y[i, label]) for label in range(3) if owners[label, k]]
            if 1.0 in mine:
                assert float(found[i, k]) == 1
            elif any(value != value for value in mine):
                assert bool(found[i, k].isnan())
            else:
                assert float(found[i, k]) == 0


def test_the_verdict_speaks_of_labels_and_comes_back_from_its_file():
    names = Evidence("names", "?", "a reader gets nothing", "", "failed", 0.5, 0.5, (0.4, 0.55), 0.5)
    lost = control_test("random", 0.7, 0.72, -0.04, 0.01)
    assert lost.status == "failed"
    assert lost.finding == "AUROC 0.700 against 0.720 of random concepts; lead −0.040 to +0.010"
    assert control_test("random", 0.7, 0.6, 0.05, 0.15).passed
    found = Integrity((names, lost), {"real": 0.7, "random": 0.72}, many=True)
    assert found.verdict == f"the names say nothing about the labels: a reader gets nothing; but {lost.finding}"
    assert found.good is False
    assert integrity_from_json(asdict(found)) == found
    old = {key: value for key, value in asdict(found).items() if key != "many"}
    before = integrity_from_json(old)
    assert before is not None
    assert not before.many  # a run that was made before labels could be examined


def test_concepts_that_follow_the_labels_are_told_from_those_that_say_what_is_there():
    """Scores that are sums of the labels find the images of a concept over all images, not among equal ones."""
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(2000, 2, generator=g) < 0.5).float()
    names = torch.randn(6, 2, generator=g)
    truth = (y @ names.T + torch.randn(2000, 6, generator=g) > 0).float()
    alike = y.unique(dim=0, return_inverse=True)[1]
    for clean, status in ((y @ names.T, "failed"), (truth, "passed")):
        scores = clean + 0.3 * torch.randn(clean.shape, generator=g)
        found = truth_test(concept_truth(scores, truth), concept_truth(scores, truth, alike), many=True)
        assert found.status == status
        assert "among images with the same labels" in found.finding
