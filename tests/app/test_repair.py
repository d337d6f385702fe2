"""Step by step, a head that is fitted again, and a part of a picture."""

import shlex

import pytest
import torch
from explored_run import explored, explored_labels, trained

from cbm.app import Explorer, Session
from cbm.app.inputs import box_of
from cbm.app.render import render
from cbm.app.repair import AS_TRAINED, REBALANCE, REFIT, REMOVE, fit_again, removed_by, timeline
from cbm.app.session import EVERYWHERE
from cbm.editing import prune
from cbm.errors import UserError
from cbm.layers import predict_logits
from cbm.run.rebalance import rebalance_run


def edited(method: str = "labo") -> Session:
    tab = Session(explored(method))
    for column in (0, 4, 9):
        tab.hold(column)
        tab.edit("remove", scope=EVERYWHERE)
    return tab


def test_every_step_says_what_it_did():
    tab = edited()
    explorer = tab.explorer
    tab.undo()
    steps = timeline(tab)
    assert [step.number for step in steps] == [0, 1, 2, 3]
    assert [step.now for step in steps] == [False, False, True, False]
    assert steps[0].words == ["no edits"]
    for step, columns in zip(steps, ([], [0], [0, 4], [0, 4, 9])):
        out = torch.zeros(len(explorer.classes), len(explorer.bank), dtype=torch.bool)
        out[:, columns] = True
        called = predict_logits(prune(explorer.bottleneck, out), explorer.split.x).argmax(dim=1)
        assert step.quality == pytest.approx(float((called == explorer.split.y).double().mean()))
        assert step.number == 0 or explorer.bank.texts[columns[-1]] in step.words[0]
    assert "go there" in render("timeline", steps=steps, many=False)


def test_a_tab_goes_to_a_step_and_back():
    tab = edited()
    whole = tab.edits
    tab.go_to(1)
    assert len(tab.edits) == 1
    assert [step.now for step in timeline(tab)] == [False, True, False, False]
    tab.go_to(3)
    assert tab.edits == whole
    with pytest.raises(UserError, match="no step 4: expected 0 to 3"):
        tab.go_to(4)


def test_labels_have_steps_too():
    tab = Session(explored_labels())
    tab.hold(2)
    tab.edit("remove", scope=EVERYWHERE)
    steps = timeline(tab)
    assert len(steps) == 2
    assert all(0 <= step.quality <= 1 and step.worst is None for step in steps)
    with pytest.raises(UserError, match="one class per picture"):
        fit_again(tab)


def test_what_is_removed_for_all_counts():
    tab = edited()
    tab.hold(11)
    tab.edit("remove")  # of this picture only
    tab.hold(12)
    tab.edit("remove", scope=EVERYWHERE, classes=tab.explorer.classes[0])
    assert removed_by(tab) == [tab.explorer.bank.texts[k] for k in (0, 4, 9)]
    with pytest.raises(UserError, match="remove concepts first"):
        fit_again(Session(tab.explorer))


def test_the_head_is_the_one_of_the_command():
    explorer = Explorer(trained("posthoc"), explored().cache)
    tab = Session(explorer)
    column = int(explorer.bottleneck.importance().abs().amax(dim=0).argmax())
    tab.hold(column)
    tab.edit("remove", scope=EVERYWHERE)
    found = fit_again(tab)
    text = explorer.bank.texts[column]
    expected = rebalance_run(explorer.model.path, explorer.cache, concepts=[text])
    names = {AS_TRAINED: "as trained", REMOVE: "remove", REFIT: "remove + refit", REBALANCE: "rebalance"}
    for ours, theirs in names.items():
        assert found.rows[ours].accuracy == pytest.approx(expected.rows[theirs].accuracy)
    words = shlex.split(found.command)
    assert words[:5] == ["python", "-m", "cbm", "rebalance", str(explorer.model.path)]
    assert words[5:] == ["--concept", text, "--out", "FOLDER"]
    assert text in render("repaired", found=found, worst=False)


def test_a_part_of_a_picture_is_encoded_by_itself():
    explorer = explored()
    whole = explorer.picture(3)
    part = explorer.part(whole, (0.25, 0.0, 0.75, 0.5))
    assert part.image.size == (whole.image.width // 2, whole.image.height // 2)
    assert part.row is None and part.label is None  # noqa: PT018
    assert torch.equal(part.x, explorer.model.predict([part.image]).features[0])
    everything = explorer.part(whole, (-1.0, 0.0, 2.0, 1.0))
    assert torch.allclose(everything.x, explorer.model.predict([whole.image]).features[0], atol=1e-6)
    with pytest.raises(UserError, match="larger box"):
        explorer.part(whole, (0.2, 0.2, 0.21, 0.9))
    tab = Session(explorer)
    tab.look_at(part)
    assert "50%" in tab.picture.name
    tab.hold(0)
    tab.edit("mask")
    with pytest.raises(UserError, match="dropped pictures"):
        tab.save()


class Event:
    def __init__(self, box):
        self._data = {"box": box}


def test_a_box_is_four_numbers():
    assert box_of(Event("0.1,0.2,0.5,1")) == (0.1, 0.2, 0.5, 1.0)
    for odd in ("", "1,2,3", "a,b,c,d", "1,2,3,4,5", None):
        with pytest.raises(UserError, match="four numbers"):
            box_of(Event(odd))
    with pytest.raises(UserError, match="larger box"):
        explored().part(explored().picture(0), box_of(Event("nan,nan,nan,nan")))
