"""The explorer of a model that says any number of labels, and of concepts that are values and numbers."""

import pytest
import torch
from explored_run import explored, explored_labels, explored_values
from torchmetrics.functional.classification import multilabel_auroc

import cbm
from cbm.app import Session
from cbm.app.classes import describe_class
from cbm.app.concepts import describe_concept
from cbm.app.decision import choices, contributions, decide, reach, search_bars
from cbm.app.effect import effect_on_split
from cbm.app.filters import EVERY, HAVE, INVENTED, MISSED, SAID, Filter, groups, kinds
from cbm.app.gallery import find_pictures
from cbm.app.session import EVERYWHERE, HERE
from cbm.errors import UserError


@pytest.fixture
def tab() -> Session:
    return Session(explored_labels())


@pytest.fixture
def values() -> Session:
    return Session(explored_values())


def test_what_is_said_of_a_picture(tab: Session):
    explorer = tab.explorer
    name, value = explorer.headline
    y = explorer.split.y
    assert name == "mean AUROC of the labels"
    assert value == pytest.approx(float(multilabel_auroc(explorer.logits.sigmoid(), y.int(), y.shape[1])), abs=1e-4)
    cuts = explorer.model.model.thresholds
    for row in range(0, len(y), 17):
        tab.look_at(explorer.picture(row))
        found = decide(tab)
        said = explorer.logits[row] > cuts
        assert found.called == (", ".join(n for n, s in zip(explorer.classes, said) if s) or "no label")
        assert found.right == bool((said == (y[row] == 1)).all())
        shown = {share.name: share for share in found.classes}
        assert {n for n, s in zip(explorer.classes, said) if s} == {n for n, share in shown.items() if share.decided}
        assert {n for n, t in zip(explorer.classes, y[row]) if t == 1} == {n for n, s in shown.items() if s.true}
        for share in shown.values():
            label = explorer.classes.index(share.name)
            assert share.after == pytest.approx(float(explorer.logits[row, label].sigmoid()), abs=1e-5)
            assert share.threshold == pytest.approx(float(cuts[label].sigmoid()))
            assert share.decided == (share.after > share.threshold)


@pytest.mark.parametrize("edited", [False, True])
def test_the_bars_sum_to_the_distance_from_the_decision(tab: Session, edited: bool):
    explorer, name = tab.explorer, tab.explorer.classes[2]
    tab.explain(name)
    if edited:
        tab.hold(int(explorer.bottleneck.importance()[2].abs().argmax()))
        tab.edit("set", "present")
    found = decide(tab)
    assert found.explained == name
    _, after, _ = contributions(tab, explorer.bottleneck, 2)
    cut = float(explorer.model.model.thresholds[2])
    assert found.base + float(after.sum()) == pytest.approx(found.total, abs=1e-4)
    assert found.total == pytest.approx(float(tab.logits()[2]) - cut, abs=1e-4)
    assert found.base + sum(bar.after for bar in found.bars) + found.others == pytest.approx(found.total, abs=1e-4)


def test_pictures_by_label_and_by_mistake(tab: Session):
    explorer = tab.explorer
    y, said, label = explorer.split.y, explorer.predicted, explorer.classes[1]
    assert kinds(explorer) == [EVERY, HAVE, SAID, MISSED, INVENTED]
    expected = {
        EVERY: torch.ones(len(y), dtype=torch.bool),
        HAVE: y[:, 1] == 1,
        SAID: said[:, 1],
        MISSED: (y[:, 1] == 1) & ~said[:, 1],
        INVENTED: (y[:, 1] == 0) & said[:, 1],
    }
    for kind, rows in expected.items():
        assert find_pictures(explorer, Filter(of=label, kind=kind)).count == int(rows.sum())
    assert find_pictures(explorer, Filter(kind=MISSED)).count == int(((y == 1) & ~said).any(dim=1).sum())
    wrong = find_pictures(explorer, Filter(kind=INVENTED)).tiles
    assert not any(tile.right for tile in wrong)
    assert all("invented" in tile.wrong for tile in wrong)
    with pytest.raises(UserError, match="no kind 'mistakes' of pictures"):
        find_pictures(explorer, Filter(kind="mistakes"))


