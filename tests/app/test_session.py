"""A tab's edits: what they do, where they go, and that they are nobody else's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from birds_run import shared_folder
from explored_run import explored
from PIL import Image

from cbm.app import Session
from cbm.app.concepts import describe_concept
from cbm.app.decision import contributions, decide, reach, search_bars
from cbm.app.effect import effect_on_split
from cbm.app.session import EVERYWHERE, HERE
from cbm.editing import load_edits
from cbm.editor import Editor
from cbm.errors import UserError


@pytest.fixture
def tab() -> Session:
    return Session(explored())


def test_bars_add_up_to_the_logit(tab: Session):
    """Base, bars, others and residual are the logit, before and after edits of every kind."""
    for op, value in ((None, None), ("set", 0.3), ("mask", None), ("scale", 2.0), ("reweight", 1.5), ("remove", None)):
        if op is not None:
            tab.hold(decide(tab).bars[0].column)
            tab.edit(op, value, classes=decide(tab).explained if op == "reweight" else "all classes")
        found = decide(tab)
        total = found.base + sum(bar.after for bar in found.bars) + found.others + found.outside
        assert total == pytest.approx(found.total, abs=1e-4)
        assert found.outside == pytest.approx(0.0, abs=1e-3)  # no residual: nothing passes by the concepts
    assert {bar.text for bar in found.bars if bar.edited} == {edit.concept for edit in tab.edits.edits}


def test_dragging_is_one_edit_and_reads_back(tab: Session):
    tab.hold(3)
    place = reach(tab)
    for value in (1.0, 0.5, -2.0):
        tab.edit("set", place.activation(value))
    assert len(tab.edits) == 1
    assert reach(tab).now == pytest.approx(-2.0, abs=1e-4)
    tab.edit("set", place.activation(1.0), scope=EVERYWHERE)
    assert len(tab.edits) == 2
    tab.edit("set", "present")  # this picture again, after another edit: kept apart
    assert len(tab.edits) == 3
    assert reach(tab).now == pytest.approx(1.645, abs=1e-3)
    tab.undo()
    tab.undo()
    assert [edit.samples for edit in tab.edits.edits] == [(tab.picture.name,)]
    tab.redo()
    tab.edit("set", place.activation(0.0), scope=EVERYWHERE)  # not the edit before: it was made by redo
    assert len(tab.edits) == 3


def test_tabs_do_not_share_edits(tab: Session):
    other = Session(tab.explorer)
    tab.hold(0)
    tab.edit("remove", scope=EVERYWHERE)
    assert (len(tab.edits), len(other.edits)) == (1, 0)
    assert torch.allclose(other.logits(), tab.explorer.logits[0], atol=1e-4)
    assert not torch.allclose(tab.logits(), other.logits(), atol=1e-4)


def test_an_edit_of_one_picture_leaves_the_others(tab: Session):
    tab.look_at(tab.explorer.picture(7))
    strongest = decide(tab).bars[0]
    tab.hold(strongest.column)
    tab.edit("set", "absent", scope=HERE)
    comparison = tab.compare()
    assert (comparison.before != comparison.after).any(dim=1).nonzero()[:, 0].tolist() == [7]
    assert decide(tab).bars[[bar.column for bar in decide(tab).bars].index(strongest.column)].after < strongest.after
    tab.look_at(tab.explorer.picture(8))
    assert len(tab.here) == 0


def test_contributions_after_edits_are_those_of_the_edited_model(tab: Session):
    """Against the bottleneck that the editor makes of the same edits."""
    tab.hold(2)
    tab.edit("reweight", -1.0, scope=EVERYWHERE, classes=tab.explorer.classes[4])
    tab.hold(5)
    tab.edit("remove", scope=EVERYWHERE)
    _, new, _ = contributions(tab, tab.explorer.bottleneck, 4)
    expected = tab.editor.as_model().contributions(tab.picture.x[None], torch.tensor([4]))[0]
    assert torch.allclose(new, expected, atol=1e-4)


def test_effect_counts_what_the_editor_compares(tab: Session):
    for column in range(4):
        tab.hold(column)
        tab.edit("remove", scope=EVERYWHERE)
    effect, comparison = effect_on_split(tab), tab.editor.compare(tab.explorer.split)
    assert (effect.gained, effect.lost, effect.flipped) == tuple(
        len(rows) for rows in (comparison.gained, comparison.lost, comparison.flipped)
    )
    (before, after), _ = effect.shown
    assert after - before == pytest.approx((effect.gained - effect.lost) / effect.count)
    assert [tile.row for tile in effect.losses] == comparison.lost[:12].tolist()
    assert not any(tile.right for tile in effect.losses)


def test_saved_edits_are_what_eval_reads(tab: Session, command):
    tab.hold(0)
    tab.edit("remove", scope=EVERYWHERE)
    tab.hold(1)
    tab.edit("set", "present")
    path, left_out = tab.save()
    assert (path.parent, left_out) == (tab.explorer.model.path, 0)
    assert load_edits(path) == tab.edits
    status, errors = command("eval", f"run={path.parent}", f"edits={path}", f"cache={shared_folder() / 'cache'}")
    assert status == 0, errors
    tab.edit("set", "absent")
    assert tab.save()[0] == path  # its own file again
    other = Session(tab.explorer)
    other.hold(4)
    other.edit("mask")
    second, _ = other.save()
    assert second != path  # another tab's file is left alone
    assert load_edits(path) == tab.edits
    third = Session(tab.explorer)
    third.read(path.name)
    assert third.edits == tab.edits
    third.undo()
    assert len(third.edits) == 0
    with pytest.raises(UserError, match="no '../edits.yaml' in"):
        third.read("../edits.yaml")
    for file in tab.saved_files():
        file.unlink()


def told_in(tab: Session) -> str:
    return "".join(file.read_text() for file in tab.saved_files())


def test_tabs_that_read_one_file_lose_nothing(tab: Session):
    """The first writes it again; the second sees that it has changed."""
    tab.hold(0)
    tab.edit("mask", scope=EVERYWHERE)
    tab.save()
    tabs = [Session(tab.explorer), Session(tab.explorer)]
    for number, other in enumerate(tabs):
        other.read("edits.yaml")
        other.hold(number + 1)
        other.edit("mask", scope=EVERYWHERE, why=f"of tab {number}")
    names = [other.save()[0].name for other in tabs]
    assert names == ["edits.yaml", "edits-2.yaml"]
    assert "of tab 0" in told_in(tab)
    assert "of tab 1" in told_in(tab)
    assert tabs[1].save()[0].name == "edits-2.yaml"  # its own from now on
    for file in tab.saved_files():
        file.unlink()


def test_tabs_that_save_at_the_same_time_lose_nothing(tab: Session):
    tabs = [Session(tab.explorer) for _ in range(12)]
    for number, other in enumerate(tabs):
        other.hold(number % 5)
        other.edit("mask", scope=EVERYWHERE, why=f"of tab {number}.")
    with ThreadPoolExecutor(len(tabs)) as pool:
        list(pool.map(Session.save, tabs))
    assert len(tab.saved_files()) == len(tabs)
    assert all(f"of tab {number}." in told_in(tab) for number in range(len(tabs)))
    for file in tab.saved_files():
        file.unlink()


def test_dropped_pictures(tab: Session, tmp_path: Path):
    row = 5
    tab.explorer.picture(row).image.save(tmp_path / "mine.png")
    tab.look_at(tab.explorer.read(tmp_path / "mine.png"))
    assert torch.allclose(tab.picture.x, tab.explorer.split.x[row], atol=1e-5)
    assert decide(tab).true is None
    tab.hold(0)
    tab.edit("set", "present")
    assert tab.compare().flipped.tolist() == []  # nothing but the dropped picture is told
    with pytest.raises(UserError, match="no edit to save but of dropped pictures"):
        tab.save()
    for name, content in (
        ("page.html", b"<script>alert(1)</script>"),
        ("empty.png", b""),
        ("model.pkl", b"\x80\x04K\x01."),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"'{name}' is no picture that can be read"):
            tab.explorer.read(tmp_path / name)
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match="make it smaller first"):
        tab.explorer.read(tmp_path / "huge.png")


def test_make_it_right(tab: Session):
    """The smallest change flips the decision it was asked for; a corrected weight makes it right."""
    second = decide(tab).classes[1].name
    tab.smallest_flip(second)
    assert 1 <= len(tab.proposed) <= 5
    assert decide(tab).called != second  # nothing is applied yet
    tab.accept()
    assert decide(tab).called == second
    tab.undo()
    tab.hold(max(decide(tab).bars, key=lambda bar: abs(bar.level or 0)).column)
    tab.correct(second)
    assert decide(tab).called == second
    tab.edit("set", "absent")  # told about this picture: both go on from there
    third = decide(tab).classes[2].name
    tab.smallest_flip(third)
    tab.accept()
    assert decide(tab).called == third
    with pytest.raises(UserError, match="no class 'Wren'"):
        tab.correct("Wren")
    with pytest.raises(UserError, match="nothing is proposed"):
        tab.accept()
    with pytest.raises(UserError, match="train one with method=energy"):
        tab.follow()


def test_look_alikes_go_together(tab: Session):
    bank, model = tab.explorer.bank, tab.explorer.bottleneck
    same = model.concepts @ model.concepts.T - 2 * torch.eye(len(bank))
    column = int(same.amax(dim=1).argmax())
    tab.hold(column)
    tab.remove_alike(scope=EVERYWHERE, why="paraphrases")
    assert {edit.concept for edit in tab.edits.edits} == set(
        tab.editor.alike(bank.texts[column], split=tab.explorer.split)
    )
    assert bank.texts[int(same[column].argmax())] in {edit.concept for edit in tab.edits.edits}
    assert {(edit.op, edit.why) for edit in tab.edits.edits} == {("remove", "paraphrases")}
    tab.undo()
    assert len(tab.edits) == 0


def test_search(tab: Session):
    texts = [bar.text for bar in search_bars(tab, "Yellow BELLY")]
    assert texts
    assert all("yellow" in text and "belly" in text for text in texts)
    assert "yellow belly" in [bar.text for bar in search_bars(tab, "yelow bely")]  # nearest, if none has the words
    assert search_bars(tab, "  ") == []


def test_nonsense_from_a_browser_is_refused(tab: Session):
    with pytest.raises(UserError, match="no concept 9999"):
        tab.hold(9999)
    with pytest.raises(UserError, match="no picture 9999"):
        tab.explorer.picture(9999)
    with pytest.raises(UserError, match="choose a concept first"):
        tab.edit("mask")


def test_energies_follow():
    """A told concept moves the others; proposals are applied for this picture only."""
    explorer = explored("energy")
    for row in range(0, len(explorer.split), 7):
        tab = Session(explorer)
        tab.look_at(explorer.picture(row))
        with pytest.raises(UserError, match="tell it something first"):
            tab.follow()
        told = max(decide(tab).bars, key=lambda bar: bar.after)
        tab.hold(told.column)
        tab.edit("set", "absent")
        tab.follow()
        if len(tab.proposed):
            break
    assert describe_concept(explorer, told.column).used_by == []  # no class has a weight of it
    proposed = tab.proposed
    assert len(proposed) > 0
    assert told.text not in [edit.concept for edit in proposed.edits]
    tab.accept()
    assert {edit.samples for edit in tab.edits.edits} == {(tab.picture.name,)}
    bars = {bar.text: bar for bar in decide(tab).bars}
    assert bars[told.text].after == 0.0
    assert reach(tab).now == reach(tab).low
    assert sum(share.after for share in decide(tab).classes) <= 1 + 1e-4
    made = tab.edits
    with pytest.raises(UserError, match="no weights of concepts"):
        tab.edit("remove")
    assert tab.edits == made  # refused, and the tab goes on
    decide(tab)


def test_a_black_box_says_so():
    tab = Session(explored("linear_probe"))
    found = decide(tab)
    assert found.bars == []
    assert found.classes[0].after > 0
    for do in (lambda: tab.hold(0), lambda: tab.compare(), lambda: tab.save(), lambda: tab.look_for()):
        with pytest.raises(UserError, match="reads no concepts|no concepts|no edit to save"):
            do()


@pytest.mark.parametrize("method", ["supervised", "energy"])
def test_a_tab_sets_exclusive_concepts_as_an_editor_does(method: str):
    tab = Session(explored(method))
    bank, editor = tab.explorer.bank, Editor(tab.explorer.model)
    column = next(k for k, concept in enumerate(bank.concepts) if concept.group and "colour" in concept.group)
    tab.hold(column)
    tab.edit("set", "absent")
    assert len(tab.edits) == 1
    tab.edit("set", "present")  # in its place
    editor.set(bank.texts[column], "present", samples=tab.picture.name)
    assert len(editor.edits) > 1
    assert editor.edits.diff(tab.edits) == ([], [])
    assert {edit.concept for edit in tab.edits.edits} <= {
        concept.text for concept in bank.concepts if concept.group == bank.concepts[column].group
    }
    tab.undo()
    assert len(tab.edits) == 0
    assert len(Session(tab.explorer).edits) == 0
