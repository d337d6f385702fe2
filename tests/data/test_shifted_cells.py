"""Cells through another stain and camera: seeded by name, and never mistaken for the originals."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbm.data import read_dataset
from cbm.data.shifted_cells import Shift, ShiftedFiles
from cbm.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of every split in the layout of WBCAtt."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        with (tmp_path / f"pbc_attr_v1_{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["img_name", "label", "cell_size", "path"])
            for label, size in (("Monocyte", "big"), ("Basophil", "small")):
                path = f"PBC_dataset_normal_DIB/{label.lower()}/{split}.png"
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                small = Image.fromarray(generator.integers(60, 220, (6, 6, 3), dtype=np.uint8))
                small.resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / path)
                table.writerow([f"{split}.png", label, size, path])
    return tmp_path


def read(root: Path, **args):
    return read_dataset("wbcatt_shift", "cells", root, args, to_train=False)


def pixels(images, row: int = 0) -> np.ndarray:
    return np.asarray(images.open(row)).astype(int)


def test_images_change_and_what_is_known_of_them_does_not(root: Path):
    home, shifted = read_dataset("wbcatt", "cells", root, {}), read(root)
    assert list(shifted.splits) == ["val", "test"]  # nothing to train on
    assert shifted.classes == home.classes
    assert np.array_equal(shifted.splits["test"].concepts, home.splits["test"].concepts)
    before, after = (pixels(each.splits["test"].images) for each in (home, shifted))
    assert before.shape == after.shape
    assert 5 < np.abs(before - after).mean() < 80
    assert np.array_equal(pixels(read(root, strength=0.0).splits["test"].images), before)


def test_every_image_has_a_part_of_its_own_that_depends_on_its_name_and_the_seed(root: Path):
    images = read(root).splits["test"].images
    assert np.array_equal(pixels(images, 1), pixels(images.take([1])))
    assert np.array_equal(pixels(images, 1), pixels(read(root).splits["test"].images, 1))
    assert not np.array_equal(pixels(images), pixels(read(root, seed=1).splits["test"].images))
    own = [Shift().of(f"{i}.png") for i in range(200)]
    assert len({shift.hue for shift in own}) > 150
    assert len({(shift.hue, shift.gamma, shift.blur) for shift in own}) == 200
    assert np.mean([shift.hue for shift in own]) == pytest.approx(Shift().hue, rel=0.1)
    assert all(0.5 * 0.04 - 1e-9 <= shift.hue <= 1.5 * 0.04 + 1e-9 for shift in own)


def test_each_amount_does_what_its_name_says():
    picture = Image.merge("RGB", [Image.linear_gradient("L").resize((64, 64)).rotate(angle) for angle in (0, 90, 180)])
    none = Shift(0, 0, 0, 0, 0)
    assert none.apply(picture) is picture
    hsv = np.asarray(picture.convert("HSV")).astype(int)

    def channel(shift: Shift, which: int) -> np.ndarray:
        return np.asarray(shift.apply(picture).convert("HSV")).astype(int)[..., which]

    pale = channel(Shift(0, -1, 0, 0, 0), 1)
    assert pale.mean() == pytest.approx(hsv[..., 1].mean() / 2, rel=0.05)
    assert channel(Shift(0, 0, 1, 0, 0), 2).mean() < 0.9 * hsv[..., 2].mean()
    steps = [np.abs(np.diff(np.asarray(shift.apply(picture)).astype(int), axis=0)).sum() for shift in
             (none, Shift(0, 0, 0, 0.05, 0))]  # fmt: skip
    assert steps[1] < steps[0]
    dot = Image.new("RGB", (64, 64))
    dot.paste((255, 255, 255), (28, 28, 36, 36))
    larger = np.asarray(Shift(0, 0, 0, 0, 1).apply(dot))
    assert (larger > 128).sum() == pytest.approx(4 * (np.asarray(dot) > 128).sum(), rel=0.2)
    red = Image.new("RGB", (4, 4), (200, 40, 40))
    assert Shift(1 / 3, 0, 0, 0, 0).apply(red).getpixel((0, 0)) == pytest.approx((40, 200, 40), abs=4)


def test_the_store_tells_every_change_from_every_other(root: Path, tmp_path: Path):
    cache, found = tmp_path / "cache", []
    home = read_dataset("wbcatt", "cells", root, {}).splits["test"].images
    found += home.fingerprints(cache)
    for args in ({}, {"seed": 1}, {"strength": 0.5}):
        images = read(root, **args).splits["test"].images
        found += images.fingerprints(cache)
        assert images.contents(cache) == home.contents(cache)  # copies are copies
    same = ShiftedFiles(home.root, [home.names[0], home.names[0]], Shift())
    assert len(set(same.fingerprints(cache))) == 1
    assert len(set(found)) == 8
    (root / "twin.png").write_bytes((root / home.names[0]).read_bytes())
    twins = ShiftedFiles(root, [home.names[0], "twin.png"], Shift())
    assert len(set(twins.fingerprints(cache))) == 2  # another name, another part of its own


def test_wrong_settings_and_training_are_refused(root: Path, command):
    for strength in (-0.1, 2.5):
        with pytest.raises(UserError, match="strength=.*: expected a factor from 0"):
            read(root, strength=strength)
    status, errors = command("train", "dataset=wbcatt_shift", f"dataset.root={root}", "cache=cache", "run_dir=one")
    assert status == 2
    assert "has no pictures to train on" in errors