def test_a_label_on_the_split(tab: Session):
    explorer = tab.explorer
    y, said = explorer.split.y[:, 0], explorer.predicted[:, 0]
    page = describe_class(tab, explorer.classes[0])
    assert page.count == int((y == 1).sum())
    assert page.before == page.after == pytest.approx(float(said[y == 1].double().mean()))
    assert page.others == pytest.approx((int((y == 0).sum()), *[float((~said)[y == 0].double().mean())] * 2))
    assert all(tile.right or explorer.classes[0] not in tile.wrong for tile in page.right)
    tab.hold(page.concepts[0].column)
    tab.edit("reweight", 9.0, scope=EVERYWHERE, classes=explorer.classes[0])
    after = describe_class(tab, explorer.classes[0])
    assert after.before == page.before
    assert (after.after, after.others[2]) != (page.after, page.others[2])


def test_edits_on_all_pictures_and_what_they_change(tab: Session):
    explorer, importance = tab.explorer, tab.explorer.bottleneck.importance()
    for column in importance[3].abs().topk(3).indices.tolist():
        tab.hold(column)
        tab.edit("remove", scope=EVERYWHERE, classes=explorer.classes[3])
    effect, found = effect_on_split(tab), tab.editor.compare(explorer.split)
    values = found.metrics()
    assert effect.name == "mean AUROC"
    assert effect.shown == [(values["edits/auroc_macro_before"], values["edits/auroc_macro_after"])]
    assert (effect.gained, effect.lost, effect.flipped) == (len(found.gained), len(found.lost), len(found.flipped))
    assert effect.flipped > 0
    assert [name for name, *_ in effect.classes] == [explorer.classes[3]]
    for tile, (row, label) in zip(effect.losses, found.lost.tolist()):
        assert (tile.row, label) == (row, 3)
        assert tile.note.endswith(explorer.classes[3])


def test_the_smallest_change_and_a_corrected_weight_flip_one_label(tab: Session):
    explorer = tab.explorer
    mistakes = (explorer.split.y == 1) != explorer.predicted
    label = int(mistakes.sum(dim=0).argmax())
    wrong = mistakes[:, label].nonzero()[:, 0].tolist()
    tab.look_at(explorer.picture(wrong[0]))
    name, before = explorer.classes[label], explorer.predicted[wrong[0], label]
    cut = explorer.model.model.thresholds
    tab.smallest_flip(name)
    tab.accept()
    assert bool(tab.logits()[label] > cut[label]) != bool(before)
    tab.undo()
    x = tab.picture.x[None]
    away = (explorer.bottleneck.activations(x)[0] - explorer.bottleneck.reference).abs()
    tab.hold(int(away.argmax()))
    tab.correct(name, present=not bool(before))
    assert bool(tab.logits()[label] > cut[label]) != bool(before)
    others = [k for k in range(6) if k != label]
    assert torch.allclose(tab.logits()[others], explorer.logits[wrong[0]][others], atol=1e-4)


def test_a_concept_of_labels(tab: Session):
    facts = describe_concept(tab.explorer, 0)
    assert facts.owner_auroc is None or 0 <= facts.owner_auroc <= 1
    assert {name for name, _ in facts.used_by} <= set(tab.explorer.classes)


def test_what_is_explained_stays_while_a_value_moves(tab: Session):
    before = decide(tab).explained
    tab.hold(int(tab.explorer.bottleneck.importance()[tab.explorer.classes.index(before)].argmax()))
    for value in (-4.0, -400.0):
        place = reach(tab)
        tab.edit("set", place.activation(value))
        assert decide(tab).explained == before
    assert any(bar.held for bar in decide(tab).bars)


