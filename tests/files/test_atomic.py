import errno
from pathlib import Path

import pytest

from cbm.errors import UserError
from cbm.files import cannot_write, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a" / "b.json"
    write_atomically(file, b"old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match="no space left for .*b.json"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in file.parent.iterdir()] == ["b.json"]


def test_cannot_write_says_why():
    assert "Permission denied" in str(cannot_write(Path("x"), OSError(errno.EACCES, "Permission denied")))


def test_a_file_where_a_folder_should_be(tmp_path: Path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "a" / "b", b"")
