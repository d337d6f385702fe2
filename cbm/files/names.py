"""Names in one form: composed letters, single spaces. What comes in through any door is compared in this form."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

UNSEEN = "\u200b\u2060\ufeff\u180e\u00ad\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters without width that tables carry around (hyphens that show at the end of a line, marks of direction)."""
JOINERS = "\u200c\u200d"
"""Two more, which mean something between letters (and in emoji), but nothing at an end."""
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
"""Devices of Windows, after which no file can be called there, with or without an ending."""
_UNSEEN = str.maketrans("", "", UNSEEN)


def one_form(name: str) -> str:
    """A name with composed letters (Unicode's NFC) and without spaces at its ends or twice in a row.

    macOS writes letters with accents in two parts, most other programs in one; both look the same.

    Example:
        >>> one_form(" Lo\\u0308wenzahn\\u00a0 gelb") == "L\\u00f6wenzahn gelb"
        True
    """
    words = unicodedata.normalize("NFC", name.translate(_UNSEEN)).split()
    return " ".join(word for each in words if (word := each.strip(JOINERS)))


def is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8: some file names are bytes of another encoding.

    Example:
        >>> is_text("caf\\u00e9"), is_text(b"caf\\xe9".decode("utf-8", "surrogateescape"))
        (True, False)
    """
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def as_text(name: str) -> str:
    """A name as it can be written and shown: bytes that are not UTF-8 as ``\\udcNN``.

    Example:
        >>> as_text("caf\\udce9") == "caf" + chr(92) + "udce9"
        True
    """
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def differ_in_case(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in upper and lower case only, together; those without such others are left out.

    Example:
        >>> differ_in_case(["Cat", "dog", "cat"])
        [['Cat', 'cat']]
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFC", name.casefold())].append(name)
    return [group for group in groups.values() if len(group) > 1]


def quoted(names: Iterable[str], shown: int = 5) -> str:
    """The first names in quotation marks.

    Example:
        >>> quoted("abc", shown=2)
        "'a', 'b', ..."
    """
    names = list(names)
    return ", ".join(f"'{name}'" for name in names[:shown]) + (", ..." if len(names) > shown else "")


def file_name(name: str) -> str:
    """A name as every system takes it for a file, without an ending: as it is on most, ``-`` for what Windows refuses.

    Example:
        >>> file_name("labo-birds-1f6c8a20"), file_name("a:b/c?"), file_name("NUL"), file_name("end. ")
        ('labo-birds-1f6c8a20', 'a-b-c-', 'NUL-', 'end')
    """
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", name).rstrip(". ") or "-"
    return f"{plain}-" if plain.partition(".")[0].upper() in RESERVED else plain
