"""Feature stores up to f47ba49, read where they are: one folder for every list of pictures.

A folder's name is the hash of (encoder, precision, dtype, the fingerprints of the list). ``index.parquet`` repeats the
fingerprints, so the hash can be computed again: it says whether a folder is of this encoder, at this precision, and
that the list is the one whose features, in its order, are in the shards.
"""

import hashlib
import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from cbm.data.fingerprints import to_digests
from cbm.data.shards import find_shards, peek

log = logging.getLogger(__name__)

ROWS = 4096
"""Pictures in a shard, but the last."""


class OldStores:
    """Those in ``features`` that may be of one encoder.

    Args:
        features: where the folders are.
        address: fingerprint of the encoder, precision and dtype.
        fingerprints: of a list of pictures, whose folder is recognised even where its index was never written.
    """

    def __init__(self, features: Path, address: tuple[str, str, str], fingerprints: list[str]):
        self.address, self.fingerprints = address, fingerprints
        names = features.iterdir() if features.is_dir() else ()
        self.folders = {path.name: path for path in names if re.fullmatch("[0-9a-f]{24}", path.name)}
        self.folders = {name: path for name, path in self.folders.items() if self._may_be_ours(path)}
        self._lists: dict[str, np.ndarray | None] = {}

    def shards(self) -> list[str]:
        """The shards of all folders, as paths from ``features``."""
        return [f"{name}/{file.name}" for name, path in self.folders.items() for file in find_shards(path).values()]

    def pictures(self, shard: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Digests ``[n, 2]`` and rows ``[n]`` of the readable pictures in a shard; None where nobody knows them."""
        folder, file = shard.split("/")
        if not file.partition("-")[0].isdecimal():
            return None
        if folder not in self._lists:
            self._lists[folder] = self._read_list(self.folders[folder])
        readable = peek(self.folders[folder] / file, "readable")
        if (digests := self._lists[folder]) is None or readable is None:
            return None
        start = int(file.partition("-")[0]) * ROWS
        digests = digests[start : start + ROWS]
        if len(digests) != len(readable):
            return digests[:0], np.empty(0, int)
        (rows,) = np.nonzero(readable.numpy().astype(bool) & digests.any(axis=1))
        return digests[rows], rows

    def _may_be_ours(self, folder: Path) -> bool:
        try:
            about = json.loads((folder / "about.json").read_text())
            return (about["encoder_fingerprint"], about["dtype"]) == (self.address[0], self.address[2])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # interrupted, or damaged: its name tells
            return True

    def _read_list(self, folder: Path) -> np.ndarray | None:
        """Digests ``[N, 2]`` of a folder's list: none if it is of another encoder, None if the list is not known."""
        found = None
        try:
            table = pyarrow.parquet.read_table(folder / "index.parquet", columns=["fingerprint"])
            chunks = [batch.column(0).to_pylist() for batch in table.to_batches(1 << 16)]
            if self._key(chunks) == folder.name:
                return np.concatenate([to_digests(chunk) for chunk in chunks])
            found = np.empty((0, 2), np.uint64)
        except (pa.ArrowException, OSError, ValueError, TypeError):
            log.info("'%s' has no sound index", folder)
        return to_digests(self.fingerprints) if self._key([self.fingerprints]) == folder.name else found

    def _key(self, chunks: list[list[str]]) -> str:
        digest = hashlib.sha256("\n".join(self.address).encode())
        for chunk in chunks:
            digest.update(("\n" + "\n".join(chunk)).encode())
        return digest.hexdigest()[:24]
