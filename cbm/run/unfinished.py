"""A table that is written row by row and gets its name when it is whole: it is taken up where it was interrupted."""

import csv
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from cbm.errors import UserError
from cbm.files import cannot_write, open_regular, place_new, write_atomically
from cbm.files.inert import for_csv, path_for_csv, path_from_csv
from cbm.files.locks import OPEN_FILES_STAY, LockHeldError, NoLocksError, lock
from cbm.files.names import as_text
from cbm.files.parsing import read_json
from cbm.run.sources import NameList

log = logging.getLogger("cbm")

SAFE = 10.0
"""Seconds between two moments at which the rows are certain to be on the disk, whatever happens to the power."""
FACTS = {
    "version": "version of this command",
    "model": "model (or other edits)",
    "encoder": "encoder",
    "device": "--device",
    "batch_size": "--batch-size",
    "columns": "--top",
    "place": "place of the images",
    "images": "number of images",
    "names": "list of images",
}
"""What is kept beside the rows, and how that is called where it is another."""


PAGE = "page"
"""The page that is written with the table, beside those facts: it may be another one."""


def is_page_of(page: Path, destination: Path) -> bool:
    """Whether a page was written for a table that was interrupted before it got its name."""
    try:
        facts = read_json(_beside(_partial(destination)))
    except UserError:
        return False
    return isinstance(facts, dict) and facts.get(PAGE) == as_text(str(page.absolute()))


def _partial(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.partial")


def _beside(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


class Unfinished:
    """The rows of a table that has no name yet, and beside them what they are made from."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self.file = path, file
        self.beside = _beside(path)
        self._safe = time.monotonic()

    def add(self, rows: list[list[str]]) -> None:
        """Append rows, all or, in a process that is killed, some of them."""
        try:
            self.file.write("".join(map(_line, rows)).encode(errors="backslashreplace"))
            self.file.flush()
            if time.monotonic() - self._safe > SAFE:
                os.fsync(self.file.fileno())
                self._safe = time.monotonic()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def cut(self, end: int) -> None:
        """Forget what stands from a byte on."""
        try:
            self.file.seek(end)
            self.file.truncate()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def finish(self, destination: Path) -> None:
        """Give the file its name."""
        try:
            os.fsync(self.file.fileno())
            new = place_new(self.path, destination, release=self.file.close)
        except OSError as error:
            raise cannot_write(destination, error) from error
        if not new:
            raise UserError(f"'{destination}' is there by now: remove it and run the same command again")
        if OPEN_FILES_STAY:
            self.file.close()
        self.path.unlink(missing_ok=True)
        self.beside.unlink(missing_ok=True)


@contextmanager
def unfinished_table(destination: Path) -> Iterator[Unfinished]:
    """The rows so far, which no other process can write to.

    Raises:
        UserError: another process writes the same file, or it cannot be written to.
    """
    path = _partial(destination)
    busy = f"another process is writing '{destination}': wait for it, or choose another --out"
    try:
        file = open(path, "r+b", opener=lambda name, flags: open_regular(name, flags | os.O_CREAT))  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            # of this process alone: one by flock would live on in the processes that decode images for a killed one
            lock(file, own=True)
        except LockHeldError as error:
            raise UserError(busy) from error
        except NoLocksError:
            log.debug("no lock for '%s'", path)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise UserError(busy)  # it gave the file its name in this moment
        if destination.exists():
            if not path.stat().st_size:
                if OPEN_FILES_STAY:
                    file.close()
                path.unlink()
            raise UserError(f"'{destination}' is there by now: remove it or choose another --out")
        yield Unfinished(path, file)


class Kept(NamedTuple):
    """What an interrupted call left: rows, how many of them have an error, and the first of those."""

    rows: int
    failed: int
    first: str


def take_up(unfinished: Unfinished, facts: dict[str, Any], names: NameList) -> Kept:
    """Begin the table, or find the end of its last whole batch.

    Args:
        unfinished: the rows so far.
        facts: what the rows are made from (``FACTS``).
        names: the list of images.

    Raises:
        UserError: the rows are made from something else, or damaged.
    """
    file, again = unfinished.file, f"remove '{unfinished.path}' to begin again"
    if os.fstat(file.fileno()).st_size:
        _compare(unfinished.beside, facts, again)
    else:
        write_atomically(unfinished.beside, json.dumps(facts, indent=1).encode())
    size, end, rows = facts["batch_size"], 0, 0
    offset = quotes = found = 0
    file.seek(0)
    for line in file:  # a row has several lines if a name has
        offset += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            found += 1
            if (found - 1) % size == 0 or found - 1 == len(names):
                end, rows = offset, found - 1
    unfinished.cut(end)
    file.seek(0)
    failed, first, seen = 0, "", -1
    wanted = names.read(0, rows)
    try:
        for seen, row in enumerate(csv.reader(line.decode() for line in file), -1):
            right = facts["columns"] if seen < 0 else [path_for_csv(as_text(next(wanted))), *row[1:]]
            if row != right or len(row) != len(facts["columns"]):
                raise UserError(f"row {seen + 1} of '{unfinished.path}' is damaged: {again}")
            if seen >= 0 and row[-1]:
                failed, first = failed + 1, first or failure(row)
    except (csv.Error, UnicodeDecodeError, StopIteration) as error:
        raise UserError(f"'{unfinished.path}' is damaged behind row {seen + 1}: {again}") from error
    file.seek(end)
    if not end:
        unfinished.add([facts["columns"]])
    return Kept(rows, failed, first)


def _compare(beside: Path, facts: dict[str, Any], again: str) -> None:
    """Whether the rows so far are made from the same.

    Args:
        beside: file of what they are made from.
        facts: what this call makes them from.
        again: what to do otherwise, in words.

    Raises:
        UserError: they are not, or nobody knows.
    """
    try:
        before = read_json(beside)
        if not isinstance(before, dict):
            raise UserError("no settings")
    except UserError as error:
        raise UserError(f"what the rows so far are made from cannot be read from '{beside}': {again}") from error
    for key, what in FACTS.items():
        if (then := before.get(key)) != (now := facts[key]):
            which = f" ({then:,} then, {now:,} now)" if isinstance(then, int) and isinstance(now, int) else ""
            raise UserError(f"the interrupted command had another {what}{which}: run it as it was, or {again}")


def failure(row: list[str]) -> str:
    """What a row says about an image that could not be read."""
    return f"'{as_text(path_from_csv(row[0]))}': {row[-1]}"


def _line(row: list[str]) -> str:
    return ",".join(map(_cell, [path_for_csv(row[0]), *map(for_csv, row[1:])])) + "\n"


def _cell(text: str) -> str:
    """One cell; ``csv.writer`` leaves a carriage return without quotes, which readers take for the end of a row."""
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text
