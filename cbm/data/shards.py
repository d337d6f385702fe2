"""The file format of the stores: safetensors files that carry their own checksum in their name.

``00003-1f6c...9a.safetensors``: a file is written under a temporary name and renamed when it is complete, so it is
there whole or not at all; a flipped byte no longer matches the name and the file is dropped.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cbm.files import write_atomically

log = logging.getLogger(__name__)


def write_shard(folder: Path, stem: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write ``tensors`` and JSON ``metadata`` as ``folder/STEM-CHECKSUM.safetensors``."""
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {"json": json.dumps(metadata)}
    )
    path = folder / f"{stem}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.safetensors"
    write_atomically(path, content)
    return path


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Memory-mapped tensors and metadata of a shard; None (and the file is removed) if it is not what was written."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if checksum != path.stem.rpartition("-")[2]:
        log.warning("'%s' is damaged (its checksum does not match): it is made again", path)
        path.unlink(missing_ok=True)
        return None
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def find_shards(folder: Path) -> dict[str, Path]:
    """Stem to file of every shard in ``folder``."""
    return {path.stem.rpartition("-")[0]: path for path in sorted(folder.glob("*.safetensors"))}
