"""The feature store: every picture is encoded once.

A store is addressed by its content: (encoder weights and preprocessing, precision, dtype, the pictures' bytes). Its
features lie in shards, each complete or absent, so an interrupted run goes on with the first missing shard.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from cbm.data.encoding import encode_shards
from cbm.data.features import unit_norm
from cbm.data.images import Images
from cbm.data.shards import find_shards, read_shard, write_rows
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


def _read_shards(folder: Path) -> dict[int, tuple[dict[str, Tensor], dict[str, Any]]]:
    """Number to content of the shards that are there and sound."""
    files = {stem: path for stem, path in find_shards(folder).items() if stem.isdecimal()}
    return {int(stem): shard for stem, path in files.items() if (shard := read_shard(path))}


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
        devices: int = 1,
        nodes: int = 1,
    ) -> StoredFeatures:
        """The features of ``images``: from the store where they are there, else encoded and stored.

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
        precision = encoder.precision if encoder.device.type == "cuda" else "fp32"
        key = hashlib.sha256("\n".join([encoder.fingerprint, precision, dtype, *fingerprints]).encode())
        folder = self.root / "features" / key.hexdigest()[:24]
        count = -(-len(images) // SHARD_ROWS)
        found = _read_shards(folder)
        if missing := [number for number in range(count) if number not in found]:
            encode_shards(
                folder, encoder, images, missing, SHARD_ROWS, dtype=DTYPES[dtype], batch_size=batch_size,
                num_workers=num_workers, label=label, progress=progress, devices=devices, nodes=nodes,
            )  # fmt: skip
            found = _read_shards(folder)
        if lost := [number for number in range(count) if number not in found]:
            raise UserError(f"shard {lost[0]} in '{folder}' is not what was written a moment ago: is the disk sound?")
        shards = [found[number] for number in range(count)]
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
