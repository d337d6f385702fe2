"""Tensors with metadata in one safetensors file that carries its own checksum. No pickle.

The metadata entry ``cbm`` is the checksum and a line of JSON. The checksum is that of the whole file with zeros in its
place, so that a flipped bit anywhere is found. Files without one (of others, or older) are read unchecked.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbm.errors import UserError
from cbm.files import write_atomically
from cbm.files.opening import check_regular

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 32
BLANK = b"0" * DIGITS


def write_tensors(path: Path, tensors: "dict[str, Tensor]", about: Any = None) -> None:
    """Write tensors and metadata.

    Args:
        path: the file to write.
        tensors: tensors by name.
        about: metadata, any JSON value.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    import safetensors.torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, {"cbm": f"{BLANK.decode()} {json.dumps(about)}"})
    checksum = hashlib.blake2b(content, digest_size=DIGITS // 2).hexdigest()
    write_atomically(path, content.replace(b'"cbm":"' + BLANK, b'"cbm":"' + checksum.encode(), 1))


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], Any]":
    """Read the tensors and the metadata that ``write_tensors`` wrote (None if there is none).

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged, or not a safetensors file.
    """
    from safetensors import safe_open

    if path.exists():
        check_regular(path)
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("cbm", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checked = said[:1] not in ("", "{", "[")
        stated, about = (said[:DIGITS], said[DIGITS:]) if checked else ("", said or "null")
        if checked and stated != _checksum(path, stated):
            raise UserError(f"'{path}' is damaged: its checksum does not match")
        return tensors, json.loads(about)
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UserError(f"'{path}' is damaged or was not written by cbm ({type(error).__name__})") from error


def _checksum(path: Path, stated: str) -> str:
    """The checksum of a safetensors file, with zeros in place of ``stated`` in its header."""
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    with path.open("rb") as file:
        start = file.read(8)
        start += file.read(int.from_bytes(start, "little"))
        digest.update(start.replace(b'"cbm":"' + stated.encode(), b'"cbm":"' + BLANK, 1))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
