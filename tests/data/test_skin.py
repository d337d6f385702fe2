"""Skin in the published formats."""

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import paint

from cbm.data import complete_splits, read_dataset
from cbm.data.skin import CRITERIA, DIAGNOSES
from cbm.errors import UserError


def table(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def ham10000(root: Path) -> list[dict]:
    rows = []
    for d, dx in enumerate(DIAGNOSES):
        for lesion in range(8):
            for picture in range(1 + lesion % 3):
                number = f"ISIC_{1000 * d + 10 * lesion + picture:07d}"
                rows.append({"lesion_id": f"HAM_{d}{lesion}", "image_id": number, "dx": dx, "dx_type": "histo",
                             "age": "80.0", "sex": "male", "localization": "scalp"})  # fmt: skip
                paint(root / f"HAM10000_images_part_{1 + len(rows) % 2}" / f"{number}.jpg", (9, 9, 9), d, size=8)
    table(root / "HAM10000_metadata.csv", rows)
    return rows


def test_pictures_of_a_lesion_stay_in_one_split(tmp_path: Path):
    rows = ham10000(tmp_path / "set")
    data = read_dataset("ham10000", "ham10000", tmp_path / "set", {})
    assert data.classes[4] == "melanoma"
    assert data.splits["train"].images.open(3).size == (8, 8)
    lesion_of = {row["image_id"]: row["lesion_id"] for row in rows}
    settings = {"val_fraction": 0.2, "test_fraction": 0.2}
    parts = complete_splits(data, tmp_path / "cache", **settings, seed=0).splits
    lesions = {s: {lesion_of[Path(name).stem] for name in part.images.names} for s, part in parts.items()}
    assert not lesions["train"] & lesions["test"]
    assert not lesions["train"] & lesions["val"]
    assert not lesions["val"] & lesions["test"]
    assert sum(map(len, parts.values())) == len(rows)
    for part in parts.values():  # every diagnosis is in every split
        assert set(part.labels) == set(range(7))
    table(tmp_path / "set/HAM10000_metadata.csv", [*rows, {**rows[0], "image_id": "ISIC_9999999"}])
    paint(tmp_path / "set/HAM10000_images_part_1/ISIC_9999999.jpg", (9, 9, 9), 1, size=8)
    more = read_dataset("ham10000", "ham10000", tmp_path / "set", {})
    parts = complete_splits(more, tmp_path / "cache", **settings, seed=0).splits  # a later picture follows its lesion
    at = [
        s for s, part in parts.items() if {"ISIC_0000000", "ISIC_9999999"} & {Path(n).stem for n in part.images.names}
    ]
    assert len(at) == 1


def test_what_is_wrong_with_ham10000(tmp_path: Path):
    rows = ham10000(tmp_path)
    table(tmp_path / "HAM10000_metadata.csv", [*rows[:-1], {**rows[-1], "dx": "mell"}])
    with pytest.raises(UserError, match="dx is 'mell', did you mean 'mel'"):
        read_dataset("ham10000", "h", tmp_path, {})
    table(tmp_path / "HAM10000_metadata.csv", [*rows, {**rows[-1], "image_id": "ISIC_7"}])
    with pytest.raises(UserError, match="1 of 106 picture.*first: 'ISIC_7.jpg'"):
        read_dataset("ham10000", "h", tmp_path, {})


def skincon(root: Path) -> None:
    annotations, diagnoses = [], []
    for i in range(12):
        md5 = f"{i:032x}"
        marks = {"Vesicle": int(i == 0), "Papule": i % 2, "Brown(Hyperpigmentation)": int(i < 6)}
        annotations.append({"": i, "ImageID": f"{md5}.jpg", **marks, "Do not consider this image": int(i == 11)})
        label = ("benign", "malignant", "non-neoplastic")[i % 3]
        diagnoses.append({"md5hash": md5, "fitzpatrick_scale": 3, "label": f"d{i}", "nine_partition_label": "x",
                          "three_partition_label": label, "qc": "", "url": ""})  # fmt: skip
        if i != 5:
            paint(root / "images" / f"{md5}.jpg", (9, 9, 9), i, size=8)
    table(root / "annotations_fitzpatrick17k.csv", annotations)
    table(root / "fitzpatrick17k.csv", diagnoses)


def test_skincon_keeps_frequent_concepts_and_the_pictures_that_are_left(tmp_path: Path, caplog):
    skincon(tmp_path)
    data = read_dataset("skincon", "skincon", tmp_path, {"min_pictures": 2})
    assert "1 of 11 annotated pictures are not there" in caplog.text
    assert data.classes == ["benign", "malignant", "non-neoplastic"]
    assert data.concept_names == ["papule", "brown (hyperpigmentation)"]
    split = data.splits["train"]
    assert len(split) == 10
    rows = [i for i in range(11) if i != 5]
    assert split.concepts.tolist() == [[i % 2, float(i < 6)] for i in rows]
    assert split.labels.tolist() == [i % 3 for i in rows]
    with pytest.raises(UserError, match="min_pictures=50: no concept of 'skincon'"):
        read_dataset("skincon", "skincon", tmp_path, {})
    with pytest.raises(UserError, match="dataset.args.label=three: did you mean 'three_partition_label'"):
        read_dataset("skincon", "skincon", tmp_path, {"label": "three"})
    for file in (tmp_path / "images").glob("*[13579].jpg"):
        file.unlink()
    fewer = read_dataset("skincon", "skincon", tmp_path, {"min_pictures": 2})  # no papule is left, the concept is
    assert fewer.concept_names == data.concept_names


def derm7pt(root: Path) -> list[dict]:
    said = ["basal cell carcinoma", "clark nevus", "melanoma (in situ)", "dermatofibroma", "seborrheic keratosis"]
    rows = []
    for i in range(15):
        values = {key: allowed[i % len(allowed)] for key, allowed in CRITERIA.items()}
        rows.append({"case_num": i + 1, "diagnosis": said[i % 5], "seven_point_score": 1, **values,
                     "clinic": f"NEL/c{i}.jpg", "derm": f"NEL/d{i}.jpg"})  # fmt: skip
        for letter in "cd":
            paint(root / "images/NEL" / f"{letter}{i}.jpg", (9, 9, 9), i, size=8)
    table(root / "meta/meta.csv", rows)
    for part, start in (("train", 0), ("valid", 5), ("test", 10)):
        table(root / f"meta/{part}_indexes.csv", [{"indexes": start + i} for i in range(5)])
    return rows


def test_derm7pt(tmp_path: Path):
    rows = derm7pt(tmp_path / "release_v0")
    data = read_dataset("derm7pt", "derm7pt", tmp_path, {})
    assert data.classes == [
        "basal cell carcinoma", "melanoma", "miscellaneous lesion", "nevus", "seborrheic keratosis",
    ]  # fmt: skip
    assert len(data.concept_names) == 28
    assert data.concept_groups["blue whitish veil"] == ["blue whitish veil: absent", "blue whitish veil: present"]
    test = data.splits["test"]
    assert test.images.names[1] == "images/NEL/d11.jpg"
    assert data.classes[test.labels[1]] == "nevus"
    assert (test.concepts.sum(axis=1) == 7).all()
    assert (
        data.concept_names[int(np.flatnonzero(test.concepts[1])[0])]
        == f"pigment network: {rows[11]['pigment_network']}"
    )
    two = read_dataset("derm7pt", "derm7pt", tmp_path, {"task": "melanoma", "image": "clinic"})
    assert two.classes == ["melanoma", "nevus"]
    assert two.splits["train"].images.names == ["images/NEL/c1.jpg", "images/NEL/c2.jpg"]


def test_what_is_wrong_with_derm7pt(tmp_path: Path):
    rows = derm7pt(tmp_path)
    table(tmp_path / "meta/test_indexes.csv", [{"indexes": 15}])
    with pytest.raises(UserError, match="'15' is no row of meta.csv .0 to 14."):
        read_dataset("derm7pt", "d", tmp_path, {})
    table(tmp_path / "meta/meta.csv", [{**rows[0], "streaks": "iregular"}, *rows[1:]])
    with pytest.raises(UserError, match="line 2: streaks is 'iregular', did you mean 'irregular'"):
        read_dataset("derm7pt", "d", tmp_path, {})
