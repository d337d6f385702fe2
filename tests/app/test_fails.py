"""Where a model fails: every number is that of its pictures."""

import pytest
import torch
from explored_run import explored, explored_labels, explored_values
from sklearn.metrics import confusion_matrix

from cbm.app import Session
from cbm.app.fails import CELLS, confusion, where_it_fails
from cbm.app.filters import MISSED, filter_of, find_rows
from cbm.app.render import render


def count(explorer, address: str) -> int:
    return len(find_rows(explorer, filter_of(explorer, address)))


def test_every_cell_leads_to_its_pictures():
    explorer = explored()
    found = where_it_fails(explorer)
    expected = confusion_matrix(explorer.split.y, explorer.predicted, labels=range(len(explorer.classes)))
    assert len(explorer.classes) <= CELLS
    for c, row in enumerate(found.table):
        for d, cell in enumerate(row):
            assert cell.count == expected[c, d] == count(explorer, cell.address)
    assert found.wrong == sum(pair.count for pair in found.pairs) == int((explorer.predicted != explorer.split.y).sum())
    assert [pair.count for pair in found.pairs] == sorted((pair.count for pair in found.pairs), reverse=True)
    assert all(pair.true != pair.said for pair in found.pairs)


def test_every_class_leads_to_its_mistakes():
    explorer = explored()
    for line in where_it_fails(explorer).classes:
        assert line.wrong == count(explorer, line.address)
        assert line.low <= line.accuracy <= line.high


def test_groups_and_labels():
    grouped = explored_values()
    lines = where_it_fails(grouped).groups
    assert lines
    for line in lines:  # of a label: pictures of which nobody knows are shown, and not counted
        assert line.group.count <= count(grouped, line.address)
        assert filter_of(grouped, line.wrong).kind == MISSED
    labels = explored_labels()
    found = where_it_fails(labels)
    assert found.table == []
    assert found.slices is None
    assert all(count(labels, line.address) <= line.wrong for line in found.classes)


def test_counts_of_a_thousand_classes_need_no_table_of_buttons():
    generator = torch.Generator().manual_seed(0)
    y, said = (torch.randint(0, 1000, (50_000,), generator=generator) for _ in range(2))
    counts = confusion(y, said, 1000)
    assert int(counts.sum()) == 50_000
    assert int(counts[3, 7]) == int(((y == 3) & (said == 7)).sum())


@pytest.mark.parametrize("open_", [explored, explored_labels, explored_values])
def test_the_page_says_it(open_):
    explorer = open_()
    page = render("fails", found=where_it_fails(explorer), many=explorer.many)
    assert page.count("data-key=") >= len(where_it_fails(explorer).classes) / 4
    assert f"of {len(explorer.split)}" in page
    assert Session(explorer).wanted.address == ""
