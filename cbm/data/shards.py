"""The file format of the stores: safetensors files whose last tensor is the checksum of all bytes before it.

``00003.safetensors``: a file is written under a temporary name and gets its own when it is complete, so it is there
whole or not at all. One name is one file, however many processes write it at once. A flipped byte no longer fits the
checksum; the file is then emptied, which is as good as absent.

Files up to f47ba49 carry the checksum in their name instead (``00003-1f6c...9a.safetensors``); they are read as well.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from cbm.errors import UserError
from cbm.files import open_to_read, place_new, write_atomically, write_in_parts

log = logging.getLogger(__name__)

CODES = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16", torch.int32: "I32", torch.uint8: "U8"}
"""What safetensors calls the types that are stored."""
CHECKSUM = 16
"""Bytes of a checksum."""


def write_shard(folder: Path, stem: str, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write ``tensors`` and JSON ``metadata`` as ``folder/STEM.safetensors``.

    If another process has just written this shard, its file stays, and this one is forgotten.
    """
    if (there := find_shards(folder).get(stem)) is not None and read_shard(there) is not None:
        return there
    return write_in_parts(folder, _whole(tensors, metadata), lambda: f"{stem}.safetensors", _place_unless_sound)


def write_new_shard(folder: Path, stem: str, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> bool:
    """Write ``folder/STEM.safetensors`` unless there is or was a file of this name; returns whether it was written."""
    placed: list[bool] = []
    write_in_parts(
        folder,
        _whole(tensors, metadata),
        lambda: f"{stem}.safetensors",
        lambda temporary, path: placed.append(place_new(temporary, path)),
    )
    return placed[0]


def replace_shard(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a shard in the place of an older one."""
    write_in_parts(path.parent, _whole(tensors, metadata), lambda: path.name)


def write_rows(folder: Path, stem: str, parts: Iterable[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Path:
    """Write rows that come in parts ``[n, D]``, and may be more than memory holds, as the tensor ``rows`` of one shard.

    Args:
        folder: where.
        stem: the file's name without its ending.
        parts: the rows, in order.
        shape: (N, D) of all of them.
        dtype: what they are stored as, float16 or float32.
    """
    content = _content({"rows": (dtype, shape)}, (part.to(dtype) for part in parts), {})
    return write_in_parts(folder, content, lambda: f"{stem}.safetensors", _place_unless_sound)


def _place_unless_sound(temporary: Path, path: Path) -> None:
    if not place_new(temporary, path) and read_shard(path) is None:
        temporary.replace(path)


def _whole(tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> Iterator[bytes]:
    """The content of a shard of tensors in memory: wide types first, so that each begins at a multiple of its width."""
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered.items()}
    return _content(described, ordered.values(), metadata)


def _content(
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]], pieces: Iterable[Tensor], metadata: dict[str, Any]
) -> Iterator[bytes]:
    """The bytes of a shard: header, the tensors' values in the order in which they are described, checksum."""
    entries: dict[str, Any] = {"__metadata__": {"json": json.dumps(metadata)}}
    start = 0
    for name, (dtype, shape) in (described | {"checksum": (torch.uint8, (CHECKSUM,))}).items():
        end = start + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % 64)  # values begin at an aligned address
    checksum = hashlib.blake2b(digest_size=CHECKSUM)
    for piece in (struct.pack("<Q", len(header)), header):
        checksum.update(piece)
        yield piece
    for tensor in pieces:
        piece = tensor.contiguous().numpy().tobytes()
        checksum.update(piece)
        yield piece
    yield checksum.digest()


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Memory-mapped tensors and metadata of a shard; None (and the file is emptied) if it is not what was written."""
    try:
        sound = _is_sound(path)
    except FileNotFoundError:  # another process found it damaged
        return None
    except OSError as error:  # as good as absent to this user
        log.warning("'%s' cannot be read (%s): what it holds is made again", path, error.strerror or error)
        return None
    if not sound:
        _drop(path)
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != "checksum"}  # noqa: SIM118
            metadata = json.loads(file.metadata()["json"])
            if not isinstance(metadata, dict):
                raise TypeError("no settings")
            return tensors, metadata
    except Exception:  # the checksum of something else: whatever its content makes the parser raise
        _drop(path)
        return None


def peek(path: Path, name: str) -> Tensor | None:
    """One tensor of a shard, not compared with the checksum; None if there is none, or the shard is damaged."""
    try:
        open_to_read(path).close()  # or a pipe would be waited for
        with safetensors.safe_open(path, "pt") as file:
            return file.get_tensor(name)
    except Exception:  # whatever a damaged file makes the parser raise
        shard = read_shard(path)
        return shard[0].get(name) if shard else None


def _is_sound(path: Path) -> bool:
    """Whether the content is what its checksum says."""
    digest = hashlib.blake2b(digest_size=CHECKSUM)
    with open_to_read(path) as file:
        if "-" in path.stem:
            return hashlib.file_digest(file, lambda: digest).hexdigest() == path.stem.partition("-")[2]
        left = os.fstat(file.fileno()).st_size - CHECKSUM
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        return left == 0 and file.read() == digest.digest()


def _drop(path: Path) -> None:
    """Make a damaged shard absent. Its name stays taken: nobody can mistake a later file for it."""
    if not _size(path):
        return
    log.warning("'%s' is damaged (it is not what was written): it is made again", path)
    with suppress(OSError, UserError):  # where nothing can be written it stays, and is found again next time
        if "-" in path.stem:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, b"")


def find_shards(folder: Path) -> dict[str, Path]:
    """Stem to file of every shard in ``folder``."""
    return {path.stem.partition("-")[0]: path for path in sorted(folder.glob("*.safetensors")) if _size(path)}


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
