"""PASCAL VOC, classification: twenty kinds of things, any number of them in an image."""

from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset, Split
from cbm.data.labels import UNSURE, choose_labels, settle
from cbm.data.lists import find_root, listed_split, read_lines
from cbm.data.readers import reader
from cbm.errors import UserError, did_you_mean

THINGS = {
    "aeroplane": "aeroplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle", "bus": "bus",
    "car": "car", "cat": "cat", "chair": "chair", "cow": "cow", "diningtable": "dining table", "dog": "dog",
    "horse": "horse", "motorbike": "motorbike", "person": "person", "pottedplant": "potted plant", "sheep": "sheep",
    "sofa": "sofa", "train": "train", "tvmonitor": "tv monitor",
}  # fmt: skip
"""What the files are called, and what a person would say."""
MARKS = {"1": 1.0, "-1": 0.0, "0": UNSURE}
"""Present, absent, and present only in a way that is difficult to see."""
YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")


@reader("voc")
def read_voc(
    name: str,
    root: Path,
    year: str = "2007",
    unknown: str = "ignore",
    keep: list[str] | None = None,
    drop: list[str] | None = None,
    seed: int = 0,
) -> ImageDataset:
    """PASCAL VOC (Everingham et al., IJCV 2010), unpacked: ``VOCdevkit/VOC2007/{ImageSets/Main,JPEGImages}``.

    A line of ``ImageSets/Main/dog_train.txt`` is an image and 1 (a dog is there), -1 (none) or 0 (only dogs that are
    difficult to recognise). 2007 has train, val and test; of the other years no test labels are published: their
    validation images are the split ``test``, and a validation split is held out of the training images.

    Args:
        name: name of the data set.
        root: folder of the data set.
        year: 2007 to 2012.
        unknown: what a difficult one is taken for: ``ignore``, ``absent``, ``present`` or ``soft``.
        keep: the labels that are taken; by default all 20.
        drop: labels that are left out.
        seed: random seed of the targets that ``soft`` draws.

    Raises:
        UserError: files are missing or damaged, or a setting is out of range.
    """
    if year not in YEARS:
        raise UserError(f"dataset.args.year={year}: {did_you_mean(year, YEARS)}")
    folders = [".", f"VOC{year}", f"VOCdevkit/VOC{year}", f"VOCtrainval_06-Nov-2007/VOCdevkit/VOC{year}"]
    root = find_root(name, root, ["ImageSets/Main", "JPEGImages"], folders)
    listed = root / "ImageSets" / "Main"
    parts = {"train": "train", "val": "val", "test": "test"}
    if not (listed / "aeroplane_test.txt").is_file():
        parts = {"train": "train", "test": "val"}
    splits = {split: _of_lists(name, root, listed, part, unknown, seed) for split, part in parts.items()}
    dataset = ImageDataset(name, list(THINGS.values()), splits, task="many", negative_template="a photo without a {}.")
    return choose_labels(dataset, keep, drop)


def _of_lists(name: str, root: Path, listed: Path, part: str, unknown: str, seed: int) -> Split:
    """The images of ``THING_train.txt``, ..., which all name the same ones."""
    names: list[str] = []
    columns: list[list[float]] = []
    for thing in THINGS:
        file = listed / f"{thing}_{part}.txt"
        found = list(read_lines(name, file, 2))
        if wrong := [(number, words[1]) for number, words in found if words[1] not in MARKS]:
            raise UserError(f"'{file}' line {wrong[0][0]}: '{wrong[0][1]}', expected 1, -1 or 0")
        here = [words[0] for _, words in found]
        if columns and here != names:
            raise UserError(f"data set '{name}': '{file.name}' and 'aeroplane_{part}.txt' name other images")
        names = here
        columns.append([MARKS[words[1]] for _, words in found])
    files = [f"JPEGImages/{each}.jpg" for each in names]
    split = listed_split(name, root, files, np.zeros(len(files)), f"ImageSets/Main/aeroplane_{part}.txt")
    split.labels = settle(np.array(columns).T, unknown, seed=seed)
    return split
