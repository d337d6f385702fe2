"""Secrets out of whatever a server says, before it is kept, cached or printed."""

import base64
import re
from collections.abc import Iterable

SHORTEST = 8
"""Letters of a secret that is looked for everywhere; a shorter one may be a word, and is taken out after "Bearer"."""
PART = 12
"""Letters of its beginning that are a secret too: servers shorten what they repeat."""
MADE_UP = "not-needed"
"""What is sent to servers that want no key."""
WORDS = frozenset((
    MADE_UP, "not_needed", "anything", "lm-studio", "no-key-required", "no-api-key", "placeholder",
    "sk-no-key-required",
))  # fmt: skip
"""Keys that programs for servers of one's own tell everybody to use: nothing secret, and they may be plain words."""
INSTEAD = "[key]"


def whole(text: str) -> str:
    """The text with halves of surrogate pairs put together, or replaced where the other half is missing.

    >>> whole("red wing \\ud83d")
    'red wing �'
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Redactor:
    """Text without secrets: as they are, escaped letter by letter (JSON, URL, HTML), or as base64 or hexadecimal.

    Args:
        secrets: keys and passwords.

    >>> Redactor(["sk-1234567890"])("you sent Bearer sk%2D1234567890")
    'you sent Bearer [key]'
    """

    def __init__(self, secrets: Iterable[str]):
        known = [secret for secret in dict.fromkeys(secrets) if secret and secret.casefold() not in WORDS]
        long = [secret for secret in known if len(secret) >= SHORTEST]
        self._letters = [[re.compile(_letter(letter), re.I) for letter in secret] for secret in long]
        self._heads = [re.compile("".join(map(_letter, secret[:PART])), re.I) for secret in long]
        coded = [form for secret in known for form in _coded(secret) if len(form) >= SHORTEST]
        self._coded = re.compile("|".join(map(re.escape, coded))) if coded else None
        short = "|".join(re.escape(secret) for secret in known if len(secret) < SHORTEST)
        self._short = re.compile(rf"(?i)(\b(?:bearer|basic)\W{{1,3}})(?:{short})(?!\w)") if short else None

    def __call__(self, text: str) -> str:
        """The text, whole and without secrets."""
        text = whole(text)
        for head, letters in zip(self._heads, self._letters):
            text = _without(text, head, letters)
        if self._coded is not None:
            text = self._coded.sub(INSTEAD, text)
        return text if self._short is None else self._short.sub(rf"\1{INSTEAD}", text)


def _letter(letter: str) -> str:
    """A pattern of a letter, however it is escaped."""
    codes = "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode("utf-8", "replace"))
    number = ord(letter)
    return (
        rf"(?:\\*{re.escape(letter)}|\\+u{number:04x}|\\+u\{{0*{number:x}\}}|\\+x{number:02x}|{codes}"
        rf"|&(?:amp;)*\#0*{number};|&(?:amp;)*\#x0*{number:x};)"
    )


def _without(text: str, head: re.Pattern[str], letters: list[re.Pattern[str]]) -> str:
    """The text without a secret, nor the beginning of one."""
    parts, place = [], 0
    for found in head.finditer(text):
        if found.start() < place:
            continue
        parts += [text[place : found.start()], INSTEAD]
        place = found.end()
        for letter in letters[PART:]:
            if (next_one := letter.match(text, place)) is None:
                break
            place = next_one.end()
    return "".join([*parts, text[place:]])


def _coded(secret: str) -> Iterable[str]:
    """What is the same in base64 of all texts that hold the secret, and the secret in hexadecimal."""
    content = secret.encode("utf-8", "replace")
    yield content.hex()
    yield content.hex().upper()
    for before in range(3):
        coded = base64.b64encode(bytes(before) + content).decode().rstrip("=")
        last = len(coded) - bool((before + len(content)) % 3)
        for form in {coded[(0, 2, 3)[before] : last]}:
            yield form
            yield form.translate(str.maketrans("+/", "-_"))
