"""ImageNet (ILSVRC 2012) as it is unpacked from the challenge's archives or from Kaggle's.

The labels of the test images are not public, so the 50,000 validation images are the test split, as in the
literature; a validation split is held out of the training images.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset, Split
from cbm.data.images import list_names
from cbm.data.lists import (
    class_folders,
    find_root,
    folder_split,
    integers,
    listed_split,
    read_matlab,
    read_numbers,
    read_rows,
)
from cbm.data.readers import reader
from cbm.errors import UserError

KAGGLE = "ILSVRC/Data/CLS-LOC"
SOLUTION = "LOC_val_solution.csv"
DEVKIT = "ILSVRC2012_devkit_t12/data"

SAID = {
    "n01514668": "rooster",
    "n01608432": "kite bird",
    "n01847000": "male duck",
    "n02012849": "crane bird",
    "n02086910": "papillon dog",
    "n02108089": "boxer dog",
    "n02111277": "Newfoundland dog",
    "n02113186": "Cardigan Welsh corgi",
    "n03126707": "construction crane",
    "n03710721": "tank suit",
}
"""Synsets whose first word is another class's as well (crane, maillot, cardigan), or means something else to most."""


@reader("imagenet")
def read_imagenet(name: str, root: Path) -> ImageDataset:
    """``train/nXXXXXXXX/*.JPEG`` and ``val/``: one folder per synset, or flat with the published labels.

    Labels of a flat ``val/``: ``LOC_val_solution.csv`` (Kaggle, whose images are under ``ILSVRC/Data/CLS-LOC/``), or
    the devkit's ``ILSVRC2012_validation_ground_truth.txt`` and ``meta.mat``. Any subset of the synsets will do if
    ``val/`` has folders (ImageNet-100).
    """
    base = find_root(name, root, ["train", "val"], [".", KAGGLE, "Data/CLS-LOC"]).relative_to(root).as_posix()
    prefix = "" if base == "." else f"{base}/"
    found = class_folders(name, root, f"{prefix}train")
    synsets = list(found)
    classes = synset_names(name, synsets)
    if any(re.fullmatch(r"n\d{8}", path.name) for path in (root / base / "val").iterdir()):
        tested = class_folders(name, root, f"{prefix}val")
        if unknown := sorted(set(tested) - set(synsets)):
            raise UserError(f"data set '{name}': synset '{unknown[0]}' is in val/ but not in train/")
        test = folder_split(root, tested, synsets)
    else:
        test = _flat(name, root, f"{prefix}val", synsets)
    return ImageDataset(name, classes, {"train": folder_split(root, found, synsets), "test": test})


def _numbered(synsets: np.ndarray) -> dict[int, str]:
    """The development kit numbers the synsets in an order of its own."""
    return dict(zip(integers(synsets["ILSVRC2012_ID"]).tolist(), np.ravel(synsets["WNID"]).astype(str).tolist()))


def _flat(name: str, root: Path, folder: str, synsets: list[str]) -> Split:
    """The images of a flat folder, labelled by whichever list is there."""
    if (root / SOLUTION).is_file():
        rows = read_rows(name, root / SOLUTION, ["ImageId", "PredictionString"])
        pairs = [(f"{row['ImageId']}.JPEG", row["PredictionString"].partition(" ")[0]) for row in rows]
        source = SOLUTION
    elif (root / DEVKIT).is_dir():
        source = "ILSVRC2012_validation_ground_truth.txt"
        numbers = read_numbers(name, root / DEVKIT / source, 1)[:, 0].tolist()
        synset_of = read_matlab(root / DEVKIT / "meta.mat", "synsets", _numbered)
        pictures = list_names(root / folder)
        if len(pictures) != len(numbers):
            raise UserError(
                f"data set '{name}': {len(pictures):,} pictures in '{root / folder}', but {len(numbers):,} labels in "
                f"'{source}'"
            )
        pairs = [(picture, synset_of.get(number, "")) for picture, number in zip(pictures, numbers)]
    else:
        raise UserError(
            f"data set '{name}': nothing says what the pictures in '{root / folder}' show: put {SOLUTION} (Kaggle) or "
            f"the folder ILSVRC2012_devkit_t12 into '{root}', or sort the pictures into one folder per synset"
        )
    index = {synset: i for i, synset in enumerate(synsets)}
    if unknown := sorted({synset for _, synset in pairs} - set(index)):
        raise UserError(
            f"data set '{name}': '{source}' names {len(unknown)} synset(s) without a folder in train/, first "
            f"'{unknown[0]}' (was the training archive unpacked to the end?)"
        )
    files = [f"{folder}/{picture}" for picture, _ in pairs]
    return listed_split(name, root, files, [index[synset] for _, synset in pairs], source)


def synset_names(name: str, synsets: list[str]) -> list[str]:
    """A class name that a person would say for every WordNet identifier, no two alike.

    The first word of the synset (timm ships them); of two classes with the same one, those that have another use that.

    Raises:
        UserError: something that is not a synset.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names()) | set(ImageNetInfo("imagenet-1k").label_names())
    if unknown := [synset for synset in synsets if synset not in known]:
        raise UserError(
            f"data set '{name}': folder '{unknown[0]}' of train/ is not a WordNet synset such as n01440764 "
            "(dataset=folder reads any class folders)"
        )
    lemmas = [[word.strip() for word in info.label_name_to_description(synset).split(",")] for synset in synsets]
    names = [SAID.get(synset, words[0]) for synset, words in zip(synsets, lemmas)]
    often = Counter(said.casefold() for said in names)
    for i, (synset, words) in enumerate(zip(synsets, lemmas)):
        if often[names[i].casefold()] > 1:
            others = [word for word in words[1:] if word.casefold() not in often]
            names[i] = others[0] if others else f"{names[i]} ({synset})"
    return names
