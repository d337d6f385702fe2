"""Tables as they are found."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, paint

from cbm.data import ImageDataset, complete_splits, read_dataset
from cbm.data.copies import shared_subjects
from cbm.errors import UserError

FRACTIONS = dict(val_fraction=0.1, test_fraction=0.2, seed=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve different images of two classes: ``x/0.png`` to ``x/5.png`` and ``y/...``."""
    for c, name in enumerate("xy"):
        for i in range(6):
            paint(tmp_path / "set" / name / f"{i}.png", (90, 20, 60), 10 * c + i, size=6)
    return tmp_path / "set"


def table(root: Path, *lines: str) -> Path:
    (root / "images.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "images.csv"


def rows(form: str = "{path},{label}", **more) -> list[str]:
    return [form.format(path=f"{name}/{i}.png", label=name, i=i, **more) for name in "xy" for i in range(6)]


def read(root: Path, **args):
    return read_dataset("csv", "t", root, args)


# ------------------------------------------------------------------------------------------------- one row per image


@pytest.mark.parametrize("spelling", ["x/1.png", "./x/1.png", "x//1.png", "x/../x/1.png", " x/1.png", "x\\1.png"])
def test_an_image_in_two_rows_is_taken_once(root: Path, tmp_path: Path, spelling: str):
    table(root, "path,label", *rows(), f"{spelling},x")
    data = read(root)
    assert len(data.splits["train"]) == 12
    assert "1 row(s) name an image once more, first 'x/1.png'" in data.doubts[0]
    drawn = [complete_splits(read(root), tmp_path / "c", **FRACTIONS).splits for _ in range(2)]
    assert [split.images.names for split in drawn[0].values()] == [split.images.names for split in drawn[1].values()]
    names = [set(split.images.names) for split in drawn[0].values()]
    assert len(set.union(*names)) == sum(map(len, names)) == 12


def test_an_absolute_path_is_the_same_image(root: Path):
    table(root, "path,label", *rows(), f"{root.absolute()}/x/1.png,x")
    assert len(read(root).splits["train"]) == 12


@pytest.mark.parametrize("spelling", ["x/1.png", "./x/1.png"])
def test_an_image_of_two_classes_is_refused(root: Path, spelling: str):
    table(root, "path,label", *rows(), f"{spelling},y")
    with pytest.raises(
        UserError, match=r"1 image\(s\) have more than one class, first 'x/1.png': 'x' in line 3, 'y' in"
    ):
        read(root)


def test_an_image_in_two_splits_is_a_fault(root: Path):
    table(root, "path,label,split", *rows("{path},{label},train"), "./x/1.png,x,test", "y/0.png,y,test")
    assert read(root).faults == [
        f"2 picture(s) of test are in train too: 'x/1.png' (lines 3 and 14 of '{root}/images.csv'), ..."
    ]


def test_what_several_rows_say_is_put_together_or_refused(root: Path):
    table(root, "path,label,red,big", *rows("{path},{label},1,"), "x/1.png,x,yes,0")
    shown = read(root).splits["train"].concepts
    assert shown[1].tolist() == [1, 0]
    table(root, "path,label,red,big", *rows("{path},{label},1,"), "x/1.png,x,0,0")
    with pytest.raises(UserError, match="'x/1.png' stands twice, and column 'red' is '1' in line 3, '0' in line 14"):
        read(root)


# ------------------------------------------------------------------------------------------------------- as found


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_separators(root: Path, mark: str):
    table(root, mark.join(["path", "label", "red"]), *rows(mark.join(["{path}", "{label}", "1"])))
    assert read(root).concept_names == ["red"]


def test_a_comma_separates_although_names_have_semicolons(root: Path):
    table(root, "path,label,a; b; c; d", *rows("{path},{label},1"))
    assert read(root).concept_names == ["a; b; c; d"]


@pytest.mark.parametrize(
    ("yes", "no"), [("yes", "no"), ("Y", "N"), ("TRUE", "False"), ("t", "f"), ("1.0", "0.0"), ("present", "absent")]
)
def test_words_for_yes_and_no(root: Path, yes: str, no: str):
    table(root, "path,label,red", *rows(f"{{path}},{{label}},{yes}")[:6], *rows(f"{{path}},{{label}}, {no} ")[6:])
    assert read(root).splits["train"].concepts[:, 0].tolist() == [1.0] * 6 + [0.0] * 6


@pytest.mark.parametrize("path", ["path", "Filename", "image_path", "FILE_NAME", "img"])
@pytest.mark.parametrize("label", ["label", "Class", "category", "target"])
def test_usual_column_names(root: Path, path: str, label: str):
    table(root, f"{path},{label}", *rows())
    assert read(root).classes == ["x", "y"]


def test_spaces_in_the_header_are_no_part_of_names(root: Path):
    table(root, " path , label, red ,patient ", *rows("{path}, {label},1,P{i}"))
    data = read(root, subject="patient")
    assert (data.classes, data.concept_names) == (["x", "y"], ["red"])
    table(root, "path,label,red,red ", *rows("{path},{label},1,1"))
    with pytest.raises(UserError, match="has two columns 'red'"):
        read(root)


def test_other_columns_are_named(root: Path):
    table(root, "nummer,art,teil", *rows("{path},{label},train"))
    with pytest.raises(UserError, match="no column 'path'.*dataset.args.path_column=COLUMN"):
        read(root)
    with pytest.raises(UserError, match="no column 'label'.*dataset.args.label_column=COLUMN"):
        read(root, path_column="nummer")
    with pytest.raises(UserError, match="dataset.args.label_column=arten: .* no such column; did you mean 'art'"):
        read(root, path_column="nummer", label_column="arten")
    assert read(root, path_column="nummer", label_column="art", split_column="teil").classes == ["x", "y"]


def test_paths_of_windows_and_macos(root: Path):
    for i in range(6):
        paint(root / unicodedata.normalize("NFD", "Löwe") / f"{i}.png", (9, 9, 99), i, size=6)
    lines = [line.replace("/", "\\") for line in rows()]
    table(root, "path,label", *lines, *(f"{unicodedata.normalize('NFC', 'Löwe')}/{i}.png,z" for i in range(6)))
    assert read(root).splits["train"].images.open(17).size == (6, 6)


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u3000", "\u200b", "\t"])
def test_spaces_make_no_class(root: Path, space: str):
    table(root, "path,label", *rows()[:11], f"y/5.png,y{space}")
    data = read(root)
    assert data.classes == ["x", "y"]
    assert data.doubts == []


def test_case_makes_a_class_and_a_doubt(root: Path):
    table(root, "path,label", *rows()[:11], "y/5.png,Y")
    data = read(root)
    assert data.classes == ["Y", "x", "y"]
    assert data.doubts == ["classes 'Y' and 'y' differ in upper and lower case only"]


def test_letters_in_two_forms_are_one_class(root: Path):
    labels = [unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD")]
    table(root, "path,label", *(line.replace(",x", f",{labels[i % 2]}") for i, line in enumerate(rows())))
    assert read(root).classes == [unicodedata.normalize("NFC", "Bär"), "y"]


@pytest.mark.parametrize("several", ["x|wet", "x;wet", "['x', 'y']", "x, y", "x/y", "x+y"])
def test_several_labels_in_one_are_doubted(root: Path, several: str):
    lines = [f"{path};{label}" for path, label in (line.split(",") for line in rows())]
    lines[0], lines[7] = (
        f'x/0.png;"{several}"',
        f'y/1.png;"{several.replace("x", "y") if "y" not in several else several}"',
    )
    table(root, "path;label", *lines)
    assert "look like several labels in one" in read(root).doubts[0]


# --------------------------------------------------------------------------------------------- subjects and groups


def test_subjects_stay_in_one_split(root: Path, tmp_path: Path):
    table(root, "path,label,patient,site", *rows("{path},{label},P{i},s{i}"))
    data = read(root, subject="patient", groups=["site"])
    assert data.concept_names == []
    assert data.group_names == {"site": [f"s{i}" for i in range(6)]}
    assert data.splits["train"].groups["site"].tolist() == list(range(6)) * 2
    parts = complete_splits(data, tmp_path / "c", **FRACTIONS).splits
    assert sum(len(part) for part in parts.values()) == 12
    for split in ("val", "test"):
        assert not set(parts[split].subjects) & set(parts["train"].subjects)
    assert set(parts["test"].subjects) == {f"P{i}" for i in parts["test"].groups["site"]}


def test_subjects_that_are_said_later_are_kept_together_too(root: Path, tmp_path: Path):
    """The choice of a run without them is another one."""
    table(root, "path,label,patient,site", *rows("{path},{label},P{i},s"))
    complete_splits(read(root, ignore=["patient", "site"]), tmp_path / "c", **FRACTIONS)
    for _ in range(2):
        parts = complete_splits(read(root, subject="patient", ignore="site"), tmp_path / "c", **FRACTIONS).splits
        assert shared_subjects(ImageDataset("t", ["x", "y"], parts)) == []


def test_two_tables_in_one_folder_keep_their_splits(root: Path, tmp_path: Path):
    def splits(*lines: str) -> list[list[str]]:
        table(root, "path,label", *lines)
        parts = complete_splits(read(root), tmp_path / "c", **FRACTIONS).splits
        return [part.images.names for part in parts.values()]

    first = splits(*rows())
    splits(*rows()[:5], *rows()[6:11])
    assert splits(*rows()) == first


def test_columns_that_are_nothing(root: Path):
    table(root, "path,label,age,patient_id", *rows("{path},{label},3{i},Pat{i}"))
    with pytest.raises(
        UserError, match=r"column 'age' of 'x/0.png' is '30'.*ignore=\[age\].*same is true of 'patient_id'"
    ):
        read(root)
    with pytest.raises(UserError, match="column 'patient_id' of 'x/0.png' is 'Pat0'"):  # as it is written
        read(root, ignore="age")
    assert read(root, ignore=["age", "patient_id"]).concept_names == []
    with pytest.raises(UserError, match="dataset.args.subject=patientid: .*did you mean 'patient_id'"):
        read(root, subject="patientid")


def test_an_image_without_a_subject_is_its_own(root: Path):
    table(root, "path,label,patient", *rows("{path},{label},P1")[:6], *rows("{path},{label},")[6:])
    data = read(root, subject="patient")
    assert len(set(data.splits["train"].subjects)) == 7
    assert "6 image(s) have no patient" in data.doubts[0]


def test_probabilities(root: Path):
    table(root, "path,label,red", *rows("{path},{label},0.{i}"))
    with pytest.raises(UserError, match=r"is '0\.1'.*threshold=0.5 makes 1 of what is 0.5 or more"):
        read(root)
    assert read(root, threshold=0.3).splits["train"].concepts[:6, 0].tolist() == [0, 0, 0, 1, 1, 1]
    table(root, "path;label;red", *rows("{path};{label};0,{i}"))
    assert read(root, threshold=0.3).splits["train"].concepts[:6, 0].tolist() == [0, 0, 0, 1, 1, 1]
    table(root, "path,label,red", *rows("{path},{label},{i}"))
    with pytest.raises(UserError, match="threshold=0.3 a concept is a probability from 0 to 1"):
        read(root, threshold=0.3)


def test_a_table_without_training_images(root: Path):
    table(root, "path,label,split", *rows("{path},{label},test"))
    assert list(read(root).splits) == ["test"]


def test_empty_cells_are_unknown(root: Path):
    table(root, "path,label,red", *rows("{path},{label},NA"))
    assert np.isnan(read(root).splits["train"].concepts).all()


def test_colours_are_still_read(colour_folder: Path):
    table(colour_folder, "path,label", *(f"{name}/{i:02d}.png,{name}" for name in COLOURS for i in range(20)))
    assert read(colour_folder).classes == sorted(COLOURS)


# ------------------------------------------------------------------------------------------------- other finds


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u00ad", "\u200e", "\u200f", "\u200d", "\u200c", "\u3000", "\t"])
def test_letters_that_nobody_sees_make_no_classes(root: Path, mark: str):
    table(root, "path,label", *rows(), f"x/1.png,x{mark}", f"y/1.png,{mark}y")
    assert read(root).classes == ["x", "y"]


def test_settings_of_other_types(root: Path):
    table(root, "path,label,7", *rows("{path},{label},P{i}"))
    assert read(root, subject=7).splits["train"].subjects.tolist() == 2 * [f"P{i}" for i in range(6)]
    assert list(read(root, groups=7).group_names) == ["7"]
    for wrong in ("much", [1], 0, 2, -1):
        with pytest.raises(UserError, match=r"dataset.args.threshold=.*: expected"):
            read(root, ignore=[7], threshold=wrong)


def test_rows_without_anything_and_the_hint_of_excel(root: Path):
    table(root, "sep=;", "path;label;spotted", *rows("{path};{label};on"), ";;", ";;")
    assert read(root).splits["train"].concepts[:, 0].tolist() == 12 * [1.0]


def test_a_column_of_splits_under_another_name(root: Path):
    table(root, "path,label,fold", *rows("{path},{label},Train"))
    with pytest.raises(UserError, match=r"dataset.args.split_column=fold makes splits of 'fold'"):
        read(root)


@pytest.mark.parametrize("mark", [", ", "+", " & ", "/", ";", "|"])
def test_several_labels_everywhere(root: Path, mark: str):
    lines = [f'{n}/{i}.png,"{n}{mark}{("red", "big")[i % 2]}"' for n in "xy" for i in range(6)]
    table(root, "path,label", *lines)
    assert "4 class(es) look like several labels in one" in read(root).doubts[0]


def test_subjects_that_were_corrected_after_the_draw_are_said(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    table(root, "path,label,film", *rows("{path},{label},{path}"))
    complete_splits(read(root, subject="film"), tmp_path / "c", **FRACTIONS)
    assert "drawn before" not in caplog.text
    table(root, "path,label,film", *rows("{path},{label},one"))
    complete_splits(read(root, subject="film"), tmp_path / "c", **FRACTIONS)
    assert "are in train too: 'one': the splits were drawn before; remove '" in caplog.text
