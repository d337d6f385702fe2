import os
from pathlib import Path

import pytest

from cbm.files import locks
from cbm.files.locks import LockHeldError, NoLocksError, lock


def test_one_at_a_time_until_it_is_closed(tmp_path: Path):
    with (tmp_path / "a").open("wb") as first, (tmp_path / "a").open("wb") as second:
        lock(first)
        with pytest.raises(LockHeldError):
            lock(second)
        first.close()
        lock(second)


def test_a_lock_of_this_process_alone_ends_with_it(tmp_path: Path):
    """A process that it forked does not hold it, unlike one of the other kind."""
    for own, held in ((True, False), (False, True)):
        file = (tmp_path / "a").open("wb")
        lock(file, own=own)
        read, write = os.pipe()
        if not (child := os.fork()):
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        file.close()
        with (tmp_path / "a").open("wb") as again:
            if held:
                with pytest.raises(LockHeldError):
                    lock(again)
            else:
                lock(again)
        os.close(write)
        os.waitpid(child, 0)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with (tmp_path / "a").open("wb") as file, pytest.raises(NoLocksError, match="not supported"):
        lock(file)
