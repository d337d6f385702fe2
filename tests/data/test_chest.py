"""Chest radiographs, faces and VOC with several labels each, in the published formats."""

from pathlib import Path

import numpy as np
import pytest
from conftest import paint

from cbm.data import complete_splits, read_dataset
from cbm.data.chest import CHEXPERT, NIH
from cbm.data.pascal import THINGS
from cbm.errors import UserError

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT)
PLACE = "CheXpert-v1.0-small"


def chexpert(root: Path, test: bool = False) -> Path:
    """Ten patients with two frontal images and a lateral one each; the 1 of a finding moves on by patient."""
    for table in ("train", "valid", *(["test"] if test else [])):
        lines = [HEADER]
        for patient in range(10):
            for view, kind, side in ((1, "frontal", "AP"), (2, "frontal", "PA"), (3, "lateral", "")):
                file = f"{table}/patient{patient:05d}/study1/view{view}_{kind}.jpg"
                paint(root / PLACE / file, (90, 20, 60), patient * 3 + view, size=6)
                cells = ["1.0" if (patient + k) % 2 else "0.0" for k in range(14)]
                cells[5] = ["-1.0", "", "1.0", "0.0"][patient % 4]
                sex = "Unknown" if patient == 9 else ["Female", "Male"][patient % 2]
                lines.append(f"{PLACE}/{file},{sex},60,{kind.title()},{side}," + ",".join(cells))
        (root / PLACE / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return root


def edema(data, split: str = "train") -> list[float]:
    return np.nan_to_num(data.splits[split].labels[::2, data.classes.index("Edema")], nan=-9).tolist()[:4]


def test_chexpert(tmp_path: Path):
    root = chexpert(tmp_path / "set")
    data = read_dataset("chexpert", "chexpert", root, {})
    assert (data.task, data.classes) == ("many", CHEXPERT)
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 20, "test": 20}
    assert edema(data) == [-9, -9, 1, 0]
    assert data.splits["train"].labels.dtype == np.float32
    assert data.group_names["view"] == ["AP", "PA", "lateral"]
    assert data.splits["train"].groups["view"].tolist() == [0, 1] * 10
    assert data.splits["train"].groups["sex"].tolist()[-4:] == [0, 0, -1, -1]
    assert "mined from the text" in data.doubts[0]
    assert data.splits["train"].images.open(0).size == (6, 6)
    parts = complete_splits(data, tmp_path / "c", val_fraction=0.2, test_fraction=0.2, seed=0).splits
    assert not set(parts["train"].subjects) & set(parts["val"].subjects)
    assert len(parts["val"]) == 4


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ({"unknown": "absent"}, [0, -9, 1, 0]),
        ({"unknown": "present", "blank": "absent"}, [1, 0, 1, 0]),
        ({"blank": "present"}, [-9, 1, 1, 0]),
    ],
)
def test_chexpert_policies(tmp_path: Path, args: dict, found: list[float]):
    assert edema(read_dataset("chexpert", "c", chexpert(tmp_path), args)) == found


def test_chexpert_settings_and_damage(tmp_path: Path):
    chexpert(tmp_path, test=True)
    read = read_dataset("chexpert", "c", tmp_path / PLACE, {"view": "all", "keep": ["Edema", "Pneumonia"]})
    assert {name: len(part) for name, part in read.splits.items()} == {"train": 30, "val": 30, "test": 30}
    assert read.classes == ["Edema", "Pneumonia"]
    assert len(read_dataset("chexpert", "c", tmp_path, {"view": "lateral"}).splits["train"]) == 10
    for args, message in (
        ({"view": "front"}, "view=front: did you mean 'frontal'"),
        ({"unknown": "zeros"}, "unknown=zeros"),
        ({"drop": ["Oedema"]}, "'c' has no such label; did you mean 'Edema'"),
    ):
        with pytest.raises(UserError, match=message):
            read_dataset("chexpert", "c", tmp_path, args)
    table = tmp_path / PLACE / "train.csv"
    whole = table.read_text()
    table.write_text(whole.replace(",1.0,", ",2.0,", 1))
    with pytest.raises(UserError, match=r"train.csv' line 2: .* is '2.0', expected 1.0, 0.0, -1.0 or nothing"):
        read_dataset("chexpert", "c", tmp_path, {})
    table.write_text(whole.replace("patient00003/", "nobody/"))
    with pytest.raises(UserError, match=r"line 11: Path is .* expected .*patient00001"):
        read_dataset("chexpert", "c", tmp_path, {})


def nih14(root: Path) -> Path:
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    lines, names = [header], []
    for patient in range(1, 21):
        for visit in range(2):
            names.append(f"{patient:08d}_{visit:03d}.png")
            paint(
                root / f"images_{1 + patient % 2:03d}" / "images" / names[-1], (9, 90, 9), patient * 2 + visit, size=6
            )
            findings = "No Finding" if visit else "|".join(NIH[(patient + k) % 14] for k in range(7))
            lines.append(f"{names[-1]},{findings},{visit},{patient},58,{'MF'[patient % 2]},PA,2682,2749,0.143,0.143,")
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(names[:30]) + "\n")
    (root / "test_list.txt").write_text("\n".join(names[30:39]) + "\n")
    return root


