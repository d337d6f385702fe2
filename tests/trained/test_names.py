"""Names in a run directory: whenever the writing is interrupted the run opens, and old names go on meaning the unit."""

from pathlib import Path

import pytest
import torch
from birds_run import shared_folder
from explored_run import copied

import cbm
from cbm.concepts.units import units_of
from cbm.editing import Edit, EditSet, edited_logits, load_edits
from cbm.errors import UserError
from cbm.files import run_directory
from cbm.files.run_directory import verify_run
from cbm.trained.names import change_names, rename, undo_rename, unit_states


@pytest.fixture
def run() -> Path:
    return copied()


def test_a_name_is_written_and_taken_back(run: Path):
    before = cbm.load(run)
    text = unit_states(before)[0].text
    bank, was, now = rename(run, text, "spotted wing")
    after = cbm.load(run)
    assert (was, now) == (text, "spotted wing")
    assert after.bank.texts == bank.texts
    assert after.bank.texts.index("spotted wing") == before.bank.texts.index(text)
    assert torch.equal(after.bank.embeddings, before.bank.embeddings)
    assert unit_states(after)[0].unit.state == "named by a person"
    undo_rename(run)
    after = cbm.load(run)
    assert after.bank.texts == before.bank.texts
    assert unit_states(after)[0].unit.taken_back == ("spotted wing",)


def test_the_run_opens_whenever_writing_stops(run: Path, monkeypatch: pytest.MonkeyPatch):
    text, whole = cbm.load(run).bank.texts[0], run_directory.write_atomically
    for stop in range(4):
        written = []

        def write(path: Path, content: bytes, written=written, stop=stop) -> None:
            if len(written) == stop:
                raise KeyboardInterrupt
            written.append(path)
            whole(path, content)

        monkeypatch.setattr(run_directory, "write_atomically", write)
        if stop == 3:
            rename(run, text, "spotted wing")
        else:
            with pytest.raises(KeyboardInterrupt):
                rename(run, text, "spotted wing")
        verify_run(run)
        assert cbm.load(run).bank.texts[0] == (text if stop < 2 else "spotted wing")
        if stop == 2:
            monkeypatch.setattr(run_directory, "write_atomically", whole)
            undo_rename(run)
    (run / "bank" / "bank.json").write_bytes(b" " + (run / "bank" / "bank.json").read_bytes())
    with pytest.raises(UserError, match="not as the run left it"):
        cbm.load(run)


def test_edits_that_say_an_old_name_mean_the_unit(run: Path, tmp_path: Path):
    model = cbm.load(run)
    split, text = model.split("test", cache=shared_folder() / "cache"), unit_states(model)[0].text
    edits = EditSet((Edit("remove", text), Edit("shift", text, 1.0, samples=(split.names[0],))))
    edits.save(tmp_path / "edits.yaml")
    wanted = cbm.Editor(model, edits).logits(split.x, split.names)
    rename(run, text, "spotted wing")
    named = cbm.load(run)
    editor = cbm.Editor(named, tmp_path / "edits.yaml")
    assert {edit.concept for edit in editor.edits.edits} == {"spotted wing"}
    torch.testing.assert_close(editor.logits(split.x, split.names), wanted)
    torch.testing.assert_close(
        edited_logits(
            named.model, load_edits(tmp_path / "edits.yaml"), named.bank, named.classes, split.x, split.names
        ),
        wanted,
    )
    alone = cbm.Editor(named).remove(text).set(text, "present").mask(text)
    assert {edit.concept for edit in alone.edits.edits} == {"spotted wing"}
    assert [edit.concept for edit in named.with_edits([Edit("remove", text)]).changes] == ["spotted wing"]
    assert set(named.cut_points()) <= set(named.bank.texts)
    assert len(named.cut_points()) == len(model.cut_points())


def test_an_open_editor_follows(run: Path):
    model = cbm.load(run)
    text = model.bank.texts[0]
    editor = cbm.Editor(model).remove(text).mask(text)
    editor.undo()
    model.bank = rename(run, text, "spotted wing")[0]
    editor.follow_names()
    assert [edit.concept for edit in editor.edits.edits] == ["spotted wing"]
    assert [edit.concept for edit in editor.redo().edits.edits] == ["spotted wing"] * 2


def test_nothing_is_written_of_a_change_that_fails(run: Path):
    before = (run / "bank" / "bank.json").read_bytes()
    with pytest.raises(UserError, match="no unit"):
        rename(run, "nothing", "something")
    with pytest.raises(ZeroDivisionError):
        change_names(run, lambda bank: 1 / 0)
    assert (run / "bank" / "bank.json").read_bytes() == before


def test_a_run_whose_concepts_were_written_down():
    with pytest.raises(UserError, match="were written down"):
        unit_states(cbm.load(copied("labo")))


def test_a_discovered_run_is_used_edited_and_given_away(run: Path, tmp_path: Path):
    """Load, explain, export, save: everything that is asked of a trained model."""
    model = cbm.load(run)
    split = model.split("test", cache=shared_folder() / "cache")
    unnamed = next(s.text for s in unit_states(model) if not s.unit.named and s.weight > 0)
    found = model.predict(split.x)
    total = found.model.base()[found.logits.argmax(dim=1)] + found.contributions().sum(dim=1)
    torch.testing.assert_close(total, found.logits.max(dim=1).values)
    assert len(found.explain(0, 3)) == 3
    column = model.bank.index(unnamed)
    removed = cbm.Editor(model).remove(unnamed).as_model()
    code = model.model.activations(split.x)
    code[:, column] = 0
    torch.testing.assert_close(removed(split.x), code @ model.model.weights().T + model.model.biases())
    told = cbm.Editor(model).set(unnamed, "present", classes=model.classes[0]).logits(split.x)
    typical = model.model.activation.typical[column]
    change = model.model.weights()[0, column] * (typical - model.model.activations(split.x)[:, column])
    torch.testing.assert_close(told[:, 0], found.logits[:, 0] + change)
    editor = cbm.Editor(model)
    editor.set(unnamed, -2.0)
    assert editor.edits.edits[0].value == 0.0  # never below zero
    for refused in (lambda: editor.remove(unnamed, resolve=True), lambda: editor.returned(unnamed, split.x)):
        with pytest.raises(UserError, match="method=splice"):
            refused()
    file = model.export(tmp_path / "model.pt2", top_k=4)
    logits, values, indices = torch.export.load(file).module()(split.x)
    torch.testing.assert_close(logits, found.logits)
    torch.testing.assert_close(values, model.model.activations(split.x).gather(1, indices))
    again = cbm.load(cbm.load(run).with_edits([Edit("remove", unnamed)]).save(tmp_path / "saved"))
    torch.testing.assert_close(again.predict(split.x).logits, removed(split.x))
    named = sum(unit.named for unit in units_of(model.bank))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"through {len(model.bank)} units that were found in the features, {named} of them with a name" in card
    picture = next((shared_folder() / "birds").rglob("test/*/*.png"))
    assert model.heat_map(picture, unnamed, "covering").values.shape == (8, 8)
