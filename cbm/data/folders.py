"""Images in one folder per class, with split folders or without, as people keep them."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from cbm.data.dataset import ImageDataset
from cbm.data.images import is_ours, list_names
from cbm.data.lists import check_classes, class_folders, folder_split, passed_over
from cbm.data.readers import SPLIT_ALIASES, SPLITS, reader
from cbm.data.tables import columns_beside
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form, quoted
from cbm.files.pictures import EXTENSIONS

TABLE = "images.csv"


@reader("folder")
def read_folder(
    name: str,
    root: Path,
    subject: str | None = None,
    groups: list[str] | None = None,
    table: str | None = None,
    subject_pattern: str | None = None,
) -> ImageDataset:
    """Images in one folder per class: ``ROOT/CLASS/*.jpg``, or ``ROOT/{train,val,test}/CLASS/*.jpg``.

    A folder called like a split is one if it has class folders; with images directly inside it is a class.

    Args:
        name: name of the data set.
        root: folder of the images.
        subject: column of ``table`` that says what belongs together (a patient, a film).
        groups: columns of ``table`` with groups (site, sex).
        table: CSV file in the root with a column ``path`` (as seen from the root) and those columns; by default
            ``images.csv``.
        subject_pattern: instead of a column, a regular expression whose first group, found in an image's path from the
            root, is its subject: ``(P[0-9]+)_``.

    Raises:
        UserError: there are no images, two folders mean the same split, or a setting that fits nothing.
    """
    if not root.is_dir():
        siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        near = did_you_mean(root.name, siblings)
        raise UserError(f"data set '{name}': no folder '{root}' {near}".rstrip())
    folders = split_folders(name, root)
    others: Counter[str] = Counter()
    places = {split: class_folders(name, root, folder, others) for split, folder in (folders or {"train": ""}).items()}
    doubts = [*_beside(root, folders), *_empty(places), *passed_over(others)]
    found = {split: _by_class(by_folder, doubts) for split, by_folder in places.items()}
    classes = sorted({each for by_class in found.values() for each in by_class})
    if "train" in found:
        classes = list(found["train"])
        for split, by_class in found.items():
            check_classes(name, split, by_class, classes)
    splits = {split: folder_split(root, by_class, classes) for split, by_class in found.items()}
    dataset = ImageDataset(name, classes, splits, doubts=doubts)
    if subject_pattern is not None:
        _match_subjects(dataset, subject_pattern)
    elif subject is not None or groups:
        columns_beside(dataset, root, root / (table or TABLE), subject, groups)
    return dataset


def split_folders(name: str, root: Path) -> dict[str, str]:
    """Split to folder; empty if the root is not divided.

    Raises:
        UserError: two folders mean the same split.
    """
    found: dict[str, str] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir() and is_ours(path.name)):
        split = SPLIT_ALIASES.get(path.name.lower(), path.name.lower())
        if split not in SPLITS or not _has_classes(path):
            continue
        if split in found:
            raise UserError(
                f"data set '{name}': '{found[split]}' and '{path.name}' in '{root}' both mean the split '{split}': "
                "keep one, or put the images together"
            )
        found[split] = path.name
    return {split: found[split] for split in SPLITS if split in found}


def _has_classes(folder: Path) -> bool:
    """Whether there are folders with images inside: one, or two and more if there are images beside them."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and is_ours(path.name))
    classes = sum(1 for path in inside if list_names(path))
    return classes > (1 if _own(folder) else 0)


def _own(folder: Path) -> list[str]:
    """Images directly in a folder."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not path.name.startswith(".")
    )


def _by_class(by_folder: dict[str, list[str]], doubts: list[str]) -> dict[str, list[str]]:
    """Images by class name in one form; folders that differ in form only are one class, which is said."""
    found: dict[str, list[str]] = {}
    for folder, files in by_folder.items():
        if files and (same := one_form(folder)) in found:
            doubts.append(
                f"two folders are called '{same}', in different spaces or forms of letters: taken as one class"
            )
        if files:
            found.setdefault(one_form(folder), []).extend(files)
    return found


def _empty(places: dict[str, dict[str, list[str]]]) -> list[str]:
    names = [name for by_folder in places.values() for name, files in by_folder.items() if not files]
    return [f"{len(names)} folder(s) without images are passed over: {quoted(names)}"] if names else []


def _beside(root: Path, folders: dict[str, str]) -> list[str]:
    """Folders with images beside those of the splits, and images that are in no class folder."""
    doubts = [
        f"{len(own)} image(s) directly in '{folder or root.name}' belong to no class: {quoted(own)}"
        for folder in folders.values() or [""]
        if (own := _own(root / folder))
    ]
    if not folders:
        return doubts
    names = sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and path.name not in folders.values() and is_ours(path.name) and list_names(path)
    )
    if names:
        doubts.append(f"{len(names)} folder(s) beside those of the splits are passed over: {quoted(names)}")
    return doubts


def _match_subjects(dataset: ImageDataset, pattern: str) -> None:
    """Fill ``Split.subjects`` from the images' paths."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"dataset.args.subject_pattern='{pattern}' is no regular expression: {error}") from error
    if compiled.groups < 1:
        raise UserError(f"dataset.args.subject_pattern='{pattern}' has no group: expected one, such as (P[0-9]+)_")
    dataset.subject = pattern
    for split in dataset.splits.values():
        split.subjects = np.array([_subject(compiled, file) for file in split.images.names])


def _subject(compiled: re.Pattern[str], file: str) -> str:
    if (match := compiled.search(file)) is None:
        raise UserError(f"dataset.args.subject_pattern='{compiled.pattern}' finds nothing in '{file}'")
    return match[1] or ""
