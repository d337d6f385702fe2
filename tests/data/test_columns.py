"""Tables with ``columns.yaml``: several labels an image, and concepts that are words, levels and numbers."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, paint

from cbm.data import ImageDataset, read_dataset
from cbm.data.encoded import read_images
from cbm.data.labels import settle
from cbm.errors import UserError

HEADER = "path,split,Atelectasis,Edema,opacity,nucleus shape,severity,diameter,site,sex,patient"
ROWS = [
    "0.png,train,1,0,yes,round,none,12.5,A,f,P0",
    "1.png,train,0,-1,no,band,mild,20,A,m,P1",
    "2.png,train,1,,1,segmented,severe,0,B,f,P2",
    "3.png,train,0,1,0,Round,moderate,200,B,,P3",
    "4.png,train,0,1,,,,,A,m,P4",
    "5.png,train,0,0,0,band,mild,,B,m,P5",
    "6.png,test,1,1,0,round,none,3,B,m,P6",
    "7.png,test,0,0,0,round,none,3,B,m,P7",
]
FULL = """
labels: [Atelectasis, Edema]
cells: {"-1": unknown, "": unknown}
concepts:
  opacity: binary
  nucleus shape: {values: [round, band, segmented]}
  severity: {ordered: [none, mild, moderate, severe]}
  diameter: {unit: mm, range: [0, 200]}
groups: [site, sex]
subject: patient
template: "{}."
negative_template: "no {}."
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(8):
        paint(tmp_path / "set" / f"{i}.png", (90, 20, 60), i, size=6)
    write(tmp_path / "set")
    return tmp_path / "set"


def write(root: Path, said: str | None = FULL, header: str = HEADER, rows: list[str] = ROWS) -> None:
    (root / "images.csv").write_text("\n".join([header, *rows]) + "\n")
    if said is not None:
        (root / "columns.yaml").write_text(said)


def read(root: Path, **args) -> ImageDataset:
    return read_dataset("csv", "t", root, args)


def labels(data: ImageDataset) -> list[list[float]]:
    return np.nan_to_num(data.splits["train"].labels, nan=-9).tolist()


def test_all_of_it(root: Path):
    data = read(root)
    assert (data.task, data.classes) == ("many", ["Atelectasis", "Edema"])
    assert (data.template, data.negative_template, data.subject) == ("{}.", "no {}.", "patient")
    assert labels(data) == [[1, 0], [0, -9], [1, -9], [0, 1], [0, 1], [0, 0]]
    assert data.splits["train"].labels.dtype == np.float32
    shapes = ["nucleus shape: round", "nucleus shape: band", "nucleus shape: segmented"]
    assert data.concept_names == ["opacity", *shapes, "severity", "diameter"]
    assert data.concept_groups == {"nucleus shape": shapes}
    assert np.nan_to_num(data.splits["train"].concepts, nan=-9).tolist() == [
        [1, 1, 0, 0, 0, 12.5],
        [0, 0, 1, 0, 1, 20],
        [1, 0, 0, 1, 3, 0],
        [0, 1, 0, 0, 2, 200],
        [-9, -9, -9, -9, -9, -9],
        [0, 0, 1, 0, 1, -9],
    ]
    shape, severity, diameter = data.specs
    assert (shape.name, shape.kind, shape.columns, shape.values) == (
        "nucleus shape", "categorical", shapes, ["round", "band", "segmented"],
    )  # fmt: skip
    assert (severity.kind, severity.columns, severity.values) == (
        "ordinal", ["severity"], ["none", "mild", "moderate", "severe"],
    )  # fmt: skip
    assert (diameter.kind, diameter.unit, diameter.low, diameter.high) == ("continuous", "mm", 0, 200)
    assert data.group_names == {"site": ["A", "B"], "sex": ["f", "m"]}
    assert data.splits["train"].groups["sex"].tolist() == [0, 1, 0, -1, 1, 1]
    assert data.splits["train"].subjects.tolist() == [f"P{i}" for i in range(6)]


def test_a_cell_of_minus_one_is_read_three_ways_or_refused(root: Path):
    assert [row[1] for row in labels(read(root, unknown="ignore"))] == [0, -9, -9, 1, 1, 0]
    assert [row[1] for row in labels(read(root, unknown="absent"))] == [0, 0, -9, 1, 1, 0]
    assert [row[1] for row in labels(read(root, unknown="present"))] == [0, 1, -9, 1, 1, 0]
    assert [row[1] for row in labels(read(root, blank="absent"))] == [0, -9, 0, 1, 1, 0]
    write(root, FULL.replace('"-1": unknown', '"-1": absent'))
    assert [row[1] for row in labels(read(root))] == [0, 0, -9, 1, 1, 0]
    write(root, FULL.replace('cells: {"-1": unknown, "": unknown}', ""))
    with pytest.raises(UserError) as refused:
        read(root)
    assert str(refused.value) == (
        "'images.csv' holds -1 in column 'Edema': say in columns.yaml what it means (cells: {\"-1\": unknown | absent})"
    )
    write(root, rows=[row.replace(",-1,", ",maybe,") for row in ROWS])
    with pytest.raises(UserError, match="holds 'maybe' in column 'Edema': say in columns.yaml what it means"):
        read(root)


