"""The tab that asks whether what was used is true."""

import copy
from pathlib import Path

import pytest
from explored_run import explored

from cbm.app.label import Labelling
from cbm.data.concept_answers import read_concept_answers
from cbm.errors import UserError


@pytest.fixture
def labelling(tmp_path: Path) -> Labelling:
    """Of a run whose folder is this test's."""
    explorer = copy.copy(explored())
    explorer.model = copy.copy(explorer.model)
    explorer.model.path = tmp_path
    return Labelling(explorer)


def test_answers_go_to_the_table_of_the_run(labelling: Labelling, tmp_path: Path):
    page = labelling.view()
    first = labelling.pair
    assert first is not None
    assert "data:image/" in page
    assert first.concept in page
    assert "0 answers about 0 classes" in page
    labelling.press("yes", str(first.row))
    page = labelling.view()
    assert "True for <b>100.0% (20.7 to 100.0%)</b>" in page
    assert labelling.pair != first
    labelling.press("no", str(first.row))  # the second click on a button: nothing is said about the next picture
    labelling.press("skip", str(labelling.pair.row))
    labelling.view()
    assert [each.shown for each in read_concept_answers(tmp_path / "labels.csv")] == [True, None]
    for _ in range(3):
        labelling.press("undo")
        labelling.view()
    assert labelling.pair == first
    with pytest.raises(UserError, match="stands for nothing here"):
        labelling.press("perhaps", str(first.row))


def test_why_nothing_is_asked_is_said(labelling: Labelling, tmp_path: Path):
    (tmp_path / "labels.csv").write_text("path,label,split\nx\n")
    assert "labels.csv&#39; line 2: expected one answer" in labelling.view()
    other = copy.copy(labelling.explorer)
    other.card = copy.deepcopy(other.card)
    other.card.root = "elsewhere"
    assert "only the run&#39;s own pictures are asked about" in Labelling(other).view()
