"""The feature store: every picture is encoded once.

A folder of the store belongs to an encoder (weights and preprocessing), a precision and a dtype. In it a picture is
known by its content, whatever list it stands in and wherever in there, and by the version of the code that reads files
where that decides about its pixels (``store_keys``). Features lie in shards, each complete or absent,
so an interrupted run goes on with the pictures that are missing (``cbm.data.index`` says where each picture is).
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cbm.data.encoding import Pictures, Unreadable
from cbm.data.features import unit_norm
from cbm.data.fingerprints import to_digests
from cbm.data.images import Images, store_keys
from cbm.data.index import FeatureIndex
from cbm.data.old_store import OldStores
from cbm.data.shards import find_shards, read_shard, write_rows
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import write_atomically
from cbm.files.console import warn_once
from cbm.files.names import quoted

log = logging.getLogger(__name__)

SHARD_ROWS = 4096
IN_MEMORY = 2**31
"""Bytes of float32 features that a split may take in memory: 700,000 pictures of 768 dimensions."""
SCATTERED = 64
"""Pictures that stand together in a shard, on average, below which rows are gathered one by one."""
READERS = 8
"""Threads that compare shards with their checksums."""
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass
class StoredFeatures:
    """Features of N pictures, memory-mapped.

    Attributes:
        folder: where they are.
        shards: features, each ``[n, D]``, in the stored dtype; the last is one row of zeros.
        shard: ``[N]`` in which of them each picture is.
        row: ``[N]`` where it is in there.
        digests: ``[N, 2]`` the pictures' fingerprints.
        readable: ``[N]`` bool; the features of an unreadable picture are zero.
        errors: why, by picture name.
    """

    folder: Path
    shards: list[Tensor]
    shard: np.ndarray
    row: np.ndarray
    digests: np.ndarray
    readable: np.ndarray
    errors: dict[str, str]

    def missing(self) -> np.ndarray:
        """The pictures that are not in the store."""
        return np.flatnonzero(self.shard == len(self.shards) - 1)

    def parts(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Features of ``rows`` in their order, part by part, in the stored dtype.

        Where pictures stand together in a shard, as those do that were encoded together, a part is a view of it.
        """
        shard, row = self.shard[rows], self.row[rows]
        (cuts,) = np.nonzero(shard[1:] != shard[:-1])
        if SCATTERED * len(cuts) > len(rows):
            for start in range(0, len(rows), SHARD_ROWS):
                yield self._gather(shard[start : start + SHARD_ROWS], row[start : start + SHARD_ROWS])
            return
        for start, end in zip([0, *(cuts + 1).tolist()], [*(cuts + 1).tolist(), len(rows)]):
            if start < end:
                stored, within = self.shards[shard[start]], row[start:end]
                together = (within[1:] == within[:-1] + 1).all()
                yield stored[within[0] : within[-1] + 1] if together else stored[torch.from_numpy(within)]

    def _gather(self, shard: np.ndarray, row: np.ndarray) -> Tensor:
        """Features of pictures that are anywhere."""
        found = torch.empty(len(shard), self.shards[-1].shape[1], dtype=self.shards[-1].dtype)
        order = np.argsort(shard, kind="stable")
        for own in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            found[torch.from_numpy(own)] = self.shards[shard[own[0]]][torch.from_numpy(row[own])]
        return found

    def tensor(self, rows: np.ndarray | None = None) -> Tensor:
        """Features ``[n, D]`` of ``rows``, in their order (all readable pictures by default), in the stored dtype."""
        return torch.cat([self.shards[-1][:0], *self.parts(np.flatnonzero(self.readable) if rows is None else rows)])

    def unit_rows(self, rows: np.ndarray, names: list[str]) -> Tensor:
        """Unit-norm features ``[n, D]`` of ``rows``, in their order: float32, or, where that would take more than
        ``IN_MEMORY``, in the stored dtype and mapped from a file that is written once for these pictures.

        Raises:
            UserError: NaN, infinite or zero features, naming the first (``names`` are those of the rows).
        """
        dim, dtype = self.shards[-1].shape[1], self.shards[-1].dtype
        if len(rows) * dim * 4 <= IN_MEMORY:
            return unit_norm(self.tensor(rows), names)
        folder, stem = self.folder / "unit", hashlib.sha256(self.digests[rows].tobytes()).hexdigest()[:32]
        found = find_shards(folder).get(stem)
        shard = read_shard(found) if found else None
        if shard is None:
            log.info("%d features of %d dimensions stay on disk: %s", len(rows), dim, folder)

            def normalised() -> Iterator[Tensor]:
                done = 0
                for part in self.parts(rows):
                    yield unit_norm(part, names[done : done + len(part)])
                    done += len(part)

            shard = read_shard(write_rows(folder, stem, normalised(), (len(rows), dim), dtype))
        assert shard is not None
        return shard[0]["rows"]


