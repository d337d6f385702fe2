import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from birds_run import QUICK, small
from ising import PAIRS
from labelled_pictures import NAMES, fitted, planted

import cbm
from cbm.concepts.bank import Concept, ConceptBank
from cbm.layers import EnergyBottleneck, load_model, save_model
from cbm.methods import create_method
from cbm.methods.concept_labels import concept_labels, pseudo_labels
from cbm.methods.energy import class_vectors
from cbm.metrics.evaluate import evaluate_split
from cbm.report.energies import describe_energies, told_rows
from cbm.solvers.concept_blocks import concept_blocks
from cbm.solvers.concept_distribution import from_joint


@cache
def trained(fidelity: str):
    """The planted pictures, what was fitted on them once for all tests of this file, and its numbers."""
    data = planted()
    method, model, bank = fitted(data, fidelity=fidelity)
    return data, method, model, bank, evaluate_split(model, bank, data, "test")


def test_a_concept_that_is_told_makes_the_others_better_than_their_own_evidence():
    data, method, _, bank, values = trained("repaired")
    assert method.facts["joint_weight"] > 0.1
    assert values["test/intervention_others_50"] > values["test/intervention_others_0"] + 0.01
    assert values["test/intervention_accuracy_100"] > values["test/intervention_accuracy_0"] + 0.05
    assert values["test/intervention_others_50"] > values["test/concept_accuracy_direct"]
    assert values["test/concept_ece"] < 0.05
    assert values["test/accuracy"] == pytest.approx(values["test/accuracy_strict"])
    _, alone, _ = fitted(data, "supervised")
    told = evaluate_split(alone, bank, data, "test")
    assert abs(told["test/intervention_others_50"] - told["test/intervention_others_0"]) < 0.02
    assert values["test/intervention_others_50"] > told["test/intervention_others_50"]


def test_released_energies_do_not_let_concepts_know_each_other():
    values = trained("released")[-1]
    assert abs(values["test/intervention_others_50"] - values["test/intervention_others_0"]) < 0.02
    assert values["test/intervention_accuracy_100"] > 0.5


def test_unknown_labels_and_soft_ones(caplog):
    _, model, bank = fitted(planted(unknown=0.3), epochs=10)
    assert evaluate_split(model, bank, planted(), "test")["test/concept_accuracy"] > 0.8
    data = planted()
    directions = torch.nn.functional.normalize(torch.randn(5, data.dim), dim=1)
    bank = ConceptBank("b", "b", tuple(Concept(f"phrase {k}") for k in range(5)), "e", directions)
    labels = concept_labels(data, bank, "auto", 0.5)
    assert labels.pseudo
    assert "fidelity to CLIP" in caplog.text
    train = labels.targets["train"]
    assert ((train >= 0) & (train <= 1)).all()
    assert ((train > 0.5).float().mean(0) - 0.5).abs().max() < 0.01  # the cut is the median
    shifted = pseudo_labels({"train": data.train.x}, directions + torch.randn(data.dim), 0.5)["train"]
    torch.testing.assert_close(shifted, train, atol=1e-3, rtol=0)  # what all concepts of a picture share is taken off
    _, model, _ = fitted(data, epochs=1, labels="truth", leaky=True)
    assert model.class_weight == 1


def test_class_level_labels_are_told_apart_from_those_of_pictures():
    y = torch.tensor([0, 1, 1, 0, 2])
    rows = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    vectors = class_vectors(rows[y], y, 3, concept_blocks(3))
    assert sorted(vectors.tolist()) == [[0, 1, 0], [1, 0, 1]]
    noisy = rows[y].clone()
    noisy[2, 0] = 1
    assert class_vectors(noisy, y, 3, concept_blocks(3)) is None
    noisy[2, 0] = float("nan")
    assert class_vectors(noisy, y, 3, concept_blocks(3)) is None
    data = planted()
    for split in data.splits.values():
        split.concepts = torch.tensor([[1.0, 0] * 4, [0, 1.0] * 4, [1.0] * 8, [0.0] * 8])[split.y]
    method = create_method({"name": "energy"})
    model = method.build(data, ConceptBank("b", "b", tuple(map(Concept, NAMES))), 1.0).model
    assert method.noise == 0.03
    assert model.vectors.shape == (4, 8)
    found = model.eval().infer(data.test.x[:20])
    assert all(row in model.vectors.tolist() for row in found.concepts.tolist())


def test_what_cannot_be_learned_from():
    data = planted()
    bank = ConceptBank("other", "other.json", (Concept("yellow belly"),))
    with pytest.raises(cbm.UserError, match=r"labels no concept of bank 'other.json' \(its columns are concept 0"):
        concept_labels(data, bank, "truth", 0.5)
    with pytest.raises(cbm.UserError, match="without an encoder that reads text"):
        concept_labels(data, bank, "pseudo", 0.5)
    with pytest.raises(cbm.UserError, match="method.labels=thruth: did you mean 'truth'"):
        concept_labels(data, bank, "thruth", 0.5)
    data.train.concepts[:, 2] = float("nan")
    with pytest.raises(cbm.UserError, match="'concept 2' has no label"):
        concept_labels(data, ConceptBank("b", "b", tuple(map(Concept, NAMES))), "auto", 0.5)


