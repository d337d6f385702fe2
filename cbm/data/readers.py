"""Readers: from a card's settings to an ``ImageDataset``. A new kind of data set is one function here."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cbm.config import Registry
from cbm.data.dataset import ImageDataset, Split, class_index
from cbm.data.images import ImageArray, ImageFiles
from cbm.data.lists import check_classes, class_folders, folder_split, is_there
from cbm.errors import UserError, did_you_mean
from cbm.files.parsing import read_json, read_table

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}

READERS: Registry[Callable[..., ImageDataset]] = Registry("reader")
reader = READERS.register
"""Make a function a reader of data sets; its keyword arguments are the card's ``args``."""


def read_dataset(
    kind: str, name: str, root: Path | None, args: dict[str, Any], cache: Path = Path("cache")
) -> ImageDataset:
    """Read a data set.

    Args:
        kind: name of the reader.
        name: name of the data set.
        root: folder (or CSV file) with the images.
        args: further arguments of the reader, from the card.
        cache: folder in which some readers keep an index of large files.

    Raises:
        UserError: the reader or an argument is unknown, the root is missing, or the data is damaged.
    """
    read = READERS.find(kind)
    if root is None:
        raise UserError(
            f"data set '{name}' needs to know where the images are: say dataset.root=/path/to/images "
            f"(where to get them: python -m cbm datasets show {name})"
        )
    parameters = inspect.signature(read).parameters
    known = [key for key in parameters if key not in ("name", "root", "cache")]
    for key in args:
        if key not in known:
            raise UserError(f"unknown setting 'dataset.args.{key}' of reader '{kind}': {did_you_mean(key, known)}")
    own = {"cache": cache} if "cache" in parameters else {}
    return read(name, Path(root), **args, **own).check()


@reader("folder")
def read_folder(name: str, root: Path) -> ImageDataset:
    """Images in one folder per class: ``ROOT/CLASS/*.jpg``, or ``ROOT/{train,val,test}/CLASS/*.jpg``.

    Raises:
        UserError: there are no images.
    """
    if not root.is_dir():
        siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        near = did_you_mean(root.name, siblings)
        raise UserError(f"data set '{name}': no folder '{root}' {near}".rstrip())
    splits = {SPLIT_ALIASES.get(p.name.lower(), p.name.lower()): p for p in root.iterdir() if p.is_dir()}
    splits = {split: path for split, path in splits.items() if split in SPLITS}
    if "train" not in splits:
        splits = {"train": root}
    found = {split: class_folders(name, root, "" if path == root else path.name) for split, path in splits.items()}
    classes = list(found["train"])
    for split, by_class in found.items():
        check_classes(name, split, by_class, classes)
    return ImageDataset(
        name, classes, {split: folder_split(root, by_class, classes) for split, by_class in found.items()}
    )


@reader("csv")
def read_csv(name: str, root: Path) -> ImageDataset:
    """A table ``path,label[,split][,spurious][,one column per concept]``; paths are relative to the table.

    Concept cells are 0 or 1; an empty cell is unknown. A ``spurious`` cell names concepts (``a; b``) that go with the
    image's class without belonging to it (``python -m cbm spurious``). A file ``groups.json`` beside the table may map
    a group's name to the concepts that exclude each other.

    Raises:
        UserError: the table cannot be read, lacks a column, or has a wrong entry.
    """
    table = root / "images.csv" if root.is_dir() else root
    if not table.is_file():
        raise UserError(f"data set '{name}': no table '{table}' (a CSV file with columns path,label)")
    columns, records = read_table(table)
    for needed in ("path", "label"):
        if needed not in columns:
            near = did_you_mean(needed, columns)
            raise UserError(f"'{table}' has no column '{needed}' (columns: {', '.join(columns) or 'none'}); {near}")
    if not records:
        raise UserError(f"'{table}' has no rows")
    concepts = [column for column in columns if column not in ("path", "label", "split", "spurious") and column]
    for line, record in enumerate(records, start=2):
        if not record["path"] or not record["label"]:
            raise UserError(f"'{table}' line {line}: path and label must not be empty")
        record["split"] = SPLIT_ALIASES.get(split := (record.get("split") or "train").strip().lower(), split)
        if record["split"] not in SPLITS:
            raise UserError(f"'{table}' line {line}: unknown split '{split}', choose one of {', '.join(SPLITS)}")
    if absent := [r["path"] for r in records if not is_there(table.parent / r["path"])]:
        raise UserError(f"'{table}' names {len(absent)} file(s) that are not there, first: '{absent[0]}'")
    classes = sorted({record["label"] for record in records})
    splits = {}
    for split in SPLITS:
        part = [record for record in records if record["split"] == split]
        if part:
            values = _concept_values(part, concepts, table) if concepts else None
            images = ImageFiles(table.parent, [record["path"] for record in part])
            splits[split] = Split(images, class_index([record["label"] for record in part], classes), values)
    if "train" not in splits:
        raise UserError(f"'{table}' has no rows with split 'train'")
    groups_file = table.parent / "groups.json"
    groups = _groups(groups_file, concepts) if groups_file.is_file() else {}
    spurious: dict[str, list[str]] = {}
    for record in records:
        for concept in filter(None, map(str.strip, (record.get("spurious") or "").split(";"))):
            if concept not in spurious.setdefault(record["label"], []):
                spurious[record["label"]].append(concept)
    return ImageDataset(name, classes, splits, concepts, groups, spurious)


