"""Waterbirds and MetaShift in the published formats."""

from pathlib import Path

import pytest
from birds_run import QUICK
from conftest import one_line, paint

from cbm.data import read_dataset
from cbm.errors import UserError


def waterbirds(root: Path) -> Path:
    """Training birds where they belong, test birds anywhere."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i in range(48):
        split, y = i // 16, i % 2
        place = y if split == 0 and i % 8 else i // 2 % 2
        folder = ("001.Black_footed_Albatross", "100.Brown_Pelican")[y]
        colour = ((200, 60, 20), (20, 90, 220))[y] if i % 2 == y else (90, 90, 90)
        paint(root / folder / f"bird_{i}.jpg", colour, i, size=16)
        lines.append(f"{i + 1},{folder}/bird_{i}.jpg,{y},{split},{place},/o/ocean/00002122.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def test_waterbirds(tmp_path: Path):
    root = waterbirds(tmp_path / "waterbird_complete95_forest2water2")
    data = read_dataset("waterbirds", "waterbirds", tmp_path, {})
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 16, "val": 16, "test": 16}
    assert data.spurious == {"landbird": ["land background"], "waterbird": ["water background"]}
    test = data.splits["test"]
    assert test.labels.tolist() == [i % 2 for i in range(16)]
    assert test.concepts[:, 1].tolist() == [i // 2 % 2 for i in range(16)]
    (root / "metadata.csv").write_text("img_id,img_filename,y,split,place\n1,a.jpg,1,3,0\n")
    with pytest.raises(UserError, match="line 2: split is '3', expected one of 0, 1, 2"):
        read_dataset("waterbirds", "waterbirds", root, {})


def test_from_the_card_to_edited_models(tmp_path: Path, command, module):
    waterbirds(tmp_path / "set")
    run = [
        f"dataset.root={tmp_path / 'set'}",
        *QUICK,
        "cache=cache",
        "report=false",
        "controls=false",
        "method=posthoc",
    ]
    (tmp_path / "bank.txt").write_text("land background\nwater background\nwebbed feet\nhooked bill\norange belly\n")
    status, errors = command("train", "dataset=waterbirds", *run, "concepts=bank.txt", "run_dir=run")
    assert status == 0, errors
    status, shown, errors = module("spurious", "run")
    assert status == 0, errors
    assert "prune" in shown
    (tmp_path / "bank.txt").write_text("land background\nwater background\n")
    status, errors = command("train", "dataset=waterbirds", *run, "concepts=bank.txt", "run_dir=bare")
    assert status == 0, errors
    assert "every concept of its bank is spurious" in one_line(module("spurious", "bare")[::2])


def metashift(root: Path) -> Path:
    folders = {
        "train/cat/cat(sofa)": ["1", "2", "3"], "train/cat/cat(bed)": ["3", "4"],
        "train/dog/dog(cabinet)": ["5", "6", "99"], "train/dog/dog(bed)": ["7"],
        "test/cat/cat(shelf)": ["8"], "test/dog/dog(shelf)": ["9", "99"],
    }  # fmt: skip
    for folder, numbers in folders.items():
        for number in numbers:
            paint(root / folder / f"{number}.jpg", (9, 9, 9), int(number), size=8)
    return root


def test_contexts_are_spurious_concepts(tmp_path: Path, caplog):
    data = read_dataset("metashift", "metashift", metashift(tmp_path), {})
    assert data.classes == ["cat", "dog"]
    assert data.concept_names == ["bed", "cabinet", "shelf", "sofa"]
    train = data.splits["train"]
    shown = dict(zip(train.images.names, train.concepts.tolist()))
    assert shown["train/cat/cat(bed)/3.jpg"] == [1, 0, 0, 1]  # in two contexts, once
    assert "train/dog/dog(cabinet)/99.jpg" not in shown  # it tests
    assert "1 training picture(s) are in test too" in caplog.text
    assert len(train) == 7
    assert data.spurious == {"cat": ["bed", "sofa"], "dog": ["cabinet"]}
    paint(tmp_path / "train/dog/loose.jpg", (9, 9, 9), 1)
    with pytest.raises(UserError, match=r"loose.jpg' does not lie in a context: expected train/dog/dog\(CONTEXT\)"):
        read_dataset("metashift", "metashift", tmp_path, {})
    with pytest.raises(UserError, match="no folder '.*train' .is dataset.root the unpacked archive"):
        read_dataset("metashift", "metashift", tmp_path / "train", {})
