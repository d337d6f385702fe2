"""Files that a stranger put among pictures: nothing is waited for, and what leads elsewhere is said."""

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import COLOURS, paint

from cbm.data import FeatureStore, read_dataset
from cbm.data.images import ImageFiles, lead_outside, list_names

ODD = b"caf\xe9.png".decode("utf-8", "surrogateescape")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        for name, colour in COLOURS.items():
            paint(tmp_path / "set" / name / f"{number}.png", colour, number, size=6)
    return tmp_path / "set"


def test_special_files_are_not_waited_for(root: Path, tmp_path: Path, pixel_encoder):
    for number, name in enumerate(("pipe.png", "a.jpg")):
        os.mkfifo(root / "red" / name)
        (root / "blue" / f"link{number}.png").symlink_to(root / "red" / name)
    (root / "blue" / "zero.png").symlink_to("/dev/zero")
    (root / "blue" / "circle.png").symlink_to("circle.png")
    names = list_names(root)
    assert "red/pipe.png" not in names
    images = ImageFiles(root, [*names, "red/pipe.png"])
    stored = FeatureStore(tmp_path / "cache").encode(pixel_encoder, images, num_workers=0, progress=False)
    assert int(stored.readable.sum()) == 12
    assert "red/pipe.png" in stored.errors
    assert images.contents(tmp_path / "cache")[-1].startswith("unreadable")


def test_names_that_are_not_utf_8_are_passed_over_and_said(root: Path, tmp_path: Path, caplog, pixel_encoder):
    paint(root / "red" / "x.png", COLOURS["red"], 9, size=6)
    (root / "red" / "x.png").rename(root / "red" / ODD)
    with caplog.at_level(logging.WARNING):
        names = list_names(root)
    assert len(names) == 12
    assert "1 picture(s)" in caplog.text
    assert "caf\\udce9.png" in caplog.text
    assert len(read_dataset("folder", "f", root, {}).splits["train"]) == 12
    # predictions are made of such files too: they are known by their bytes
    assert len(ImageFiles(root, [f"red/{ODD}"]).contents(tmp_path / "cache")[0]) == 32


def test_a_memory_that_is_no_file_is_not_written_to(root: Path, tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "victim").write_text("precious")
    for make in (lambda file: file.symlink_to(tmp_path / "victim"), os.mkfifo, lambda file: file.mkdir()):
        make(file := tmp_path / "cache" / "fingerprints.sqlite")
        assert len(ImageFiles(root, list_names(root)).contents(tmp_path / "cache")) == 12
        assert (tmp_path / "victim").read_text() == "precious"
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize("kind", ["a link", "a link in a folder", "two"])
def test_links_that_lead_out_are_said(root: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture):
    paint(tmp_path / "private.png", COLOURS["red"], 1)
    for number in range(2 if kind == "two" else 1):
        place = root / "red" / ("deep" if "folder" in kind else "")
        place.mkdir(exist_ok=True)
        (place / f"l{number}.png").symlink_to(tmp_path / "private.png")
    (root / "red" / "within.png").symlink_to("0.png")
    with caplog.at_level(logging.WARNING):
        names = list_names(root)
    assert len(names) == 13 + (2 if kind == "two" else 1)
    assert f"out of '{root}'" in caplog.text
    assert str(tmp_path / "private.png") in caplog.text


def test_links_within_are_nobodys_business(root: Path, caplog: pytest.LogCaptureFixture):
    (root / "red" / "within.png").symlink_to("../blue/0.png")
    with caplog.at_level(logging.WARNING):
        assert len(list_names(root, Counter())) == 13
    assert "out of" not in caplog.text


@pytest.mark.parametrize("name", ["../private.png", "{}/private.png", "red/../../private.png", "red/link.png"])
def test_paths_of_a_table_that_lead_out_are_said(root: Path, tmp_path: Path, name: str):
    paint(tmp_path / "private.png", COLOURS["red"], 1)
    (root / "red" / "link.png").symlink_to(tmp_path / "private.png")
    rows = [f"{name.format(tmp_path)},red", "blue/0.png,blue", "blue/../red/1.png,red"]
    (root / "images.csv").write_text("\n".join(["path,label", *rows]))
    dataset = read_dataset("csv", "c", root, {})
    (said,) = [doubt for doubt in dataset.doubts if "out of" in doubt]
    assert str(tmp_path / "private.png") in said
    assert lead_outside(root, ["blue/../red/1.png"]) is None