class FeatureStore:
    """Encoded pictures under ``root/features``."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def encode(
        self,
        encoder: Encoder,
        images: Images,
        *,
        dtype: str = "float32",
        batch_size: int = 256,
        num_workers: int = 2,
        on_error: str = "skip",
        label: str = "images",
        progress: bool = True,
        devices: int = 1,
        nodes: int = 1,
    ) -> StoredFeatures:
        """The features of ``images``: from the store where they are there, else encoded and stored.

        A picture that is in the store, or stands twice in the list, is not encoded again, whatever the list.
        With more than one device or node every process encodes shards of its own (``cbm.data.encoding``).

        Args:
            encoder: the frozen encoder.
            images: N pictures.
            dtype: what is stored, ``float32`` or ``float16``.
            batch_size: pictures per forward pass.
            num_workers: processes that decode pictures.
            on_error: ``skip`` unreadable pictures (they are reported) or ``fail``.
            label: what the progress bar calls them.
            progress: show it.
            devices: processes on this machine, one per device.
            nodes: machines.

        Raises:
            UserError: an unreadable picture under ``on_error="fail"``; features that are not finite; a full disk.
        """
        fingerprints = images.fingerprints(self.root)
        digests = to_digests(store_keys(fingerprints, images.looks(self.root), encoder.least))
        precision = encoder.precision if encoder.device.type == "cuda" else "fp32"
        address, features = (encoder.fingerprint, precision, dtype), self.root / "features"
        index = FeatureIndex(features / "-".join(address), OldStores(features, address, fingerprints))
        zeros = torch.zeros(1, encoder.dim, dtype=DTYPES[dtype])
        stored = _look_up(index, digests, images.names, zeros)
        if len(missing := _first_of_each(digests, stored.missing())):
            from cbm.data.encoding_loop import encode_shards

            encode_shards(
                index,
                encoder,
                images,
                digests,
                missing,
                SHARD_ROWS,
                dtype=DTYPES[dtype],
                batch_size=batch_size,
                num_workers=num_workers,
                label=label,
                progress=progress,
                devices=devices,
                nodes=nodes,
            )
            index.refresh()
            stored = _look_up(index, digests, images.names, zeros)
        self._try_again(stored, encoder, images)
        self._report(stored.errors, len(images), on_error, label)
        self._describe(index.folder, encoder, precision, dtype)
        index.save()
        return stored

    @staticmethod
    def _try_again(stored: StoredFeatures, encoder: Encoder, images: Images) -> None:
        """Say why pictures are not in the store that could not be read, for another reason than their content."""
        pictures = Pictures(images, range(len(images)), encoder)
        for row in stored.missing().tolist():
            found, name = pictures[row][1], str(images.names[row])
            if not isinstance(found, Unreadable):
                raise UserError(
                    f"image '{name}' could not be read a moment ago, or its features are not what was written: is the "
                    "disk sound? Run the same command again"
                )
            stored.errors[name] = found.reason
        unreadable = [str(images.names[row]) for row in np.flatnonzero(~stored.readable)]
        stored.errors = {name: stored.errors[name] for name in unreadable}

    @staticmethod
    def _report(errors: dict[str, str], total: int, on_error: str, label: str) -> None:
        if not errors:
            return
        name, why = next(iter(errors.items()))
        if on_error == "fail" or len(errors) == total:
            raise UserError(f"{label}: {len(errors)} of {total} image(s) cannot be read, first '{name}': {why}")
        say_skipped(label, errors, total)

    @staticmethod
    def _describe(folder: Path, encoder: Encoder, precision: str, dtype: str) -> None:
        """Say beside the shards whose they are."""
        if (file := folder / "about.json").is_file():
            return
        about = {"encoder": encoder.id, "encoder_fingerprint": encoder.fingerprint, "precision": precision}
        write_atomically(file, json.dumps({**about, "dtype": dtype, "dim": encoder.dim}, indent=1).encode())


def say_skipped(label: str, errors: dict[str, str], total: int) -> None:
    """Warn, once and in one line, about images that could not be read.

    Args:
        label: what the images are called.
        errors: their names, and why; may be empty.
        total: number of images with them.
    """
    if errors:
        are, why = ("is", "because") if len(errors) == 1 else ("are", "the first because")
        first = next(iter(errors.values()))
        said = f"{len(errors):,} of {total:,} images could not be read and {are} skipped: {quoted(errors)}"
        warn_once(f"{label}: {said} ({why} of {first})")


def _look_up(index: FeatureIndex, digests: np.ndarray, names: list[str], zeros: Tensor) -> StoredFeatures:
    """What the store has of the pictures; those that it has not are in no shard but that of zeros ``[1, D]``."""
    while True:
        number, row = index.find(digests)
        used = np.unique(number[number >= 0])
        files = [index.names[each] for each in used.tolist()]
        with ThreadPoolExecutor(READERS) as pool:
            shards = list(pool.map(lambda name: read_shard(index.path(name)), files))
        shard = np.where(number < 0, len(used), np.searchsorted(used, number)).astype(np.int32)
        order = np.argsort(shard, kind="stable")
        own = np.split(order, np.searchsorted(shard[order], np.arange(1, len(used) + 1)))[: len(used)]
        wrong = [
            name
            for name, found, rows in zip(files, shards, own)
            if found is None or not _holds(found, zeros.shape[1], row[rows], digests[rows])
        ]
        if not wrong:
            break
        index.rebuild(without=[name for name, found in zip(files, shards) if not _is_shard(found, zeros.shape[1])])
    readable, why = np.zeros(len(digests), bool), dict[int, str]()
    for found, rows in zip(shards, own):
        assert found is not None
        tensors, metadata = found
        readable[rows] = tensors["readable"].numpy().astype(bool)[row[rows]]
        why |= {i: metadata["errors"].get(str(row[i]), "") for i in rows[~readable[rows]].tolist()}
    features = [found[0]["features"] for found in shards if found is not None]
    errors = {names[i]: why[i] for i in sorted(why)}
    return StoredFeatures(index.folder, [*features, zeros], shard, row, digests, readable, errors)


def _is_shard(found: tuple[dict[str, Tensor], dict] | None, dim: int) -> bool:
    """Whether a shard holds features ``[n, dim]``, and says which pictures could be read, and why others could not."""
    if found is None or not isinstance(found[1].get("errors"), dict):
        return False
    features, readable = (found[0].get(name) for name in ("features", "readable"))
    if features is None or readable is None or features.dim() != 2 or features.shape[1] != dim:
        return False
    told = found[0].get("fingerprints", features)
    return features.is_floating_point() and readable.shape == features.shape[:1] == told.shape[:1]


def _holds(found: tuple[dict[str, Tensor], dict], dim: int, rows: np.ndarray, digests: np.ndarray) -> bool:
    """Whether a shard has these pictures in these rows; those up to f47ba49 do not say."""
    if not _is_shard(found, dim) or rows.min() < 0 or rows.max() >= len(found[0]["features"]):
        return False
    if (stored := found[0].get("fingerprints")) is None:
        return True
    return bool(rows.max() < len(stored) and np.array_equal(stored.numpy().view(np.uint64)[rows], digests))


def _first_of_each(digests: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows without those of pictures that stand before, and of files whose content is not known."""
    rows = rows[digests[rows].any(axis=1)]
    order = np.lexsort((digests[rows, 1], digests[rows, 0]))
    ordered = digests[rows[order]]
    again = np.concatenate([[False], (ordered[1:] == ordered[:-1]).all(axis=1)])[: len(rows)]
    return np.sort(rows[order[~again]])