@pytest.mark.parametrize("edited", [False, True])
def test_bars_of_vectors_show_what_their_names_do_not_say(edited: bool):
    tab = Session(explored("embedding"))
    explorer = tab.explorer
    if edited:
        tab.hold(3)
        tab.edit("mask")
        tab.hold(40)  # of another attribute: what excludes concept 3 would set that absent
        tab.edit("set", "present", scope=EVERYWHERE)
    found = decide(tab)
    c = explorer.classes.index(found.explained)
    assert found.beyond
    shown = sum(bar.after + bar.beyond for bar in found.bars)
    assert found.base + shown + found.others == pytest.approx(found.total, abs=1e-3)
    assert abs(found.outside) < 1e-3
    assert found.total == pytest.approx(float(tab.logits()[c]), abs=1e-4)
    masked = [bar for bar in found.bars if edited and bar.column == 3]
    assert all(abs(bar.after) + abs(bar.beyond) < 1e-4 for bar in masked)


# ------------------------------------------------------------------------------------------- values, levels, numbers


def test_one_of_several_values_is_chosen(values: Session):
    explorer = values.explorer
    assert explorer.bank.texts[:3] == ["hue: red", "hue: green", "hue: blue"]
    for row in range(0, len(explorer.split), 3):
        values.look_at(explorer.picture(row))
        values.hold(0)
        found = choices(values)
        assert (found.name, found.values) == ("hue", ["red", "green", "blue"])
        x = values.picture.x[None]
        assert found.now == int(explorer.bottleneck.activations(x)[0, :3].argmax())
    values.hold(explorer.bank.index(found.concepts[2][0]))
    values.edit("set", "present")
    assert choices(values).now == 2
    assert {edit.concept: edit.value for edit in values.edits.edits} == {
        "hue: blue": "present",
        "hue: red": "absent",
        "hue: green": "absent",
    }


def test_levels_go_together(values: Session):
    values.hold(3)
    found = choices(values)
    assert found.values == ["below 'middle or more'", "middle or more", "light"]
    for number, (concept, value) in enumerate(found.concepts):
        values.hold(values.explorer.bank.index(concept))
        values.edit("set", value)
        assert choices(values).now == number


def test_a_number_moves_in_its_unit(values: Session):
    explorer = values.explorer
    about = explorer.bank.concepts[5].provenance["number"]
    values.hold(5)
    place = reach(values)
    assert (place.unit, place.number) == ("cd", True)
    assert choices(values) is None
    activation = float(explorer.bottleneck.activations(values.picture.x[None])[0, 5])
    assert place.now == pytest.approx(about["mean"] + about["sd"] * activation, abs=1e-3)
    assert place.low <= about["low"] < about["high"] <= place.high
    values.edit("set", place.activation(50.0))
    assert reach(values).now == pytest.approx(50.0, abs=1e-3)
    assert values.edits.edits[0].why == "50 cd"
    values.edit("set", place.activation(60.0))  # dragged on: one edit
    assert [edit.why for edit in values.edits.edits] == ["60 cd"]
    expected = cbm.Editor(explorer.model).set("glow", 60.0).logits(values.picture.x[None])[0]
    assert torch.allclose(values.logits(), expected, atol=1e-4)
    with pytest.raises(UserError, match="'glow' is a number: it is neither present nor absent"):
        values.edit("set", "present", scope=HERE)
    assert [bar.text for bar in search_bars(values, "glow")] == ["glow"]


def test_pictures_of_a_group(values: Session):
    explorer = values.explorer
    assert list(groups(explorer)) == ["site: A", "site: B"]
    counts = [find_pictures(explorer, Filter(group=group)).count for group in groups(explorer)]
    assert sum(counts) == len(explorer.split)
    assert counts[0] == int((explorer.split.groups["site"] == 0).sum())
    with pytest.raises(UserError, match="no group 'site: C'"):
        find_pictures(explorer, Filter(group="site: C"))


def test_unknown_labels_are_neither_right_nor_wrong(values: Session):
    explorer = values.explorer
    rows = explorer.split.y[:, 1].isnan().nonzero()[:, 0].tolist()
    assert rows
    values.look_at(explorer.picture(rows[0]))
    found = decide(values)
    assert [share.unknown for share in found.classes if share.name == "bright"] == [True]
    assert found.right is not None
    assert find_pictures(explorer, Filter(of="bright", kind=INVENTED)).count == int(
        ((explorer.split.y[:, 1] == 0) & explorer.predicted[:, 1]).sum()
    )
