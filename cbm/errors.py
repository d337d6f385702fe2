"""The one exception a user is meant to read: a single clear line, no traceback."""

import re
from collections.abc import Iterable

LONGEST = 900  # characters of a message


class UserError(Exception):
    """Bad input. The message names the thing, what was expected, and the nearest valid choice.

    What a damaged file holds may be endless: the middle of a long message is left out.
    """

    def __init__(self, message: str):
        message = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", message)  # names and cells may have several
        message = message.rstrip(" :,")  # nothing was near, and there was nothing to choose from
        super().__init__(message if len(message) <= LONGEST else f"{message[: LONGEST - 200]} ... {message[-200:]}")


def nearest(name: str, choices: Iterable[str], limit: int = 3) -> list[str]:
    """The ``choices`` most like ``name``, best first (at most ``limit``, none if nothing is similar)."""
    from rapidfuzz import fuzz, process, utils

    similar = process.extract(name, list(choices), scorer=fuzz.WRatio, processor=utils.default_process, limit=10)
    near = [choice for choice, score, _ in similar if score >= 60]
    return sorted(near, key=lambda choice: -fuzz.ratio(name.casefold(), choice.casefold()))[:limit]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence such as ``did you mean 'labo' or 'v2c'?``; all choices when they are few; empty when none is near."""
    choices = list(choices)
    found = nearest(name, choices)
    if found:
        return "did you mean " + " or ".join(f"'{c}'" for c in found) + "?"
    if 0 < len(choices) <= 12:
        return "choose one of " + ", ".join(sorted(choices))
    return ""
