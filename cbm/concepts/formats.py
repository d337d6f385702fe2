"""Phrases and their owners, from the formats in which concept sets are found: JSON of several shapes, lists, tables."""

import csv
import io
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cbm.errors import UserError
from cbm.files.names import quoted
from cbm.files.parsing import parse_json, read_json, read_text, without_hint

log = logging.getLogger(__name__)

Phrase = tuple[str, tuple[str, ...], float | None]
"""A phrase, its owners, its score (or None)."""

CONTRAST = " | "
"""Between a phrase and what it is seen against: ``ulcer | skin``."""
LISTS = (".txt", ".text", ".list", ".lst", "")
TABLES = (".csv", ".tsv")
READ = (
    "bank.json, {class: [phrases]} or [phrases] as .json, one phrase per line as .txt, or a .csv with a header such as "
    "class,phrase"
)
PHRASE_COLUMNS = ("phrase", "phrases", "concept", "concepts", "text", "description", "attribute", "feature", "caption")
CLASS_COLUMNS = (
    "class",
    "classes",
    "class_name",
    "classname",
    "label",
    "labels",
    "category",
    "owner",
    "owners",
    "species",
)

BULLET = re.compile(
    r"^\s*(?:[-*+–—·~»>]+\s+|[•‣▪▫◦●○■□◆►▶➤⁃∙✓✔→⇒➔➜❖❑❒☐☑✅★☆§]+\ufe0f?\s*|o\s+(?=\w)|#+\s+"
    r"|\[[ xX✓]?\]\s+|\[\d{1,3}\]\s+|#\d{1,3}[.):]?\s+|\d\ufe0f?\u20e3\s*|[\u2460-\u2473\u2776-\u277f]\s*"
    r"|(?:\*\*|__)?\(?\d{1,3}[.):．、]+(?!\d)(?:\*\*|__)?\s*|\d{1,3}\s+[-–—]\s+|\d{1,3}\t\s*"
    r"|(?i:step|item|concept|feature)\s+\d{1,3}\s*[.:)-]\s*|\(?[a-zA-Z][.)]\s+|\(?[ivx]{1,5}[.)]\s+)+"
)
"""What stands before an item of a list."""


COMMENT = re.compile(r"\s*#(?!\d{1,3}[.):]?\s)")
"""How a comment in a list begins; ``#1`` numbers an item."""


def clean_phrase(text: str) -> str:
    """A phrase without list marks, quotes, markdown, control characters and a closing full stop.

    >>> clean_phrase('2) "**red** legs".')
    'red legs'
    """
    text = "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in text)
    text = re.sub(r"\*\*|__|`", "", BULLET.sub("", text))
    return " ".join(text.split()).strip(" .,;:\"'“”„‘’«»")


