"""The same image in two splits, or under two classes, whatever it is called: found by the hash of its content."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cbm.data.dataset import ImageDataset, Task
from cbm.data.fingerprints import same_rows, to_digests
from cbm.files.names import quoted


@dataclass(frozen=True)
class Copies:
    """Images of equal content.

    Attributes:
        leaks: pairs of names, one in each of two splits, by the names of the splits; the later split comes first.
        torn: pairs of names that stand under two classes, or differ in a label.
        within: names of images that stand before in the same split and class.
        task: "one" class an image, or "many" labels.
    """

    leaks: dict[tuple[str, str], list[tuple[str, str]]]
    torn: list[tuple[str, str]]
    within: list[str]
    task: Task = "one"

    def leaked(self) -> list[str]:
        """What makes numbers wrong, in sentences."""
        return [
            f"{len(pairs):,} image(s) of {later} have the same content as one of {first}: {_pairs(pairs)}"
            for (later, first), pairs in self.leaks.items()
        ]

    def mislabelled(self) -> list[str]:
        """What makes labels doubtful, in sentences."""
        if not self.torn:
            return []
        other = "of another class" if self.task == "one" else "with other labels"
        return [f"{len(self.torn):,} image(s) have the same content as one {other}: {_pairs(self.torn)}"]


def find_copies(dataset: ImageDataset, cache: Path, splits: Sequence[str] | None = None) -> Copies:
    """Look for images of equal content.

    Files are hashed once, as for the feature store. An image that stands in two splits under the same name is not
    among them, because somebody put it there (the images of another domain serve as val and as test).

    Args:
        dataset: the images.
        cache: folder in which hashes are remembered.
        splits: which splits; all by default.
    """
    names = [split for split in dataset.splits if splits is None or split in splits]
    parts = [dataset.splits[split] for split in names]
    if not parts:
        return Copies({}, [], [])
    digests = np.concatenate([to_digests(part.images.contents(cache)) for part in parts])
    every = np.concatenate([part.labels for part in parts])
    labels = every if every.ndim == 1 else np.arange(len(every))
    split_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    starts = np.cumsum([0, *(len(part) for part in parts)])
    leaks: dict[tuple[str, str], list[tuple[str, str]]] = {}
    torn, within = [], []

    def name(row: int) -> str:
        return parts[split_of[row]].images.names[row - starts[split_of[row]]]

    for rows in same_rows(digests):
        in_split: dict[int, int] = {}
        of_class: dict[int, int] = {}
        for row, split, label in zip(rows.tolist(), split_of[rows].tolist(), labels[rows].tolist()):
            for other, first in in_split.items():
                if other != split and name(row) != name(first):
                    leaks.setdefault((names[split], names[other]), []).append((name(row), name(first)))
            others = [first for known, first in of_class.items() if known != label]
            if every.ndim == 2:
                others = [first for first in others if differ(every[row], every[first])]
            if others:
                torn.append((name(row), name(others[0])))
            elif split in in_split:
                within.append(name(row))
            in_split.setdefault(split, row)
            of_class.setdefault(label, row)
    return Copies(leaks, torn, within, dataset.task)


def differ(one: np.ndarray | int, other: np.ndarray | int) -> bool:
    """Whether two images have another class, or another value of a label ``[L]`` that is known of both.

    Example:
        >>> differ(1, 2), differ(np.array([1, np.nan]), np.array([1, 0])), differ(np.array([1, 0]), np.array([1, 1]))
        (True, False, True)
    """
    return bool(np.any((one != other) & ~(np.isnan(one) | np.isnan(other))))


def shared_subjects(dataset: ImageDataset) -> list[str]:
    """Sentences about subjects (patients, films) that two splits share, where the data set knows subjects.

    Example:
        >>> from cbm.data.dataset import Split
        >>> parts = {name: Split(None, np.zeros(2, int), subjects=np.array(["P0", name])) for name in ("train", "test")}
        >>> shared_subjects(ImageDataset("d", ["a"], parts))
        ["1 subject(s) of test are in train too: 'P0'"]
    """
    known = {name: np.unique(part.subjects) for name, part in dataset.splits.items() if part.subjects is not None}
    said = []
    for first, later in combinations(known, 2):
        if len(both := np.intersect1d(known[first], known[later])):
            said.append(f"{len(both):,} subject(s) of {later} are in {first} too: {quoted(map(str, both))}")
    return said


def _pairs(pairs: list[tuple[str, str]]) -> str:
    return quoted(f"{one}' = '{other}" for one, other in pairs)


def near_duplicates(x: Tensor, least: float, block: int = 4096, most: int = 100_000) -> list[tuple[int, int, float]]:
    """Pairs of images that an encoder sees as nearly the same: (row, later row, cosine), the most similar first.

    Args:
        x: unit-norm features ``[N, D]``.
        least: smallest cosine of a pair.
        block: rows that are compared at once; memory is block x block, never N x N.
        most: pairs that are kept.

    Example:
        >>> import torch
        >>> near_duplicates(torch.eye(3)[[0, 1, 0]], 0.9)
        [(0, 2, 1.0)]
    """
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(x), block):
        for other in range(start, len(x), block):
            cosines = x[start : start + block].float() @ x[other : other + block].float().T
            if other == start:
                cosines = torch.triu(cosines, diagonal=1)
            hits = (cosines >= least).nonzero()
            values = cosines[hits[:, 0], hits[:, 1]]
            if len(hits) > most:
                values, chosen = values.topk(most)
                hits = hits[chosen]
            found += [(start + i, other + j, round(v, 6)) for (i, j), v in zip(hits.tolist(), values.tolist())]
        if len(found) > most:
            found = sorted(found, key=lambda pair: -pair[2])[:most]
    return sorted(found, key=lambda pair: -pair[2])
