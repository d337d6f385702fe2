"""Fingerprints of pictures as numbers, to look many of them up at once."""

import hashlib
from collections.abc import Sequence

import numpy as np

UNREADABLE = "unreadable:"
"""How the fingerprint of a file begins whose content nobody knows."""


def derived(*parts: object) -> str:
    """The fingerprint of an image that several things decide; that of the first of unknown content, if there is one."""
    unknown = (part for part in parts if isinstance(part, str) and part.startswith(UNREADABLE))
    return next(unknown, None) or hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def to_digests(fingerprints: Sequence[str]) -> np.ndarray:
    """Fingerprints as 16 bytes each, ``[N, 2]`` uint64; zeros where the content is not known."""
    found = np.empty((len(fingerprints), 2), np.uint64)
    for start in range(0, len(fingerprints), 1 << 16):
        part = fingerprints[start : start + (1 << 16)]
        try:
            content = bytes.fromhex("".join(part))
            plain = len(content) == 16 * len(part) and set(map(len, part)) == {32}
        except ValueError:
            plain = False
        if not plain:
            content = b"".join(_digest(fingerprint) for fingerprint in part)
        found[start : start + len(part)] = np.frombuffer(content, ">u8").reshape(-1, 2)
    return found


def same_rows(digests: np.ndarray) -> list[np.ndarray]:
    """The rows of every content that stands more than once, in order; unknown contents are like none.

    Args:
        digests: of N pictures, ``[N, 2]``.

    Example:
        >>> [rows.tolist() for rows in same_rows(to_digests(["aa" * 16, "bb" * 16, "aa" * 16]))]
        [[0, 2]]
    """
    known = np.flatnonzero(digests.any(axis=1))
    order = known[np.lexsort((known, digests[known, 1], digests[known, 0]))]
    ordered = digests[order]
    (cuts,) = np.nonzero((ordered[1:] != ordered[:-1]).any(axis=1))
    starts, ends = np.concatenate([[0], cuts + 1]), np.concatenate([cuts + 1, [len(order)]])
    groups = [order[starts[i] : ends[i]] for i in np.flatnonzero(ends - starts > 1)]
    return sorted(groups, key=lambda rows: int(rows[0]))


def _digest(fingerprint: str) -> bytes:
    if fingerprint.startswith(UNREADABLE):
        return bytes(16)
    try:
        content = bytes.fromhex(fingerprint)
    except ValueError:
        content = b""
    return content if len(content) == 16 else hashlib.blake2b(fingerprint.encode(), digest_size=16).digest()
