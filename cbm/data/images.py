"""Where pictures are: as files, or as arrays in memory (in tar files: ``webdataset.py``). All are read one by one."""

import errno
import hashlib
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cbm.data.fingerprints import UNREADABLE, derived
from cbm.files.names import as_text, is_text
from cbm.files.opening import open_to_read
from cbm.files.pictures import ANY, EXTENSIONS, UNKNOWN, look, open_picture, pixels_version

log = logging.getLogger(__name__)

NOT_OURS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that operating systems leave behind, in lower case: passed over like hidden ones."""
MANY = 10_000
"""Files from which on it is said that they are read."""
FOLLOWED = 1000
"""Links that are followed, to see whether they lead out of a data set."""
LEFT_BEHIND = {"thumbs.db", "desktop.ini"}
"""Files that they leave behind."""


class NoImage(LookupError):
    """There is no image to show: only its features are known."""


class Images(Protocol):
    """N pictures, opened one by one.

    Attributes:
        names: how each picture is called in reports; no two alike.
    """

    names: list[str]

    def __len__(self) -> int: ...

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The picture as upright RGB; ``least`` pixels along its shorter side suffice (all by default)."""
        ...

    def take(self, rows: Sequence[int]) -> "Images":
        """The pictures at ``rows``."""
        ...

    def fingerprints(self, cache: Path) -> list[str]:
        """What tells every picture from all others, in the feature store."""
        ...

    def contents(self, cache: Path) -> list[str]:
        """A hash of every picture's bytes, wherever they lie: equal for copies."""
        ...

    def looks(self, cache: Path) -> np.ndarray:
        """How every picture is read (``cbm.files.pictures.look``), ``[N]`` int32."""
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

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The picture as upright RGB; raises what Pillow or the file system raises."""
        return open_picture(self.root / self.names[row], least, self.names[row])

    def take(self, rows: Sequence[int]) -> "ImageFiles":
        """The pictures at ``rows``."""
        return ImageFiles(self.root, [self.names[row] for row in rows])

    def fingerprints(self, cache: Path) -> list[str]:
        """Hash of every file's bytes, remembered in ``cache`` by path, size and the times of ``file_key``.

        An unreadable file has the fingerprint of its error, so that it is tried again once it is repaired.
        """
        keys = self._keys()
        return _remembered(cache, "hash", keys, lambda row: _file_hash(self.root / self.names[row]))

    def _keys(self) -> list[str]:
        """What changes when a file does, of every file."""
        root = os.fspath(self.root.absolute())
        return [file_key(os.path.join(root, name)) for name in self.names]  # noqa: PTH118

    def remember(self, cache: Path, fingerprints: list[str]) -> None:
        """Keep fingerprints that were found while the files were read for another reason."""
        keys = self._keys()
        _remember(cache / "fingerprints.sqlite", MEMORIES["hash"][0], "hash", dict(zip(keys, fingerprints)))

    def contents(self, cache: Path) -> list[str]:
        """The same: a file is known by its bytes."""
        return self.fingerprints(cache)

    def looks(self, cache: Path) -> np.ndarray:
        """How every file is read, remembered like the fingerprints; only headers are read."""
        keys = self._keys()
        return np.array(_remembered(cache, "look", keys, lambda row: _file_look(self.root / self.names[row])), np.int32)


class ImageArray:
    """Pictures in one uint8 array ``[N, H, W, 3]`` (CIFAR through torchvision)."""

    def __init__(self, pixels: np.ndarray, names: Sequence[str]):
        self.pixels = pixels
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The picture as RGB."""
        return Image.fromarray(self.pixels[row]).convert("RGB")

    def take(self, rows: Sequence[int]) -> "ImageArray":
        """The pictures at ``rows``."""
        return ImageArray(self.pixels[np.asarray(rows)], [self.names[row] for row in rows])

    def fingerprints(self, cache: Path) -> list[str]:
        """Hash of every picture's pixels."""
        return [hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in self.pixels]

    def contents(self, cache: Path) -> list[str]:
        """The same."""
        return self.fingerprints(cache)

    def looks(self, cache: Path) -> np.ndarray:
        """Pixels are taken as they are."""
        return np.full(len(self), ANY, np.int32)


