"""Stratified splits for sets that have none, kept on disk, and few-shot subsets by seed."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cbm.data.copies import shared_subjects
from cbm.data.dataset import ImageDataset, Split
from cbm.data.fingerprints import same_rows, to_digests
from cbm.data.stratified import few_of_labels, strata, stratify, turns
from cbm.errors import UserError
from cbm.files import write_atomically
from cbm.files.names import file_name, quoted
from cbm.files.parsing import read_json

log = logging.getLogger(__name__)

PLACEHOLDER = 5
"""Subjects that share one content, from which on it is no image of any of them."""


def complete_splits(
    dataset: ImageDataset, cache: Path, *, val_fraction: float, test_fraction: float, seed: int
) -> ImageDataset:
    """Draw a validation and a test split from the training images, if the data set has none.

    Classes are divided one by one; where an image has any number of labels, by iterative stratification
    (``cbm.data.stratified``).

    The choice is written to ``cache/splits`` and read again by later runs: an image never moves between splits, even if
    images are added to the set (new ones are divided by the same fractions). Images of one subject stay together, and
    so do copies of one image under different names.

    Args:
        dataset: the data set.
        cache: folder in which the choice is kept.
        val_fraction: share of the training images for the validation split.
        test_fraction: share of the training images for the test split.
        seed: random seed for the draw.

    Raises:
        UserError: a fraction is out of range, there are too few images, or the stored choice is damaged.
    """
    wanted = {"test": test_fraction, "val": val_fraction}
    missing = {split: share for split, share in wanted.items() if split not in dataset.splits}
    if not missing or "train" not in dataset.splits:
        return dataset
    for split, share in missing.items():
        if not 0 < share < 1:
            raise UserError(f"dataset.{split}_fraction={share}: expected a number between 0 and 1")
    train = dataset.splits["train"]
    origin = getattr(train.images, "root", None)
    key = f"{dataset.name}|{origin and Path(origin).absolute()}|{sorted(missing.items())}|{seed}"
    key += f"|{dataset.subject}" * bool(dataset.subject)  # a choice that was drawn without subjects tears them apart
    stem = f"{dataset.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    file = cache / "splits" / f"{file_name(stem)}.json"
    if (older := cache / "splits" / f"{stem}.json").is_file():  # its name was not made for every system
        file = older
    known = _read_choice(file) if file.is_file() else {}
    generator, names = np.random.default_rng(seed), train.images.names
    assigned = np.array([known.get(name, "") for name in names], dtype=object)
    kin = np.arange(len(train)) if set(names) <= set(known) else _kin(train, cache)
    place = np.full(kin.max(initial=-1) + 1, "", dtype=object)  # where the kin of every number is
    place[kin[assigned != ""]] = assigned[assigned != ""]
    if dataset.task == "many":
        _by_label(dataset, assigned, place[kin], kin, missing, generator)
    else:
        _by_class(dataset, assigned, place, kin, missing, generator, drawn_before=bool(known))
    if not set(names) <= set(known):
        write_atomically(file, json.dumps(known | dict(zip(names, assigned.tolist())), indent=0).encode())
        how = "label" if dataset.task == "many" else "class"
        log.info("split %s by %s into %s (kept in %s)", dataset.name, how, _sizes(assigned), file)
    parts = {split: train.take(np.flatnonzero(assigned == split)) for split in ("train", *missing)}
    if empty := [split for split, part in parts.items() if not len(part)]:
        raise UserError(f"data set '{dataset.name}' is too small: nothing is left for the {empty[0]} split")
    if dataset.task == "many" and not known:
        _say_lacking(dataset, parts)
    dataset.splits = {**dataset.splits, **parts}
    if known and (torn := shared_subjects(dataset)):
        log.warning("%s: %s: the splits were drawn before; remove '%s' to draw them again", dataset.name, torn[0], file)
    return dataset


def _by_class(
    dataset: ImageDataset,
    assigned: np.ndarray,
    place: np.ndarray,
    kin: np.ndarray,
    missing: dict[str, float],
    generator: np.random.Generator,
    *,
    drawn_before: bool,
) -> None:
    """Assign every image of training that has no split yet, class by class.

    Args:
        dataset: the data set.
        assigned: name of every image's split ``[N]``, empty if it has none; it is filled.
        place: name of the split where the kin of every number are; it is filled.
        kin: number of every image's kin ``[N]``.
        missing: share of every split that is drawn.
        generator: random numbers.
        drawn_before: whether the splits were drawn before, and these images were added.
    """
    train = dataset.splits["train"]
    counts = np.bincount(train.labels, minlength=len(dataset.classes))
    by_class = np.split(np.argsort(train.labels, kind="stable"), counts[:-1].cumsum())
    for class_name, rows in zip(dataset.classes, by_class):
        new = rows[assigned[rows] == ""]
        assigned[new] = place[kin[new]]  # beside their kin, of other classes too
        new = new[assigned[new] == ""]
        new, ends = _shuffled(new, kin, generator)
        for split, share in missing.items():
            # at first a class gives something to each split and keeps something for training, if it can
            cuts = [0, *ends] if drawn_before else [*ends[:-1]] or [0]
            count = int(min(cuts, key=lambda cut: abs(cut - round(share * len(new)))))
            assigned[new[:count]] = split
            new, ends = new[count:], ends[ends > count] - count
        assigned[new] = "train"
        place[kin[rows]] = assigned[rows]
        if not drawn_before and not all(np.any(assigned[rows] == split) for split in missing):
            log.warning("class '%s' has too few images to be in every split", class_name)


def _by_label(
    dataset: ImageDataset,
    assigned: np.ndarray,
    beside: np.ndarray,
    kin: np.ndarray,
    missing: dict[str, float],
    generator: np.random.Generator,
) -> None:
    """Assign every image of training that has no split yet (``assigned``, ``[N]``), so that splits share labels alike.

    An image goes where its kin are (``beside``, ``[N]``), if they have a split.
    """
    new = assigned == ""
    assigned[new] = beside[new]
    new = np.flatnonzero(assigned == "")
    shares = np.array([1 - sum(missing.values()), *missing.values()])
    if shares[0] <= 0:
        raise UserError(f"dataset.val_fraction and test_fraction leave nothing for training: {missing}")
    shown = strata(dataset.splits["train"].labels)[new]
    assigned[new] = np.array(["train", *missing], dtype=object)[stratify(shown, kin[new], shares, generator)]


def _say_lacking(dataset: ImageDataset, parts: dict[str, Split]) -> None:
    """Warn about labels that no image of a split has."""
    has = np.stack([(part.labels == 1).any(axis=0) for part in parts.values()])
    if lacking := [dataset.classes[column] for column in np.flatnonzero(~has.all(axis=0))]:
        log.warning("%s: label(s) with too few images to be in every split: %s", dataset.name, quoted(lacking))


def _read_choice(file: Path) -> dict[str, str]:
    """Image to split, as it was drawn once.

    Raises:
        UserError: the file is damaged: drawing again could move test images into training.
    """
    known = read_json(file)
    if not isinstance(known, dict) or not set(map(str, known.values())) <= {"train", "val", "test"}:
        raise UserError(f"'{file}' is damaged: remove it to draw the splits of this data set again (other pictures)")
    return known


def _kin(split: Split, cache: Path) -> np.ndarray:
    """A number for every image ``[N]``, the same for images of one subject, name or content: they stay together."""
    _, kin = np.unique(np.arange(len(split)) if split.subjects is None else split.subjects, return_inverse=True)
    parent = np.arange(kin.max(initial=-1) + 1)

    def top(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    names, at = split.images.names, dict[str, int]()
    again = [(row, at[name]) for row, name in enumerate(names) if at.setdefault(name, row) != row]
    for row, first in (*again, *_twins(split, cache)):
        low, high = sorted((top(int(kin[row])), top(int(kin[first]))))
        parent[high] = low
    return np.array([top(number) for number in range(len(parent))], dtype=np.int64)[kin]


def _twins(split: Split, cache: Path) -> Iterator[tuple[int, int]]:
    """Every row whose content stands before, with the first such row.

    A content that fills most of a class, or that more than ``PLACEHOLDER`` subjects share, is no copy: it stands for
    images that somebody could not download.
    """
    filled = _fills_class(split.labels)
    for rows in same_rows(to_digests(split.images.contents(cache))):
        shared = 0 if split.subjects is None else len(np.unique(split.subjects[rows]))
        if not filled(rows) and shared <= PLACEHOLDER:
            yield from ((int(row), int(rows[0])) for row in rows[1:])


def _fills_class(labels: np.ndarray) -> Callable[[np.ndarray], bool]:
    """Whether some rows are most images of a class (of a label, or of those without any), and more than two."""
    if labels.ndim == 1:
        sizes = np.bincount(labels)

        def fill(rows: np.ndarray) -> bool:
            found, counts = np.unique(labels[rows], return_counts=True)
            return bool(((counts > 2) & (2 * counts > sizes[found])).any())

        return fill
    has = labels == 1
    has = np.concatenate([has, ~has.any(axis=1, keepdims=True)], axis=1)
    of_label = has.sum(axis=0)

    def fill_label(rows: np.ndarray) -> bool:
        counts = has[rows].sum(axis=0)
        return bool(((counts > 2) & (2 * counts > of_label)).any())

    return fill_label


def _shuffled(rows: np.ndarray, kin: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of shuffled kin (most images are alone), and where each ends."""
    _, member = np.unique(kin[rows], return_inverse=True)
    sizes = np.bincount(member)
    order = generator.permutation(len(sizes))
    place = np.empty(len(sizes), dtype=np.int64)
    place[order] = np.arange(len(sizes))
    return rows[place[member].argsort(kind="stable")], sizes[order].cumsum()


