"""ImageNet in every layout people have it in."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import paint

from cbm.data import read_dataset
from cbm.data.imagenet import synset_names
from cbm.errors import UserError

SYNSETS = ["n01440764", "n02012849", "n02113186", "n02963159", "n03126707"]
NAMES = ["tench", "crane bird", "Cardigan Welsh corgi", "cardigan", "construction crane"]


def train(root: Path) -> Path:
    for c, synset in enumerate(SYNSETS):
        for i in range(2):
            paint(root / "train" / synset / f"{synset}_{10 * i + 1}.JPEG", (9, 9, 9), c, size=8)
    return root


def flat(folder: Path) -> list[str]:
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 11)]
    for i, name in enumerate(names):
        paint(folder / f"{name}.JPEG", (9, 9, 9), i, size=8)
    return names


def devkit(root: Path) -> None:
    """The devkit numbers synsets in an order of its own, and has more of them than classes."""
    folder = root / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    order = [4, 2, 0, 1, 3]
    rows = [(number + 1, SYNSETS[c], NAMES[c]) for number, c in enumerate(order)] + [(1001, "n00001740", "entity")]
    table = np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    scipy.io.savemat(folder / "meta.mat", {"synsets": table.reshape(-1, 1)})
    truth = [order.index(i % 5) + 1 for i in range(10)]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)) + "\n")


def read(root: Path):
    return read_dataset("imagenet", "imagenet", root, {})


def check(data) -> None:
    assert data.classes == NAMES
    assert set(data.splits) == {"train", "test"}  # a validation split is held out of train
    assert len(data.splits["train"]) == 10
    assert data.splits["test"].labels.tolist() == [i % 5 for i in range(10)]
    assert data.splits["test"].images.open(9).size == (8, 8)


def test_sorted(tmp_path: Path):
    train(tmp_path)
    for i in range(10):
        paint(tmp_path / "val" / SYNSETS[i % 5] / f"ILSVRC2012_val_{i:08d}.JPEG", (9, 9, 9), i, size=8)
    data = read(tmp_path)
    assert data.classes == NAMES
    assert np.bincount(data.splits["test"].labels).tolist() == [2] * 5
    (tmp_path / "val" / SYNSETS[0]).rename(tmp_path / "val" / "n01443537")
    with pytest.raises(UserError, match="'n01443537' is in val/ but not in train/"):
        read(tmp_path)


def test_as_kaggle_packs_it(tmp_path: Path):
    train(tmp_path / "ILSVRC/Data/CLS-LOC")
    names = flat(tmp_path / "ILSVRC/Data/CLS-LOC/val")
    rows = [f"{name},{SYNSETS[i % 5]} 85 1 499 272 {SYNSETS[i % 5]} 2 3 4 5 " for i, name in enumerate(names)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    check(read(tmp_path))
    (tmp_path / "LOC_val_solution.csv").write_text(
        "\n".join(["ImageId,PredictionString", *rows, "x,n01443537 1 2 3 4"])
    )
    with pytest.raises(UserError, match="1 synset.* without a folder in train/, first 'n01443537'"):
        read(tmp_path)


def test_flat_with_the_devkit(tmp_path: Path):
    train(tmp_path)
    flat(tmp_path / "val")
    with pytest.raises(UserError, match="put LOC_val_solution.csv .Kaggle. or the folder ILSVRC2012_devkit_t12"):
        read(tmp_path)
    devkit(tmp_path)
    check(read(tmp_path))
    (tmp_path / "val/ILSVRC2012_val_00000010.JPEG").unlink()
    with pytest.raises(UserError, match="9 pictures in .*but 10 labels"):
        read(tmp_path)


def test_folders_that_are_no_synsets(tmp_path: Path):
    for folder in ("train/tench", "train/crane", "val/tench"):
        paint(tmp_path / folder / "a.JPEG", (9, 9, 9), 0)
    with pytest.raises(UserError, match="'crane' of train/ is not a WordNet synset.*dataset=folder"):
        read(tmp_path)


def test_no_two_classes_of_imagenet_have_one_name():
    from timm.data import ImageNetInfo

    names = synset_names("imagenet", ImageNetInfo("imagenet-1k").label_names())
    assert len({name.casefold() for name in names}) == len(names) == 1000
    assert not [name for name in names if "(" in name or "_" in name]
    two = synset_names("x", ["n02012849", "n02013706"])  # without the machine a crane is still the bird
    assert two[0] == "crane bird"