def _groups(file: Path, concepts: list[str]) -> dict[str, list[str]]:
    """Group name to the concepts that exclude each other, all of them columns of the table beside the file."""
    groups = read_json(file)
    if not isinstance(groups, dict) or not all(isinstance(names, list) for names in groups.values()):
        raise UserError(f"'{file}': expected {{group: [concepts]}}")
    for name in (name for names in groups.values() for name in names):
        if name not in concepts:
            raise UserError(f"'{file}' names a concept '{name}' without a column; {did_you_mean(str(name), concepts)}")
    return groups


def _concept_values(records: list[dict[str, str]], concepts: list[str], table: Path) -> np.ndarray:
    """Cells to ``[N, A]`` float32: 0, 1, NaN for unknown."""
    meaning = {"1": 1.0, "0": 0.0, "": np.nan, "true": 1.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0, "nan": np.nan}
    try:
        cells = [[meaning[(record[c] or "").strip().lower()] for c in concepts] for record in records]
    except KeyError as error:
        bad = next((r["path"], c) for r in records for c in concepts if (r[c] or "").strip().lower() not in meaning)
        raise UserError(
            f"'{table}': column '{bad[1]}' of '{bad[0]}' is '{error.args[0]}'; a concept is 0, 1 or empty"
        ) from error
    return np.array(cells, dtype=np.float32)


@reader("birds")
def read_birds(
    name: str,
    root: Path,
    variant: str = "birds",
    seed: int = 0,
    n_train: int = 100,
    n_val: int = 20,
    n_test: int = 40,
    size: int = 64,
) -> ImageDataset:
    """Paper birds, drawn into ``root`` on first use.

    Args:
        name: name of the data set.
        root: folder of the images.
        variant: ``birds``, ``birds_spurious`` or ``birds_shift``.
        seed: random seed for the birds.
        n_train: number of training images per species.
        n_val: number of validation images per species.
        n_test: number of test images per species.
        size: width and height of an image in pixels.

    Raises:
        UserError: an argument is out of range, or ``root`` holds something else.
    """
    from cbm.data.birds import write_birds

    made_of: dict[str, Any] = dict(variant=variant, seed=seed, n_train=n_train, n_val=n_val, n_test=n_test, size=size)
    root = root / f"{variant}-{seed}-{n_train}-{n_val}-{n_test}-{size}"
    if not (root / "images.csv").is_file():
        log.info("drawing %s into %s", variant, root)
        write_birds(root, **made_of)
    birds = read_csv(name, root)
    if variant == "birds_spurious":  # the habitat goes with the species in training, whichever it is
        birds.spurious = dict.fromkeys(birds.classes, birds.concept_groups["habitat"])
    return birds


@reader("torchvision")
def read_torchvision(name: str, root: Path, dataset: str, download: bool = True) -> ImageDataset:
    """A torchvision data set that keeps its images in one array (CIFAR10, CIFAR100).

    Args:
        name: name of the data set.
        root: folder of the data set.
        dataset: name of torchvision's class.
        download: whether a missing data set is downloaded.

    Raises:
        UserError: the class is unknown, or the data set is missing and cannot be downloaded.
    """
    known = ["CIFAR10", "CIFAR100"]
    if dataset not in known:
        raise UserError(f"dataset.args.dataset={dataset}: {did_you_mean(dataset, known)}")
    splits = {}
    for split in ("train", "test"):
        source = from_torchvision(name, root, dataset, train=split == "train", download=download)
        images = ImageArray(source.data, [f"{split}/{row:05d}" for row in range(len(source.data))])
        splits[split] = Split(images, np.array(source.targets, dtype=np.int64))
    return ImageDataset(name, list(source.classes), splits)


def from_torchvision(name: str, root: Path, kind: str, **settings: Any) -> Any:
    """Open a data set of torchvision, which downloads, verifies and unpacks the archives if ``download=True``.

    Args:
        name: name of the data set, for messages.
        root: folder of the data set.
        kind: name of torchvision's class.
        settings: arguments of torchvision's class.

    Raises:
        UserError: the data set is missing and cannot be downloaded.
    """
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, kind)(str(root), **settings)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data set '{name}' is not in '{root}' and could not be downloaded ({str(error).splitlines()[0]}): "
            f"put torchvision's files there, or use dataset=folder dataset.root=..."
        ) from error
