"""What a browser sends, checked: nothing but the page itself makes sure that it is what the page offers."""

import math
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl

from cbm.errors import UserError

LONGEST = 300
"""Characters of what is looked for, and of names."""
LONGEST_WHY = 2000
MOST_PARTS = 100
LONGEST_ADDRESS = 60_000
"""Characters of what stands after the # of an address: room for 5,000 rows of a million that are picked."""
LARGEST = 1e6
"""The largest value and weight that can be given by hand."""


def text(value: Any, what: str, longest: int = LONGEST) -> str:
    """A text; nothing is an empty one.

    Args:
        value: what was sent.
        what: its name in messages.
        longest: characters that it may have.

    Raises:
        UserError: it is no text, or longer.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{what}: expected a text")
    if len(value) > longest:
        raise UserError(f"{what}: expected {longest:,} characters or fewer, not {len(value):,}")
    return value


def number(value: Any, what: str, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A number.

    Args:
        value: what was sent.
        what: its name in messages.
        low: the least that it may be.
        high: the most that it may be.

    Raises:
        UserError: it is none, or out of these bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{what}: a number is needed here")
    if not (math.isfinite(value) if isinstance(value, float) else True) or not low <= value <= high:
        raise UserError(f"{what}: expected a number from {low:g} to {high:g}")
    return float(value)


def whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number; see ``number``."""
    found = number(value, what, low, high)
    if found != int(found):
        raise UserError(f"{what}: expected a whole number")
    return int(found)


def one_of(value: Any, choices: Collection[str], what: str) -> str:
    """One of the choices.

    Args:
        value: what was sent.
        choices: what may be sent.
        what: its name in messages.

    Raises:
        UserError: it is something else.
    """
    if text(value, what, 10_000) not in choices:
        raise UserError(f"{what}: '{str(value)[:LONGEST]}' is not among the choices")
    return str(value)


def switch(value: Any, what: str) -> bool:
    """Yes or no.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{what}: expected yes or no")
    return value


def sent_with(event: Any, name: str, longest: int = LONGEST) -> str:
    """A field of what a click says; empty if it says nothing.

    Args:
        event: the event.
        name: name of the field.
        longest: characters that it may have.

    Raises:
        UserError: it is longer.
    """
    said = getattr(event, "_data", None)
    if not isinstance(said, dict):
        return ""
    return text(str(said.get(name, ""))[: longest + 1], "what was clicked", longest)


def key_of(event: Any) -> int:
    """The number of the button that was clicked: it stands for a picture or a concept.

    Raises:
        UserError: it is none.
    """
    key = sent_with(event, "key")
    if not is_number(key):
        raise UserError(f"'{key}' stands for nothing here")
    return int(key)


def box_of(event: Any) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box that was drawn, as shares of a picture.

    Raises:
        UserError: it is none.
    """
    try:
        left, top, right, bottom = (float(each) for each in sent_with(event, "box").split(","))
    except ValueError as error:
        raise UserError("a box is four numbers") from error
    return left, top, right, bottom


def parts_of_address(address: str) -> list[tuple[str, str]]:
    """Names and values of an address, in their order.

    Raises:
        UserError: it has more than a hundred.

    Example:
        >>> parts_of_address("of=a%20wren&high=water&high=sky")
        [('of', 'a wren'), ('high', 'water'), ('high', 'sky')]
    """
    try:
        return parse_qsl(address, max_num_fields=MOST_PARTS)
    except ValueError as error:
        raise UserError(f"an address has {MOST_PARTS} parts at most") from error


def is_number(key: str) -> bool:
    """Whether a key is the number of a picture or a concept.

    >>> is_number("12"), is_number("of=wren"), is_number("")
    (True, False, False)
    """
    return key.isascii() and key.isdecimal() and len(key) <= 9
