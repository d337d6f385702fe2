"""Text, JSON, YAML and CSV files of whatever origin: their content, or one line that says what is wrong.

Nothing in a file is executed. Whoever calls these still has to look at the content: it is any JSON, any YAML.
"""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from cbm.errors import UserError
from cbm.files.inert import from_csv
from cbm.files.opening import LARGEST_JSON, LARGEST_TEXT, LARGEST_YAML, cannot_read, read_limited


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8, with or without a byte order mark; its lines end with ``\\n``.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        UserError: the file cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        text = io.TextIOWrapper(io.BytesIO(read_limited(path, largest)), encoding="utf-8-sig").read()
        if "\0" in text:
            raise UserError(f"'{path}' is not a text file in UTF-8")
        return text
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    return parse_json(read_text(path, LARGEST_JSON), f"'{path}'")


def parse_json(text: str, where: str) -> Any:
    """JSON whose strings can be written again; ``where`` it is from is said when it is none.

    An integer of twenty digits or more is a float, perhaps an infinite one: no machine word holds it.

    Raises:
        UserError: it is not.
    """
    try:
        content = json.loads(text, parse_int=_integer)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} in line {error.lineno}") from error
    except RecursionError as error:
        raise UserError(f"{where} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, half a character
        raise UserError(f"{where} is not JSON that can be read: {error}") from error
    return content


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)


def read_yaml(path: Path) -> Any:
    """A YAML file of plain data (``cbm.files.loading.PlainLoader``).

    Raises:
        UserError: it cannot be read, or is not such YAML.
    """
    import yaml

    from cbm.files.loading import PlainLoader

    text = read_text(path, LARGEST_YAML)
    try:
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"'{path}' is not YAML that can be read: it is nested too deeply") from error
    except Exception as error:  # PyYAML lets through what its constructors run into: a 13th month, an odd tag
        raise UserError(f"'{path}' is not YAML that can be read: {type(error).__name__}: {error}") from error


SEPARATORS = ",;\t|"


def without_hint(text: str) -> str:
    """A table without the line ``sep=;``, by which Excel is told what separates its cells.

    >>> without_hint("sep=;\\npath;label\\n")
    'path;label\\n'
    """
    return re.sub(r"\A\"?sep=.\"?[ \t,;]*\r?\n", "", text, flags=re.I)


def _separator(text: str) -> str:
    """What separates the cells of a table, as its first twenty rows show: a comma if it can be one."""
    for mark in SEPARATORS:
        try:
            rows = [row for row, _ in zip(csv.reader(io.StringIO(text, newline=""), delimiter=mark), range(20)) if row]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1 and all(len(row) <= len(rows[0]) for row in rows):
            return mark
    return ","


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table; a row with fewer cells than columns ends with empty ones.

    Cells are separated by commas, semicolons, tabs or vertical bars, whichever divides the first rows alike. What
    ``cbm.files.inert.for_csv`` put before what looks like a formula is taken off.

    Raises:
        UserError: it cannot be read, has a column twice, or a row with more cells than columns.
    """
    text = without_hint(read_text(path))
    lines = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=_separator(text))
    try:
        lines.fieldnames = columns = [from_csv(name) for name in lines.fieldnames or []]
        rows = [{key: from_csv(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in lines]
    except csv.Error as error:
        raise UserError(f"'{path}' line {lines.line_num} is not CSV: {error}") from error
    if twice := [column for number, column in enumerate(columns) if column and column in columns[:number]]:
        raise UserError(f"'{path}' has two columns '{twice[0]}'")
    for number, row in enumerate(rows, start=2):
        extra: Any = row.pop(None, None)
        if extra and any(extra):
            raise UserError(f"'{path}': row {number} has more cells than there are columns ({len(columns)})")
    return columns, rows
