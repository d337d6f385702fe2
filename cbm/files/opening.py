"""What may be opened: regular files of a size that somebody means. Pictures go through ``cbm.files.pictures`` besides.

A small file can say that it is large, or be packed a thousand times over: what it becomes in memory is compared with
what there is on disk (``check_unpacked``) before it is asked for.

A pipe would be waited for, a device has no end, a socket is no file; whoever sent a folder may have put them in it.
Links to files are followed where something is read, and never where something is written (``open_regular``).
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from cbm.errors import UserError

LARGEST_TEXT = 1 << 30
"""Bytes of a table or list."""
LARGEST_JSON = 1 << 29
"""Bytes of a JSON file: parsed it takes ten times as much memory."""
LARGEST_YAML = 1 << 24
"""Bytes of a YAML file, which people write; a minute to read."""
LARGEST_PICTURE = 1 << 29
"""Bytes of a picture's file."""
LARGEST_HEADER = 1 << 20
"""Bytes that say of a member of a tar file what it is called, or of an array how large it is."""
UNPACKED = 1 << 29
"""Bytes that any file may become in memory."""
PACKED = 200
"""How many times more memory than disk a larger one may take. Features, numbers and names are packed 2 to 20 times;
zeros a thousand times, and a number that is repeated as often as somebody says."""

NO_FOLLOW, NO_WAITING = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
"""What keeps ``os.open`` from following links and waiting for pipes; 0 on Windows, which has none such."""


def open_regular(path: str | Path, flags: int) -> int:
    """The ``opener`` of ``open`` for a regular file of this very name: no link is followed, no pipe waited for.

    Raises:
        OSError: it cannot be opened, or something else has the name.
    """
    try:
        if not NO_FOLLOW and Path(path).is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return _regular(os.open(path, flags | NO_FOLLOW | NO_WAITING, 0o666), path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, not a file", str(path)) from error
        raise


def open_to_read(path: str | Path) -> BufferedReader:
    """A regular file, or a link to one, open for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder.

    Example:
        >>> open_to_read("/dev/zero")
        Traceback (most recent call last):
        ...
        OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    return open(path, "rb", opener=lambda name, flags: _regular(os.open(name, flags | NO_WAITING), name))


def _regular(descriptor: int, path: str | Path) -> int:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def check_regular(path: Path) -> None:
    """For parsers of others that open a file by its name: it is a regular one, or a link to one.

    Raises:
        UserError: it is a pipe, a device, a folder, or cannot be read.
    """
    try:
        open_to_read(path).close()
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error


def read_limited(path: Path, largest: int) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        OSError: it cannot be read, or is no regular file.
        UserError: it has more bytes.
    """
    with open_to_read(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise UserError(f"'{path}' has {size:,} bytes: expected at most {largest:,} in a file of this kind")
        return file.read(largest)


def fits(unpacked: int, packed: int) -> bool:
    """Whether something of ``packed`` bytes on disk may take ``unpacked`` bytes of memory."""
    return unpacked <= max(UNPACKED, PACKED * packed)


def check_unpacked(where: str, unpacked: int, packed: int) -> None:
    """Refuse what is small on disk and would be large in memory.

    Args:
        where: what it is, for the message.
        unpacked: bytes that it would take in memory.
        packed: bytes that it takes on disk.

    Raises:
        UserError: they are too many.

    Example:
        >>> check_unpacked("'a.npz' X", 10**9, 10**5)
        Traceback (most recent call last):
        ...
        cbm.errors.UserError: 'a.npz' X would take 1,000,000,000 bytes of memory and is 100,000 on disk: it is not read
    """
    if not fits(unpacked, packed):
        raise UserError(f"{where} would take {unpacked:,} bytes of memory and is {packed:,} on disk: it is not read")


def cannot_read(path: Path, error: Exception) -> UserError:
    """The one line for a file that cannot be read."""
    return UserError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}")


class Limited:
    """An open file of which nobody reads much at once, for parsers that believe the sizes it states.

    Args:
        file: the file, open for reading.
        largest: bytes that are read at once, at most.
    """

    def __init__(self, file: IO[bytes], largest: int):
        self._file, self._largest = file, largest

    def read(self, size: int = -1) -> bytes:
        """Some bytes.

        Raises:
            ValueError: more are asked for than is allowed, or all.
        """
        if not 0 <= size <= self._largest:
            raise ValueError(f"it states a part of {size:,} bytes, more than {self._largest:,}")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
