"""Photographs by class: the benchmarks of CLIP's and LaBo's tables, as their authors publish them.

Where CoOp (Zhou et al., IJCV 2022) drew splits of its own, which LaBo and many others use, ``protocol=coop`` reads its
``split_zhou_NAME.json``; ``protocol=official`` is the authors' split.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cbm.data.dataset import ImageDataset, class_index
from cbm.data.lists import (
    UNPACKED,
    check_classes,
    class_folders,
    find_root,
    folder_split,
    integers,
    listed_split,
    read_lines,
    read_matlab,
    spoken,
    whole_number,
)
from cbm.data.readers import from_torchvision, reader
from cbm.errors import UserError, did_you_mean
from cbm.files.parsing import read_json

PROTOCOLS = ("official", "coop")


def locate(
    name: str, root: Path, marks: Sequence[str], inside: Sequence[str], download: bool, kind: str, **settings: Any
) -> Path:
    """The folder with ``marks``; torchvision's ``kind`` downloads it where there is none and it is asked for."""
    there = any(all((root / folder / mark).exists() for mark in marks) for folder in inside)
    if download and not there:
        from_torchvision(name, root, kind, download=True, **settings)
    return find_root(name, root, marks, inside)


def read_coop_split(name: str, root: Path, pictures: str, file: str) -> ImageDataset:
    """CoOp's split: ``{"train": [[picture, label, class name], ...], "val": ..., "test": ...}``."""
    if not (root / file).is_file():
        raise UserError(
            f"data set '{name}': no file '{root / file}'; dataset.args.protocol=coop needs CoOp's split (its "
            "DATASETS.md says where it is), dataset.args.protocol=official does not"
        )
    parts = read_json(root / file)
    try:
        listed = {
            split: [(str(p), int(label), str(said)) for p, label, said in parts[split]]
            for split in ("train", "val", "test")
        }
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"'{root / file}' is not a split of CoOp's: {type(error).__name__}: {error}") from error
    names = {label: spoken(said) for _, label, said in listed["train"]}
    if sorted(names) != list(range(len(names))):
        raise UserError(f"'{root / file}': the labels of 'train' are not 0 to {len(names) - 1}")
    classes = [names[label] for label in range(len(names))]
    splits = {}
    for split, rows in listed.items():
        labels = [spoken(said) for _, _, said in rows]
        check_classes(name, split, labels, classes)
        files = [f"{pictures}/{picture}" for picture, _, _ in rows]
        splits[split] = listed_split(name, root, files, class_index(labels, classes), file)
    return ImageDataset(name, classes, splits)


def check_protocol(protocol: str) -> None:
    """``official`` or ``coop``."""
    if protocol not in PROTOCOLS:
        raise UserError(f"dataset.args.protocol={protocol}: {did_you_mean(protocol, PROTOCOLS)}")


def check_partition(partition: int, count: int) -> None:
    """One of the ``count`` published divisions."""
    if partition not in range(1, count + 1):
        raise UserError(f"dataset.args.partition={partition}: expected 1 to {count}")


@reader("dtd")
def read_dtd(
    name: str, root: Path, protocol: str = "official", partition: int = 1, download: bool = False
) -> ImageDataset:
    """Describable Textures (Cimpoi et al., CVPR 2014): ``images/CLASS/*.jpg``, ``labels/{train,val,test}N.txt``."""
    check_protocol(protocol)
    check_partition(partition, 10)
    marks = ["images", "labels"] if protocol == "official" else ["images"]
    root = locate(name, root, marks, [".", "dtd", "dtd/dtd"], download, "DTD")
    if protocol == "coop":
        return read_coop_split(name, root, "images", "split_zhou_DescribableTextures.json")
    files = {split: _first_words(name, root / f"labels/{split}{partition}.txt") for split in ("train", "val", "test")}
    classes = sorted({file.split("/")[0] for file in files["train"]})
    splits = {}
    for split, listed in files.items():
        labels = [file.split("/")[0] for file in listed]
        check_classes(name, split, labels, classes)
        source = f"labels/{split}{partition}.txt"
        splits[split] = listed_split(
            name, root, [f"images/{file}" for file in listed], class_index(labels, classes), source
        )
    return ImageDataset(name, [spoken(each) for each in classes], splits)


