"""Correct a model in ten lines; and from the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from hand_made_run import write_run

import cbm
from cbm.data import FeatureSplit
from cbm.editing import Edit, load_edits
from cbm.errors import UserError
from cbm.layers import load_model


@pytest.fixture
def trained(command, tmp_path: Path) -> Path:
    status, errors = command("train", *small(), *QUICK, "run_dir=one")
    assert status == 0, errors
    return tmp_path / "one"


def test_correct_a_model_in_ten_lines(trained, command, tmp_path: Path):
    model = cbm.load(trained)
    editor = cbm.Editor(model, who="a reader")
    first, second = editor.bank.texts[:2]
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(60, editor.bottleneck.concepts.shape[1], generator=g), dim=1)
    y = editor.bottleneck.logits(x).argmax(1)
    split = FeatureSplit(x, y, [f"{i}.png" for i in range(60)])
    before = model.predict_features(x).logits

    preview = editor.compare(split, Edit("remove", first))
    assert len(editor.edits) == 0
    editor.remove(first, why="spurious").scale(second, -3.0).set(second, "present", samples="7.png")
    assert [(e.why, e.domain) for e in editor.edits.edits] == [("spurious", None), (None, None), (None, None)]
    after = editor.logits(x, split.names)
    assert editor.compare(split).lost.tolist() == (after.argmax(1) != y).nonzero()[:, 0].tolist()
    assert len(preview.flipped) == len(preview.lost)
    assert torch.equal(model.predict_features(x).logits, before)
    assert editor.edits.edits[0].who == "a reader"
    assert editor.edits.edits[0].when is not None

    editor.save("edits.yaml")
    assert load_edits("edits.yaml") == editor.edits
    torch.testing.assert_close(cbm.Editor(model, "edits.yaml").logits(x, split.names), after)
    with pytest.raises(UserError, match="edits of single pictures cannot become part of a model"):
        editor.save_model("edited.safetensors")
    editor.undo().save_model("edited.safetensors")
    torch.testing.assert_close(load_model(Path("edited.safetensors"))(x), editor.logits(x), rtol=1e-4, atol=1e-4)
    editor.redo()
    assert len(editor.edits) == 3
    editor.undo().undo().undo()
    assert torch.equal(editor.logits(x), editor.bottleneck.logits(x))
    with pytest.raises(UserError, match="there is no edit to undo"):
        editor.undo()

    flip = editor.smallest_flip(x[0], budget=20, frozen=[first])
    assert flip is not None
    assert first not in [edit.concept for edit in flip.edits]
    assert int(editor.apply(flip).logits(x[:1]).argmax()) != int(before[0].argmax())
    with pytest.raises(UserError, match=f"no concept '{first}x' in this model: did you mean"):
        editor.remove(first + "x")
    with pytest.raises(UserError, match="no picture '7.jpg' in this split: did you mean '7.png'"):
        editor.compare(split, Edit("mask", first, samples=("7.jpg",)))
    with pytest.raises(UserError, match="no picture '7.jpg' in this split"):
        editor.mask(first, samples="7.jpg").compare(split)


def test_from_the_command_line(trained, command, tmp_path: Path):
    cache = small()[1]
    texts = cbm.load(trained).bank.texts
    remove = "".join(f"- {{op: remove, concept: {json.dumps(text)}, why: test}}\n" for text in texts)
    (tmp_path / "edits.yaml").write_text(remove)
    status, errors = command("eval", "run=one", cache, "edits=edits.yaml", "output=seen.json")
    assert status == 0, errors
    seen = json.loads((tmp_path / "seen.json").read_text())
    original = json.loads((trained / "metrics.json").read_text())
    assert seen["edits/accuracy_before"] == pytest.approx(original["test/accuracy"])
    assert seen["test/accuracy"] == seen["edits/accuracy_after"] < seen["edits/accuracy_before"]
    assert seen["edits/gained"] == 0
    assert len(list((trained / "eval").glob("*-test-edited.json"))) == 1
    assert f"remove '{texts[0]}'" in errors
    (tmp_path / "edits.yaml").write_text("- {op: remove, concept: long tial}\n")
    status, errors = command("eval", "run=one", cache, "edits=edits.yaml")
    assert status == 2
    assert "edit 1: no concept 'long tial' in this model" in errors
    status, errors = command("eval", "run=one", cache, "edits=edit.yaml")
    assert status == 2
    assert "cannot read 'edit.yaml'" in errors


def test_concepts_that_look_alike(trained):
    editor = cbm.Editor(cbm.load(trained))
    first = editor.bank.texts[0]
    directions = torch.nn.functional.normalize(editor.bottleneck.concepts, dim=1)
    near = [editor.bank.texts[k] for k in (directions @ directions[0] >= 0.5).nonzero()[:, 0].tolist()]
    assert editor.alike(first, 0.5) == near
    assert first in editor.alike(first)
    assert editor.alike(first, -1.0) == list(editor.bank.texts)
    with pytest.raises(UserError, match="no concept"):
        editor.alike(first + "x")


@pytest.fixture
def grouped(tmp_path: Path) -> cbm.Editor:
    """Concepts 0 to 2 exclude each other; so are 3 and 4 said to, but one class shows both; 5 is a group by itself."""
    model = cbm.load(write_run(tmp_path / "grouped"))
    groups = ["colour"] * 3 + ["shape"] * 2 + ["size"]
    owners = [("ant",), ("bee",), (), ("ant",), ("ant", "bee"), ()]
    concepts = tuple(
        replace(concept, group=groups[k], classes=owners[k]) if k < 6 else concept
        for k, concept in enumerate(model.bank.concepts)
    )
    model.bank = replace(model.bank, concepts=concepts)
    return cbm.Editor(model, who="a reader")


def told(editor: cbm.Editor) -> list[tuple[str, object]]:
    return [(edit.concept, edit.value) for edit in editor.edits.edits]


def test_what_is_present_excludes_the_rest_of_its_group(grouped: cbm.Editor, tmp_path: Path):
    texts = grouped.bank.texts
    grouped.set(texts[1], "present", samples="a.png", classes=["bee", "cat"], why="seen")
    assert told(grouped) == [(texts[1], "present"), (texts[0], "absent"), (texts[2], "absent")]
    assert {(e.samples, e.classes, e.why, e.who) for e in grouped.edits.edits} == {
        (("a.png",), ("bee", "cat"), "seen", "a reader")
    }
    grouped.save(tmp_path / "edits.yaml")
    assert load_edits(tmp_path / "edits.yaml") == grouped.edits  # the file says all that is done
    grouped.undo()
    assert told(grouped) == []
    grouped.redo().undo()
    for concept, value in ((texts[1], "absent"), (texts[1], 0.4), (texts[3], "present"), (texts[5], "present"),
                           (texts[7], "present")):  # fmt: skip
        assert told(grouped.set(concept, value)) == [(concept, value)]
        grouped.undo()
    assert told(grouped.set(texts[1], "present", exclusive=False)) == [(texts[1], "present")]
    assert told(grouped.undo().apply(Edit("set", texts[1], "present"))) == [(texts[1], "present")]
    with pytest.raises(UserError, match="did you mean"):
        grouped.set(texts[1] + "x", "present")


def test_the_others_no_longer_speak_for_the_picture(grouped: cbm.Editor):
    texts, bottleneck = grouped.bank.texts, grouped.bottleneck
    x = torch.nn.functional.normalize(torch.randn(5, 12, generator=torch.Generator().manual_seed(1)), dim=1)
    after = grouped.set(texts[0], "present").logits(x)
    a, ends = bottleneck.activations(x).clone(), bottleneck.reference + 1.645 * bottleneck.spread
    a[:, 0] = ends[0]
    a[:, [1, 2]] = (bottleneck.reference - 1.645 * bottleneck.spread)[[1, 2]]
    expected = bottleneck(x) + (a - bottleneck.activations(x)) @ bottleneck.weights().T
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
