"""Several tabs, processes and hands that write into one run: nothing is lost, and who comes later is told."""

import copy
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from birds_run import shared_folder
from explored_run import copied, explored

from cbm.app import Explorer, Session
from cbm.app.label import Labelling
from cbm.app.render import render
from cbm.app.session import EVERYWHERE
from cbm.concepts.bank import load_bank
from cbm.concepts.units import units_of
from cbm.data.concept_answers import read_concept_answers
from cbm.editing import load_edits
from cbm.errors import UserError
from cbm.files import atomic
from cbm.trained.names import rename


@pytest.fixture
def explorer(tmp_path: Path) -> Explorer:
    """Of a run whose folder is this test's."""
    explorer = copy.copy(explored())
    explorer.model = copy.copy(explorer.model)
    explorer.model.path = tmp_path / "run"
    explorer.model.path.mkdir()
    explorer._places = {}
    explorer.check_place()
    return explorer


def edited(explorer: Explorer, column: int = 0) -> Session:
    tab = Session(explorer)
    tab.hold(column)
    tab.edit("mask", scope=EVERYWHERE, why=f"column {column}")
    return tab


# ------------------------------------------------------------------------------------------------------------ edits


def test_a_file_that_somebody_changed_is_left_alone_and_that_is_said(explorer: Explorer):
    tab = edited(explorer)
    path, _ = tab.save()
    assert (path.name, tab.note) == ("edits.yaml", "")
    path.write_text("# by hand\n" + path.read_text())
    tab.edit("set", "present")
    second, _ = tab.save()
    assert second.name == "edits-2.yaml"
    assert tab.note == "edits.yaml was changed by somebody else meanwhile: saved as edits-2.yaml"
    assert path.read_text().startswith("# by hand")
    assert load_edits(second) == tab.edits
    said = render("saved", command="eval", path=str(second), run="run", left_out=0, note=tab.note)
    assert "changed by somebody else" in said
    tab.edit("set", "absent")
    assert tab.save()[0] == second


def test_a_file_that_was_read_and_changed_since(explorer: Explorer):
    edited(explorer).save()
    tab = Session(explorer)
    tab.read("edits.yaml")
    other = Session(explorer)
    other.read("edits.yaml")
    other.hold(1)
    other.edit("mask", scope=EVERYWHERE)
    assert other.save()[0].name == "edits.yaml"
    tab.hold(2)
    tab.edit("mask", scope=EVERYWHERE)
    assert tab.save()[0].name == "edits-2.yaml"
    assert "edits.yaml was changed by somebody else meanwhile" in tab.note


def test_a_name_that_is_taken(explorer: Explorer):
    """By a file, by a folder, by a link that leads nowhere or elsewhere, by a pipe: none is touched."""
    run = explorer.model.path
    (run / "edits.yaml").write_text("[]\n")
    (run / "edits-2.yaml").mkdir()
    (run / "edits-3.yaml").symlink_to(run.parent / "nowhere.yaml")
    os.mkfifo(run / "edits-4.yaml")
    tab = edited(explorer)
    assert tab.save()[0].name == "edits-5.yaml"
    assert tab.note == "edits.yaml was there already, and is not this tab's: saved as edits-5.yaml"
    assert not (run.parent / "nowhere.yaml").exists()
    assert [path.name for path in tab.saved_files()] == ["edits-5.yaml", "edits.yaml"]
    with pytest.raises(UserError, match="no 'edits-4.yaml'"):
        tab.read("edits-4.yaml")


