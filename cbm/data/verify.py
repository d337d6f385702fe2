"""Is a download whole? Numbers against the published ones, files that are missing, broken or left over, checksums."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from cbm.data.copies import differ, find_copies, near_duplicates, shared_subjects
from cbm.data.dataset import ImageDataset, Split
from cbm.data.given import GivenImages
from cbm.data.images import ImageFiles, Images
from cbm.data.lists import missing_files
from cbm.files.opening import open_to_read
from cbm.files.pictures import EXTENSIONS

SAMPLE = 100  # pictures of a split that are opened
SHOWN = 5  # files that a message names
DARK = 15  # of 255: no picture is meant to be darker all over
FEW = 20  # images with a label, below which nothing about it is measured well
UNBALANCED = 10  # times as many images of one class as of another


@dataclass
class Findings:
    """Findings about a download.

    Attributes:
        problems: errors.
        doubts: what a person should look at.
        notes: checks that were skipped, and other remarks.
        opened: how many images were opened.
        images: how many there are.
    """

    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    opened: int = 0
    images: int = 0

    def summary(self) -> str:
        """All of it in a few words."""
        doubts = f"{len(self.doubts)} doubt(s)"
        if self.problems:
            return f"{len(self.problems)} problem(s)" + (f", {doubts}" if self.doubts else "")
        part = "" if self.opened == self.images else f" in what was opened ({self.opened:,} of {self.images:,})"
        return f"no problem{part}, but {doubts}" if self.doubts else f"all right{part}"


def verify_checksums(root: Path, md5: dict[str, str], findings: Findings) -> None:
    """Compare the files in ``md5`` that are in the root or beside it; archives are often deleted once unpacked."""
    for name, expected in md5.items():
        places = (root / name, root.absolute().parent / Path(name).name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            findings.notes.append(f"checksum of '{name}' not compared: the file is not there")
            continue
        with open_to_read(path) as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected:
            findings.problems.append(f"'{path}' has the MD5 checksum {found}, published is {expected}: get it again")


def verify_counts(dataset: ImageDataset, published: dict[str, int], findings: Findings) -> None:
    """Compare the numbers of classes, concepts and images; they must be the reader's, before any split is drawn."""
    found = {"classes": len(dataset.classes), "concepts": len(dataset.concept_names)}
    found |= {name: len(split) for name, split in dataset.splits.items()}
    for what, expected in published.items():
        here = found.get(what, 0)
        if here == expected:
            continue
        text = f"{what}: {here:,}, published are {expected:,} ({abs(here - expected):,} {_fewer(here < expected)})"
        if what in dataset.splits:
            counts = positives(dataset, dataset.splits[what])
            fewest = int(counts.argmin())
            text += f"; fewest of '{dataset.classes[fewest]}': {counts[fewest]:,}"
        findings.problems.append(text)
    if not published:
        findings.notes.append("numbers not compared: none are published for these settings")


def verify_images(dataset: ImageDataset, findings: Findings, *, every: bool, progress: bool) -> None:
    """Look for missing and left-over files, and open ``SAMPLE`` images of each split, or every one."""
    for (first, part), (later, other) in combinations(dataset.splits.items(), 2):
        twice = set() if dataset.faults else set(part.images.names) & set(other.images.names)
        if twice and first == "train":
            findings.problems.append(f"{len(twice):,} picture(s) of {later} are in {first} too{_first(sorted(twice))}")
    for name, split in dataset.splits.items():
        images = split.images
        findings.images += len(images)
        if isinstance(images, ImageFiles) and (absent := missing_files(images.root, images.names)):
            findings.problems.append(f"{name}: {len(absent):,} picture(s) are missing{_first(absent)}")
            images = images.take(sorted(set(range(len(images))) - _rows(images, absent)))
        if isinstance(images, GivenImages) and images.shown is None and split.features is not None:
            findings.notes.append(f"{name}: there are no images to open, only features")
            lost = [file for file, _ in zip(split.features.errors, range(SAMPLE))]
            if lost:
                count = int((~split.features.readable).sum())
                findings.problems.append(
                    f"{name}: {count:,} row(s) of features are NaN, infinite or zero{_first(lost)}"
                )
            continue
        rows = range(len(images)) if every else np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int)).tolist()
        found = list(_opened(images, rows if len(images) else [], f"opening {name}", progress))
        findings.opened += len(found)
        if broken := [f"{file} ({why})" for file, kind, why in found if kind == "broken"]:
            findings.problems.append(f"{name}: {len(broken):,} picture(s) cannot be opened{_first(broken)}")
        for kind, said in ODD.items():
            if odd := [file for file, found_kind, _ in found if found_kind == kind]:
                findings.doubts.append(f"{name}: {len(odd):,} picture(s) {said}{_first(odd)}")
        if len(rows) < len(images):
            findings.notes.append(f"{name}: {len(rows):,} of {len(images):,} pictures opened (--all opens every one)")
    if extra := _left_over(dataset):
        findings.notes.append(f"{len(extra):,} picture(s) lie beside the others but are in no split{_first(extra)}")


