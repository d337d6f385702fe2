"""Files, whole or not at all, of whatever origin."""

from cbm.files.atomic import (
    PARTIAL,
    PROJECT,
    cannot_write,
    locked,
    open_regular,
    place_new,
    resolve_path,
    sweep,
    write_atomically,
    write_in_parts,
)

__all__ = [
    "PARTIAL",
    "PROJECT",
    "cannot_write",
    "locked",
    "open_regular",
    "place_new",
    "resolve_path",
    "sweep",
    "write_atomically",
    "write_in_parts",
]
