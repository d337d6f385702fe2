"""Is a download whole? Numbers against the published ones, files that are missing, broken or left over, checksums."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import track

from cbm.data.dataset import ImageDataset
from cbm.data.images import EXTENSIONS, ImageFiles, Images
from cbm.data.lists import missing_files

SAMPLE = 100  # pictures of a split that are opened
SHOWN = 5  # files that a message names


@dataclass
class Findings:
    """Findings about a download.

    Attributes:
        problems: errors.
        notes: checks that were skipped, and other remarks.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_checksums(root: Path, md5: dict[str, str], findings: Findings) -> None:
    """Compare the files in ``md5`` that are in the root or beside it; archives are often deleted once unpacked."""
    for name, expected in md5.items():
        places = (root / name, root.absolute().parent / Path(name).name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            findings.notes.append(f"checksum of '{name}' not compared: the file is not there")
            continue
        with path.open("rb") as file:
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
            counts = np.bincount(dataset.splits[what].labels, minlength=len(dataset.classes))
            fewest = int(counts.argmin())
            text += f"; fewest of '{dataset.classes[fewest]}': {counts[fewest]:,}"
        findings.problems.append(text)
    if not published:
        findings.notes.append("numbers not compared: none are published for these settings")


def verify_images(dataset: ImageDataset, findings: Findings, *, every: bool, progress: bool) -> None:
    """Look for missing and left-over files, and open ``SAMPLE`` images of each split, or every one."""
    train = set(dataset.splits["train"].images.names) if "train" in dataset.splits else set()
    for name, split in dataset.splits.items():
        images = split.images
        if name != "train" and (twice := train & set(images.names)):
            findings.problems.append(f"{len(twice):,} picture(s) of {name} are in train too{_first(sorted(twice))}")
        if isinstance(images, ImageFiles) and (absent := missing_files(images.root, images.names)):
            findings.problems.append(f"{name}: {len(absent):,} picture(s) are missing{_first(absent)}")
            images = images.take(sorted(set(range(len(images))) - _rows(images, absent)))
        rows = range(len(images)) if every else np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int)).tolist()
        if broken := list(_broken(images, rows if len(images) else [], f"opening {name}", progress)):
            findings.problems.append(f"{name}: {len(broken):,} picture(s) cannot be opened{_first(broken)}")
        if len(rows) < len(images):
            findings.notes.append(f"{name}: {len(rows):,} of {len(images):,} pictures opened (--all opens every one)")
    if extra := _left_over(dataset):
        findings.notes.append(f"{len(extra):,} picture(s) lie beside the others but are in no split{_first(extra)}")


def _rows(images: ImageFiles, names: list[str]) -> set[int]:
    wanted = set(names)
    return {row for row, name in enumerate(images.names) if name in wanted}


def _broken(images: Images, rows, label: str, progress: bool) -> Iterator[str]:
    def attempt(row: int) -> str | None:
        try:
            images.open(row)
        except Exception as error:  # a broken file can make a decoder raise anything
            return f"{images.names[row]} ({type(error).__name__}: {str(error)[:80]})"
        return None

    with ThreadPoolExecutor(8) as pool:
        found = track(pool.map(attempt, rows), label, total=len(rows), transient=True, disable=not progress)
        yield from filter(None, found)


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
        if path.name not in files and path.suffix.lower() in EXTENSIONS
    ]


def _first(names: list[str]) -> str:
    return ": " + ", ".join(f"'{name}'" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _fewer(is_fewer: bool) -> str:
    return "missing" if is_fewer else "too many"
