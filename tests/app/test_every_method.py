"""What the page shows beside decisions works for every kind of model: energies, no concepts, found units, vectors."""

import json
from pathlib import Path

import pytest
from explored_run import explored

from cbm.app import Session
from cbm.app.api import answer
from cbm.app.fails import where_it_fails
from cbm.app.filters import Filter, find_rows
from cbm.app.map import draw, ways_to_colour, ways_to_place
from cbm.app.render import render
from cbm.app.static import write_page


@pytest.mark.parametrize("method", ["energy", "linear_probe", "discovered", "embedding"])
def test_every_view(method: str, tmp_path: Path):
    explorer = explored(method)
    tab = Session(explorer)
    if explorer.has_concepts:
        tab.hold(0)
        text = explorer.bank.texts[0]
        high, low = (set(find_rows(explorer, Filter().about(how, (text,))).tolist()) for how in ("high", "low"))
        assert high or low
        found = answer(explorer, "concept", f"name={text.replace(' ', '%20')}")
        assert sum(found["histogram"]["first"] + found["histogram"]["second"]) == len(explorer.split)
    assert find_rows(explorer, Filter(like=2))[0] == 2
    for placed in ways_to_place(explorer):
        for colour in ways_to_colour(explorer):
            assert "<canvas" in render("map", map=draw(tab, placed, colour))
    for what in ("", "pictures", "picture", "fails"):
        json.dumps(answer(explorer, what, ""), allow_nan=False)
    assert sum(line.wrong for line in where_it_fails(explorer).classes) == where_it_fails(explorer).wrong
    assert write_page(explorer, tmp_path / "page.html", 5) == 5
