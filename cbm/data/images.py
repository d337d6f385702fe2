"""Where pictures are: as files, or as arrays in memory (in tar files: ``webdataset.py``). All are read one by one."""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


class Images(Protocol):
    """N pictures, opened one by one.

    Attributes:
        names: how each picture is called in reports; no two alike.
    """

    names: list[str]

    def __len__(self) -> int: ...

    def open(self, row: int) -> Image.Image:
        """The picture as RGB."""
        ...

    def take(self, rows: Sequence[int]) -> "Images":
        """The pictures at ``rows``."""
        ...

    def fingerprints(self, cache: Path) -> list[str]:
        """A hash of every picture's content."""
        ...


class ImageFiles:
    """Pictures in files.

    Attributes:
        names: how each picture is called in reports: its path relative to ``root``.
    """

    def __init__(self, root: Path, names: Sequence[str]):
        self.root = Path(root)
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int) -> Image.Image:
        """The picture as RGB; raises what Pillow or the file system raises."""
        with Image.open(self.root / self.names[row]) as picture:
            return picture.convert("RGB")

    def take(self, rows: Sequence[int]) -> "ImageFiles":
        """The pictures at ``rows``."""
        return ImageFiles(self.root, [self.names[row] for row in rows])

    def fingerprints(self, cache: Path) -> list[str]:
        """Hash of every file's bytes, remembered in ``cache`` by path, size and the times of ``_file_key``.

        An unreadable file has the fingerprint of its error, so that it is tried again once it is repaired.
        """
        memory = cache / "fingerprints.sqlite"
        keys = [_file_key(self.root / name) for name in self.names]
        known = _recall(memory, keys)
        missing = [row for row, key in enumerate(keys) if key not in known]
        with ThreadPoolExecutor(16) as pool:
            hashes = pool.map(lambda row: _file_hash(self.root / self.names[row]), missing)
            fresh = {keys[row]: value for row, value in zip(missing, hashes)}
        _remember(memory, fresh)
        return [known.get(key) or fresh[key] for key in keys]


class ImageArray:
    """Pictures in one uint8 array ``[N, H, W, 3]`` (CIFAR through torchvision)."""

    def __init__(self, pixels: np.ndarray, names: Sequence[str]):
        self.pixels = pixels
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int) -> Image.Image:
        """The picture as RGB."""
        return Image.fromarray(self.pixels[row]).convert("RGB")

    def take(self, rows: Sequence[int]) -> "ImageArray":
        """The pictures at ``rows``."""
        return ImageArray(self.pixels[np.asarray(rows)], [self.names[row] for row in rows])

    def fingerprints(self, cache: Path) -> list[str]:
        """Hash of every picture's pixels."""
        return [hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in self.pixels]


def _file_key(path: Path) -> str:
    """What changes when a file does.

    Its size and the time of its content can be those of before (a copy that keeps times, a clock set back); the time
    of its last change of any kind cannot be set.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return f"{path.absolute()}|missing"
    return f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, ValueError) as error:
        return f"unreadable:{type(error).__name__}"


def _recall(memory: Path, keys: list[str]) -> dict[str, str]:
    """What is remembered of the hashes of ``keys``; a damaged memory is forgotten."""
    if not memory.is_file():
        return {}
    known: dict[str, str] = {}
    try:
        with closing(sqlite3.connect(memory, timeout=60)) as database:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                known.update(database.execute(f"select key, hash from files where key in ({marks})", part))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        log.warning("'%s' cannot be read (%s): files are hashed again", memory, error)
        if not isinstance(error, sqlite3.OperationalError):  # which would mean that it is locked
            memory.unlink(missing_ok=True)
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _remember(memory: Path, fresh: dict[str, str]) -> None:
    """Add hashes; a memory that cannot be written to costs time, but stops nobody."""
    if not fresh:
        return
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(memory, timeout=60)) as database, database:
            database.execute("create table if not exists files (key text primary key, hash text) without rowid")
            database.executemany("insert or replace into files values (?, ?)", fresh.items())
    except (OSError, sqlite3.Error) as error:
        log.warning("'%s' cannot be written (%s): files will be hashed again next time", memory, error)


def list_names(folder: Path) -> list[str]:
    """All picture files below ``folder``, sorted, as paths from there; hidden files are passed over.

    Folders are listed, files are not touched: a million files take seconds.
    """
    start = len(os.fspath(folder)) + 1
    found = []
    for path, _, files in os.walk(folder):
        below = path[start:].replace(os.sep, "/")
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith("."):  # noqa: PTH122
                found.append(f"{below}/{file}" if below else file)
    return sorted(found, key=lambda name: name.split("/"))


def list_images(folder: Path) -> list[Path]:
    """``list_names``, as paths."""
    return [folder / name for name in list_names(folder)]
