"""The feature store: every picture is encoded once.

A store is addressed by its content: (encoder weights and preprocessing, precision, dtype, the pictures' bytes). Its
features lie in shards, each complete or absent, so an interrupted run goes on with the first missing shard.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cbm.data.features import unit_norm
from cbm.data.images import Images
from cbm.data.shards import find_shards, read_shard, write_rows, write_shard
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files import write_atomically

log = logging.getLogger(__name__)

SHARD_ROWS = 4096
IN_MEMORY = 2**31
"""Bytes of float32 features that a split may take in memory: 700,000 pictures of 768 dimensions."""
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass
class StoredFeatures:
    """Features of N pictures, memory-mapped.

    Attributes:
        folder: where they are.
        shards: the features in order, each ``[n, D]``.
        readable: ``[N]`` bool; the features of an unreadable picture are zero.
        errors: why, by picture name.
    """

    folder: Path
    shards: list[Tensor]
    readable: np.ndarray
    errors: dict[str, str]

    def parts(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Features of ``rows`` (ascending), shard by shard, in the stored dtype."""
        for number, own in zip(*_runs(rows // SHARD_ROWS)):
            shard, within = self.shards[number], rows[own] % SHARD_ROWS
            yield shard if len(within) == len(shard) else shard[torch.from_numpy(within)]

    def tensor(self, rows: np.ndarray | None = None) -> Tensor:
        """Features ``[n, D]`` of ``rows`` (ascending; all readable pictures by default), in the stored dtype."""
        return torch.cat(list(self.parts(np.flatnonzero(self.readable) if rows is None else rows)))

    def unit_rows(self, rows: np.ndarray, names: list[str]) -> Tensor:
        """Unit-norm features ``[n, D]`` of ``rows`` (ascending): float32, or, where that would take more than
        ``IN_MEMORY``, in the stored dtype and mapped from a file that is written once.

        Raises:
            UserError: NaN, infinite or zero features, naming the first (``names`` are those of the rows).
        """
        dim, dtype = self.shards[0].shape[1], self.shards[0].dtype
        if len(rows) * dim * 4 <= IN_MEMORY:
            return unit_norm(self.tensor(rows), names)
        folder, stem = self.folder / "unit", hashlib.sha256(rows.tobytes()).hexdigest()[:16]
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


def _runs(values: np.ndarray) -> tuple[list[int], list[slice]]:
    """Every value of an ascending array, and where it stands."""
    found, starts = np.unique(values, return_index=True)
    ends = [*starts[1:].tolist(), len(values)]
    return found.tolist(), [slice(start, end) for start, end in zip(starts.tolist(), ends)]


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
    ) -> StoredFeatures:
        """The features of ``images``: from the store where they are there, else encoded and stored.

        Args:
            encoder: the frozen encoder.
            images: N pictures.
            dtype: what is stored, ``float32`` or ``float16``.
            batch_size: pictures per forward pass.
            num_workers: processes that decode pictures.
            on_error: ``skip`` unreadable pictures (they are reported) or ``fail``.
            label: what the progress bar calls them.
            progress: show it.

        Raises:
            UserError: an unreadable picture under ``on_error="fail"``; features that are not finite; a full disk.
        """
        fingerprints = images.fingerprints(self.root)
        precision = encoder.precision if encoder.device.type == "cuda" else "fp32"
        key = hashlib.sha256("\n".join([encoder.fingerprint, precision, dtype, *fingerprints]).encode())
        folder = self.root / "features" / key.hexdigest()[:24]
        starts = range(0, len(images), SHARD_ROWS)
        found = {stem: shard for stem, path in find_shards(folder).items() if (shard := read_shard(path))}
        missing = [start for start in starts if f"{start // SHARD_ROWS:05d}" not in found]
        if missing:
            rows = [row for start in missing for row in range(start, min(start + SHARD_ROWS, len(images)))]
            if len(rows) < len(images):
                log.info("%s: %d of %d already encoded", label, len(images) - len(rows), len(images))
            options: dict[str, Any] = dict(
                dtype=dtype, batch_size=batch_size, num_workers=num_workers, label=label, progress=progress
            )
            self._encode_shards(folder, encoder, images, rows, **options)
            found = {stem: shard for stem, path in find_shards(folder).items() if (shard := read_shard(path))}
        shards = [found[f"{start // SHARD_ROWS:05d}"] for start in starts]
        errors = {name: why for _, metadata in shards for name, why in metadata["errors"].items()}
        readable = np.concatenate([tensors["readable"].numpy() for tensors, _ in shards]).astype(bool)
        self._report(errors, len(images), on_error, label)
        if missing or not (folder / "index.parquet").is_file():
            self._write_index(folder, encoder, images, fingerprints, errors, dtype)
        return StoredFeatures(folder, [tensors["features"] for tensors, _ in shards], readable, errors)

    @staticmethod
    def _report(errors: dict[str, str], total: int, on_error: str, label: str) -> None:
        if not errors:
            return
        name, why = next(iter(errors.items()))
        if on_error == "fail" or len(errors) == total:
            raise UserError(f"{label}: {len(errors)} of {total} image(s) cannot be read, first '{name}': {why}")
        for name, why in list(errors.items())[:20]:
            log.warning("%s: skipped unreadable image '%s': %s", label, name, why)
        if len(errors) > 20:
            log.warning("%s: ... and %d more unreadable images", label, len(errors) - 20)

    @staticmethod
    def _encode_shards(
        folder: Path, encoder: Encoder, images: Images, rows: list[int], *, dtype: str, batch_size: int,
        num_workers: int, label: str, progress: bool,
    ) -> None:  # fmt: skip
        loader = DataLoader(
            _Pictures(images, rows, encoder.preprocess),
            batch_size=batch_size,
            num_workers=min(num_workers, max(1, len(rows) // batch_size)) if num_workers else 0,
            collate_fn=_collate,
            pin_memory=encoder.device.type == "cuda",
        )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        features: list[Tensor] = []
        readable: list[Tensor] = []
        errors: dict[str, str] = {}
        done, began = 0, time.perf_counter()
        shard_ends = {row for row in rows if (row + 1) % SHARD_ROWS == 0 or row + 1 == len(images)}
        with Progress(*columns, TimeRemainingColumn(), disable=not progress, transient=True) as bar:
            task = bar.add_task(f"encoding {label}", total=len(rows), rate="")
            for batch_rows, good, pictures, why in _iterate(loader):
                encoded = torch.zeros(len(batch_rows), encoder.dim)
                if len(pictures):
                    encoded[good] = encoder.encode_images(pictures)
                if not (finite := encoded.isfinite().all(dim=1)).all():
                    name = images.names[batch_rows[int((~finite).nonzero()[0])]]
                    raise UserError(f"encoder '{encoder.id}' gives NaN or infinite features, first for image '{name}'")
                errors |= {images.names[row]: reason for row, reason in why.items()}
                start = 0
                for i, row in enumerate(batch_rows):  # cut at shard ends
                    if row in shard_ends:
                        features.append(encoded[start : i + 1])
                        readable.append(good[start : i + 1])
                        tensors = {
                            "features": torch.cat(features).to(DTYPES[dtype]),
                            "readable": torch.cat(readable).to(torch.uint8),
                        }
                        write_shard(folder, f"{row // SHARD_ROWS:05d}", tensors, {"errors": errors})
                        features, readable, errors, start = [], [], {}, i + 1
                features.append(encoded[start:])
                readable.append(good[start:])
                done += len(batch_rows)
                bar.update(task, advance=len(batch_rows), rate=f"{done / (time.perf_counter() - began):.0f} images/s")
        log.info("encoded %d %s at %.0f images/s", done, label, done / (time.perf_counter() - began))

    @staticmethod
    def _write_index(
        folder: Path, encoder: Encoder, images: Images, fingerprints: list[str], errors: dict[str, str], dtype: str
    ) -> None:
        table = pa.table(
            {
                "image": images.names,
                "fingerprint": fingerprints,
                "shard": np.arange(len(images)) // SHARD_ROWS,
                "row": np.arange(len(images)) % SHARD_ROWS,
                "error": [errors.get(name) for name in images.names],
            }
        )
        buffer = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer)
        write_atomically(folder / "index.parquet", buffer.getvalue().to_pybytes())
        about = {"encoder": encoder.id, "encoder_fingerprint": encoder.fingerprint, "dtype": dtype, "dim": encoder.dim}
        write_atomically(folder / "about.json", json.dumps({**about, "images": len(images)}, indent=1).encode())


class _Pictures(Dataset):
    """Row to (row, preprocessed picture or None, why not)."""

    def __init__(self, images: Images, rows: Sequence[int], preprocess):
        self.images, self.rows, self.preprocess = images, rows, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None, str]:
        row = self.rows[i]
        try:
            return row, self.preprocess(self.images.open(row)), ""
        except Exception as error:  # a broken file can make a decoder raise anything
            return row, None, f"{type(error).__name__}: {str(error).replace(str(self.images.names[row]), '...')[:120]}"


def _collate(items: list[tuple[int, Tensor | None, str]]) -> tuple[list[int], Tensor, Tensor, dict[int, str]]:
    rows = [row for row, _, _ in items]
    pictures = [picture for _, picture, _ in items if picture is not None]
    good = torch.tensor([picture is not None for _, picture, _ in items])
    return rows, good, torch.stack(pictures) if pictures else torch.empty(0), {r: why for r, _, why in items if why}


def _iterate(loader: DataLoader):
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that decodes images died (out of memory?): finished shards are kept, run the same command "
            "again, perhaps with encoder.num_workers=0 or a smaller encoder.batch_size"
        ) from error