def test_numbers_have_many_spellings(root: Path):
    write(root, rows=[row.replace(",-1,", ",-1.0,").replace(",1,0,", ",1.0,0.0,") for row in ROWS])
    assert labels(read(root))[:2] == [[1, 0], [0, -9]]


def test_soft_targets_are_drawn_once_and_train_only(root: Path):
    first, again = (read(root, unknown="soft").splits["train"].labels[1, 1] for _ in range(2))
    assert first == again
    assert 0.55 <= first <= 0.85
    assert read(root, unknown="soft", seed=1).splits["train"].labels[1, 1] != first
    values = np.full((400, 2), -1.0)
    drawn = settle(values, "soft")
    assert 0.55 <= drawn.min() < 0.57
    assert 0.83 < drawn.max() <= 0.85
    from cbm.config import change_card, load_card

    write(root, rows=[row.replace("6.png,test,1,1", "6.png,test,1,-1") for row in ROWS])
    card = change_card(load_card("csv"), [f"root={root}", "args.unknown=soft", "val_fraction=0.2"])
    data = read_images(card, root.parent / "cache")
    kept = data.splits["train"].labels[:, 1]
    assert np.isnan(data.splits["test"].labels[0, 1])
    assert set(np.unique(np.nan_to_num(kept, nan=0)).round(3)) <= {0, 1, np.float32(first).round(3)}


def test_labels_are_kept_and_left_out(root: Path):
    assert read(root, drop="Edema").classes == ["Atelectasis"]
    assert read(root, keep=["Edema"]).splits["train"].labels.shape == (6, 1)
    with pytest.raises(UserError, match=r"dataset.args.drop=\[Edma\]: 't' has no such label; did you mean 'Edema'"):
        read(root, drop=["Edma"])
    with pytest.raises(UserError, match="leave no label"):
        read(root, drop=["Edema", "Atelectasis"])
    with pytest.raises(UserError, match="dataset.args.unknown=zero"):
        read(root, unknown="zero")
    rows = [row.replace(",train,1,", ",train,0,") for row in ROWS]
    rows[0] = ROWS[0]
    write(root, rows=rows)
    with pytest.raises(UserError, match=r"label 'Atelectasis' has 1 training picture with it: needs 2 .*args.drop="):
        read(root)


def test_a_column_that_lists_labels(root: Path):
    rows = ["0.png,A|B", "1.png,No Finding", "2.png,B | C", "3.png,A", "4.png,", "5.png,C", "6.png,C|B", "7.png,A"]
    said = 'labels: {column: findings, separator: "|", none: "No Finding"}'
    write(root, said, "path,findings", rows)
    data = read(root)
    assert data.classes == ["A", "B", "C"]
    assert labels(data) == [
        [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0], [-9, -9, -9], [0, 0, 1], [0, 1, 1], [1, 0, 0],
    ]  # fmt: skip
    assert labels(read(root, blank="absent"))[4] == [0, 0, 0]
    write(root, said, "path,findings", ["0.png,A|No Finding", *rows[1:]])
    with pytest.raises(UserError, match=r"'A\|No Finding' in column 'findings': 'No Finding' and a label exclude"):
        read(root)
    write(root, said + '\ncells: {"?": unknown, "": absent}', "path,findings", ["0.png,?", *rows[1:], "0.png,"])
    assert labels(read(root))[0] == [-9, -9, -9]
    assert labels(read(root))[4] == [0, 0, 0]