@pytest.mark.parametrize("fidelity", ["repaired", "released"])
def test_a_model_comes_back_as_it_was_saved(tmp_path, fidelity):
    torch.manual_seed(0)
    data = planted()
    method = create_method({"name": "energy", "fidelity": fidelity})
    model = method.build(data, ConceptBank("b", "b", tuple(map(Concept, NAMES))), 1.0).model
    save_model(model.eval(), tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert isinstance(again, EnergyBottleneck)
    torch.testing.assert_close(again(data.test.x[:40]), model(data.test.x[:40]))


def test_from_the_command_line(command, tmp_path):
    common = [*small(), *QUICK, "method.max_epochs=4", "run_dir=runs/e"]
    status, errors = command("train", "method=energy", *common)
    assert status == 0, errors
    metrics = json.loads((tmp_path / "runs/e/metrics.json").read_text())
    for key in ("accuracy_leaky", "concept_ece", "intervention_area", "intervention_others_50"):
        assert f"test/{key}" in metrics
    assert metrics["model/n_concepts"] == 64
    page = (tmp_path / "runs/e/report.html").read_text()
    for said in ("When concepts are told", "Which concepts go together", "learned from labels", "then it shows"):
        assert said in page
    assert "has no concepts" not in page
    model = cbm.load(tmp_path / "runs/e")
    assert model.bank.texts[0] == "white breast"
    assert not hasattr(model.model, "head")
    status, errors = command("eval", "run=runs/e", "split=val", "cache=" + common[1].removeprefix("cache="))
    assert status == 0, errors
    status, errors = command("train", "method=energy", "method.labels=thruth", *common[:-1], "run_dir=runs/f")
    assert status == 2
    assert "method.labels=thruth: did you mean 'truth'?" in errors


def test_the_page_says_what_the_energies_say():
    data, _, model, bank, _ = trained("repaired")
    energies = describe_energies(model, bank, data.classes, torch.full((4,), 0.5))
    known = from_joint(model.joint())
    assert energies.rows[2][1][3][0] == pytest.approx(float(known.concept_given_class()[3, 2]))
    for pairs in energies.pairs:
        assert len(pairs) == 6
        assert all(pair.given != pair.text for pair in pairs)
    coupled = [{f"concept {i}", f"concept {j}"} for i, j in PAIRS]
    strongest = [{pairs[0].given, pairs[0].text} in coupled for pairs in energies.pairs]
    assert sum(strongest) >= 3
    rows = told_rows({"test/intervention_accuracy_100": 0.9, "test/intervention_accuracy_0": 0.5,
                      "test/intervention_others_0": 0.8})  # fmt: skip
    assert [(row.percent, row.accuracy, row.others) for row in rows] == [(0, 0.5, 0.8), (100, 0.9, None)]


def test_pictures_that_show_two_of_a_group_are_evaluated_all_the_same():
    data = planted()
    for split in data.splits.values():  # one of concepts 0 and 1, exactly
        split.concepts[:, 1] = 1 - split.concepts[:, 0]
    data = replace(data, concept_groups={"pair": NAMES[:2]})
    data.val.concepts[3, :2], data.test.concepts[5, :2] = 1.0, 0.0
    _, model, bank = fitted(data, epochs=10)
    assert len(model.blocks.values) == 7
    told = model.blocks.without_contradictions(data.test.concepts[4:7])
    assert told.isnan().tolist() == [[False] * 8, [True] * 2 + [False] * 6, [False] * 8]
    values = evaluate_split(model, bank, data, "test")
    assert values["test/intervention_accuracy_100"] > values["test/intervention_accuracy_0"]


def test_released_losses_read_every_concept_as_a_binary_variable():
    """Concepts that exclude each other too, as the authors' code does: K binary cross-entropies, in float64 here."""
    data = planted()
    for split in data.splits.values():
        split.concepts[:, 1] = 1 - split.concepts[:, 0]
    data = replace(data, concept_groups={"pair": NAMES[:2]})
    bank = ConceptBank("b", "b", tuple(map(Concept, NAMES)))
    torch.manual_seed(0)
    method = create_method({"name": "energy", "fidelity": "released"})
    model = method.build(data, bank, 1.0).model.eval()
    assert len(model.blocks.values) == len(NAMES)
    assert len(create_method({"name": "energy"}).build(data, bank, 1.0).model.blocks.values) == len(NAMES) - 1
    x, y, truth = (tensor[:64] for tensor in (data.train.x, data.train.y, data.train.concepts))
    logits = model.concept_logits(x).double()
    expected = -(truth * logits.sigmoid().log() + (1 - truth) * (-logits).sigmoid().log()).sum(1).mean()
    of_class = -model.class_scores(x).double().log_softmax(1).gather(1, y[:, None]).mean()
    with torch.no_grad():
        model.joint_scorer.zero_()  # then the class given the concepts costs log C
        found = method.loss(model, x, y, truth)
    assert float(found.detach()) == pytest.approx(
        float(3 * of_class.detach() + expected.detach()) + math.log(len(data.classes)), rel=1e-5
    )


def test_the_strict_accuracy_of_released_energies_is_not_the_leaky_one():
    values = trained("released")[-1]
    assert values["test/accuracy_leaky"] == values["test/accuracy"]
    assert values["test/accuracy_strict"] == values["test/intervention_accuracy_0"]
    assert values["test/accuracy_strict"] != values["test/accuracy_leaky"]
