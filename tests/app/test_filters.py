"""Filters: which pictures, in which order, and the address that says so."""

import pytest
import torch
from explored_run import explored, explored_labels, explored_values
from hypothesis import given
from hypothesis import strategies as st

from cbm.app import Session
from cbm.app.address import address_of, visit
from cbm.app.filters import (
    INVENTED,
    LITERALS,
    MISTAKES,
    PICKED,
    Filter,
    cuts_of,
    filter_of,
    find_rows,
    groups,
    label_column,
    rows_of,
    spans,
)
from cbm.app.gallery import find_pictures
from cbm.app.inputs import LONGEST_ADDRESS
from cbm.errors import UserError


def test_every_part_narrows_and_all_of_them_meet():
    explorer = explored()
    y, said = explorer.split.y, explorer.predicted
    wrong = (said != y).nonzero()[:, 0].tolist()
    true, called = explorer.classes[int(y[wrong[0]])], explorer.classes[int(said[wrong[0]])]
    rows = find_rows(explorer, Filter(of=true, said=called))
    assert rows.tolist() == [r for r in wrong if (y[r], said[r]) == (y[wrong[0]], said[wrong[0]])]
    both = find_rows(explorer, Filter(kind=MISTAKES, picked=(*wrong[:3], 100)))
    assert both.tolist() == [row for row in (*wrong[:3], 100) if row in wrong]
    text = explorer.bank.texts[0]
    high, low = (set(find_rows(explorer, Filter().about(how, (text,))).tolist()) for how in ("high", "low"))
    scores = explorer.bottleneck.scores(explorer.split.x, [0])[:, 0]
    cuts = cuts_of(explorer, 0)
    assert high == set((scores >= cuts[1]).nonzero()[:, 0].tolist())
    assert low == set((scores <= cuts[0]).nonzero()[:, 0].tolist())
    assert not high & low


def test_what_the_labels_say():
    explorer = explored()
    text = next(text for text in explorer.bank.texts if label_column(explorer, text) is not None)
    labels = explorer.split.concepts[:, label_column(explorer, text)]
    for how, value in (("shows", 1), ("lacks", 0)):
        found = find_rows(explorer, Filter().about(how, (text,)))
        assert found.tolist() == (labels == value).nonzero()[:, 0].tolist()


def test_cuts_are_those_of_the_validation_pictures():
    explorer = explored()
    scores = explorer.bottleneck.scores(explorer.val.x, [3])[:, 0].double()
    assert cuts_of(explorer, 3) == pytest.approx((float(scores.quantile(0.25)), float(scores.quantile(0.75))))


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


@given(st.sampled_from(range(20)), st.sets(st.integers(0, 119), max_size=40), WORDS, st.booleans(), st.integers(0, 119))
def test_an_address_says_the_same_filter(name, picked, words, mistakes, like):
    explorer = explored()
    texts = explorer.bank.texts
    wanted = Filter(
        of=explorer.classes[name], said=explorer.classes[-1], kind=MISTAKES if mistakes else Filter().kind,
        high=(texts[0], texts[5]), low=(texts[7],), picked=tuple(sorted(picked)), words=words, like=like,
    )  # fmt: skip
    assert filter_of(explorer, wanted.address) == wanted
    assert filter_of(explorer, "") == Filter()


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=200))
def test_rows_are_written_in_short(rows):
    assert rows_of(spans(tuple(rows))) == tuple(sorted(rows))


ODD = {
    "of=Aldermor": "did you mean 'Aldermoor'",
    "said=x": "no class 'x'",
    "kind=mistake": "did you mean 'mistakes'",
    "group=site: A": "no group",
    "high=no such": "no concept 'no such'",
    "like=120": "no picture 120",
    "like=-1": "expected the row",
    "picked=5-": "",
    "picked=120": "no picture 120",
    "picked=a": "expected rows",
    f"picked=0-{PICKED}": "at most",
}


@pytest.mark.parametrize("address", ODD)
def test_what_there_is_not_is_named(address: str):
    if ODD[address]:
        with pytest.raises(UserError, match=ODD[address]):
            filter_of(explored(), address)


def test_of_labels_and_of_groups():
    explorer = explored_labels()
    with pytest.raises(UserError, match="several labels"):
        filter_of(explorer, f"said={explorer.classes[0]}")
    assert filter_of(explorer, f"of={explorer.classes[0]}&kind={INVENTED}").kind == INVENTED
    grouped = explored_values()
    name = next(iter(groups(grouped)))
    column, value = groups(grouped)[name]
    rows = find_rows(grouped, filter_of(grouped, f"group={name}"))
    assert rows.tolist() == (torch.from_numpy(grouped.split.groups[column]) == value).nonzero()[:, 0].tolist()
    unlabelled = next((text for text in grouped.bank.texts if label_column(grouped, text) is None), None)
    if unlabelled is not None:
        with pytest.raises(UserError, match="say high or low"):
            filter_of(grouped, f"shows={unlabelled}")


def test_what_a_filter_says_beyond_the_controls_can_be_taken_away():
    wanted = Filter(said="wren", high=("a", "b"), words="red -blue", like=3, picked=(1, 2), kind=MISTAKES)
    rest = wanted.beyond_controls
    assert len(rest) == 6
    assert all(len(without.beyond_controls) == 5 and without.kind == MISTAKES for _, without in rest)


def test_an_address_brings_a_tab_to_the_same_place():
    explorer = explored()
    tab, other = Session(explorer), Session(explorer)
    tab.look_at(explorer.picture(17))
    tab.hold(4)
    tab.explain(explorer.classes[6])
    tab.wanted, tab.page = Filter(high=(explorer.bank.texts[2],)), 1
    place = visit(other, "tab=Concepts&" + address_of(tab))
    assert place == "Concepts"
    assert (other.picture.row, other.concept, other.why, other.wanted, other.page) == (
        17, 4, explorer.classes[6], tab.wanted, 1,
    )  # fmt: skip
    assert address_of(other) == address_of(tab)
    assert address_of(Session(explorer)) == ""


@pytest.mark.parametrize("address", ["picture=1000", "picture=x", "concept=none", "why=nobody", "page=-1", "of=nobody"])
def test_a_wrong_address_changes_nothing(address: str):
    tab = Session(explored())
    tab.look_at(explored().picture(5))
    with pytest.raises(UserError):
        visit(tab, address)
    assert (tab.picture.row, tab.concept, tab.wanted) == (5, None, Filter())


def test_literals_are_in_the_words_of_slices():
    assert set(LITERALS) == {"high", "low", "shows", "lacks"}
    assert find_pictures(explored(), Filter(high=(explored().bank.texts[0],))).count > 0


def test_as_many_rows_as_can_be_picked_have_an_address():
    rows = tuple(range(1, 250 * PICKED, 250))
    assert len(rows) == PICKED
    assert len(Filter(picked=rows).address) < LONGEST_ADDRESS
