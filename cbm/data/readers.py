"""Readers: from a card's settings to an ``ImageDataset``. A new kind of data set is one function here."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from cbm.config import FEATURES, Registry
from cbm.data.dataset import ImageDataset, Split, Task
from cbm.data.images import ImageArray
from cbm.errors import UserError, did_you_mean
from cbm.files.names import differ_in_case, one_form, quoted

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}

EXPECTED = {str: "a name", list[str]: "names", bool: "true or false", int: "a whole number", float: "a number"}
"""What a setting of a reader should be, by its type."""

READERS: Registry[Callable[..., ImageDataset]] = Registry("reader")
reader = READERS.register
"""Make a function a reader of data sets; its keyword arguments are the card's ``args``."""


def read_dataset(
    kind: str,
    name: str,
    root: Path | None,
    args: dict[str, Any],
    cache: Path = Path("cache"),
    *,
    to_train: bool = True,
) -> ImageDataset:
    """Read a data set.

    Args:
        kind: name of the reader.
        name: name of the data set.
        root: folder (or CSV file) with the images.
        args: further arguments of the reader, from the card.
        cache: folder in which some readers keep an index of large files.
        to_train: whether a classifier is to be trained on it; evaluation asks for less (one class will do).

    Raises:
        UserError: the reader or an argument is unknown, the root is missing, or the data is damaged.
    """
    read = READERS.find(kind)
    if root is None:
        raise UserError(
            f"data set '{name}' needs to know where the {'features' if kind == FEATURES else 'images'} are: say "
            f"dataset.root=/path/to/{'features' if kind == FEATURES else 'images'} "
            f"(where to get them: python -m cbm datasets show {name})"
        )
    parameters = inspect.signature(read).parameters
    known = [key for key in parameters if key not in ("name", "root", "cache")]
    for key in args:
        if key not in known:
            raise UserError(f"unknown setting 'dataset.args.{key}' of reader '{kind}': {did_you_mean(key, known)}")
    own = {"cache": cache} if "cache" in parameters else {}
    given = {key: _setting(key, value, get_type_hints(read)[key]) for key, value in args.items()}
    dataset = in_one_form(read(name, Path(root), **given, **own))
    return dataset.check() if to_train else dataset


def _setting(key: str, value: Any, kind: Any) -> Any:
    """A setting of a reader as its function expects it: a column called 7 is a name, and one name is a list of names.

    Raises:
        UserError: it is of another type.
    """
    optional = get_origin(kind) is UnionType
    wanted = next(each for each in get_args(kind) if each is not type(None)) if optional else kind
    if value is None and optional:
        return None
    single = isinstance(value, str | int | float)
    truth = isinstance(value, bool)
    if wanted is str and single and not truth:
        return str(value)
    if wanted == list[str] and (single or isinstance(value, Sequence)):
        return [str(each) for each in ([value] if single else value)]
    if wanted is bool and truth:
        return value
    if wanted in (int, float) and single and not truth:
        with suppress(ValueError, OverflowError):
            if (number := wanted(value)) == float(value):
                return number
    if wanted in EXPECTED:
        raise UserError(f"dataset.args.{key}={value}: expected {EXPECTED[wanted]}")
    return value


def in_one_form(dataset: ImageDataset) -> ImageDataset:
    """The data set with its names in one form (``cbm.files.names``), and doubts about names that look alike.

    Raises:
        UserError: two classes have the same name then.
    """
    classes = [one_form(name) for name in dataset.classes]
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise UserError(
            f"data set '{dataset.name}': {len(twice)} class(es) stand twice, in different spaces or forms of letters, "
            f"first '{twice[0]}'"
        )
    doubts = [*dataset.doubts, *_alike(classes, dataset.task)]
    spurious = {one_form(name): list(map(one_form, concepts)) for name, concepts in dataset.spurious.items()}
    groups = {name: list(map(one_form, members)) for name, members in dataset.concept_groups.items()}
    concepts = list(map(one_form, dataset.concept_names))
    specs = [replace(spec, columns=list(map(one_form, spec.columns))) for spec in dataset.specs]
    return replace(
        dataset,
        classes=classes,
        concept_names=concepts,
        concept_groups=groups,
        spurious=spurious,
        doubts=doubts,
        specs=specs,
    )


def _alike(classes: list[str], task: Task) -> list[str]:
    """What is doubtful about class names: the same but for the case, or several labels in one."""
    doubts = []
    if same := differ_in_case(classes):
        more = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
        doubts.append(f"classes {' and '.join(map(repr, same[0]))}{more} differ in upper and lower case only")
    if task == "one" and (several := combinations(classes)):
        doubts.append(
            f"{len(several)} class(es) look like several labels in one: {quoted(several)}; an image has one class "
            "here: write one label per image (or concept columns of 0 and 1)"
        )
    return doubts


def combinations(classes: list[str]) -> list[str]:
    """Class names that are made of the names of others: ``frog|outdoor``, ``cat, dog``, ``['cat', 'dog']``.

    Example:
        >>> combinations(["frog", "frog|outdoor", "ship", "ship, frog", "black and white", "crane, bird"])
        ['frog|outdoor', 'ship, frog']
    """
    parts = {name: [one_form(part.strip(" '\"[](){}")) for part in re.split(r"[|;,/&+]", name)] for name in classes}
    parts = {name: [part for part in found if part] for name, found in parts.items()}
    known = set(classes)
    often = Counter(part for name, found in parts.items() if len(found) > 1 for part in set(found))

    def is_one(name: str) -> bool:
        found = [part for part in parts[name] if part != name]
        sharp = any(mark in name for mark in "|;[")
        seen = [part in known or often[part] > 1 for part in found]
        return len(parts[name]) > 1 and bool(found) and (any(seen) if sharp else all(seen))

    return [name for name in classes if is_one(name)]


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