def read_phrases(path: Path) -> Iterator[Phrase]:
    """The phrases of a file that is not ``bank.json``.

    Raises:
        UserError: the file is of a kind that is not read, or not what its ending says.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        return json_phrases(path, read_json(path))
    if kind not in LISTS + TABLES:
        raise UserError(f"'{path}': a concept bank is not read from {kind} files; expected {READ}")
    text = without_hint(read_text(path))
    if kind in LISTS and text.lstrip()[:1] in ("{", "["):
        try:
            return json_phrases(path, parse_json(text, f"'{path}'"))
        except UserError:
            if re.match(r"\s*(\{|\[\s*[\"'“{\[])", text):
                raise
    lines = [line for line in text.splitlines() if line.strip() and not COMMENT.match(line)]
    if kind in TABLES or (lines and _columns(lines[0])[1] is not None):
        return _table_phrases(path, text, lines)
    return ((clean_phrase(line), (), None) for line in lines)


def json_phrases(path: Path, content: Any) -> Iterator[Phrase]:
    """The phrases of a class -> phrases dictionary, or of a list of phrases or of objects.

    Raises:
        UserError: it is neither.
    """
    if isinstance(content, dict) and isinstance(content.get("concepts"), list):
        others = [value for name, value in content.items() if name not in ("concepts", "dropped")]
        content = content if any(isinstance(value, list) for value in others) else content["concepts"]
    by_class = content if isinstance(content, dict) else {None: content}
    for name, phrases in by_class.items():
        if not isinstance(phrases, list):
            whose = "the file" if name is None else f"'{name}'"
            raise UserError(
                f"'{path}': expected {{class: [phrases]}} or [phrases], but {whose} holds a {type(phrases).__name__}"
            )
        owners = () if name is None else (str(name),)
        for number, phrase in enumerate(phrases, start=1):
            of = f"entry {number}" if name is None else f"a phrase of '{name}'"
            yield _json_phrase(path, phrase, owners, of)


def _json_phrase(path: Path, phrase: Any, owners: tuple[str, ...], of: str) -> Phrase:
    """One entry: a phrase, a phrase with its score, or an object with a text, its classes and its contrast."""
    shown = json.dumps(phrase, ensure_ascii=False)[:60]
    if isinstance(phrase, str):
        return BULLET.sub("", phrase), owners, None
    if isinstance(phrase, list) and len(phrase) == 2 and isinstance(phrase[0], str):
        return BULLET.sub("", phrase[0]), owners, _score(path, phrase[0], phrase[1])
    if not isinstance(phrase, dict):
        raise UserError(f"'{path}': {of} is {shown}, expected a string, or an object with 'text' and 'classes'")
    text = next((phrase[key] for key in PHRASE_COLUMNS if isinstance(phrase.get(key), str)), None)
    if text is None:
        raise UserError(f"'{path}': {of} is {shown}, expected a 'text' (a string) in it")
    named: Any = next((phrase[key] for key in CLASS_COLUMNS if phrase.get(key) not in (None, "")), [])
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"'{path}': {of} is {shown}, expected 'classes' to be a list of names")
    score, against = phrase.get("score"), phrase.get("contrast")
    if against is not None and not isinstance(against, str):
        raise UserError(f"'{path}': {of} is {shown}, expected 'contrast' to be a phrase")
    return (
        f"{text}{CONTRAST}{against}" if against else text,
        (*owners, *(name for name in named if name not in owners)),
        (None if score is None else _score(path, text, score)),
    )


def _score(path: Path, text: str, score: Any) -> float:
    if not isinstance(score, int | float) or not abs(score) < math.inf:
        raise UserError(f"'{path}': the score of '{text}' is {json.dumps(score)[:60]}, no number")
    return float(score)


def _columns(header: str) -> tuple[str, int | None, int | None]:
    """Separator of a table, and which of its columns hold phrases and classes; None where the header names none."""
    for separator in ",;\t|":
        names = [cell.strip(" \"'").casefold().replace(" ", "_") for cell in header.split(separator)]
        phrase = next((names.index(name) for name in PHRASE_COLUMNS if name in names), None)
        owner = next((names.index(name) for name in CLASS_COLUMNS if name in names), None)
        if len(names) > 1 and phrase is not None:
            return separator, owner, phrase
    return ",", None, None


def _table_phrases(path: Path, text: str, lines: list[str]) -> Iterator[Phrase]:
    """The rows of a table whose header names a column of phrases; a single column needs no header."""
    separator, owner, phrase = _columns(lines[0]) if lines else (",", None, None)
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise UserError(f"'{path}' is not CSV: {error}") from error
    if phrase is None and all(len(row) == 1 for row in rows):
        header = bool(rows) and rows[0][0].strip().casefold() in PHRASE_COLUMNS
        return ((clean_phrase(row[0]), (), None) for row in rows[header:])
    if phrase is None:
        raise UserError(
            f"'{path}': no column is called phrase, concept or text (its first line is '{lines[0][:80]}'); "
            f"expected {READ}"
        )
    rows = [
        row for row in rows if not all(re.fullmatch(r"\s*(:?-{2,}:?)?\s*", cell) for cell in row)
    ]  # markdown's line
    named = {phrase, owner}
    if others := [cell.strip() for at, cell in enumerate(rows[0]) if at not in named and cell.strip()]:
        classes = "" if owner is not None else "; none is called class or label, so the phrases are of no class"
        log.warning("'%s': columns %s are passed over%s", path, quoted(others), classes)
    found: list[Phrase] = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= phrase or len(row) > len(rows[0]):
            raise UserError(f"'{path}': row {number} has {len(row)} cells, the header {len(rows[0])}")
        classes_of = row[owner] if owner is not None and owner < len(row) else ""
        parts = re.split({";": r"[|,]", "|": r"[;,]"}.get(separator, r"[;|]"), classes_of)
        owners = tuple(name.strip() for name in parts if name.strip())
        found += ((clean_phrase(part), owners, None) for part in re.split(r"[;|\n]", row[phrase]))
    return iter(found)
