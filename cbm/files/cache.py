"""What is in the folder of the feature store, and how it is removed again: an entry as a whole, or nothing of it.

An entry is what is of use together: the features of an encoder, its phrases, a drawn split. Only files that are called
as cbm calls its own belong to one; whatever else lies in the folder, which may be anybody's, is not touched.
"""

import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbm.errors import UserError, did_you_mean
from cbm.files.atomic import PARTIAL, cannot_write
from cbm.files.locks import LockHeldError, NoLocksError, lock
from cbm.files.opening import LARGEST_JSON, open_regular

SHARD = r"[0-9a-f]+(-[0-9a-f]+)?\.safetensors"
OURS = rf"(\.partial\..*|{SHARD}|about\.json|index\.(safetensors|parquet)|unit/({SHARD}|\.partial\..*))"
"""Files of a folder of features, as a pattern of their paths from there."""
REMOVED = ".removed."
"""How folders begin that hold what is being removed, or was when its process was killed."""
LONGEST_HEADER = 1 << 27
"""Bytes of a header of a shard beyond which it is damaged."""
DAMAGED = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)
"""What JSON of any form raises where something else is expected."""
NOT_AGAIN = {
    "answers": "answers of a language model, which were paid for",
    "split": "a drawn split, which may be drawn otherwise if images were added",
}
"""Kinds that cannot be made again for nothing, and are removed only by name: why."""


@dataclass(frozen=True)
class Kind:
    """A kind of entries.

    Attributes:
        name: what it is called.
        place: pattern of the entries' paths from the cache.
        files: pattern of the files in an entry, as paths from there; empty for an entry that is a file.
        what: what it holds, in words.
        unit: what is counted.
    """

    name: str
    place: str
    files: str
    what: str
    unit: str


ANSWER = r"[0-9a-f]{2}/([0-9a-f]+\.json|\.partial\..*)|[0-9a-f]+\.jsonl"
KINDS = (
    Kind("features", r"features/([0-9a-f]+-\w+-float\d\d|[0-9a-f]{24})", OURS, "features of images", "images"),
    Kind("text", r"text/[0-9a-f]+", rf"{SHARD}|\.partial\..*", "embedded phrases", "phrases"),
    Kind("vocabulary", r"vocabulary/[0-9a-f]+/[0-9a-f]+", rf"{SHARD}|\.partial\..*", "embedded phrases", "phrases"),
    Kind("copies", r"given", rf"{SHARD}|\.partial\..*", "copies of given features, of unit norm", "copies"),
    Kind("archives", r"tars", r"[0-9a-f]+(-members)?\.parquet|\.partial\..*", "tables about tar files", "tables"),
    Kind("split", r"splits/[^/]+-[0-9a-f]{12}\.json", "", "drawn split", "images"),
    Kind("answers", r"(llm|vision)", ANSWER, "answers of a language model", "answers"),
    Kind("fingerprints", r"fingerprints\.sqlite", "", "files that are known again", "files"),
    Kind("removed", rf"{re.escape(REMOVED)}\w+", r".*", "left by a removal that was interrupted", "files"),
)


@dataclass(frozen=True)
class Entry:
    """Something in the cache that is removed as a whole.

    Attributes:
        name: its path from the cache, with ``/``.
        kind: that of ``KINDS``.
        what: the encoder, if it is known, else what the entry holds.
        count: number of images, phrases, files or answers; None if that cannot be read.
        size: bytes.
        used: seconds since 1970 when one of its files was last read or written, as far as the system writes that down.
    """

    name: str
    kind: str
    what: str
    count: int | None
    size: int
    used: float

    @property
    def unit(self) -> str:
        """What is counted: images, phrases, ..."""
        return next(kind.unit for kind in KINDS if kind.name == self.kind)

    @property
    def lasting(self) -> str | None:
        """Why it is removed by name only; None if it can be made again."""
        return NOT_AGAIN.get(self.kind)


