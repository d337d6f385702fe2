"""Tables of answers about images: written, read back, read as a data set, and what is wrong with one said in a line."""

from pathlib import Path

import numpy as np
import pytest
from conftest import paint

from cbm.data import read_dataset
from cbm.data.concept_answers import ConceptAnswer, answered_by, read_concept_answers, write_concept_answers
from cbm.data.images import ImageArray, ImageFiles
from cbm.data.picture_places import PicturePlaces
from cbm.errors import UserError

ANSWERS = [
    ConceptAnswer("../pictures/a.png", "red", "val", "round, or nearly", True, "ana", "2026-01-01T00:00:00+00:00"),
    ConceptAnswer("../pictures/b.png", "blue", "val", "shiny", False, "ana", "2026-01-01T00:00:01+00:00"),
    ConceptAnswer("../pictures/c.png", "blue", "test", "round, or nearly", None),
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in "abc":
        paint(tmp_path / "pictures" / f"{name}.png", (9, 9, 9), 0)
    path = tmp_path / "run" / "labels.csv"
    write_concept_answers(path, ANSWERS, "people")
    return path


def test_round_trip(table: Path):
    assert read_concept_answers(table) == ANSWERS
    assert answered_by(table) == "people"
    assert read_concept_answers(table.with_name("none.csv")) == []
    table.with_suffix(".json").unlink()  # the table alone decides what was said
    assert [each.shown for each in read_concept_answers(table)] == [True, False, None]
    assert read_concept_answers(table)[0].who == ""
    assert answered_by(table) == "people"
    assert answered_by(table.with_name("labels.tiny.csv")) == "model:tiny"  # never taken for those of people


def test_a_data_card_reads_the_table(table: Path):
    data = read_dataset("csv", "csv", table, {}, to_train=False)
    assert data.concept_names == ["round, or nearly", "shiny"]
    np.testing.assert_array_equal(data.splits["val"].concepts, [[1, np.nan], [np.nan, 0]])
    assert np.isnan(data.splits["test"].concepts).all()  # a skipped question is not known
    assert data.splits["val"].images.open(0).size == (24, 24)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p.png,red,val,maybe,\n", "line 2: 'round' is 'maybe'; expected 1, 0 or ?"),
        ("p.png,red,val,1,0\n", "line 2: expected one answer (1, 0 or ?), found 2"),
        ("p.png,red,val,,\n", "line 2: expected one answer (1, 0 or ?), found 0"),
        ("p.png,red,vall,1,\n", "line 2: unknown split 'vall': did you mean 'val'?"),
        (",red,val,1,\n", "line 2: path and label must not be empty"),
        ("p.png,red,val,1,,1,1\n", "row 2 has more cells than there are columns (5)"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str):
    table = tmp_path / "labels.csv"
    table.write_text(f"path,label,split,round,shiny\n{line}")
    with pytest.raises(UserError) as error:
        read_concept_answers(table)
    assert message in str(error.value)


def test_other_damage(table: Path):
    table.with_suffix(".json").write_text('{"by": ["x"], "answers": [{"path": [1], "concept": {}}, {"who": 3}]}')
    assert len(read_concept_answers(table)) == 3
    table.with_suffix(".json").write_text('{"answers": 3}')
    with pytest.raises(UserError, match="does not say who gave the answers"):
        read_concept_answers(table)
    table.with_suffix(".json").write_text('{"by": "peo')
    with pytest.raises(UserError, match="is not JSON"):
        answered_by(table)
    table.write_text("path,split,round\n")
    with pytest.raises(UserError, match="has no column 'label'"):
        read_concept_answers(table)
    with pytest.raises(UserError, match=r"expected a table, such as '.*x\.csv'"):
        write_concept_answers(table.with_name("x.json"), [], "people")


def test_pictures_in_memory_are_copied_beside_the_table(tmp_path: Path):
    pixels = np.full((2, 8, 8, 3), 7, np.uint8)
    places = PicturePlaces(ImageArray(pixels, ["a/0", "a-0"]), tmp_path / "run" / "labels.csv")
    assert places.path(0) != places.path(1)
    assert not (tmp_path / "run").exists()
    assert places.show(0) == tmp_path / "run" / places.path(0)
    assert places.show(0).is_file()


def test_files_are_where_they_are(tmp_path: Path):
    paint(tmp_path / "pictures" / "a.png", (9, 9, 9), 0)
    images = ImageFiles(tmp_path / "pictures", ["a.png", "gone.png"])
    places = PicturePlaces(images, tmp_path / "runs" / "one" / "labels.csv")
    assert places.path(0) == "../../pictures/a.png"
    assert places.show(0) == tmp_path / "pictures" / "a.png"
    with pytest.raises(UserError, match=r"'gone\.png' cannot be read any more"):
        PicturePlaces(images.take([1]), tmp_path / "labels.csv")
