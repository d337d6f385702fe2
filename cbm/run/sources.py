"""What ``predict`` classifies: images in files, or features that are ready, in an order that stays."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cbm.data.encoding import Unreadable, collate, preprocessed
from cbm.data.feature_files import given_rows
from cbm.data.images import ImageFiles, Images, walk_names
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import cannot_write
from cbm.files.arrays import ARRAYS, holds_arrays
from cbm.files.pictures import open_picture


@dataclass(frozen=True)
class Batch:
    """Some images in a row.

    Attributes:
        names: n names.
        features: features ``[m, D]``, of any norm, of those that could be read, in their order.
        errors: why the others could not, by their place among the n.
    """

    names: list[str]
    features: Tensor
    errors: dict[int, str] = field(default_factory=dict)


class Source(Protocol):
    """N things to classify, in an order that stays: images, or features that are ready.

    Attributes:
        place: where they are; things of the same names elsewhere are others.
        names: their names.
        encoder: fingerprint of what made, or will make, the features.
        device: kind of device that makes them.
    """

    place: str
    names: "NameList"
    encoder: str
    device: str

    def batches(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        """The things from ``start`` to before ``stop``, so many at a time; the last batch may be smaller."""
        ...

    def pictures(self, names: list[str]) -> Images | None:
        """The images of some names, for a page; None if there are only features."""
        ...


class NameList:
    """Names in a file without a name, so that a million of them take no memory; what was listed once stays.

    Attributes:
        digest: hash of the names in their order.
    """

    def __init__(self, names: Iterable[str], folder: Path):
        """List the names.

        Args:
            names: the names, which are asked for once.
            folder: folder of the file, which is gone when the process ends.

        Raises:
            UserError: the disk is full.
        """
        digest, self._count = hashlib.sha256(), 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for name in names:
                raw = os.fsencode(name) + b"\0"
                digest.update(raw)
                self._file.write(raw)
                self._count += 1
            self._file.flush()
        except OSError as error:
            raise cannot_write(folder / "list of images", error) from error
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """The names from ``start`` to before ``stop``."""
        row, offset, rest = 0, 0, b""
        stop = self._count if stop is None else stop
        while row < stop and (block := os.pread(self._file.fileno(), 1 << 14, offset)):
            offset += len(block)
            *whole, rest = (rest + block).split(b"\0")
            yield from (os.fsdecode(raw) for raw in whole[max(0, start - row) : max(0, stop - row)])
            row += len(whole)


class ImageSource:
    """Image files, read by processes of their own while the encoder computes.

    Attributes:
        place: the folder that the names start from.
        names: paths of the images.
        encoder: fingerprint of the encoder.
        device: kind of its device.
    """

    def __init__(self, encoder: Encoder, root: Path, names: NameList, workers: int):
        """Take the images of a folder.

        Args:
            encoder: the encoder of the model.
            root: folder that the names start from.
            names: paths of the images.
            workers: processes that decode images; 0 decodes them in this one.
        """
        self.place = os.path.abspath(root)  # noqa: PTH100 - where links lead is not looked at
        self.names, self.encoder, self.device = names, encoder.fingerprint, encoder.device.type
        self._tower, self._root, self._workers = encoder, root, workers

    def batches(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        """Read and encode the images from ``start`` to before ``stop``; names are asked for as they are needed.

        Raises:
            UserError: a process that decodes images died.
        """
        loader = DataLoader(
            _Files(self._root, self._tower),
            batch_sampler=_grouped(self.names.read(start, stop), size),
            num_workers=min(self._workers, -(-(stop - start) // size)),
            collate_fn=collate,
            pin_memory=self._tower.device.type == "cuda",
        )
        try:
            for names, good, pictures, why in loader:
                features = self._tower.encode_images(pictures) if len(pictures) else torch.empty(0, self._tower.dim)
                errors = {i: why[name].reason for i, name in enumerate(names) if not good[i]}
                yield Batch(names, features, errors)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a process that decodes images died (out of memory?): run the same command again, it goes on there, "
                "perhaps with --workers 0"
            ) from error

    def pictures(self, names: list[str]) -> Images:
        """The images of some names."""
        return ImageFiles(self._root, names)


class _Files(Dataset):
    """Name to (name, preprocessed picture, or why there is none)."""

    def __init__(self, root: Path, encoder: Encoder):
        self.root, self.preprocess, self.least = root, encoder.preprocess, encoder.least

    def __getitem__(self, name: str) -> tuple[str, Tensor | Unreadable]:
        read = partial(open_picture, self.root / name, self.least, name)
        return name, preprocessed(read, self.preprocess, name)


def _grouped(names: Iterator[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for name in names:
        group.append(name)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def find_images(paths: list[Path]) -> tuple[Path, Iterator[str]]:
    """The folder that names start from, and the names of the images.

    Args:
        paths: one folder, whose images are called as seen from it, at any depth; or files and folders, whose images
            are called as they were given.

    Raises:
        UserError: a path that does not exist, or is neither file nor folder.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"no file or folder '{path}'")
        if not path.is_dir() and not path.is_file():
            raise UserError(f"'{path}' is neither a file nor a folder")
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0], walk_names(paths[0])
    return Path(), (name for path in paths for name in _below(path))


def _below(path: Path) -> Iterator[str]:
    yield from (str(path / name) for name in walk_names(path)) if path.is_dir() else (str(path),)


class FeatureSource:
    """Features that were made elsewhere.

    Attributes:
        place: the file or folder of the features.
        names: names of the images.
        encoder: what changes when the features do.
        device: ``cpu``: nothing is encoded.
    """

    device = "cpu"

    def __init__(self, root: Path, beside: Path, features: str | None = None, names: str | None = None):
        """Open the features.

        Args:
            root: the file, or the folder, as ``dataset=features`` reads it; labels are not looked at.
            beside: folder of the file that lists their names.
            features: name of the features, where there are some of that name.
            names: name of the images' names, likewise.

        Raises:
            UserError: no features are found, or a file cannot be read.
        """
        self._parts = list(given_rows(root, features=features, names=names))
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.place = os.path.abspath(root)  # noqa: PTH100 - as for images
        self.names = NameList((name for part in self._parts for name in part.names), beside)
        self.encoder = hashlib.sha256("|".join(part.features.key for part in self._parts).encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of the features."""
        return len(self.names), self._parts[0].features.dim

    def batches(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        """The features from ``start`` to before ``stop``."""
        for first in range(start, stop, size):
            rows = np.arange(first, min(stop, first + size))
            part = np.searchsorted(self._starts, rows, side="right") - 1
            names, found = [], []
            for number in np.unique(part).tolist():
                taken = self._parts[number].features.take(rows[part == number] - self._starts[number])
                names += taken.names
                found += [block.float() for block in taken.blocks()]
            yield Batch(names, torch.cat(found))

    def pictures(self, names: list[str]) -> Images | None:
        """The images of names that follow one another; None if they are of several splits."""
        for part in self._parts:
            if names[0] in part.names:
                first = part.names.index(names[0])
                rows = range(first, first + len(names))
                return part.take(rows) if part.names[first : first + len(names)] == names else None
        return None


def are_features(paths: list[Path]) -> bool:
    """Whether paths name features: one file of arrays, or one folder that holds arrays and no images."""
    if len(paths) != 1:
        return False
    if paths[0].is_dir():
        return holds_arrays(paths[0]) and next(iter(walk_names(paths[0])), None) is None
    return paths[0].suffix.lower() in ARRAYS