def test_without_locks_nothing_is_replaced(explorer: Explorer, monkeypatch: pytest.MonkeyPatch):
    """Two that find the same name free: it goes to one of them."""
    from cbm.app import session

    def taken(path: Path, content: bytes) -> bool:
        path.write_text("of another computer")
        return False

    write_new = session.write_new
    monkeypatch.setattr(session, "write_new", lambda path, content: (
        taken(path, content) if path.name == "edits.yaml" else write_new(path, content)))  # fmt: skip
    assert edited(explorer).save()[0].name == "edits-2.yaml"
    assert (explorer.model.path / "edits.yaml").read_text() == "of another computer"
    assert not write_new(explorer.model.path / "edits.yaml", b"x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_takes_nothing(number: int, explorer: Explorer, monkeypatch: pytest.MonkeyPatch):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    tab = edited(explorer)
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(UserError, match="no space left|cannot write"):
        tab.save()
    monkeypatch.undo()
    assert len(tab.edits) == 1
    assert list(explorer.model.path.iterdir()) == []
    assert tab.save()[0].name == "edits.yaml"


def test_the_run_is_gone_or_another(explorer: Explorer, tmp_path: Path):
    """Nothing is made anew, nothing is written elsewhere; the edits stay in the tab."""
    tab, run = edited(explorer), explorer.model.path
    labelling = Labelling(explorer)
    labelling.view()
    row = str(labelling.pair.row)
    run.rename(tmp_path / "moved")
    for do in (tab.save, lambda: labelling.press("yes", row), lambda: labelling.press("undo")):
        with pytest.raises(UserError, match="is not there any more"):
            do()
    assert not run.exists()
    for other in (lambda: run.mkdir(), lambda: run.symlink_to(tmp_path / "elsewhere")):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        other()
        for do in (tab.save, lambda: labelling.press("yes", row)):
            with pytest.raises(UserError, match="something else has its name"):
                do()
        assert list(run.iterdir()) == []
        run.unlink() if run.is_symlink() else run.rmdir()
    run.write_text("a file")
    with pytest.raises(UserError, match="something else has its name"):
        tab.save()
    run.unlink()
    (tmp_path / "moved").rename(run)
    assert tab.save()[0].exists()


def test_shared_pages_write_nothing(explorer: Explorer):
    tab = edited(explorer)
    explorer.shared = True
    for do in (tab.save, lambda: tab.labelling.press("undo")):
        with pytest.raises(UserError, match="shared: nothing is written"):
            do()
    assert list(explorer.model.path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ names


@pytest.fixture(scope="module")
def run() -> Path:
    return copied()


def opened(run: Path) -> Explorer:
    return Explorer(run, shared_folder() / "cache")


def test_names_of_two_processes(run: Path):
    """The later sees the earlier, also about other units; nothing of another is taken back unseen."""
    here, there = opened(run), opened(run)
    one, other = Session(here), Session(there)
    column = 3
    old = here.bank.texts[column]
    for tab in (one, other):
        tab.hold(column)
    other.rename("theirs")
    assert one.rename("ours") == ("theirs", "ours")
    assert one.note == f"'{old}' was called 'theirs' by somebody else meanwhile"
    assert {old, "theirs"} <= set(units_of(here.bank)[column].former)
    other.hold(5)
    other.rename("five")
    assert there.bank.texts[column] == "ours"
    one.hold(5)
    with pytest.raises(UserError, match="called 'five' by somebody else meanwhile"):
        one.rename(None)
    assert one.held == "five"  # now it was seen
    one.rename(None)
    assert load_bank(run / "bank").texts == here.bank.texts


def test_a_name_that_went_to_another_unit(run: Path):
    """The unit that is looked at is meant, whatever is called so by now."""
    here = opened(run)
    tab = Session(here)
    tab.hold(7)
    held = tab.held
    rename(run, held, "seven was here")
    with pytest.raises(UserError, match="was the name of the unit"):
        rename(run, here.bank.texts[8], held)
    assert tab.rename("seven again")[1] == "seven again"
    assert load_bank(run / "bank").texts[7] == "seven again"
    assert load_bank(run / "bank").texts[8] == here.bank.texts[8]


def test_names_of_many_tabs_at_once(run: Path):
    """Of one process: all are in the run, and all are seen by all tabs."""
    here = opened(run)
    tabs = [Session(here) for _ in range(12)]
    for number, tab in enumerate(tabs):
        tab.hold(number + 10)

    with ThreadPoolExecutor(len(tabs)) as pool:
        list(pool.map(lambda each: each[1].rename(f"new name {each[0]}"), enumerate(tabs)))
    for bank in (here.bank, load_bank(run / "bank")):
        assert [bank.texts[number + 10] for number in range(12)] == [f"new name {number}" for number in range(12)]


def test_another_run_of_the_same_name(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    tab = Session(opened(tmp_path / "run"))
    tab.hold(0)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="not there any more"):
        tab.rename("name")
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "run")
    with pytest.raises(UserError, match="something else has its name"):
        tab.rename("name")


# ---------------------------------------------------------------------------------------------------------- answers


def test_answers_of_many_tabs_at_once(explorer: Explorer):
    """Each answers its own question; who asked the same keeps the first answer; an undo takes back one's own."""
    tabs = [Labelling(explorer) for _ in range(8)]
    table = explorer.model.path / "labels.csv"
    for tab in tabs:
        tab.view()
    tabs[0].press("yes", str(tabs[0].pair.row))
    tabs[1].press("no", str(tabs[1].pair.row))  # the same question, which has an answer by now
    assert [answer.shown for answer in read_concept_answers(table)] == [True]
    assert "was answered by somebody else meanwhile" in tabs[1].note
    assert tabs[1].note.endswith("yes; that is kept")
    asked = set()
    for tab in tabs:  # a question of its own for each
        waiting = [other.pair for other in tabs if other.pair is not None and other.pair.row in asked]
        tab.pair = tab.queue.next(waiting)
        asked.add(tab.pair.row)
    assert len(asked) == len(tabs)
    with ThreadPoolExecutor(len(tabs)) as pool:
        list(pool.map(lambda tab: tab.press("yes", str(tab.pair.row)), tabs))
    assert len(read_concept_answers(table)) == 1 + len(tabs)
    tabs[3].press("undo")
    left = [answer.path for answer in read_concept_answers(table)]
    assert len(left) == len(tabs)
    assert tabs[3].pair.path not in left
