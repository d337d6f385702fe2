"""Units in the explorer: found by their words, shown by their pictures, named by hand in all tabs at once."""

from pathlib import Path

import pytest
import torch
from birds_run import shared_folder
from explored_run import copied, explored

from cbm.app import Explorer, Session
from cbm.app.concepts import NAMED, UNNAMED, describe_concept, find_concepts
from cbm.app.decision import decide, reach, search_bars
from cbm.app.render import render
from cbm.app.session import EVERYWHERE
from cbm.concepts.units import units_of
from cbm.errors import UserError
from cbm.trained import load


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(copied(), shared_folder() / "cache")


def test_units_are_found_by_their_words(explorer: Explorer):
    bank, units = explorer.bank, units_of(explorer.bank)
    for kind, named in ((NAMED, True), (UNNAMED, False)):
        assert find_concepts(bank, "", kind) == [k for k, unit in enumerate(units) if unit.named == named]
    column = next(k for k, unit in enumerate(units) if not unit.named and unit.words)
    word = units[column].words[1][0]
    assert column in find_concepts(bank, word)
    assert column in find_concepts(bank, word, UNNAMED)
    assert column not in find_concepts(bank, word, NAMED)
    assert find_concepts(bank, f"{units[column].number:04d}")[0] == column
    assert set(find_concepts(bank, "zzzz qqqq")) <= set(range(len(bank)))


def test_a_unit_has_its_pictures_words_and_neighbours(explorer: Explorer):
    model, x = explorer.bottleneck, explorer.split.x
    column = int((model.activations(x) > 0).sum(dim=0).argmax())
    facts = describe_concept(explorer, column)
    level = model.activations(x)[:, column]
    assert facts.fires == int((level > 0).sum())
    rows = [tile.row for tile in (*facts.top, *facts.middle, *facts.bottom)]
    assert len(rows) == len(set(rows))
    assert bool((level[rows] > 0).all())
    assert facts.top[0].row == int(level.argmax())
    assert level[rows].tolist() == sorted(level[rows].tolist(), reverse=True)
    assert facts.unit.words
    assert facts.mark is not None
    atoms = explorer.bank.embeddings
    assert facts.near[0][1] == pytest.approx(float((atoms @ atoms[column]).sort(descending=True).values[1]), abs=1e-5)
    html = render("concept", facts=facts, edits=[])
    assert "Fires most on" in html
    assert "nearest words (cosine)" in html
    assert "nearest units" in html
    assert "Highest scores" in render("concept", facts=describe_concept(explored(), 0), edits=[])
    assert describe_concept(explored(), 0).unit is None


def test_a_name_is_given_in_one_tab_and_seen_in_all(explorer: Explorer):
    one, two = Session(explorer), Session(explorer)
    column = int(explorer.bottleneck.importance().abs().amax(dim=0).argmax())
    old = explorer.bank.texts[column]
    two.hold(column)
    two.edit("remove", scope=EVERYWHERE)
    before = two.logits()
    one.hold(column)
    assert one.rename("spotted wing") == (old, "spotted wing")
    assert (one.held, two.held) == ("spotted wing", "spotted wing")
    assert [edit.concept for edit in two.edits.edits] == ["spotted wing"]
    assert torch.equal(two.logits(), before)
    assert load(explorer.model.path).bank.texts[column] == "spotted wing"
    assert column in find_concepts(explorer.bank, old)  # by the name that it had
    assert f"It was called {old}." in render("concept", facts=describe_concept(explorer, column), edits=[])
    with pytest.raises(UserError, match="another unit's name"):
        one.rename(explorer.bank.texts[column - 1])
    assert one.rename(None) == ("spotted wing", old)
    assert [edit.concept for edit in two.edits.edits] == [old]
    assert decide(two).bars
    with pytest.raises(UserError, match="nothing to undo"):
        one.rename(None)


def test_edits_of_units_reach_from_zero_to_what_is_typical(explorer: Explorer):
    tab = Session(explorer)
    column = int(explorer.bottleneck.activation.typical.argmax())
    tab.hold(column)
    assert reach(tab).low == 0.0
    tab.edit("set", "present")
    assert reach(tab).now * reach(tab).step == pytest.approx(
        float(explorer.bottleneck.activation.typical[column]), rel=1e-4
    )
    tab.edit("set", "absent")
    assert reach(tab).now == 0.0
    assert decide(tab).words.part == "unit"
    assert search_bars(tab, explorer.bank.texts[column])


def test_the_page_can_be_made(explorer: Explorer):
    pytest.importorskip("gradio", reason="the explorer is not installed (the extra app)")
    from cbm.app.page import Page

    assert Page(explorer).explorer.units
    assert not Page(explored()).explorer.units


def test_only_units_get_names(tmp_path: Path):
    tab = Session(explored())
    tab.hold(0)
    with pytest.raises(UserError, match="were written down"):
        tab.rename("something")