def test_nih14(tmp_path: Path):
    data = read_dataset("nih14", "nih14", nih14(tmp_path), {})
    assert data.classes[12] == "Pleural Thickening"
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 30, "test": 9}
    y = data.splits["train"].labels
    assert y.sum(axis=1).tolist() == [7, 0] * 15
    assert np.flatnonzero(y[0]).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert data.splits["train"].subjects.tolist()[:4] == ["1", "1", "2", "2"]
    assert data.splits["train"].groups["sex"].tolist()[:4] == [0, 0, 1, 1]
    assert "mined from the text" in data.doubts[0]
    assert read_dataset("nih14", "nih14", tmp_path, {"drop": ["Hernia", "Pleural Thickening"]}).classes == NIH[:12]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("Data_Entry_2017.csv", ("Mass|", "Mas|"), "the finding 'Mas' is unknown, did you mean 'Mass'"),
        ("Data_Entry_2017.csv", ("Patient ID", "Patient"), "has no column 'Patient ID'"),
        ("Data_Entry_2017.csv", ("00000002_000", "00000001_000"), "line 4: '00000001_000.png' stands twice"),
        ("test_list.txt", ("00000017_000", "00000001_000"), "is in train_val_list.txt and in test_list.txt"),
        ("test_list.txt", ("00000017_000", "99999999_000"), "'test_list.txt' names '99999999_000.png', which"),
    ],
)
def test_nih14_damaged(tmp_path: Path, file: str, change: tuple[str, str], message: str):
    path = nih14(tmp_path) / file
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(UserError, match=message):
        read_dataset("nih14", "nih14", tmp_path, {})


def voc(root: Path, *parts: str) -> Path:
    place = root / "VOCdevkit" / "VOC2007"
    (place / "ImageSets" / "Main").mkdir(parents=True)
    for number, part in enumerate(parts):
        ids = [f"{10 * number + i:06d}" for i in range(6)]
        for i, each in enumerate(ids):
            paint(place / "JPEGImages" / f"{each}.jpg", (9, 9, 90), 10 * number + i, size=6)
        for k, thing in enumerate(THINGS):
            marks = [["-1", " 1", " 0"][(i + k) % 3 if i == 5 else (i + k) % 2] for i in range(6)]
            lines = [f"{each} {mark}" for each, mark in zip(ids, marks)]
            (place / "ImageSets" / "Main" / f"{thing}_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_voc(tmp_path: Path):
    root = voc(tmp_path / "a", "train", "val", "test")
    data = read_dataset("voc", "voc", root, {})
    assert data.classes[10] == "dining table"
    assert list(data.splits) == ["train", "val", "test"]
    y = data.splits["train"].labels
    assert np.nan_to_num(y[:, 0], nan=-9).tolist() == [0, 1, 0, 1, 0, -9]
    assert data.splits["val"].images.names[0] == "JPEGImages/000010.jpg"
    assert read_dataset("voc", "voc", root, {"unknown": "present"}).splits["train"].labels[5, 0] == 1
    file = root / "VOCdevkit/VOC2007/ImageSets/Main/dog_train.txt"
    file.write_text(file.read_text().replace("000002", "000009"))
    with pytest.raises(UserError, match="'dog_train.txt' and 'aeroplane_train.txt' name other images"):
        read_dataset("voc", "voc", root, {})
    file.write_text("000000 2\n")
    with pytest.raises(UserError, match="line 1: '2', expected 1, -1 or 0"):
        read_dataset("voc", "voc", root, {})
    with pytest.raises(UserError, match="dataset.args.year=2017: did you mean '2007'"):
        read_dataset("voc", "voc", root, {"year": 2017})


def test_validation_of_later_years_is_test(tmp_path: Path):
    data = read_dataset("voc", "voc", voc(tmp_path, "train", "val"), {})
    assert list(data.splits) == ["train", "test"]


def test_celeba_attributes_are_labels(tmp_path: Path):
    rows = [[i % 4 == 0, i % 2 == 0, i % 3 == 0] for i in range(24)]
    lines = ["24", "Bald Male Wearing_Hat"]
    lines += [f"{i}.jpg " + " ".join(" 1" if v else "-1" for v in row) for i, row in enumerate(rows)]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{i}.jpg {i // 8}\n" for i in range(24)))
    data = read_dataset("celeba", "celeba", tmp_path, {"task": "attributes", "every": 1})
    assert (data.task, data.classes, data.concept_names) == ("many", ["bald", "male", "wearing hat"], [])
    np.testing.assert_array_equal(data.splits["train"].labels, np.array(rows[:8], dtype=np.float32))
    assert data.splits["test"].groups["sex"].tolist() == [1, 0] * 4
    few = read_dataset("celeba", "celeba", tmp_path, {"task": "attributes", "every": 1, "keep": ["Bald", "male"][1:]})
    assert few.classes == ["male"]
    with pytest.raises(UserError, match="dataset.args.task=attribute: did you mean 'attributes'"):
        read_dataset("celeba", "celeba", tmp_path, {"task": "attribute"})
    with pytest.raises(UserError, match="say dataset.args.task=attributes"):
        read_dataset("celeba", "celeba", tmp_path, {"keep": ["male"]})
