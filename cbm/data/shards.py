"""The file format of the stores: safetensors files that carry their own checksum in their name.

``00003-1f6c...9a.safetensors``: a file is written under a temporary name and renamed when it is complete, so it is
there whole or not at all; a flipped byte no longer matches the name and the file is dropped.
"""

import hashlib
import json
import logging
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cbm.files import write_atomically, write_in_parts

log = logging.getLogger(__name__)


def write_shard(folder: Path, stem: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write ``tensors`` and JSON ``metadata`` as ``folder/STEM-CHECKSUM.safetensors``.

    If another process has just written this shard, its file stays: one of another checksum would be a second copy.
    """
    if (there := find_shards(folder).get(stem)) is not None and read_shard(there) is not None:
        return there
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {"json": json.dumps(metadata)}
    )
    path = folder / f"{stem}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.safetensors"
    write_atomically(path, content)
    return path


def write_rows(folder: Path, stem: str, parts: Iterable[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Path:
    """Write rows that come in parts ``[n, D]``, and may be more than memory holds, as the tensor ``rows`` of one shard.

    Args:
        folder: where.
        stem: the file's name without its checksum.
        parts: the rows, in order.
        shape: (N, D) of all of them.
        dtype: what they are stored as, float16 or float32.
    """
    count = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": {torch.float16: "F16", torch.float32: "F32"}[dtype], "shape": shape, "data_offsets": [0, count]}
    header = json.dumps({"__metadata__": {"json": "{}"}, "rows": entry}).encode()
    header += b" " * (-len(header) % 64)  # rows begin at an aligned address
    checksum = hashlib.blake2b(digest_size=16)

    def content() -> Iterator[bytes]:
        for piece in (struct.pack("<Q", len(header)), header):
            checksum.update(piece)
            yield piece
        for part in parts:
            piece = part.to(dtype).contiguous().numpy().tobytes()
            checksum.update(piece)
            yield piece

    return write_in_parts(folder, content(), lambda: f"{stem}-{checksum.hexdigest()}.safetensors")


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Memory-mapped tensors and metadata of a shard; None (and the file is removed) if it is not what was written."""
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except FileNotFoundError:  # another process found it damaged
        return None
    if checksum != path.stem.rpartition("-")[2]:
        log.warning("'%s' is damaged (its checksum does not match): it is made again", path)
        path.unlink(missing_ok=True)
        return None
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def find_shards(folder: Path) -> dict[str, Path]:
    """Stem to file of every shard in ``folder``."""
    return {path.stem.rpartition("-")[0]: path for path in sorted(folder.glob("*.safetensors"))}