def store_keys(fingerprints: list[str], looks: np.ndarray, least: int | None) -> list[str]:
    """What pictures are known by in the feature store.

    That is their fingerprint, if version 1 of ``cbm.files.pictures`` read the same pixels, so that features of before
    are found; else the version is part of it.

    Args:
        fingerprints: of N pictures.
        looks: how they are read, ``[N]``.
        least: pixels along the shorter side that the encoder needs, as for ``open_picture``.
    """
    versions = {seen: pixels_version(seen, least) for seen in np.unique(looks).tolist()}
    return [
        key if (version := versions[seen]) is None else derived(key, version)
        for key, seen in zip(fingerprints, looks.tolist())
    ]


def file_key(path: str | Path) -> str:
    """What changes when a file does.

    Its size and the time of its content can be those of before (a copy that keeps times, a clock set back); the time
    of its last change of any kind cannot be set.
    """
    place = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 - a million of them: strings are ten times faster
    try:
        stat = os.stat(place)  # noqa: PTH116
    except (OSError, ValueError):
        return as_text(f"{place}|missing")
    return as_text(f"{place}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}")


def _file_hash(path: Path) -> str:
    try:
        with open_to_read(path) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, ValueError) as error:
        return f"unreadable:{type(error).__name__}"


def _file_look(path: Path) -> int:
    try:
        return look(path)
    except (OSError, ValueError):
        return UNKNOWN


def _remembered(cache: Path, what: str, keys: list[str], find: Callable[[int], Any]) -> list[Any]:
    """``find(row)`` of every row, but what ``cache`` remembers under its key.

    Args:
        cache: folder of the memory.
        what: ``hash`` (of a file's bytes) or ``look`` (how a picture is read).
        keys: what changes when a file does.
        find: function from a row to what is not remembered.
    """
    memory, (table, kind) = cache / "fingerprints.sqlite", MEMORIES[what]
    known = {key: value for key, value in _recall(memory, table, what, keys).items() if isinstance(value, kind)}
    missing = [row for row, key in enumerate(keys) if key not in known]
    if len(missing) > MANY:
        log.info("reading %d files once, to know them again", len(missing))
    with ThreadPoolExecutor(16) as pool:
        fresh = {keys[row]: value for row, value in zip(missing, pool.map(find, missing))}
    lasting = {key: value for key, value in fresh.items() if value != UNKNOWN and not str(value).startswith(UNREADABLE)}
    _remember(memory, table, what, lasting)
    return [known[key] if key in known else fresh[key] for key in keys]


MEMORIES: dict[str, tuple[str, type]] = {"hash": ("files", str), "look": ("looks", int)}
"""Table and type of what is remembered about files."""


def _recall(memory: Path, table: str, column: str, keys: list[str]) -> dict[str, Any]:
    """What is remembered of ``keys``; a damaged memory is forgotten."""
    if not memory.is_file() or memory.is_symlink():
        return {}
    known: dict[str, Any] = {}
    try:
        with closing(sqlite3.connect(memory, timeout=60)) as database:
            if not database.execute("select 1 from sqlite_master where name = ?", (table,)).fetchone():
                return {}
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                known.update(database.execute(f"select key, {column} from {table} where key in ({marks})", part))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        log.warning("'%s' cannot be read (%s): files are read again", memory, error)
        if not isinstance(error, sqlite3.OperationalError):  # which would mean that it is locked
            memory.unlink(missing_ok=True)
        return {}
    return known