def test_valued_concepts_of_classes(root: Path):
    """Without ``labels`` an image has a class, as without the file."""
    said = "concepts: {stage: {ordered: [1, 2, 3, 4, 5]}, colour: {column: farbe, values: [rot, blau]}}"
    rows = [f"{i}.png,{'xy'[i % 2]},{i % 5 + 1}.0,{'rot' if i < 4 else 'blau'},7" for i in range(8)]
    write(root, said, "path,label,stage,farbe,other", rows)
    data = read(root)
    assert (data.task, data.classes) == ("one", ["x", "y"])
    assert data.splits["train"].labels.dtype == np.int64
    assert data.concept_names == ["stage", "colour: rot", "colour: blau"]
    assert data.splits["train"].concepts[:3].tolist() == [[0, 1, 0], [1, 1, 0], [2, 1, 0]]
    with pytest.raises(UserError, match="dataset.args.drop is for labels"):
        read(root, drop=["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[Atelectasis, Edema]", "[Atelectasis, Edma]"), "labels names a column 'Edma' .* did you mean 'Edema'"),
        (("diameter:", "diametre:"), "concepts names a column 'diametre' .* did you mean 'diameter'"),
        (("[site, sex]", "[sites]"), "groups names a column 'sites' .* did you mean 'site'"),
        (("subject: patient", "subject: patients"), "subject names a column 'patients'"),
        (("segmented]", "segmnted]"), "holds 'segmented', which is not among the values .* did you mean 'segmnted'"),
        (("severe]", "grave]"), "'severity' holds 'severe', which is not among the levels"),
        (("[0, 200]", "[0, 100]"), r"column 'diameter' holds 200, outside its range in columns.yaml \(0 to 100 mm\)"),
        (("opacity: binary", "opacity: binary\n  Edema: binary"), "'Edema' is a label and a concept: .*allow_overlap"),
        (("none, mild, moderate, severe", "none, mild"), r"severity has 2 levels, expected 3 to 20 \(use binary\)"),
        (("labels:", "lables:"), "unknown key 'lables', did you mean 'labels'"),
        (("{unit: mm", "{units: mm"), "unknown key 'concepts: diameter: units', did you mean 'unit'"),
        (('"": unknown', '"": unknwon'), "cells: '' is 'unknwon': did you mean 'unknown'"),
        (("[0, 200]", "[200, 0]"), "range is .*expected the smallest and the largest"),
        (("[0, 200]", "[.nan, 3]"), "range is .*expected the smallest and the largest"),
        (("{values: [round", "{values: [yes, round"), "expected a name .in quotes"),
        (("{values: [round", "{values: [band, round"), "has 'band' twice"),
        (('"no {}."', '"no."'), "negative_template is no., expected a sentence with {}"),
        (("opacity: binary", "diameter: binary"), "a key twice"),
        (("  opacity: binary", "  opacity: ordinal"), "concepts: opacity is ordinal, expected binary, {values"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(root: Path, change: tuple[str, str], message: str):
    write(root, FULL.replace(*change))
    with pytest.raises(UserError, match=message) as refused:
        read(root)
    assert "\n" not in str(refused.value)


def test_a_label_that_is_a_concept_too_is_allowed_when_said(root: Path):
    write(root, FULL.replace("opacity: binary", "Edema: binary") + "allow_overlap: true\n")
    data = read(root)
    assert "Edema" in data.classes
    assert "Edema" in data.concept_names
    assert np.isnan(data.splits["train"].concepts[1, 0])


def test_settings_that_do_not_fit(root: Path):
    with pytest.raises(UserError, match="dataset.args.threshold=0.5: .*columns.yaml"):
        read(root, threshold=0.5)
    with pytest.raises(UserError, match="dataset.args.label_column=Edema: .*columns.yaml"):
        read(root, label_column="Edema")
    write(root, "- labels")
    with pytest.raises(UserError, match="the content is"):
        read(root)


def test_without_the_file_a_table_means_what_it_meant(root: Path):
    rows = [f"{i}.png,{'xy'[i % 2]},{i % 2}" for i in range(8)]
    (root / "columns.yaml").unlink()
    write(root, None, "path,label,red", rows)
    data = read(root)
    assert (data.task, data.specs, data.concept_names) == ("one", [], ["red"])
    with pytest.raises(UserError, match="dataset.args.unknown is for labels"):
        read(root, unknown="absent")


def test_rows_about_one_image_are_put_together(root: Path):
    write(root, rows=[*ROWS, "4.png,train,0,1,1,band,,5,A,m,P4"])
    data = read(root)
    assert data.splits["train"].concepts[4, [0, 2, 5]].tolist() == [1, 1, 5]
    write(root, rows=[*ROWS, "4.png,train,1,1,1,band,,5,A,m,P4"])
    with pytest.raises(UserError, match="'4.png' stands twice, and column 'Atelectasis' is '0' in line 6, '1' in"):
        read(root)


def test_the_example_of_the_guide(root: Path):
    guide = (PROJECT / "docs/guides/your_data.md").read_text()
    (table,) = re.findall(r"```text\n(path,Atelectasis.*?)```", guide, re.DOTALL)
    (said,) = re.findall(r"```yaml\n(labels:.*?)```", guide, re.DOTALL)
    (root / "images.csv").write_text(table)
    (root / "columns.yaml").write_text(said)
    data = read(root)
    assert labels(data) == [[1, 0], [0, -9], [1, -9], [0, 1], [0, 1], [0, 0]]
    assert [spec.kind for spec in data.specs] == ["categorical", "ordinal", "continuous"]
    assert data.splits["train"].concepts.shape == (6, 6)
    assert data.negative_template == "a radiograph without {}."


@pytest.mark.parametrize(("old", "new", "said"), [
    ("labels: [Atelectasis, Edema]", "labels: []", "labels is empty: name columns"),
    ("values: [round, band, segmented]", "values: [round, band, Round]", "'nucleus shape' has 'Round' twice"),
])  # fmt: skip
def test_nothing_is_taken_for_something_else(root: Path, old: str, new: str, said: str):
    assert old in FULL
    write(root, FULL.replace(old, new))
    with pytest.raises(UserError, match=said):
        read(root)


def test_what_stands_for_none_in_another_case(root: Path):
    said = 'labels: {column: f, separator: "|", none: "no finding"}'
    write(root, said, "path,split,f", [f"{i}.png,train,{'No Finding' if i % 2 else 'Edema'}" for i in range(8)])
    with pytest.raises(UserError, match="none is 'no finding', which no cell of column 'f' says; .*'No Finding'"):
        read(root)
