"""What a kind of file is to the tests of this folder, and small ones to make some of."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cbm.data import read_dataset


class Readable(NamedTuple):
    """A tree of files.

    Attributes:
        write: put it into an empty folder.
        read: read it there.
        files: those of its files that are damaged in tests, one at a time.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def table(*rows: str) -> bytes:
    return "\n".join(rows).encode() + b"\n"


def tree(**files: bytes | str) -> Callable[[Path], None]:
    """Names (``__`` for a slash, ``_.`` stays) to contents."""

    def write(root: Path) -> None:
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def dataset(kind: str, files: dict[str, bytes | str], damaged: tuple[str, ...], **args) -> Readable:
    return Readable(tree(**files), lambda root: read_dataset(kind, "d", root, args, root / ".cache"), damaged)
