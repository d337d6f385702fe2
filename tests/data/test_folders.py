"""Folders as people keep them."""

import unicodedata
from pathlib import Path

import pytest
from conftest import paint

from cbm.data import complete_splits, read_dataset
from cbm.errors import UserError


def fill(folder: Path, count: int = 3, seed: int = 0, ending: str = ".png") -> None:
    for i in range(count):
        paint(folder / f"{i}{ending}", (90, 20, 60), seed + i, size=6)


def read(root: Path, **args):
    return read_dataset("folder", "f", root, args)


@pytest.mark.parametrize("name", ["train", "Test", "validation", "dev", "val", "training"])
def test_a_class_called_like_a_split(tmp_path: Path, name: str):
    for k, each in enumerate(("bus", "car", name)):
        fill(tmp_path / each, seed=10 * k)
    data = read(tmp_path)
    assert data.classes == sorted(["bus", "car", name])
    assert list(data.splits) == ["train"]


def test_a_class_called_like_a_split_inside_splits(tmp_path: Path):
    for split in ("train", "test"):
        for name in ("bus", "train"):
            fill(tmp_path / split / name)
    data = read(tmp_path)
    assert data.classes == ["bus", "train"]
    assert set(data.splits) == {"train", "test"}


@pytest.mark.parametrize("names", [("train", "training"), ("val", "Validation"), ("valid", "dev"), ("test", "TESTING")])
def test_two_folders_for_one_split_are_refused(tmp_path: Path, names: tuple[str, str]):
    for folder in {"train", *names}:
        for name in "ab":
            fill(tmp_path / folder / name)
    with pytest.raises(UserError, match="both mean the split '.*keep one"):
        read(tmp_path)


@pytest.mark.parametrize("split", ["test", "val"])
def test_folders_without_training_images(tmp_path: Path, split: str):
    for name in "ab":
        fill(tmp_path / split / name)
    data = read(tmp_path)
    assert (data.classes, list(data.splits)) == (["a", "b"], [split])


def test_folders_that_nobody_meant(tmp_path: Path):
    for name in ("a", "b", ".cache", "__MACOSX", "@eaDir"):
        fill(tmp_path / name)
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "read.txt").write_text("me")
    fill(tmp_path / "a" / "__MACOSX")
    data = read(tmp_path)
    assert data.classes == ["a", "b"]
    assert len(data.splits["train"]) == 6
    assert data.doubts == ["2 folder(s) without images are passed over: 'empty', 'notes'"]


def test_folders_and_images_beside_those_of_the_splits(tmp_path: Path):
    for split in ("train", "test"):
        for name in "ab":
            fill(tmp_path / split / name)
    fill(tmp_path / "unlabelled")
    paint(tmp_path / "train" / "preview.png", (1, 2, 3), 0, size=6)
    assert read(tmp_path).doubts == [
        "1 image(s) directly in 'train' belong to no class: 'preview.png'",
        "1 folder(s) beside those of the splits are passed over: 'unlabelled'",
    ]


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".pjpeg", ".JFIF"])
def test_other_endings_of_jpeg(tmp_path: Path, ending: str):
    for name in "ab":
        fill(tmp_path / name, ending=".jpg")
    for path in sorted((tmp_path / "a").iterdir()):
        path.rename(path.with_suffix(ending))
    assert len(read(tmp_path).splits["train"]) == 6


def test_what_is_not_read_is_counted_by_ending(tmp_path: Path):
    for name in "ab":
        fill(tmp_path / name)
    for file in ("1.cr2", "2.CR2", "3.mp4", "noending", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / "a" / file).write_bytes(b"x")
    (doubt,) = read(tmp_path).doubts
    said, _, counts = doubt.partition(": ")
    assert said == "5 file(s) are not read as images"
    assert set(counts.split(", ")) == {"2 .cr2", "1 .mp4", "1 without an ending", "1 .txt"}


def test_text_beside_images_is_no_doubt(tmp_path: Path):
    for name in "ab":
        fill(tmp_path / name)
        (tmp_path / name / "0.txt").write_text("a caption")
    assert read(tmp_path).doubts == []


def test_letters_in_two_forms(tmp_path: Path):
    for k, form in enumerate(("NFC", "NFD")):
        fill(tmp_path / unicodedata.normalize(form, "Bär"), seed=10 * k)
    fill(tmp_path / "Cat")
    fill(tmp_path / "cat", seed=50)
    data = read(tmp_path)
    assert data.classes == sorted([unicodedata.normalize("NFC", "Bär"), "Cat", "cat"])
    assert "two folders are called 'Bär'" in data.doubts[0]
    assert "'Cat' and 'cat' differ in upper and lower case only" in data.doubts[1]
    assert [data.splits["train"].images.open(row).size for row in range(12)] == [(6, 6)] * 12


def subjects_of(data, tmp_path: Path) -> dict[str, set[str]]:
    parts = complete_splits(data, tmp_path / "c", val_fraction=0.2, test_fraction=0.2, seed=0).splits
    return {split: set(part.subjects) for split, part in parts.items()}


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    for k, name in enumerate("ab"):
        for patient in range(6):
            for i in range(3):
                seed = 100 * k + 10 * patient + i
                paint(tmp_path / "set" / name / f"P{patient}{name}_{i}.png", (90, 20, 60), seed, size=6)
    return tmp_path / "set"


def test_subjects_from_paths(patients: Path, tmp_path: Path):
    found = subjects_of(read(patients, subject_pattern="(P[0-9].)_"), tmp_path)
    assert set.union(*found.values()) == {f"P{i}{name}" for i in range(6) for name in "ab"}
    assert sum(map(len, found.values())) == 12
    for pattern, message in (
        ("(P", "no regular expression"),
        ("P[0-9]", "has no group"),
        ("(Q)", "finds nothing in 'a/"),
    ):
        with pytest.raises(UserError, match=message):
            read(patients, subject_pattern=pattern)


def test_subjects_and_groups_from_a_table(patients: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no table '.*images.csv'.*patient.*subject_pattern=REGEX"):
        read(patients, subject="patient")
    lines = [
        f"{f.parent.name}/{f.name},{f.name[:3]},{'north' if '1' in f.name[:3] else ''}" for f in patients.rglob("*.png")
    ]
    (patients / "who.csv").write_text("\n".join(["path,patient,site", *lines]))
    data = read(patients, subject="patient", groups=["site"], table="who.csv")
    assert data.group_names == {"site": ["north"]}
    assert sorted(data.splits["train"].groups["site"].tolist()) == [-1] * 30 + [0] * 6
    assert sum(map(len, subjects_of(data, tmp_path).values())) == 12
    (patients / "who.csv").write_text("\n".join(["path,patient,site", *lines[1:]]))
    with pytest.raises(UserError, match=r"who.csv' has no row for 1 image\(s\)"):
        read(patients, subject="patient", table="who.csv")