def _remember(memory: Path, table: str, column: str, fresh: dict[str, Any]) -> None:
    """Add what was found; a memory that cannot be written to costs time, but stops nobody."""
    if not fresh:
        return
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(memory) and (memory.is_symlink() or not memory.is_file()):
            raise OSError(errno.EINVAL, "not a regular file")
        with closing(sqlite3.connect(memory, timeout=60)) as database, database:
            database.execute(f"create table if not exists {table} (key text primary key, {column}) without rowid")
            database.executemany(f"insert or replace into {table} values (?, ?)", fresh.items())
    except (OSError, sqlite3.Error) as error:
        log.warning("'%s' cannot be written (%s): files will be read again next time", memory, error)


def list_names(folder: Path, others: Counter[str] | None = None) -> list[str]:
    """All picture files below ``folder``, sorted, as paths from there; what is hidden is passed over.

    So are names that are not UTF-8 (of an old archive): no table and no page can hold them. It is said.

    Args:
        folder: the folder.
        others: the endings of files that are not read are counted here, in lower case (empty: none).
    """
    names = list(walk_names(folder, others))
    if odd := [name for name in names if not is_text(name)]:
        log.warning(
            "%d picture(s) in '%s' are passed over, whose names are not UTF-8, first '%s': rename them",
            len(odd),
            folder,
            as_text(odd[0]),
        )
        names = [name for name in names if is_text(name)]
    return names


def walk_names(folder: Path, others: Counter[str] | None = None) -> Iterator[str]:
    """``list_names``, one after the other: no more is in memory than the contents of a folder and of those above it.

    Folders are listed, files are not touched: a million files take seconds. Links to folders are not followed.

    Args:
        folder: the folder.
        others: as for ``list_names``.
    """
    links: list[str] = []
    levels = [_contents(folder, "", links)]
    while levels:
        for name, is_folder in levels[-1]:
            if is_folder:
                levels.append(_contents(folder / name, f"{name}/", links))
                break
            ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if ending in EXTENSIONS:
                yield name
            elif others is not None:
                others[ending] += 1
        else:
            levels.pop()
    if said := lead_outside(folder, links):
        log.warning("%s", said)


def lead_outside(folder: Path, names: Sequence[str]) -> str | None:
    """A sentence about files that lie outside a folder: whoever sent it may have chosen them; None if there are none.

    Args:
        folder: the folder.
        names: paths from there that are links, or not below it by how they are written; of many, some are followed.
    """
    home = os.path.realpath(folder)
    step = max(1, len(names) // FOLLOWED)
    away = [
        (name, there)
        for name in names[::step]
        if (there := os.path.realpath(os.path.join(home, name))) and not there.startswith(f"{home}{os.sep}")  # noqa: PTH118
    ]
    if not away:
        return None
    some = f"{len(away) * step:,} of {len(names):,} links and paths lead" if len(names) > 1 else "a link or path leads"
    return (
        f"{some} out of '{folder}', first '{away[0][0]}' to '{away[0][1]}': these files are opened, and may be shown "
        "in reports and W&B (docs/trust.md)"
    )


def _contents(folder: Path, above: str, links: list[str]) -> Iterator[tuple[str, bool]]:
    """The files and folders in a folder that are somebody's, sorted, and whether each is a folder. ``links`` grows."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = _is_folder(entry)
                if is_folder:
                    ours = is_ours(entry.name) and not entry.is_symlink()
                else:  # pipes and the like are nobody's; a link to nothing is somebody's mistake, to be said later
                    hidden = entry.name.startswith(".") or entry.name.lower() in LEFT_BEHIND
                    ours = not hidden and (entry.is_symlink() or entry.is_file())
                if ours:
                    found.append((above + entry.name, is_folder))
                    if entry.is_symlink() and os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                        links.append(above + entry.name)
    except OSError as error:
        log.warning("folder '%s' cannot be read and is passed over: %s", folder, error.strerror)
    return iter(sorted(found))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle leads to nothing
        return False


def is_ours(folder: str) -> bool:
    """Whether a folder of this name is somebody's, not hidden, and not left behind by an operating system."""
    return not folder.startswith(".") and folder.lower() not in NOT_OURS


def list_images(folder: Path) -> list[Path]:
    """``list_names``, as paths."""
    return [folder / name for name in list_names(folder)]
