"""Read and write files: written whole or not at all, read from any origin."""

from cbm.files.atomic import (
    PARTIAL,
    cannot_write,
    locked,
    open_regular,
    place_new,
    sweep,
    write_atomically,
    write_in_parts,
)
from cbm.files.shipped import SHIPPED, named_files, resolve_path

__all__ = [
    "PARTIAL",
    "SHIPPED",
    "cannot_write",
    "locked",
    "named_files",
    "open_regular",
    "place_new",
    "resolve_path",
    "sweep",
    "write_atomically",
    "write_in_parts",
]
