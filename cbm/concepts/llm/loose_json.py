"""JSON as models write it: with talk around it, quotes of other kinds, commas too many or too few, and comments."""

import json
import re
from collections.abc import Iterator
from typing import Any

STARTS = 200  # places at which a value may begin that are tried
DEPTH = 20
LONGEST = 2000  # letters of a string

_SPACE = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/|\#[^\n]*)*", re.S)
_CLOSING = {'"': '"', "'": "'", "“": '”"', "”": '”"', "„": '“”"', "‘": "’'", "’": "’'", "«": "»", "「": "」"}
_BARE = re.compile(r"[A-Za-z_][\w-]*|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.S)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def values_in(text: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, in their order: first well written ones, then those that are nearly right.

    >>> list(values_in('Here: {"a": ["b"]}'))[0]
    {'a': ['b']}
    >>> list(values_in("{a: ['b', 'c',]}"))[0]
    {'a': ['b', 'c']}
    """
    places = [found.start() for found in re.finditer(r"[{\[]", text)][:STARTS]
    decoder = json.JSONDecoder(strict=False)
    for place in places:
        try:
            yield decoder.raw_decode(text, place)[0]
        except (ValueError, RecursionError):
            continue
    for place in places:
        try:
            yield _value(text, place, 0)[0]
        except _NoValue:
            continue


class _NoValue(ValueError):
    """Not even nearly JSON."""


def _value(text: str, place: int, depth: int) -> tuple[Any, int]:
    """The value at a place and where it ends."""
    place = _skip(text, place)
    letter = text[place : place + 1]
    if depth > DEPTH or not letter:
        raise _NoValue
    if letter in "{[":
        return _container(text, place + 1, depth, "}" if letter == "{" else "]")
    if letter in _CLOSING:
        return _string(text, place)
    if (bare := _BARE.match(text, place)) is None:
        raise _NoValue
    word = bare[0]
    if word.lower() in _WORDS:
        return _WORDS[word.lower()], bare.end()
    if not re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", word):
        raise _NoValue
    return float(word), bare.end()


def _container(text: str, place: int, depth: int, end: str) -> tuple[Any, int]:
    """What stands between brackets; commas may be missing, doubled or too many, keys without quotes."""
    found: Any = {} if end == "}" else []
    while True:
        place = _skip(text, place, ",;")
        if place >= len(text):
            raise _NoValue  # cut off: that is for ``salvage``
        if text[place] in "}]":
            return found, place + 1 if text[place] == end else place  # the wrong one closes this and what is around it
        if end == "]":
            value, place = _value(text, place, depth + 1)
            found.append(value)
            continue
        if text[place] in _CLOSING:
            key, place = _string(text, place)
        elif (bare := _BARE.match(text, place)) is not None:
            key, place = bare[0], bare.end()
        else:
            raise _NoValue
        place = _skip(text, place)
        if text[place : place + 1] not in (":", "="):
            raise _NoValue
        found[key], place = _value(text, place + 1, depth + 1)


def _string(text: str, place: int) -> tuple[str, int]:
    """The string that begins at a quote. A quote ends it only where something may follow: 'bird's wing' is one."""
    closing, letters, start = _CLOSING[text[place]], [], place
    place += 1
    while place < min(len(text), start + LONGEST):
        letter = text[place]
        if letter == "\\" and (escaped := _ESCAPE.match(text, place)) is not None:
            code = escaped[0][1:]
            letters.append(chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPED.get(code, code))
            place = escaped.end()
            continue
        if letter in closing:
            after = _skip(text, place + 1)
            if after >= len(text) or text[after] in ",:;]}=" or (after > place + 1 and text[after] in _CLOSING):
                return "".join(letters), place + 1
        letters.append(letter)
        place += 1
    raise _NoValue


def _skip(text: str, place: int, also: str = "") -> int:
    """The next place that is no space, no comment and none of ``also``."""
    while True:
        found = _SPACE.match(text, place)
        place = found.end() if found else place
        if place < len(text) and also and text[place] in also:
            place += 1
            continue
        return place