@reader("flowers102")
def read_flowers(name: str, root: Path, protocol: str = "official", download: bool = False) -> ImageDataset:
    """Oxford Flowers (Nilsback & Zisserman, 2008): ``jpg/image_00001.jpg``, ``imagelabels.mat``, ``setid.mat``.

    Ten images per class train, ten validate, 6,149 test. The published files number the classes; torchvision names
    them.
    """
    check_protocol(protocol)
    marks = ["jpg", "imagelabels.mat", "setid.mat"] if protocol == "official" else ["jpg"]
    inside = [".", "flowers-102", "oxford_flowers"]
    root = locate(name, root, marks, inside, download, "Flowers102")
    if protocol == "coop":
        return read_coop_split(name, root, "jpg", "split_zhou_OxfordFlowers.json")
    from torchvision.datasets import Flowers102

    labels = read_matlab(root / "imagelabels.mat", "labels", integers) - 1
    splits = {}
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        numbers = read_matlab(root / "setid.mat", key, integers)
        if numbers.min(initial=1) < 1 or numbers.max(initial=1) > len(labels):
            raise UserError(f"data set '{name}': setid.mat names pictures that imagelabels.mat does not label")
        files = [f"jpg/image_{number:05d}.jpg" for number in numbers]
        splits[split] = listed_split(name, root, files, labels[numbers - 1], "setid.mat")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(Flowers102.classes):
        raise UserError(f"data set '{name}': imagelabels.mat has labels outside 1 to {len(Flowers102.classes)}")
    return ImageDataset(name, list(Flowers102.classes), splits)


@reader("food101")
def read_food(name: str, root: Path, protocol: str = "official", download: bool = False) -> ImageDataset:
    """Food-101 (Bossard et al., ECCV 2014): ``images/CLASS/*.jpg``, ``meta/{classes,labels,train,test}.txt``.

    The training images were left uncleaned on purpose; the test images were checked.
    """
    check_protocol(protocol)
    marks = ["images", "meta/classes.txt"] if protocol == "official" else ["images"]
    root = locate(name, root, marks, [".", "food-101"], download, "Food101")
    if protocol == "coop":
        return read_coop_split(name, root, "images", "split_zhou_Food101.json")
    classes = _first_words(name, root / "meta/classes.txt")
    splits = {}
    for split in ("train", "test"):
        listed = _first_words(name, root / f"meta/{split}.txt")
        labels = [file.split("/")[0] for file in listed]
        check_classes(name, split, labels, classes)
        files = [f"images/{file}.jpg" for file in listed]
        splits[split] = listed_split(name, root, files, class_index(labels, classes), f"meta/{split}.txt")
    return ImageDataset(name, [spoken(each) for each in classes], splits)


LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


@reader("aircraft")
def read_aircraft(name: str, root: Path, level: str = "variant", download: bool = False) -> ImageDataset:
    """FGVC-Aircraft (Maji et al., 2013): ``images/*.jpg``, ``variants.txt``, ``images_variant_{train,val,test}.txt``.

    100 variants, 70 families, 30 manufacturers, whatever the README says; CoOp's and LaBo's split is this one.
    """
    if level not in LEVELS:
        raise UserError(f"dataset.args.level={level}: {did_you_mean(level, LEVELS)}")
    inside = [".", "data", "fgvc-aircraft-2013b/data"]
    root = locate(name, root, ["images", LEVELS[level]], inside, download, "FGVCAircraft", split="trainval")
    classes = [" ".join(words) for _, words in read_lines(name, root / LEVELS[level])]
    splits = {}
    for split in ("train", "val", "test"):
        source = f"images_{level}_{split}.txt"
        rows = [(words[0], " ".join(words[1:])) for _, words in read_lines(name, root / source)]
        labels = [label for _, label in rows]
        check_classes(name, split, labels, classes)
        files = [f"images/{number}.jpg" for number, _ in rows]
        splits[split] = listed_split(name, root, files, class_index(labels, classes), source)
    return ImageDataset(name, classes, splits)


FRAMES, UCF_LISTS = "UCF-101-midframes", "ucfTrainTestlist"


