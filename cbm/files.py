"""Finding files, and writing them so that they are there whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from cbm.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
"""The checkout: relative paths that do not exist where the command runs are looked up here."""


def resolve_path(path: str | Path) -> Path:
    """``path`` as given if it exists from here, else inside the project, else as given."""
    path = Path(path).expanduser()
    inside = PROJECT / path
    return inside if not path.exists() and inside.exists() else path


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``: a reader sees the old file or the new one, also after a kill or a power cut.

    Raises:
        UserError: the disk is full, or the place cannot be written to. The old file is untouched.
    """
    write_in_parts(path.parent, [content], lambda: path.name)


def write_in_parts(folder: Path, parts: Iterable[bytes], name: Callable[[], str]) -> Path:
    """Write ``parts`` one after the other to a file of ``folder`` that is there whole or not at all; returns its path.

    Args:
        folder: where; made if need be.
        parts: the content.
        name: of the file; asked for when all is written.

    Raises:
        UserError: the disk is full, or the place cannot be written to. An old file of this name is untouched.
    """
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".partial.", delete=False) as file:
            temporary = Path(file.name)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        return temporary.replace(folder / name())
    except OSError as error:
        raise cannot_write(folder if temporary is None else folder / name(), error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"no space left for '{path}': free some disk and run the same command again, it goes on there")
    return UserError(f"cannot write '{path}': {error.strerror or error}")
