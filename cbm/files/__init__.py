"""Read and write files: written whole or not at all, read from any origin."""

from cbm.files.atomic import (
    PARTIAL,
    cannot_write,
    locked,
    new_folder,
    place_new,
    sweep,
    write_atomically,
    write_in_parts,
)
from cbm.files.opening import open_regular, open_to_read
from cbm.files.shipped import SHIPPED, named_files, resolve_path

__all__ = [
    "PARTIAL",
    "SHIPPED",
    "cannot_write",
    "locked",
    "named_files",
    "new_folder",
    "open_regular",
    "open_to_read",
    "place_new",
    "resolve_path",
    "sweep",
    "write_atomically",
    "write_in_parts",
]
