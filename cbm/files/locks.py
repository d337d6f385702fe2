"""Locks on open files, which programs that ask for them respect: by ``fcntl``, or by ``msvcrt`` where that is not.

``msvcrt`` locks a stretch of bytes, which then nobody else can read: one is taken behind the end of any file that is
locked here. Windows keeps such a lock, and every open file, to the process that opened it.
"""

import errno
import os
import time
from types import ModuleType
from typing import IO, Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OPEN_FILES_STAY = fcntl is None
"""Whether an open file can neither be removed nor get another name (Windows)."""
BEHIND = 2**31 - 2
"""The byte that is locked on Windows: the last whose position its C library can say."""
PAUSE = 0.02
"""Seconds between two tries to get a lock that somebody has, on Windows."""
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
"""What systems say to one who asks for a lock that somebody has."""


class LockHeldError(Exception):
    """Somebody else has the lock."""


class NoLocksError(Exception):
    """The file system has no locks."""


def lock(file: IO[Any] | int, *, wait: bool = False, own: bool = False) -> None:
    """Lock an open file until it is closed.

    Args:
        file: an open file, or its descriptor; open for writing if the lock is of this process alone.
        wait: whether to wait as long as somebody else has the lock.
        own: whether the lock is of this process alone. Else it lives on in the processes that it forks, until all of
            them have closed the file.

    Raises:
        LockHeldError: somebody else has the lock (unless ``wait``).
        NoLocksError: the file system has no locks.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    take = _by_msvcrt if fcntl is None else _by_fcntl
    try:
        take(descriptor, wait, own)
    except OSError as error:
        if error.errno in TAKEN:
            raise LockHeldError(f"lock held: {error.strerror}") from error
        raise NoLocksError(f"no locks: {error.strerror}") from error


def _by_fcntl(descriptor: int, wait: bool, own: bool) -> None:
    assert fcntl is not None
    (fcntl.lockf if own else fcntl.flock)(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _by_msvcrt(descriptor: int, wait: bool, own: bool) -> None:
    import msvcrt

    module: Any = msvcrt  # whose functions type checkers know on Windows only
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        while True:
            os.lseek(descriptor, BEHIND, os.SEEK_SET)
            try:
                return module.locking(descriptor, module.LK_NBLCK, 1)
            except OSError as error:
                if not wait or error.errno not in TAKEN:
                    raise
            time.sleep(PAUSE)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
