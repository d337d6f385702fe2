"""Read and write files: written whole or not at all, read from any origin."""

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
