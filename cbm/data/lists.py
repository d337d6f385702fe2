"""Lists of files, as data sets are published with: text and CSV files that name images, and folders of classes."""

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cbm.data.dataset import Split
from cbm.data.images import ImageFiles, is_ours, list_names
from cbm.errors import UserError, did_you_mean
from cbm.files.opening import check_regular
from cbm.files.parsing import read_table
from cbm.files.pictures import PLUGINS

T = TypeVar("T")

UNPACKED = "(is dataset.root the unpacked archive?)"
START = "fork" if sys.platform == "linux" else "spawn"
"""How another process begins: a copy of this one, which macOS does badly and Windows not at all, or a new one."""
MATLAB = 1 << 30
"""Bytes of memory that reading a Matlab file may take: the lists of labels and splits that are read are a megabyte."""
TEXT = frozenset([".txt", ".csv", ".tsv", ".json", ".md", ".xml", ".yaml", ".yml", ".html", ".log"])
"""Endings of what lies beside pictures without being meant as one."""


def read_lines(name: str, file: Path, least: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Number and words of every line that is not empty; each has ``least`` words or more."""
    if not file.is_file():
        raise UserError(f"data set '{name}': no file '{file}' {UNPACKED}")
    check_regular(file)
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if "\0" in line:
                raise UserError(f"data set '{name}': '{file}' line {number} is no text")
            if words := line.split():
                if len(words) < least:
                    raise UserError(f"data set '{name}': '{file}' line {number}: expected {least} words, found {words}")
                yield number, words


def whole_number(word: str) -> int:
    """The number that ``word`` is; -1 if it is none of at most 18 digits."""
    return int(word) if word.isdecimal() and len(word) <= 18 else -1


def read_numbers(name: str, file: Path, columns: int) -> np.ndarray:
    """The first ``columns`` numbers of every line, ``[N, columns]`` int64."""
    rows = []
    for number, words in read_lines(name, file):
        try:
            rows.append(np.array([int(word) for word in words[:columns]], dtype=np.int64))
        except (ValueError, OverflowError):
            rows.append(np.empty(0, dtype=np.int64))
        if len(rows[-1]) < columns:
            raise UserError(f"data set '{name}': '{file}' line {number}: expected {columns} whole numbers")
    return np.array(rows, dtype=np.int64).reshape(len(rows), columns)


def read_rows(name: str, table: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that has these columns."""
    if not table.is_file():
        raise UserError(f"data set '{name}': no file '{table}' {UNPACKED}")
    columns, rows = read_table(table)
    for key in needed:
        if key not in columns:
            raise UserError(f"'{table}' has no column '{key}' (columns: {', '.join(columns) or 'none'})")
    if not rows:
        raise UserError(f"'{table}' has no rows")
    return rows


def read_matlab(file: Path, key: str, convert: Callable[[Any], T]) -> T:
    """A variable of a Matlab file, read in a process of its own: a damaged one can crash scipy's parser, or unpack to
    more than there is memory (``MATLAB``).

    Args:
        file: what to read.
        key: the variable's name.
        convert: what is wanted of it.

    Raises:
        UserError: not a Matlab file, no such variable, or one that cannot be converted.
    """
    from scipy.io import loadmat

    check_regular(file)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context(START), _limit_memory) as pool:
            return convert(pool.submit(loadmat, file, squeeze_me=True, variable_names=[key]).result()[key])
    except Exception as error:  # whatever a foreign or damaged file makes the parser raise
        raise UserError(f"'{file}' cannot be read: {type(error).__name__}: {error}") from error


