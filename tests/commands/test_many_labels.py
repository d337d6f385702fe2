"""Six labels of the paper birds, from training to questions, on the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from birds_run import QUICK, shared_folder, small
from conftest import one_line
from sklearn.metrics import f1_score, roc_auc_score
from squares import SAID, draw_squares

import cbm
from cbm.data.birds import LABEL_RULES
from cbm.files.label_predictions import read_label_predictions

LABELS = list(LABEL_RULES)
TASK = "dataset.args.task=attributes"
HEAD = ["method=posthoc", "method.n_lambdas=10", "method.max_nec=8"]
CACHE = ("--cache", str(shared_folder() / "cache"))


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture
def trained(command, tmp_path: Path) -> Path:
    plain = [a for a in QUICK if not a.startswith("method.")]
    status, errors = command("train", *small(), TASK, *plain, *HEAD, "run_dir=one", "report=false", "controls=false")
    assert status == 0, errors
    return tmp_path / "one"


def test_a_run_of_labels_from_training_to_questions(trained: Path, module):
    metrics = json.loads((trained / "metrics.json").read_text())
    kept = read_label_predictions(trained / "predictions.parquet")
    assert kept.labels == LABELS
    aurocs = [roc_auc_score(kept.y[:, k], kept.probabilities[:, k]) for k in range(6)]
    assert metrics["test/auroc_macro"] == pytest.approx(sum(aurocs) / 6, abs=2e-3)
    assert metrics["test/auroc_macro_low"] < metrics["test/auroc_macro"] < metrics["test/auroc_macro_high"]
    assert metrics["test/auroc_macro"] > 0.85
    said = kept.probabilities > kept.thresholds
    f1 = [f1_score(kept.y[:, k], said[:, k]) for k in range(6)]
    assert metrics["test/f1_macro"] == pytest.approx(sum(f1) / 6, abs=1e-2)
    assert metrics["nec/resolved5_nec"] == 5
    assert "test/accuracy" not in metrics
    rows = read_table(trained / "label_metrics.csv")
    assert sorted(row["name"] for row in rows) == sorted(LABELS)

    status, _, errors = module("eval", "run=one", f"cache={CACHE[1]}")
    assert status == 0, errors
    again = json.loads((trained / "eval" / "birds-test.json").read_text())
    assert again["test/auroc_macro"] == pytest.approx(metrics["test/auroc_macro"])
    assert again["test/f1_macro"] == pytest.approx(metrics["test/f1_macro"])  # with the thresholds of validation

    pictures = sorted(Path(small()[0].removeprefix("dataset.root=")).rglob("images/test/*/*.png"))[:7]
    status, _, errors = module("predict", "one", *map(str, pictures), "--out", "said.csv")
    assert status == 0, errors
    rows = read_table(Path("said.csv"))
    model = cbm.load(trained)
    expected = model.predict(pictures)
    assert [json.loads(row["labels"]) for row in rows] == expected.labels
    assert any(len(row) != 1 for row in expected.labels)
    for n, row in enumerate(rows):
        why = json.loads(row["concepts"])
        assert list(why) == expected.labels[n]
        for label, concepts in why.items():
            assert float(row[f"probability: {label}"]) == pytest.approx(
                float(expected.probabilities[n, LABELS.index(label)]), abs=1e-4
            )
            told = {text: value for text, value in expected.explain(n, top=3, label=label) if value}
            assert list(concepts) == list(told)
            assert concepts == pytest.approx(told, rel=1e-3)

    status, _, errors = module("intervene", "one", *CACHE, "--questions", "3", "--policies", "random,ucp,oracle")
    assert status == 0, errors
    curves = json.loads((trained / "interventions.json").read_text())
    for curve in curves.values():
        assert len(curve["auroc_macro"]) == 4
        assert curve["auroc_macro"][0] == pytest.approx(metrics["test/auroc_macro"], abs=2e-3)


def test_edits_of_a_run_of_labels_are_evaluated(trained: Path, module):
    editor = cbm.Editor(cbm.load(trained))
    _, data = editor.model.read(("test",), cache=CACHE[1])
    text = editor.bank.texts[int(editor.bottleneck.importance()[0].argmax())]
    editor.remove(text, classes=LABELS[0]).save("edits.yaml")
    found = editor.compare(data.test)
    status, _, errors = module("eval", "run=one", f"cache={CACHE[1]}", "edits=edits.yaml")
    assert status == 0, errors
    values = json.loads((trained / "eval" / "birds-test-edited.json").read_text())
    assert values["test/auroc_macro"] == pytest.approx(found.metrics()["edits/auroc_macro_after"], abs=1e-5)
    assert values["edits/flipped"] == len(found.flipped) > 0
    assert {int(label) for _, label in found.flipped} == {0}


def test_what_is_told_moves_other_concepts_and_probes_tell_features(trained: Path, command, module):
    curves = {}
    for name, more in (("alone", ()), ("moved", ("--propagate",))):
        asked = ("--questions", "3", "--policies", "random")
        status, _, errors = module("intervene", "one", *CACHE, *asked, *more)
        assert status == 0, errors
        curves[name] = json.loads((trained / "interventions.json").read_text())["random"]["auroc_macro"]
    assert curves["moved"][0] == curves["alone"][0]
    assert curves["moved"][1:] != curves["alone"][1:]
    status, errors = command("train", *small(), TASK, *QUICK[:3], "method=linear_probe", "run_dir=probe", "report=none")
    assert status == 0, errors
    status, _, errors = module("intervene", "probe", *CACHE, "--questions", "2")
    assert status == 0, errors
    found = json.loads(Path("probe/interventions.json").read_text())["random"]["auroc_macro"]
    metrics = json.loads(Path("probe/metrics.json").read_text())
    assert found[0] == pytest.approx(metrics["test/auroc_macro"], abs=1e-6)
    assert len(found) == 3


def test_thresholds_come_from_validation_images_only(trained: Path):
    model = cbm.load(trained)
    _, data = model.read(("val", "test"), cache=CACHE[1])
    logits, y = model.model(data.val.x).double().numpy(), data.val.y.numpy()
    for k, cut in enumerate(model.model.thresholds.double().tolist()):
        if y[:, k].sum() < 20:  # few: the threshold is that of all labels together
            continue
        cuts = np.concatenate([[-np.inf], np.sort(logits[:, k])])
        best = max(f1_score(y[:, k], logits[:, k] > c, zero_division=0) for c in cuts)
        assert f1_score(y[:, k], logits[:, k] > cut) == pytest.approx(best)
    assert any(y[:, k].sum() >= 20 for k in range(6))


def test_the_report_of_a_run_of_labels(trained: Path, module):
    status, _, errors = module("report", "one", *CACHE)
    assert status == 0, errors
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert all(label in page for label in LABELS)


def test_what_asks_for_one_class_says_so(trained: Path, command, module):
    refused = "asks which class an image is; this model says any number of labels of it"
    for arguments in (
        ("spurious", "one", *CACHE),
        ("leak", "one", *CACHE),
        ("rebalance", "one", *CACHE),
        ("audit", "one", "audit.yaml", *CACHE),
        ("label", "one", *CACHE),
    ):
        status, _, errors = module(*arguments)
        assert refused in one_line((status, errors)), arguments
    dataset = ["dataset=birds", *small()]
    for arguments in (["run=one", *dataset], ["run=one", *dataset, "editor=test_time"]):
        message = one_line(command("eval", *arguments))
        assert "says any number of labels of an image, and data set 'birds' does not" in message
    message = one_line(command("eval", "run=one", *dataset, TASK, "editor=test_time"))
    assert refused in message


def test_methods_of_one_class_are_refused_before_anything_is_encoded(command):
    message = one_line(command("train", *small(), TASK, *QUICK[:3], "method=cms", "run_dir=two"))
    assert "method=cms names one class per picture: several labels can be told by" in message
    assert not Path("two").exists()


def test_a_model_of_one_class_is_not_asked_for_labels(command):
    status, errors = command("train", *small(), *QUICK[:3], "method=linear_probe", "run_dir=three", "report=false")
    assert status == 0, errors
    message = one_line(command("eval", "run=three", "dataset=birds", *small(), TASK))
    assert "'three' says one class of an image, and data set 'birds' does not" in message


def test_zero_shot_reads_two_sentences_and_keeps_its_threshold(command, module):
    status, errors = command("train", *small(), TASK, *QUICK[:3], "method=zero_shot", "run_dir=four", "report=false")
    assert status == 0, errors
    model = cbm.load("four")
    assert model.model.thresholds is None
    assert model.model.many
    metrics = json.loads(Path("four/metrics.json").read_text())
    assert 0 <= metrics["method/auroc_positive_alone"] <= 1
    status, _, errors = module("eval", "run=four", f"cache={CACHE[1]}")
    assert status == 0, errors


# ------------------------------------------------------------------------------------------------ a table of one's own


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw_squares(tmp_path / "set")
    return tmp_path / "set"


def train_on(table: Path, command, name: str, *more: str) -> dict[str, float]:
    settings = ["dataset=csv", f"dataset.root={table}", f"cache={table.parent / 'cache'}", *QUICK[:2], "nec=[]"]
    status, errors = command("train", *settings, *more, f"run_dir={name}", "report=false", "controls=false")
    assert status == 0, errors
    return json.loads(Path(name, "metrics.json").read_text())


def test_a_table_with_labels_and_values(table: Path, command, module):
    (table / "columns.yaml").write_text(SAID)
    metrics = train_on(table, command, "valued", "method=supervised", "method.max_epochs=150", "method.lr=0.02")
    assert metrics["test/auroc_macro"] > 0.9
    model = cbm.load("valued")
    assert model.bank.texts == ["hue: red", "hue: green", "hue: blue", "level: middle or more", "level: light", "glow"]
    assert model.model.activation.number.tolist() == [False] * 5 + [True]
    assert model.bank.concepts[5].provenance["number"]["unit"] == "cd"
    found = model.predict(sorted(table.glob("*.png")))
    assert {tuple(row) for row in found.labels} == {(), ("reddish",), ("bright",), ("reddish", "bright")}

    editor, number = cbm.Editor(model), model.bank.concepts[5].provenance["number"]
    frozen = model.bank.texts[:5]
    flips = [editor.smallest_flip(x, "bright", frozen=frozen) for x in found.features]
    edits = [flip.edits[0] for flip in flips if flip is not None]
    assert edits
    for edit in edits:
        assert edit.concept == "glow"
        assert edit.why is not None
        value, unit = edit.why.split()
        assert unit == "cd"
        assert float(value) == pytest.approx(number["mean"] + edit.number * number["sd"], rel=1e-4)

    status, _, errors = module("export", "valued", "--out", "valued.pt2", "--top-k", "2")
    assert status == 0, errors
    extra = {"cbm.json": ""}
    program = torch.export.load("valued.pt2", extra_files=extra)
    logits = program.module()(3 * found.features)[0]
    torch.testing.assert_close(logits, found.logits, rtol=0, atol=1e-5)
    assert json.loads(extra["cbm.json"])["numbers"] == {"glow": {key: number[key] for key in ("mean", "sd", "unit")}}

    status, _, errors = module("report", "valued", "--cache", str(table.parent / "cache"))
    assert status == 0, errors
    page = Path("valued/report.html").read_text(encoding="utf-8")
    assert "one of 3" in page
    assert "a number (cd)" in page
    assert "true (cd)" in Path("valued/figures/numbers.svg").read_text(encoding="utf-8")

    asked = ("intervene", "valued", "--cache", str(table.parent / "cache"))
    curves = {}
    for name, more in (("told", ()), ("noisy", ("--noise", "0.3"))):
        status, _, errors = module(*asked, *more)
        assert status == 0, errors
        curves[name] = json.loads(Path("valued/interventions.json").read_text())
    assert {len(curve["auroc_macro"]) for curve in curves["told"].values()} == {4}  # three attributes, three questions
    _, data = model.read(("test",), cache=table.parent / "cache")
    true = torch.cat([data.test.concepts, (data.test.values - number["mean"]) / number["sd"]], dim=1)
    logits = (true @ model.model.weights().T + model.model.head.bias).numpy()
    y = data.test.y.numpy()
    aurocs = [roc_auc_score(y[k, i], logits[k, i]) for i in range(2) for k in [~np.isnan(y[:, i])]]
    assert curves["told"]["ucp"]["auroc_macro"][-1] == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert curves["noisy"] != curves["told"]


def test_a_table_whose_concepts_are_numbers(table: Path, command):
    (table / "columns.yaml").write_text(
        "labels: [reddish, bright]\ncells: {'': unknown}\nconcepts: {glow: {unit: cd}}\n"
    )
    metrics = train_on(table, command, "numbers", "method=supervised", "method.max_epochs=100", "method.lr=0.02")
    assert cbm.load("numbers").bank.texts == ["glow"]
    assert metrics["model/n_concepts"] == 1