@reader("ucf101")
def read_ucf101(name: str, root: Path, protocol: str = "official", partition: int = 1) -> ImageDataset:
    """UCF-101 (Soomro et al., 2012) by the middle frame of every film, as in CoOp and LaBo.

    ``UCF-101-midframes/Apply_Lipstick/v_ApplyLipstick_g01_c01.jpg`` and ``ucfTrainTestlist/{train,test}listNN.txt``.
    The films of a class were cut from 25 longer ones (``gNN``): those of one stay together when a validation split is
    drawn.
    """
    check_protocol(protocol)
    check_partition(partition, 3)
    root = find_root(name, root, [FRAMES] if protocol == "coop" else [FRAMES, UCF_LISTS], [".", "ucf101"])
    if protocol == "coop":
        return read_coop_split(name, root, FRAMES, "split_zhou_UCF101.json")
    listed = f"{UCF_LISTS}/classInd.txt"
    actions = [words[1] for _, words in read_lines(name, root / listed, 2)]
    folders = {action: _folder_of(root / FRAMES, action) for action in actions}
    splits = {}
    for split in ("train", "test"):
        source = f"{UCF_LISTS}/{split}list{partition:02d}.txt"
        films = [film.partition("/")[::2] for film in _first_words(name, root / source)]
        check_classes(name, split, [action for action, _ in films], list(folders))
        files = [f"{FRAMES}/{folders[action]}/{film.removesuffix('.avi')}.jpg" for action, film in films]
        subjects = np.array([film.rpartition("_")[0] for _, film in films])  # v_ApplyLipstick_g01
        labels = class_index([action for action, _ in films], list(folders))
        splits[split] = listed_split(name, root, files, labels, source, subjects=subjects)
    return ImageDataset(name, [spoken(folder) for folder in map(_apart, folders)], splits)


def _apart(action: str) -> str:
    """``ApplyEyeMakeup`` to ``Apply_Eye_Makeup``."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action)) or action


def _folder_of(frames: Path, action: str) -> str:
    return action if action in os.listdir(frames) else _apart(action)  # noqa: PTH208


@reader("resisc45")
def read_resisc45(name: str, root: Path) -> ImageDataset:
    """NWPU-RESISC45 (Cheng et al., 2017): ``CLASS/CLASS_001.jpg``, 700 per class. There is no official split."""
    root = find_root(name, root, ["airplane"], [".", "NWPU-RESISC45"])
    found = class_folders(name, root)
    return ImageDataset(name, [spoken(each) for each in found], {"train": folder_split(root, found, list(found))})


AFTER = {"shop", "platform", "door", "water"}  # of the second parts of Places' names, those that are nouns


@reader("places365")
def read_places(name: str, root: Path, download: bool = False) -> ImageDataset:
    """Places365-Standard (Zhou et al., 2018), small or large images, as torchvision unpacks them.

    ``categories_places365.txt``, ``places365_{train_standard,val}.txt``, ``data_256_standard/a/airfield/*.jpg``,
    ``val_256/*.jpg``. The labels of the test images are not public: the validation images test.
    """
    lists = ["categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"]
    if download:
        for split in ("train-standard", "val"):
            from_torchvision(name, root, "Places365", split=split, small=True, download=True)
    root = find_root(name, root, lists)
    categories = [words[0] for _, words in read_lines(name, root / lists[0])]
    splits = {}
    for split, source, folders in (
        ("train", lists[1], ["data_256_standard", "data_256", "data_large_standard", "data_large"]),
        ("test", lists[2], ["val_256", "val_large"]),
    ):
        pictures = next((folder for folder in folders if (root / folder).is_dir()), None)
        if pictures is None:
            raise UserError(f"data set '{name}': none of the folders {', '.join(folders)} is in '{root}' {UNPACKED}")
        files, labels = [], []
        for number, words in read_lines(name, root / source):
            if len(words) != 2 or not 0 <= whole_number(words[1]) < len(categories):
                last = len(categories) - 1
                raise UserError(f"'{root / source}' line {number}: expected a picture and a label, 0 to {last}")
            files.append(f"{pictures}/{words[0].lstrip('/')}")
            labels.append(int(words[1]))
        splits[split] = listed_split(name, root, files, labels, source)
    return ImageDataset(name, [place_name(category) for category in categories], splits)


def place_name(category: str) -> str:
    """How a place is said: ``/c/church/indoor`` is ``indoor church``, ``/b/bakery/shop`` is ``bakery shop``."""
    place, *kind = (spoken(part) for part in category.strip("/").split("/")[1:] or [category])
    return " ".join([place, *kind] if AFTER & set(kind) else [*kind, place])


def _first_words(name: str, file: Path) -> list[str]:
    return [words[0] for _, words in read_lines(name, file)]
