"""Where pictures are: as files, or as arrays in memory (in tar files: ``webdataset.py``). All are read one by one."""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

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
        """Hash of every file's bytes, remembered in ``cache`` by path, size and modification time.

        An unreadable file has the fingerprint of its error, so that it is tried again once it is repaired.
        """
        cache.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(cache / "fingerprints.sqlite", timeout=60)) as database:
            database.execute("create table if not exists files (key text primary key, hash text) without rowid")
            known: dict[str, str] = {}
            keys = [_file_key(self.root / name) for name in self.names]
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                known.update(database.execute(f"select key, hash from files where key in ({marks})", part))
            missing = [row for row, key in enumerate(keys) if key not in known]
            with ThreadPoolExecutor(16) as pool:
                hashes = pool.map(lambda row: _file_hash(self.root / self.names[row]), missing)
                fresh = {keys[row]: value for row, value in zip(missing, hashes)}
            with database:
                database.executemany("insert or replace into files values (?, ?)", fresh.items())
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
    try:
        stat = path.stat()
    except OSError:
        return f"{path.absolute()}|missing"
    return f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}"


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        return f"unreadable:{type(error).__name__}"


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