def read_cache(cache: Path) -> list[Entry]:
    """What is in a cache, kind by kind; what is behind links, or not ours, is passed over.

    Raises:
        UserError: there is a file in its place, or it cannot be read.
    """
    if not cache.exists():
        return []
    if not cache.is_dir():
        raise UserError(f"--cache {cache}: this is a file: expected the folder of a feature store")
    try:
        encoders = _encoders(cache)
        found = [_describe(cache, path, kind, encoders) for path, kind in _places(cache)]
    except OSError as error:
        raise UserError(f"cannot read '{error.filename or cache}': {error.strerror or error}") from error
    order = [kind.name for kind in KINDS]
    return sorted(found, key=lambda entry: (order.index(entry.kind), entry.name))


def links_in(cache: Path) -> list[Path]:
    """Links in a cache to other folders, whose content is not looked at."""
    return sorted(path for path in cache.iterdir() if path.is_symlink()) if cache.is_dir() else []


def count_entries(found: list[Entry]) -> str:
    """``1 entry`` or ``3 entries``."""
    return "1 entry" if len(found) == 1 else f"{len(found)} entries"


def choose(entries: list[Entry], names: list[str]) -> list[Entry]:
    """The entries that are called so, or whose names alone begin so.

    Raises:
        UserError: there is none, or there are several (the message names the nearest).
    """
    chosen = []
    for name in (name.replace("\\", "/").rstrip("/") for name in names):
        found = [entry for entry in entries if entry.name == name]
        found = found or [entry for entry in entries if name and entry.name.startswith(name)]
        if len(found) > 1:
            raise UserError(f"'{name}' may be {len(found)} entries of the cache, such as '{found[0].name}' and "
                            f"'{found[1].name}': write more of the name")  # fmt: skip
        if not found:
            near = did_you_mean(name, [entry.name for entry in entries]) if entries else "it is empty"
            raise UserError(f"nothing in the cache is called '{name}': {near}")
        chosen += [entry for entry in found if entry not in chosen]
    return chosen


def remove(cache: Path, entry: Entry) -> None:
    """Remove an entry as a whole: it goes under another name first, and is found again if that is interrupted.

    Raises:
        UserError: it is gone, another process is writing to it, something in it is a link or not ours, or it cannot be
            removed. Nothing of it is removed then.
    """
    path = cache / entry.name
    kind = next(kind for kind in KINDS if kind.name == entry.kind)
    if not path.exists():
        raise UserError(f"'{path}' is gone already")
    for part in (path, *path.parents[: len(Path(entry.name).parts) - 1]):
        if part.is_symlink():
            raise UserError(f"'{part}' is a link to another place, where nothing is removed")
    files = sorted(_files(path))
    if kind.files:
        for file in files:
            if file.is_symlink() or not re.fullmatch(kind.files, file.relative_to(path).as_posix()):
                said = "a link" if file.is_symlink() else "not of cbm"
                raise UserError(f"'{file}' is {said}: nothing of '{path}' is removed")
    try:
        _check_free(path, files)
        if entry.kind == "removed":
            shutil.rmtree(path)
            return
        place = Path(tempfile.mkdtemp(dir=cache, prefix=REMOVED))
        try:
            path.rename(place / path.name)
        finally:
            shutil.rmtree(place)
        for above in path.parents[: len(Path(entry.name).parts) - 1]:
            with suppress(OSError):  # something else is in it
                above.rmdir()
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_free(path: Path, files: list[Path]) -> None:
    """Raise a ``UserError`` if another process has a lock on one of the files."""
    for file in files:
        try:
            with open(file, "rb", opener=open_regular) as content:
                lock(content)
        except LockHeldError as error:
            raise UserError(f"another process is writing to '{path}': wait for it") from error
        except (NoLocksError, FileNotFoundError):
            continue
    if path.suffix == ".sqlite":
        _check_database(path)


def _check_database(path: Path) -> None:
    """Raise a ``UserError`` if another process is writing to a database."""
    import sqlite3

    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            database.execute("begin exclusive")
    except sqlite3.OperationalError as error:
        raise UserError(f"another process is writing to '{path}': wait for it") from error
    except sqlite3.Error:
        return  # damaged