ODD = {
    "tiny": "are one pixel wide or high",
    "plain": "have one colour only",
    "dark": f"are nearly black (nothing above {DARK} of 255; do files of 16 bits use a part of their range?)",
}
"""What is doubtful about an image that can be opened."""


def verify_classes(dataset: ImageDataset, findings: Findings) -> None:
    """Look for classes that are too small or lacking, and for imbalance; add what the reader saw."""
    findings.problems += dataset.faults
    findings.doubts += dataset.doubts
    kind = "label(s)" if dataset.task == "many" else "class(es)"
    needed = 1 + sum(split not in dataset.splits for split in ("val", "test"))
    for name, split in dataset.splits.items():
        counts = positives(dataset, split)
        units = counts
        if split.subjects is not None:
            units = _subjects_of(dataset, split)
        if name == "train" and needed > 1 and (units < needed).any():
            small = [f"{dataset.classes[c]} ({units[c]})" for c in np.flatnonzero(units < needed)]
            what = "images" if split.subjects is None else "subjects"
            findings.doubts.append(
                f"{len(small):,} {kind} have too few {what} to be divided into {needed} splits{_first(small)}"
            )
        if name != "train" and "train" in dataset.splits and (counts == 0).any():
            lacking = [dataset.classes[c] for c in np.flatnonzero(counts == 0)]
            findings.doubts.append(f"{name}: {len(lacking):,} {kind} have no images{_first(lacking)}")
        if dataset.task == "many":
            _verify_labels(dataset, name, findings)
        elif name == "train" and counts.max() >= UNBALANCED * max(1, counts.min()):
            fewest, most = int(counts.argmin()), int(counts.argmax())
            findings.doubts.append(
                f"train is unbalanced: {counts[fewest]:,} of '{dataset.classes[fewest]}', {counts[most]:,} of "
                f"'{dataset.classes[most]}': look at test/accuracy_macro"
            )


def positives(dataset: ImageDataset, split: Split) -> np.ndarray:
    """Images of every class, or with every label, in a split: ``[C]``."""
    if dataset.task == "many":
        return (split.labels == 1).sum(axis=0)
    return np.bincount(split.labels, minlength=len(dataset.classes))


def _subjects_of(dataset: ImageDataset, split: Split) -> np.ndarray:
    """Subjects of every class or label in a split: ``[C]``."""
    assert split.subjects is not None
    if dataset.task == "many":
        return np.array([len(np.unique(split.subjects[column == 1])) for column in split.labels.T], dtype=np.int64)
    pairs = {(label, subject) for label, subject in zip(split.labels.tolist(), split.subjects.tolist())}
    return np.bincount([label for label, _ in pairs], minlength=len(dataset.classes))


def label_counts(dataset: ImageDataset, split: str) -> list[dict[str, Any]]:
    """Of every label, how many images of a split have it and lack it, and of how many it is not known.

    Example:
        >>> part = Split(None, np.array([[1, 0], [0, np.nan], [0, 0.7]], dtype=np.float32))
        >>> for row in label_counts(ImageDataset("d", ["red", "big"], {"train": part}, task="many"), "train"):
        ...     print(row)
        {'label': 'red', 'split': 'train', 'present': 1, 'absent': 2, 'unknown': 0, 'prevalence': 0.3333}
        {'label': 'big', 'split': 'train', 'present': 0, 'absent': 1, 'unknown': 2, 'prevalence': 0.0}
    """
    y = dataset.splits[split].labels
    rows = []
    for name, column in zip(dataset.classes, y.T):
        present, absent = int((column == 1).sum()), int((column == 0).sum())
        rows.append(
            {
                "label": name,
                "split": split,
                "present": present,
                "absent": absent,
                "unknown": len(y) - present - absent,
                "prevalence": round(present / max(1, present + absent), 4),
            }
        )
    return rows


