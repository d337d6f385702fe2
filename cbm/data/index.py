"""Where the features of a picture are: which shard, which row.

Shards are numbered in the order in which they were written. A process that has encoded pictures looks which shards
there are, leaves out the pictures that others have written meanwhile, and takes the next number; if another process was
quicker it looks again. So every picture is in one shard, the first that had it, and nobody waits for anybody.

Each shard says itself which pictures it has. ``index.safetensors`` repeats that of most of them, sorted, so that a
million pictures are found without opening hundreds of files; without it, or where it is damaged, the shards are read.
"""

import itertools
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cbm.data.old_store import OldStores
from cbm.data.shards import peek, read_shard, replace_shard, write_new_shard
from cbm.errors import UserError
from cbm.files import sweep
from cbm.files.locks import OPEN_FILES_STAY

log = logging.getLogger(__name__)

FILE = "index.safetensors"
UNLISTED = 64
"""Shards that are opened every time before they are added to the index."""


class FeatureIndex:
    """The pictures in one folder of shards, and in older stores of the same encoder.

    Attributes:
        folder: of the shards.
        names: the shards, sorted: file names, with ``OLD/`` before them in older stores.
    """

    def __init__(self, folder: Path, old: OldStores):
        self.folder, self.old = folder, old
        self.names: list[str] = []
        self._without: set[str] = set()
        self._next = 0
        self._listed = _read(folder / FILE) or _Entries.none()
        self._unlisted: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._others = _Entries.none()
        self.refresh()

    def refresh(self) -> None:
        """See the shards that other processes have written, or found damaged, since."""
        there = {name for name in (*self._shards(), *self.old.shards()) if name not in self._without}
        if not there.issuperset(self._listed.names):
            self._listed = _Entries.none()
        known = set(self._listed.names)
        before = list(self._unlisted)
        self._unlisted = {name: each for name, each in self._unlisted.items() if name in there}
        for name in sorted(there - known - self._unlisted.keys()):
            if (each := self._read_shard(name)) is not None:
                self._unlisted[name] = each
        if before != list(self._unlisted):
            self._others = _Entries.of(self._unlisted)
        self.names = sorted([*known, *self._unlisted])
        self._ranks = {name: rank for rank, name in enumerate(self.names)}

    def rebuild(self, without: list[str]) -> None:
        """Read the shards again, but some that turned out damaged: the index was not right."""
        self._without |= set(without)
        self._listed, self._unlisted, self._others = _Entries.none(), {}, _Entries.none()
        self.refresh()

    def path(self, name: str) -> Path:
        """The file of a shard."""
        return (self.folder.parent if "/" in name else self.folder) / name

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the shard in ``names`` (-1: none has it) and row in there of pictures ``[N, 2]``, each ``[N]``."""
        shard, row = np.full(len(digests), -1, np.int32), np.zeros(len(digests), np.int32)
        for entries in (self._listed, self._others):
            ranks = np.array([self._ranks[name] for name in entries.names], np.int32)
            for start in range(0, len(digests), 1 << 16):  # a part at a time: little memory
                part = slice(start, start + (1 << 16))
                at = entries.find(digests[part])
                (hit,) = np.nonzero(at >= 0)
                found = ranks[entries.shard[at[hit]]]
                first = (shard[part][hit] < 0) | (found < shard[part][hit])
                shard[part][hit[first]], row[part][hit[first]] = found[first], entries.row[at[hit[first]]]
        return shard, row

    def add(self, digests: np.ndarray, tensors: Mapping[str, Tensor], errors: Mapping[int, str]) -> None:
        """Write pictures as a shard, but those that another process has written meanwhile.

        Args:
            digests: ``[n, 2]`` of the pictures.
            tensors: ``features`` ``[n, D]`` and ``readable`` ``[n]``.
            errors: row to the reason why a picture is unreadable.
        """
        while True:
            self.refresh()
            (new,) = np.nonzero(self.find(digests)[0] < 0)
            if not len(new):
                return
            content = {name: tensor[torch.from_numpy(new)] for name, tensor in tensors.items()}
            content["fingerprints"] = torch.from_numpy(digests[new].view(np.int64))
            said = {str(i): errors[row] for i, row in enumerate(new.tolist()) if row in errors}
            if write_new_shard(self.folder, _stem(self._next), content, {"errors": said}):
                return

    def save(self) -> None:
        """Write the index if it lacks much; where that fails, the next one who looks opens more shards."""
        sweep(self.folder)
        if len(self._unlisted) < UNLISTED and 4 * len(self._others) <= len(self._listed):
            return
        both = _Entries.merged([self._listed, self._others])
        columns = {name: torch.from_numpy(getattr(both, name).view(np.int64)) for name in ("high", "low")}
        columns |= {name: torch.from_numpy(getattr(both, name)) for name in ("shard", "row")}
        try:
            replace_shard(self.folder / FILE, columns, {"shards": both.names})
        except UserError as error:
            log.warning("%s: the store is read without its index", error)

    def _shards(self) -> list[str]:
        """The shards of the folder; sets the number of the next one."""
        sizes: dict[int, int] = {}
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                stem, _, ending = entry.name.partition(".")
                if ending == "safetensors" and stem.isdecimal():
                    sizes[int(stem)] = entry.stat().st_size
        last = max(sizes, default=-1)
        for number in itertools.count():  # a folder that is written to may be listed without some of its files
            if number not in sizes:
                try:
                    sizes[number] = (self.folder / f"{_stem(number)}.safetensors").stat().st_size
                except FileNotFoundError:
                    if number > last:
                        break
        self._next = number
        return [f"{_stem(number)}.safetensors" for number, size in sizes.items() if size]

    def _read_shard(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Digests ``[n, 2]`` and rows ``[n]`` of the pictures in a shard; None if it cannot be read."""
        if "/" in name:
            return self.old.pictures(name)
        stored = peek(self.path(name), "fingerprints")
        if stored is None or stored.dtype != torch.int64 or stored.ndim != 2 or stored.shape[1] != 2:
            return None
        return stored.numpy().view(np.uint64).copy(), np.arange(len(stored), dtype=np.int32)