def _limit_memory() -> None:
    """Let this process have ``MATLAB`` bytes more than it has, where the system has such limits."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MATLAB, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):  # Windows, macOS
        return


def integers(value: Any) -> np.ndarray:
    """All numbers of a table, in one row: ``[n]``."""
    return np.ravel(value).astype(np.int64)


def find_root(name: str, root: Path, marks: Sequence[str], inside: Sequence[str] = (".",)) -> Path:
    """The first of the folders ``inside`` the root that holds everything in ``marks``.

    Raises:
        UserError: there is none; it names the first mark that the root itself lacks.
    """
    for folder in inside:
        if all((root / folder / mark).exists() for mark in marks):
            return root / folder
    if not root.is_dir():
        siblings = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data set '{name}': no folder '{root}' {did_you_mean(root.name, siblings)}".rstrip())
    absent = next(mark for mark in marks if not (root / mark).exists())
    places = " or ".join(f"'{root / folder / absent}'" for folder in inside)
    raise UserError(f"data set '{name}': no {places} {UNPACKED}")


def is_there(file: Path) -> bool:
    """Whether there is such a file; a name that no file system allows is not there."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False


def missing_files(root: Path, names: Iterable[str]) -> list[str]:
    """Those of the ``names`` that are not below ``root``: every folder is listed once, no file is touched."""
    listed: dict[str, set[str]] = {}
    absent = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(root / folder))  # noqa: PTH208
            except (OSError, ValueError):  # no such folder, or a name that no file system allows
                listed[folder] = set()
        if file not in listed[folder]:
            absent.append(name)
    return absent


def listed_split(
    name: str,
    root: Path,
    files: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    source: str,
    concepts: np.ndarray | None = None,
    subjects: np.ndarray | None = None,
) -> Split:
    """The images that the file ``source`` names.

    Raises:
        UserError: an image is not there, or none is named.
    """
    if not files:
        raise UserError(f"data set '{name}': '{source}' names no pictures")
    if absent := missing_files(root, files):
        raise UserError(
            f"data set '{name}': '{source}' names {len(absent):,} of {len(files):,} picture(s) that are not in "
            f"'{root}', first: '{absent[0]}' (was the archive unpacked to the end?)"
        )
    return Split(ImageFiles(root, files), np.asarray(labels, dtype=np.int64), concepts, subjects)


def class_folders(name: str, root: Path, folder: str = "", others: Counter[str] | None = None) -> dict[str, list[str]]:
    """Images (seen from ``root``) of every class folder in ``ROOT/FOLDER``, by the class folder's name.

    Args:
        name: name of the data set.
        root: its folder.
        folder: where the class folders are, seen from the root.
        others: the endings of files that are not read are counted here; then folders without images may be there.

    Raises:
        UserError: no class folders, or empty ones.
    """
    path = root / folder
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and is_ours(entry.name))
    if not names:
        raise UserError(f"data set '{name}': '{path}' has no class folders; expected {path}/CLASS/*.jpg")
    prefix = f"{folder}/" if folder else ""
    found = {each: [f"{prefix}{each}/{file}" for file in list_names(path / each, others)] for each in names}
    empty = [each for each in names if not found[each]]
    if len(empty) == len(names) or (empty and others is None):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"data set '{name}': class folder '{path / empty[0]}'{more} has no images")
    return found


def passed_over(others: Counter[str]) -> list[str]:
    """A sentence about files that are not read, counted by ending; none if they are text only."""
    if not set(others) - TEXT:
        return []
    said = []
    for ending, count in others.most_common():
        needs = f" (needs {PLUGINS[ending]})" if ending in PLUGINS else ""
        said.append(f"{count:,} {ending or 'without an ending'}{needs}")
    return [f"{sum(others.values()):,} file(s) are not read as images: {', '.join(said)}"]


def folder_split(root: Path, by_class: dict[str, list[str]], classes: Sequence[str]) -> Split:
    """The images of ``class_folders``; a label is the folder's index in ``classes``."""
    index = {each: i for i, each in enumerate(classes)}
    files = [file for names in by_class.values() for file in names]
    labels = np.repeat([index[each] for each in by_class], [len(names) for names in by_class.values()])
    return Split(ImageFiles(root, files), labels.astype(np.int64))


def check_classes(name: str, split: str, found: Iterable[str], classes: Sequence[str]) -> None:
    """Every class of a split must be one of training."""
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(
            f"data set '{name}': class '{unknown[0]}' is in {split} but not in train, "
            f"{did_you_mean(unknown[0], classes)}"
        )


def spoken(name: str) -> str:
    """A class name without underscores."""
    return " ".join(name.replace("_", " ").split())