def _verify_labels(dataset: ImageDataset, split: str, findings: Findings) -> None:
    """Look for labels that are rare, or mostly unknown."""
    rows = label_counts(dataset, split)
    size = len(dataset.splits[split])
    if always := [row["label"] for row in rows if not row["absent"]]:
        findings.doubts.append(f"{split}: {len(always):,} label(s) are absent in no image{_first(always)}")
    if unsure := [f"{row['label']} ({row['unknown'] / size:.0%})" for row in rows if 2 * row["unknown"] > size]:
        findings.doubts.append(f"{split}: {len(unsure):,} label(s) are unknown in most images{_first(unsure)}")
    if split == "train" and (rare := [row for row in rows if 0 < row["present"] < FEW]):
        shown = [f"{row['label']} ({row['present']})" for row in rows if row in rare]
        findings.doubts.append(
            f"train: {len(rare):,} label(s) are in fewer than {FEW} images{_first(shown)}: their numbers will be rough"
        )


def verify_copies(dataset: ImageDataset, findings: Findings, cache: Path) -> None:
    """Look for images of equal content in two splits, or under two classes, and for subjects in two splits."""
    copies = find_copies(dataset, cache)
    findings.problems += [*copies.leaked(), *shared_subjects(dataset)]
    findings.doubts += copies.mislabelled()
    if copies.within:
        kept = " (kept together when splits are drawn)" if len(dataset.splits) < 3 else ""
        findings.notes.append(
            f"{len(copies.within):,} picture(s) are copies of others of their class and split{kept}"
            f"{_first(copies.within)}"
        )


def verify_likeness(dataset: ImageDataset, features: dict[str, Tensor], least: float, findings: Findings) -> None:
    """Report images that an encoder sees as nearly the same, in two splits, under two classes, or beside each other.

    Args:
        dataset: the images whose features are given.
        features: unit-norm features ``[N, D]`` of every split.
        least: smallest cosine of a pair.
        findings: where it is added.
    """
    names = [(split, file, label) for split in features for file, label in _named(dataset.splits[split])]
    x = torch.cat([part.float() for part in features.values()])
    torn = "under two classes" if dataset.task == "one" else "with other labels"
    kinds: dict[str, list[str]] = {}
    for i, j, cosine in near_duplicates(x, least):
        (one, first, label), (other, second, other_label) = names[i], names[j]
        if torch.equal(x[i], x[j]):
            continue  # copies, which are reported as such
        kind = f"{one} and {other}" if one != other else f"{one}, {torn}" if differ(label, other_label) else one
        kinds.setdefault(kind, []).append(f"'{first}' = '{second}' ({cosine:.3f})")
    for kind, pairs in kinds.items():
        shown = ", ".join(pairs[:SHOWN]) + (", ..." if len(pairs) > SHOWN else "")
        said = f"{len(pairs):,} pair(s) look nearly the same (cosine {least} or more), {kind}: {shown}"
        (findings.notes if kind in features else findings.doubts).append(said)
    if not kinds:
        findings.notes.append(f"no two images look nearly the same (cosine {least} or more)")


def _named(split: Split) -> Iterator[tuple[str, np.ndarray]]:
    return zip(split.images.names, split.labels)


def _rows(images: ImageFiles, names: list[str]) -> set[int]:
    wanted = set(names)
    return {row for row, name in enumerate(images.names) if name in wanted}


def _opened(images: Images, rows: Iterable[int], label: str, progress: bool) -> Iterator[tuple[str, str, str]]:
    """Name of every image that is opened, what is odd about it (empty: nothing), and why it is broken."""

    def attempt(row: int) -> tuple[str, str, str]:
        try:
            picture = images.open(row)
        except Exception as error:  # a broken file can make a decoder raise anything
            return images.names[row], "broken", f"{type(error).__name__}: {str(error)[:80]}"
        ends: Any = picture.getextrema()
        tiny, plain = min(picture.size) == 1, all(low == high for low, high in ends)
        dark = max(high for _, high in ends) <= DARK
        return images.names[row], "tiny" if tiny else "plain" if plain else "dark" if dark else "", ""

    rows = list(rows)
    with ThreadPoolExecutor(8) as pool:
        yield from track(pool.map(attempt, rows), label, total=len(rows), transient=True, disable=not progress)


def _left_over(dataset: ImageDataset) -> list[str]:
    """Images in the same folders that belong to no split."""
    named: dict[Path, set[str]] = {}
    for split in dataset.splits.values():
        if isinstance(split.images, ImageFiles):
            for name in split.images.names:
                folder, _, file = name.rpartition("/")
                named.setdefault(split.images.root / folder, set()).add(file)
    return [
        str(path)
        for folder, files in named.items()
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.name not in files and path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    ]


def _first(names: list[str]) -> str:
    return ": " + ", ".join(f"'{name}'" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _fewer(is_fewer: bool) -> str:
    return "missing" if is_fewer else "too many"
