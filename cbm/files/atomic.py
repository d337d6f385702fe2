"""Find files, and write them whole or not at all."""

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cbm.errors import UserError
from cbm.files.locks import OPEN_FILES_STAY, PAUSE, LockHeldError, NoLocksError, lock

PARTIAL = ".partial."
"""How the names of files begin that are being written, or were when their process was killed."""

LEFT_OVER = 3600.0
"""Seconds after which an unfinished file is a leftover where it must be closed, and so unlocked, before it gets its
name (Windows)."""

BUSY = 2.0
"""Seconds in which Windows is asked again to replace a file that somebody, such as a virus scanner, has open."""

FOLDER_LOCK = ".folder.lock"
"""The file that is locked for its folder where folders cannot be opened (Windows)."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
"""What file systems without hard links say to one."""


NO_FOLLOW, NO_WAITING = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
"""What keeps ``os.open`` from following links and waiting for pipes; 0 on Windows, which has none such."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``: a reader sees the old file or the new one, also after a kill or a power cut.

    Raises:
        UserError: the disk is full, or the place cannot be written to. The old file is untouched.
    """
    write_in_parts(path.parent, [content], lambda: path.name)


def write_in_parts(
    folder: Path, parts: Iterable[bytes], name: Callable[[], str], place: Callable[[Path, Path], object] = Path.replace
) -> Path:
    """Write ``parts`` one after the other to a file, which appears whole or not at all; returns its path.

    Half-written files of killed processes in the folder are removed.

    Args:
        folder: folder of the file, created if needed.
        parts: parts of the content.
        name: function that returns the name of the file, called when all parts are written.
        place: function that gives the complete file, under a temporary name, its own; by default an older file is
            replaced.

    Raises:
        UserError: the disk is full, or the place cannot be written to. An old file of this name is untouched.
    """
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with _locked_file(folder) as file:
            temporary = Path(file.name)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            path = folder / name()
            if OPEN_FILES_STAY:
                file.close()
                _until_free(lambda: place(temporary, path))
            else:
                place(temporary, path)
            return path
    except OSError as error:
        raise cannot_write(folder if temporary is None else folder / name(), error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def place_new(temporary: Path, path: Path, release: Callable[[], object] | None = None) -> bool:
    """Give a complete file the name ``path`` if nothing has it: of many processes that try, one is told True.

    Args:
        temporary: the file.
        path: its new name; the old one stays if the file system has hard links.
        release: function that closes the file if it is open; called where it must be (Windows without hard links).

    A hard link is made whole or not at all, and whoever is killed leaves nothing that others would wait for. Where the
    file system has none, an empty file takes the name until the content replaces it; a process that is killed in
    between leaves that.
    """
    try:
        path.hardlink_to(temporary)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    if OPEN_FILES_STAY and release is not None:
        release()
    temporary.replace(path)
    return True


def open_regular(path: str | Path, flags: int) -> int:
    """The ``opener`` of ``open`` for a regular file of this very name: no link is followed, no pipe waited for.

    Raises:
        OSError: it cannot be opened, or something else has the name.
    """
    try:
        if not NO_FOLLOW and Path(path).is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        descriptor = os.open(path, flags | NO_FOLLOW | NO_WAITING, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, not a file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else who asks for the folder in this way has it at the same time (where the file system has locks)."""
    if OPEN_FILES_STAY:
        descriptor = os.open(folder / FOLDER_LOCK, os.O_RDWR | os.O_CREAT)
    else:
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(NoLocksError, LockHeldError):
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _locked_file(folder: Path) -> IO[bytes]:
    """A new temporary file, locked as long as it is open: nobody else takes it for a leftover."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=PARTIAL, delete=False)  # noqa: SIM115
        with suppress(NoLocksError, LockHeldError):  # where there are no locks nothing is swept
            lock(file.fileno(), wait=True)
        if Path(file.name).exists():
            return file
        file.close()  # swept by another process before it was locked


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that are gone: those that nobody holds a lock on."""
    for path in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError, NoLocksError, LockHeldError):  # gone, in use, or not ours
            with open(path, "rb", opener=open_regular) as file:
                lock(file)
                if not OPEN_FILES_STAY:
                    path.unlink()
            if OPEN_FILES_STAY and time.time() - path.stat().st_mtime > LEFT_OVER:
                path.unlink()


def _until_free(place: Callable[[], object]) -> None:
    """Give a file its name, on Windows again and again for a moment while somebody has the older one open."""
    for _ in range(int(BUSY / PAUSE)):
        with suppress(PermissionError):
            place()
            return
        time.sleep(PAUSE)
    place()


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"no space left for '{path}': free some disk and run the same command again, it goes on there")
    return UserError(f"cannot write '{path}': {error.strerror or error}")
