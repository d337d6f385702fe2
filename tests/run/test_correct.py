"""``eval.py editor=NAME``: a model corrected for the pictures it is evaluated on."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small

import cbm
from cbm.editing import Edit, load_edits, load_gate
from cbm.errors import UserError
from cbm.layers import load_model

SHIFTED = [*small()[:1], *small()[1:], "dataset=birds_shift"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where a run is that the tests of this file share."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run(command, trained: Path) -> Path:
    if not (trained / "one").is_dir():
        status, errors = command("train", *small(), *QUICK, f"run_dir={trained}/one", "report=false", "controls=false")
        assert status == 0, errors
    return trained / "one"


def evaluated(command, run: Path, *arguments: str) -> tuple[int, str, dict]:
    status, errors = command("eval", f"run={run}", *SHIFTED, *arguments, "output=out.json")
    return status, errors, json.loads(Path("out.json").read_text()) if status == 0 else {}


@pytest.mark.parametrize("editor", ["combined", "test_time", "recentre", "prune", "conda", "refit"])
def test_every_editor(command, run: Path, editor: str):
    status, errors, metrics = evaluated(command, run, f"editor={editor}", "editor.shots=2", "editor.level=null")
    assert status == 0, errors
    folder = run / "eval" / f"birds_shift-test-{editor}"
    assert metrics["edits/n_support"] == 40
    assert metrics["test/accuracy"] == metrics["edits/accuracy_after"]
    others = {"recentre", "refit"} - {editor}
    assert {f"edits/{name}_accuracy" for name in others} <= metrics.keys()
    page = (folder / "page.html").read_text()
    assert "What else the same labels would buy" in page
    HTMLParser().feed(page)
    if editor in ("test_time", "recentre", "prune") or (editor == "combined" and (folder / "edits.yaml").is_file()):
        edits = load_edits(folder / "edits.yaml")
        assert edits.domains <= {"birds_shift"}
        assert all(edit.who == f"editor={editor}" for edit in edits.edits)
    else:
        assert "cannot be said as edits" in page
        assert not (folder / "edits.yaml").is_file()
        kept = load_model(folder / "model.safetensors")
        x = torch.nn.functional.normalize(torch.randn(30, kept.concepts.shape[1]), dim=1)
        assert not torch.equal(kept.logits(x), cbm.load(run).predict_features(x).logits)


def test_the_edits_found_act_in_their_domain_and_nowhere_else(command, run: Path):
    status, errors, found = evaluated(command, run, "editor=recentre", "editor.shots=2", "editor.level=null")
    assert status == 0, errors
    edits = run / "eval" / "birds_shift-test-recentre" / "edits.yaml"
    status, errors, there = evaluated(command, run, f"edits={edits}")
    assert status == 0, errors
    assert there["edits/flipped"] > 0
    status, errors = command("eval", f"run={run}", f"edits={edits}", *small()[1:2], "output=home.json")
    assert status == 0, errors
    assert json.loads(Path("home.json").read_text())["edits/flipped"] == 0
    status, errors = command(
        "eval", f"run={run}", f"edits={edits}", *small()[1:2], "domain=birds_shift", "output=h.json"
    )
    assert status == 0, errors
    assert json.loads(Path("h.json").read_text())["edits/flipped"] > 0
    model = cbm.load(run)
    x = torch.nn.functional.normalize(torch.randn(30, model.model.concepts.shape[1]), dim=1)
    before = model.predict_features(x).logits
    assert torch.equal(model.with_edits(edits).predict_features(x).logits, before)
    assert not torch.equal(model.with_edits(edits, domain="birds_shift").predict_features(x).logits, before)
    assert torch.equal(cbm.Editor(model, edits).logits(x), model.model.logits(x))
    assert not torch.equal(cbm.Editor(model, edits, domain="birds_shift").logits(x), model.model.logits(x))
    text = model.bank.texts[0]
    listed = model.with_edits([Edit("remove", text)])
    assert not listed.model.weights()[:, 0].any()
    assert model.model.weights()[:, 0].any()
    with pytest.raises(UserError, match="edits of single pictures"):
        model.with_edits([Edit("remove", text, samples=("a.png",))])


def test_two_labelled_pictures_per_class_correct_nothing(command, run: Path):
    status, errors, found = evaluated(command, run, "editor=combined", "editor.shots=2")
    assert status == 0, errors
    assert "40 labelled pictures of 20 classes are too few to check one (3 per class)" in errors
    assert found["edits/flipped"] == 0
    folder = run / "eval" / "birds_shift-test-combined"
    assert len(load_edits(folder / "edits.yaml")) == 0
    assert not (folder / "model.safetensors").exists()  # of another correction
    status, errors, _ = evaluated(command, run, "editor=combined", "editor.level=2")
    assert status == 2
    assert "editor.level=2: expected a p-value between 0 and 1, or null for no check" in errors


def test_a_correction_keeps_what_was_expected_of_it(command, run: Path):
    status, errors, found = evaluated(command, run, "editor=recentre", "editor.shots=3")
    assert status == 0, errors
    assert found["edits/guard_n"] == 60
    folder = run / "eval" / "birds_shift-test-recentre"
    page = (folder / "page.html").read_text()
    assert "The check before it was made" in page
    record = load_edits(folder / "edits.yaml").record
    assert (record.run, record.split, record.pictures) == ("one", "birds_shift/test", 60)
    assert record.p == found["edits/guard_p"]
    assert len(load_edits(folder / "edits.yaml")) == (216 if found["edits/guard_p"] <= 0.05 else 0)


def test_edits_say_for_which_model_and_on_which_pictures_they_were_chosen(command, run: Path, tmp_path: Path):
    model = cbm.load(run)
    editor = cbm.Editor(model).remove(model.bank.texts[0])
    val = model.split("val", cache=small()[1].removeprefix("cache="))
    compared = editor.compare(val).metrics()
    editor.save(tmp_path / "edits.yaml", split="birds/val")
    for split, warned in (("val", True), ("test", False)):
        status, errors = command("eval", f"run={run}", f"edits={tmp_path}/edits.yaml", *small()[1:2], f"split={split}",
                                 "output=e.json")  # fmt: skip
        assert status == 0, errors
        assert ("of these very images (birds/val)" in errors) == warned
        assert "another model" not in errors
        expected = compared["edits/accuracy_macro_after"] - compared["edits/accuracy_macro_before"]
        assert json.loads(Path("e.json").read_text())["edits/expected_change"] == pytest.approx(expected)
    assert "as expected or not: chosen on birds/val" in errors
    other = tmp_path / "other"
    shutil.copytree(run, other)
    changed = cbm.Editor(model).scale(model.bank.texts[1], 2.0)
    changed.save_model(other / "model.safetensors")
    status, errors = command("eval", f"run={other}", f"edits={tmp_path}/edits.yaml", *small()[1:2])
    assert status == 0, errors
    assert "the edits were made for another model, that of 'one'" in errors


def test_a_gate_is_kept_and_used_again(command, run: Path):
    status, errors, found = evaluated(command, run, "editor=test_time", "editor.shots=4", "editor.protection=gate",
                                      "editor.guard=lenient")  # fmt: skip
    assert status == 0, errors
    folder = run / "eval" / "birds_shift-test-test_time"
    assert 0 <= found["edits/share_edited"] <= 1
    assert load_gate(folder / "gate.safetensors").alpha == 0.05
    status, errors, again = evaluated(command, run, f"edits={folder}/edits.yaml", f"gate={folder}/gate.safetensors")
    assert status == 0, errors
    assert again["edits/flipped"] >= found["edits/flipped"]  # the labelled pictures are among them now


def test_labelled_pictures_from_a_folder(command, run: Path, tmp_path: Path):
    root = next(Path(small()[0].removeprefix("dataset.root=")).glob("birds_shift-*/images/test"))
    named = {name.lower(): name for name in cbm.load(run).classes}
    for number, folder in enumerate(sorted(root.iterdir())[:6]):  # the other classes are absent
        for picture in sorted(folder.iterdir())[: 1 + number % 2]:
            (tmp_path / "labelled" / named[folder.name]).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, tmp_path / "labelled" / named[folder.name])
    count = len(list((tmp_path / "labelled").rglob("*.png")))
    status, errors, metrics = evaluated(command, run, "editor=test_time", f"editor.support={tmp_path}/labelled")
    assert status == 0, errors
    assert metrics["edits/n_support"] == count
    (tmp_path / "labelled" / "no such bird").mkdir()
    shutil.copy(next((tmp_path / "labelled").rglob("*.png")), tmp_path / "labelled" / "no such bird")
    status, errors, _ = evaluated(command, run, "editor=test_time", f"editor.support={tmp_path}/labelled")
    assert status == 2
    assert "has class 'no such bird', which the model does not know" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["editor=test_tme"], "unknown editor 'test_tme': did you mean 'test_time'"),
        (["editor=test_time", "editor.gaurd=strict"], "unknown setting 'editor.gaurd': did you mean 'editor.guard'"),
        (["editor=test_time", "editor.shots=500"], "shots=500 is more than there is"),
        (["editor=test_time", "edits=e.yaml"], "say one of them"),
        (["gate=g.safetensors"], "say edits= too"),
        (["editor=test_time", "editor.support=nowhere"], "no folder"),
        (["editor=test_time", "editor.protection=gatte"], "editor.protection=gatte: did you mean 'gate'"),
    ],
)
def test_bad_input(command, run: Path, arguments, message):
    status, errors, _ = evaluated(command, run, *arguments)
    assert status == 2
    assert message in errors


def test_models_without_concepts(command, tmp_path: Path):
    status, errors = command("train", *small(), "method=linear_probe", "run_dir=probe", "report=false")
    assert status == 0, errors
    status, errors, _ = evaluated(command, tmp_path / "probe", "editor=recentre")
    assert status == 2
    assert "has no concepts to explain or edit" in errors
