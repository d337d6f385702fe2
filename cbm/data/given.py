"""Features that were made elsewhere, in memory or mapped from files, and the images they are of."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cbm.data.features import unit_norm
from cbm.data.images import Images, NoImage
from cbm.data.shards import find_shards, read_shard, write_rows
from cbm.data.store import IN_MEMORY
from cbm.files.pictures import ANY

log = logging.getLogger(__name__)

BLOCK = 1 << 15
"""Rows that are read at a time."""


class GivenFeatures:
    """Features ``[N, D]`` of images, in files or in memory, as somebody made them.

    Args:
        parts: features ``[n, D]``, one after the other.
        key: what changes when the features do, for the copy of unit norm that large sets get in the cache.
        names: names of the images.
        cache: folder for that copy.
        rows: which of the rows, in what order; all by default.
    """

    def __init__(
        self, parts: Sequence[Tensor], key: str, names: Sequence[str], cache: Path, rows: np.ndarray | None = None
    ):
        self.parts, self.key, self.names, self.cache = list(parts), key, list(names), cache
        self.rows = np.arange(sum(map(len, self.parts))) if rows is None else rows
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Width D."""
        return self.parts[0].shape[1]

    def take(self, rows: np.ndarray) -> "GivenFeatures":
        """The features of the images at ``rows``."""
        names = [self.names[row] for row in rows.tolist()]
        return GivenFeatures(self.parts, self.key, names, self.cache, self.rows[rows])

    def blocks(self, rows: np.ndarray | None = None, size: int = BLOCK) -> Iterator[Tensor]:
        """Features of ``rows`` in their order (all by default), ``size`` at a time, in the type they are stored in."""
        wanted = self.rows if rows is None else self.rows[rows]
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            part = np.searchsorted(self._starts, some, side="right") - 1
            within = some - self._starts[part]
            if (part == part[0]).all() and (np.diff(within) == 1).all():
                yield self.parts[part[0]][within[0] : within[-1] + 1]
                continue
            found = torch.empty(len(some), self.dim, dtype=self.parts[0].dtype)
            for number in np.unique(part).tolist():
                here = np.flatnonzero(part == number)
                found[torch.from_numpy(here)] = self.parts[number][torch.from_numpy(within[here])]
            yield found

    @cached_property
    def readable(self) -> np.ndarray:
        """Which features are finite and not zero, ``[N]`` bool."""
        return np.concatenate([np.empty(0, bool), *(_usable(block).numpy() for block in self.blocks())])

    @property
    def errors(self) -> dict[str, str]:
        """Why features cannot be used, by the image's name."""
        return dict.fromkeys(
            (self.names[row] for row in np.flatnonzero(~self.readable)), "its features are NaN, infinite or zero"
        )

    def digests(self) -> list[str]:
        """A hash of the features of every image: equal for copies."""
        found = []
        for block in self.blocks():
            content = np.ascontiguousarray(block.contiguous().view(torch.uint8).numpy())
            found += [hashlib.blake2b(row, digest_size=16).hexdigest() for row in content]
        return found

    def unit_rows(self, rows: np.ndarray, names: list[str]) -> Tensor:
        """Unit-norm features ``[n, D]`` of ``rows``: float32 in memory, or where that would take more than two
        gigabytes in a copy that is written once and mapped, in half precision if they are given so.

        Raises:
            UserError: NaN, infinite or zero features, naming the first (``names`` are those of the rows).
        """
        if len(rows) * self.dim * 4 <= IN_MEMORY:
            return torch.cat([torch.empty(0, self.dim), *self._normalised(rows, names)])
        half = self.parts[0].dtype in (torch.float16, torch.bfloat16)
        stem = hashlib.sha256(self.key.encode() + self.rows[rows].tobytes()).hexdigest()[:32]
        folder, dtype = self.cache / "given", torch.float16 if half else torch.float32
        found = find_shards(folder).get(stem)
        shard = read_shard(found) if found else None
        if shard is None:
            log.info("%d features of %d dimensions stay on disk: %s", len(rows), self.dim, folder)
            shape = (len(rows), self.dim)
            shard = read_shard(write_rows(folder, stem, self._normalised(rows, names), shape, dtype))
        assert shard is not None
        return shard[0]["rows"]

    def _normalised(self, rows: np.ndarray, names: list[str]) -> Iterator[Tensor]:
        done = 0
        for block in self.blocks(rows):
            yield unit_norm(block, names[done : done + len(block)])
            done += len(block)


def _usable(block: Tensor) -> Tensor:
    norms = block.float().norm(dim=1)
    return norms.isfinite() & (norms > 0)


class GivenImages:
    """Images whose features are given.

    Attributes:
        root: where the features are.
        names: how each image is called in reports.
        features: the features of these images.
        shown: the images themselves, where they are on this machine; else None.
    """

    def __init__(self, root: Path, features: GivenFeatures, shown: Images | None = None):
        self.root, self.names, self.features, self.shown = root, features.names, features, shown

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The image as upright RGB; raises ``NoImage`` if only features are known, and what Pillow raises."""
        if self.shown is None:
            raise NoImage(f"'{self.names[row]}' is known by its features only: dataset.args.images=FOLDER shows images")
        return self.shown.open(row, least)

    def take(self, rows: Sequence[int]) -> "GivenImages":
        """The images at ``rows``."""
        shown = None if self.shown is None else self.shown.take(rows)
        return GivenImages(self.root, self.features.take(np.asarray(rows, np.int64)), shown)

    def fingerprints(self, cache: Path) -> list[str]:
        """Hashes of the features."""
        return self.features.digests()

    def contents(self, cache: Path) -> list[str]:
        """The same: images of equal features are copies."""
        return self.features.digests()

    def looks(self, cache: Path) -> np.ndarray:
        """Nothing is read from the images."""
        return np.full(len(self), ANY, np.int32)