class _Entries:
    """Pictures of some shards, sorted by digest, then by shard.

    Attributes:
        high: ``[n]`` the first eight bytes of each digest.
        low: ``[n]`` the last eight.
        shard: ``[n]`` number in ``names``.
        row: ``[n]`` in the shard.
        names: the shards.
    """

    def __init__(self, high: np.ndarray, low: np.ndarray, shard: np.ndarray, row: np.ndarray, names: list[str]):
        self.high, self.low, self.shard, self.row, self.names = high, low, shard, row, names

    def __len__(self) -> int:
        return len(self.high)

    @classmethod
    def none(cls) -> "_Entries":
        """No pictures."""
        long, short = np.empty(0, np.uint64), np.empty(0, np.int32)
        return cls(long, long, short, short, [])

    @classmethod
    def of(cls, shards: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "_Entries":
        """The pictures of shards, given as digests ``[n, 2]`` and rows ``[n]``."""
        each = [
            cls(digests[:, 0], digests[:, 1], np.zeros(len(rows), np.int32), rows.astype(np.int32), [name])
            for name, (digests, rows) in shards.items()
        ]
        return cls.merged(each)

    @classmethod
    def merged(cls, parts: "list[_Entries]") -> "_Entries":
        """The pictures of several."""
        names = sorted(name for part in parts for name in part.names)
        ranks = {name: rank for rank, name in enumerate(names)}
        renumbered = [np.array([ranks[name] for name in part.names], np.int32)[part.shard] for part in parts]
        if not parts:
            return cls.none()
        shard = np.concatenate(renumbered)
        high, low, row = (
            np.concatenate([getattr(part, column) for part in parts]) for column in ("high", "low", "row")
        )
        order = np.lexsort((shard, low, high))
        return cls(high[order], low[order], shard[order], row[order], names)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Where each of ``[N, 2]`` stands first, or -1."""
        found = np.full(len(digests), -1)
        at = np.searchsorted(self.high, digests[:, 0])
        open_ = np.arange(len(digests))
        while len(open_):  # once, but for digests that share their first eight bytes
            open_ = open_[at[open_] < len(self)]
            open_ = open_[self.high[at[open_]] == digests[open_, 0]]
            hit = self.low[at[open_]] == digests[open_, 1]
            found[open_[hit]] = at[open_[hit]]
            open_ = open_[~hit]
            at[open_] += 1
        return found


def _stem(number: int) -> str:
    return f"{number:06d}"


def _read(path: Path) -> _Entries | None:
    """The index as it was written, mapped into memory; a copy on Windows, which replaces no file that is mapped."""
    if (shard := read_shard(path)) is None:
        return None
    wanted = {"high": torch.int64, "low": torch.int64, "shard": torch.int32, "row": torch.int32}
    tensors, names = shard[0], shard[1].get("shards")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if any(name not in tensors or tensors[name].dtype != kind for name, kind in wanted.items()):
        return None
    if len({tensors[name].shape for name in wanted}) > 1 or tensors["high"].dim() != 1:
        return None
    columns = {name: tensors[name].numpy().copy() if OPEN_FILES_STAY else tensors[name].numpy() for name in wanted}
    if len(columns["row"]) and not (columns["shard"].min() >= 0 and columns["shard"].max() < len(names)):
        return None
    high, low = columns["high"].view(np.uint64), columns["low"].view(np.uint64)
    return _Entries(high, low, columns["shard"], columns["row"], names)
