"""White blood cells, in small files of the published formats."""

import csv
from pathlib import Path

import numpy as np
import pytest
from birds_run import QUICK
from PIL import Image, ImageDraw

from cbm.data import read_dataset
from cbm.data.blood_cells import PARTS, measure, solidity
from cbm.errors import UserError

BACKGROUND = {1: (224, 199, 166), 2: (211, 171, 175)}
COLOURS = {1: (90, 40, 120), 2: (60, 90, 160), 3: (120, 80, 140), 4: (200, 60, 60), 5: (30, 20, 60)}


def cell(folder: Path, number: int, label: int, part: int, width: int) -> None:
    """A disc of cytoplasm with a nucleus: one disc, or two that do not touch."""
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(1000 * part + number)
    middle = width // 2 + int(g.integers(-3, 4))
    radius = {1: 0.34, 2: 0.22, 3: 0.38, 4: 0.33, 5: 0.25}[label] * width
    picture, mask = Image.new("RGB", (width, width), BACKGROUND[part]), Image.new("L", (width, width), 0)
    discs = [(middle, middle, radius, (220, 200, 220), 128)]
    if label in (1, 4):
        for side in (-1, 1):
            discs.append((middle + side * 0.5 * radius, middle, 0.3 * radius, COLOURS[label], 255))
    else:
        discs.append((middle, middle, (0.9 if label == 2 else 0.5) * radius, COLOURS[label], 255))
    for x, y, r, colour, grey in discs:
        ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=colour)
        ImageDraw.Draw(mask).ellipse((x - r, y - r, x + r, y + r), fill=grey)
    pixels = np.asarray(picture).astype(int) + g.integers(-8, 9, (width, width, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.bmp")
    mask.save(folder / f"{number:03d}.png")


def segmentation_wbc(root: Path, each: int = 20) -> Path:
    """Both sets; classes take turns in runs of five, as slides do; one basophil each."""
    for part, header in ((1, "image ID,class label"), (2, "image ID,class")):
        lines = [header]
        for number in range(1, 4 * each + 2):
            label = 5 if number == 4 * each + 1 else (number - 1) // 5 % 4 + 1
            width = PARTS[part].width - (8 if part == 1 and number % 7 == 0 else 0)
            cell(root / f"Dataset {part}", number, label, part, width)
            lines.append(f"{number},{label}")
        (root / f"Class Labels of Dataset {part}.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return segmentation_wbc(tmp_path_factory.mktemp("wbc") / "segmentation_WBC")


def test_two_domains(root: Path, tmp_path: Path):
    for part in (1, 2):
        source = read_dataset("wbc", "cells", root, {"part": part})
        assert source.classes == ["neutrophil", "lymphocyte", "monocyte", "eosinophil"]
        names = {split: part_.images.names for split, part_ in source.splits.items()}
        assert sum(map(len, names.values())) == 80
        assert len(names["train"]) > len(names["test"]) > 0
        runs = {split: {(int(Path(name).stem) - 1) // 5 for name in listed} for split, listed in names.items()}
        assert not runs["train"] & runs["test"]
        assert not runs["train"] & runs["val"]
        assert all(set(part_.labels) == {0, 1, 2, 3} for part_ in source.splits.values())
        target = read_dataset("wbc", "cells", root, {"part": part, "role": "target"})
        assert "train" not in target.splits
        assert len(target.splits["test"]) == 80
        assert len(read_dataset("wbc", "cells", root, {"part": part, "role": "target", "basophils": True}).classes) == 5
    split = read_dataset("wbc", "cells", root, {"part": 1, "role": "target"}).splits["test"]
    shown = {name: split.concepts[:, k] for k, name in enumerate(
        ["high", "low", "big", "small", "segmented", "unsegmented"])}  # fmt: skip
    assert (shown["high"] == (split.labels == 1)).all()
    assert (shown["big"] == (split.labels != 1)).all()
    assert (shown["segmented"] == np.isin(split.labels, (0, 3))).all()
    assert (shown["low"] == 1 - shown["high"]).all()


def test_cells_are_cut_out_and_squared(root: Path, tmp_path: Path):
    images = read_dataset("wbc", "cells", root, {"part": 2, "role": "target"}).splits["test"].images
    lymphocyte = images.open(5)
    assert lymphocyte.width == lymphocyte.height
    assert abs(lymphocyte.width - 1.2 * 2 * 0.22 * 300) < 4
    corner = np.asarray(lymphocyte)[0, 0].astype(int)
    assert np.abs(corner - BACKGROUND[2]).max() <= 9
    first = images.fingerprints(tmp_path)
    mask = root / "Dataset 2" / "001.png"
    kept = mask.read_bytes()
    Image.new("L", (300, 300), 128).save(mask)
    second = images.take([0, 1]).fingerprints(tmp_path)
    assert second[0] != first[0]
    assert second[1] == first[1]
    Image.new("L", (30, 30), 128).save(mask)
    with pytest.raises(OSError, match="another size"):
        images.open(0)
    mask.write_bytes(kept)


def test_measures_by_hand():
    mask = np.zeros((120, 120), np.uint8)
    mask[20:100, 20:100] = 130  # not clean
    mask[40:60, 40:60] = 250
    assert measure(mask, PARTS[1]) == [0, 1, 1, 0, 0, 1]
    assert np.isnan(measure(np.where(mask > 200, 128, mask), PARTS[1])).all()
    assert solidity(mask >= 200) == 1.0
    bent = np.zeros((20, 20), bool)
    bent[:, :4] = bent[16:, :] = True
    assert solidity(bent) == pytest.approx(144 / (400 - 0.5 * 16 * 16))


def test_what_is_wrong_with_the_files(root: Path, tmp_path: Path):
    for settings, message in (
        ({"part": 3}, "part=3: choose 1 or 2"),
        ({"role": "targt"}, "role=targt: did you mean 'target'"),
    ):
        with pytest.raises(UserError, match=message):
            read_dataset("wbc", "cells", root, settings)
    with pytest.raises(UserError, match="no file .*Class Labels of Dataset 1.csv"):
        read_dataset("wbc", "cells", tmp_path, {})
    table = tmp_path / "Class Labels of Dataset 1.csv"
    for content, message in (
        ("image,class label\n1,1\n", "has no column 'image ID'"),
        ("image ID,class label\n", "has no rows"),
        ("image ID,class label\n1,6\n", "line 2: expected the number"),
        ("image ID,class label\n1,1\n", "names 'Dataset 1/001.bmp', which is not there"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=message):
            read_dataset("wbc", "cells", tmp_path, {})


def test_attributes_of_wbcatt(tmp_path: Path):
    header = ["img_name", "label", "cell_size", "granule_colour", "path"]
    rows = [
        ("a", "Neutrophil", "big", "pink"),
        ("b", "Lymphocyte", "small", "nil"),
        ("c", "Neutrophil", "small", "pink"),
    ]
    for split in ("train", "val", "test"):
        with (tmp_path / f"pbc_attr_v1_{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for stem, label, *values in rows:
                path = f"PBC_dataset_normal_DIB/{label.lower()}/{split}{stem}.png"
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(tmp_path / path)
                table.writerow([f"{split}{stem}.png", label, *values, path])
    cells = read_dataset("wbcatt", "cells", tmp_path, {})
    assert cells.classes == ["Lymphocyte", "Neutrophil"]
    assert cells.concept_groups == {
        "cell size": ["cell size: big", "cell size: small"],
        "granule colour": ["granule colour: nil", "granule colour: pink"],
    }
    assert cells.splits["test"].concepts.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]
    (tmp_path / path).unlink()
    with pytest.raises(UserError, match="names 1 picture.* not there, first"):
        read_dataset("wbcatt", "cells", tmp_path, {})


def test_from_one_microscope_to_the_other(root: Path, command, module, tmp_path: Path):
    here = [f"dataset.root={root}", f"cache={tmp_path / 'cache'}", "trainer.progress=false"]
    status, errors = command("train", "dataset=wbc1", *here, *QUICK, "run_dir=one", "report=false", "controls=false")
    assert status == 0, errors
    status, errors = command("eval", "run=one", "dataset=wbc2_target", *here[:2], "editor=test_time", "editor.shots=2",
                             "output=out.json")  # fmt: skip
    assert status == 0, errors
    assert (tmp_path / "one" / "eval" / "wbc2_target-test-test_time" / "page.html").is_file()
    status, errors = command("train", "dataset=wbc2_target", *here, "run_dir=two")
    assert status == 2
    assert "'wbc2_target' has no pictures to train on: it is for evaluation" in errors
    status, errors = command("eval", "run=one", "split=train", "dataset=wbc2_target", *here[:2])
    assert status == 2
    assert "has no pictures for 'train': it has val and test" in errors
