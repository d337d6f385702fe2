"""What is written: whole or not at all, through no link, under the permissions that the user's umask leaves.

A file appears under its name when it is complete (``write_atomically``), a folder when all its files are
(``new_folder``). What a killed process leaves is called ``.partial.*``, is locked as long as its process lives, and is
removed by the next one that writes beside it.
"""

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from cbm.errors import UserError
from cbm.files.locks import OPEN_FILES_STAY, PAUSE, LockHeldError, NoLocksError, lock
from cbm.files.opening import open_regular

PARTIAL = ".partial."
"""How the names of files begin that are being written, or were when their process was killed."""

PARTIAL_FOLDER = f"{PARTIAL}folder."
"""How the names of folders begin that are being filled, or were."""

LEFT_OVER = 3600.0
"""Seconds after which an unfinished file is a leftover where it must be closed, and so unlocked, before it gets its
name (Windows)."""

BUSY = 2.0
"""Seconds in which Windows is asked again to replace a file that somebody, such as a virus scanner, has open."""

FOLDER_LOCK = ".folder.lock"
"""The file that is locked for its folder where folders cannot be opened (Windows)."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
"""What file systems without hard links say to one."""


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
            path = folder / name()
            _refuse_special(path)
            _same_permissions(temporary, path)
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
        name = folder / f"{PARTIAL}{secrets.token_hex(8)}"
        file = open(name, "xb", opener=open_regular)  # noqa: SIM115
        with suppress(NoLocksError, LockHeldError):  # where there are no locks nothing is swept
            lock(file.fileno(), wait=True)
        if name.exists():
            return file
        file.close()  # swept by another process before it was locked


def _refuse_special(path: Path) -> None:
    """Raise an ``OSError`` if a name is a device, a pipe or a socket, or a link to one: ``/dev/null`` stays."""
    mode = None
    with suppress(OSError):
        mode = path.stat().st_mode
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a device, a pipe or a socket, which no file replaces", str(path))


def _same_permissions(temporary: Path, path: Path) -> None:
    """A file that takes the place of another keeps who may read it."""
    with suppress(OSError):
        old = path.lstat().st_mode
        if stat.S_ISREG(old):
            temporary.chmod(stat.S_IMODE(old) & 0o777)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name ``path`` at the end of the block; an error or a kill leaves none.

    Args:
        path: a folder that does not exist yet. Those above it are made.

    Raises:
        UserError: the disk is full, the place cannot be written to, or ``path`` is there (also: meanwhile).
    """
    name = ""
    with ExitStack() as at_end:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            if os.path.lexists(path):
                raise UserError(f"'{path}' is there already: remove it or choose another folder")
            temporary = _locked_folder(path.parent, at_end)
            name = temporary.name
            yield temporary
            if os.path.lexists(path):
                raise UserError(f"'{path}' was made by somebody else meanwhile: nothing was written over it")
            temporary.rename(path)
        except UserError as error:  # which may name the temporary folder, that is gone then
            raise UserError(str(error).replace(name, path.name) if name else str(error)) from error
        except OSError as error:
            raise cannot_write(path, error) from error


def _locked_folder(parent: Path, at_end: ExitStack) -> Path:
    """A new temporary folder, locked until the end: nobody else takes it for a leftover; it is removed then."""
    while True:
        folder = parent / f"{PARTIAL_FOLDER}{secrets.token_hex(8)}"
        folder.mkdir()
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        if OPEN_FILES_STAY:  # a folder with an open file cannot get another name: old ones are leftovers there
            return folder
        with suppress(FileNotFoundError):
            at_end.enter_context(locked(folder))
            if folder.exists():
                return folder


def sweep(folder: Path) -> None:
    """Remove what processes that are gone were writing: the temporary files and folders that nobody has locked."""
    for path in folder.glob(f"{PARTIAL_FOLDER}*"):
        with suppress(OSError, NoLocksError, LockHeldError):
            if path.is_dir() and not path.is_symlink():
                _sweep_folder(path)
    for path in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError, NoLocksError, LockHeldError):  # gone, in use, or not ours
            with open(path, "rb", opener=open_regular) as file:
                lock(file)
                if not OPEN_FILES_STAY:
                    path.unlink()
            if OPEN_FILES_STAY and time.time() - path.stat().st_mtime > LEFT_OVER:
                path.unlink()


def _sweep_folder(path: Path) -> None:
    if OPEN_FILES_STAY:
        if time.time() - path.stat().st_mtime > LEFT_OVER:
            shutil.rmtree(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock(descriptor)
        shutil.rmtree(path)
    finally:
        os.close(descriptor)


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