def _places(cache: Path) -> Iterator[tuple[Path, Kind]]:
    """Entries and their kinds: nothing deeper than three folders is one."""
    level = [cache]
    for _ in range(3):
        below = [path for folder in level for path in sorted(folder.iterdir()) if not path.is_symlink()]
        level = []
        for path in below:
            name = path.relative_to(cache).as_posix()
            kind = next((kind for kind in KINDS if re.fullmatch(kind.place, name)), None)
            if kind is None and path.is_dir():
                level.append(path)
            elif kind is not None and path.is_dir() == bool(kind.files):
                yield path, kind


def _files(path: Path) -> Iterator[Path]:
    """All files of an entry, and links; no link is followed."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        yield from (Path(folder) / name for name in names)
        yield from (Path(folder) / name for name in folders if (Path(folder) / name).is_symlink())


def _describe(cache: Path, path: Path, kind: Kind, encoders: dict[str, str]) -> Entry:
    files = [file for file in _files(path) if not file.is_symlink()]
    states = [state for file in files if (state := _stat(file)) is not None]  # before anything is read
    used = max((max(state.st_atime, state.st_mtime) for state in states), default=path.stat().st_mtime)
    name = path.relative_to(cache).as_posix()
    fingerprint = re.split("[-/]", name.partition("/")[2])[0]
    owner = encoders.get(fingerprint) if kind.name in ("features", "text", "vocabulary") else None
    dtype = "-".join(name.split("-")[1:]) if kind.name == "features" else ""
    what = f"{owner} {dtype}".strip() if owner else kind.what
    return Entry(name, kind.name, what, _count(path, kind, files), sum(state.st_size for state in states), used)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _encoders(cache: Path) -> dict[str, str]:
    """Fingerprint to name of the encoders whose features are there."""
    names = {}
    for file in (cache / "features").glob("*/about.json"):
        with suppress(OSError, *DAMAGED):
            about = json.loads(_peek(file, 1 << 20))
            names[str(about["encoder_fingerprint"])] = str(about["encoder"])
    return names


def _count(path: Path, kind: Kind, files: list[Path]) -> int | None:
    """How many images, phrases, answers or files an entry holds."""
    own = [file for file in files if not file.name.startswith(PARTIAL)]
    if kind.name in ("features", "text", "vocabulary"):
        shards = [file for file in own if file.parent == path and file.suffix == ".safetensors"]
        rows = [_rows(file) for file in shards if file.stem != "index"]
        return None if None in rows else sum(row for row in rows if row)
    try:
        if kind.name == "split":
            return len(json.loads(_peek(path, LARGEST_JSON)))
        if kind.name == "fingerprints":
            return _known_files(path)
    except (OSError, *DAMAGED):
        return None
    return len(own)


def _known_files(path: Path) -> int | None:
    import sqlite3

    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            return int(database.execute("select count(*) from files").fetchone()[0])
    except sqlite3.Error:
        return None


def _rows(shard: Path) -> int | None:
    """Rows of the features of a shard, by its header; 0 of one that was emptied, None of one that cannot be read."""
    try:
        if not shard.stat().st_size:
            return 0
        (length,) = struct.unpack("<Q", _peek(shard, 8))
        if length > LONGEST_HEADER:
            return None
        header: dict[str, Any] = json.loads(_peek(shard, 8 + length)[8:])
        return max(0, int(header["features"]["shape"][0]))
    except (OSError, struct.error, *DAMAGED):
        return None


def _peek(file: Path, count: int) -> bytes:
    """The first bytes of a file, read without becoming its last use where that can be (Linux)."""
    quiet = getattr(os, "O_NOATIME", 0)

    def opener(name: str, flags: int) -> int:
        with suppress(PermissionError):  # somebody else's file
            return open_regular(name, flags | quiet)
        return open_regular(name, flags)

    with open(file, "rb", opener=opener) as content:
        return content.read(min(count, os.fstat(content.fileno()).st_size))  # so much is asked of the memory