def _sizes(assigned: np.ndarray) -> str:
    return ", ".join(f"{split} {int((assigned == split).sum())}" for split in ("train", "val", "test"))


def few_shot(
    labels: np.ndarray,
    shots: int | str,
    seed: int,
    classes: list[str],
    setting: str = "shots",
    subjects: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of a class-balanced subset, drawn by ``seed``; of labels, so many images with each and without it.

    Args:
        labels: class indices ``[N]``, or labels ``[N, L]``: 1, 0, NaN.
        shots: images per class, or ``"all"``. Subsets of one seed are nested: 4 shots contain the 1-shot image.
        seed: random seed for the draw.
        classes: C class names, for the error message.
        setting: name of the setting, for the error message.
        subjects: subject ``[N]`` of each image, if it is known: no two images of a class show the same one, as long as
            it has others.

    Raises:
        UserError: a class has fewer images than requested.

    Example:
        >>> few_shot(np.array([0, 0, 1, 1]), 1, seed=0, classes=["cat", "dog"]).tolist()
        [0, 2]
    """
    if shots == "all":
        return np.arange(len(labels))
    if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
        raise UserError(f"{setting}={shots}: expected a number of images per class (1, 2, 4, 8, 16 ...) or 'all'")
    if labels.ndim == 2:
        return few_of_labels(labels, shots, seed, classes, setting, subjects)
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < shots:
        smallest = int(counts.argmin())
        raise UserError(
            f"{setting}={shots} is more than there is: class '{classes[smallest]}' has {counts[smallest]} image(s); "
            f"the largest possible value is {counts.min()}"
        )
    generator = np.random.default_rng(seed)
    drawn = []
    for label in range(len(classes)):
        rows = generator.permutation(np.flatnonzero(labels == label))
        drawn.append((rows if subjects is None else rows[turns(subjects[rows]).argsort(kind="stable")])[:shots])
    return np.sort(np.concatenate(drawn))
