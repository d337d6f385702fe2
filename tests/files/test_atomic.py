import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cbm.errors import UserError
from cbm.files import cannot_write, new_folder, write_atomically


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


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002, 0o027])
def test_who_may_read_is_what_the_umask_says(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a" / "file", b"")
        with new_folder(tmp_path / "folder") as folder:
            write_atomically(folder / "file", b"")
    finally:
        os.umask(before)
    for file in (tmp_path / "a" / "file", tmp_path / "folder" / "file"):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_file_that_is_written_again_keeps_who_may_read_it(tmp_path: Path):
    write_atomically(tmp_path / "file", b"old")
    (tmp_path / "file").chmod(0o600)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "victim").chmod(0o606)
    (tmp_path / "link").symlink_to("victim")
    write_atomically(tmp_path / "link", b"ours")
    assert (tmp_path / "link").lstat().st_mode & 0o022 == 0  # not those of what the link led to
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path):
    with new_folder(tmp_path / "a" / "b") as folder:
        write_atomically(folder / "deep" / "x", b"1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "deep" / "x").read_bytes() == b"1"
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "c") as folder:
        write_atomically(folder / "x", b"%d" % (1 // len(list(folder.iterdir()))))
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["folder", "file", "link to nothing"])
def test_a_folder_takes_the_place_of_nothing(tmp_path: Path, kind: str):
    place = tmp_path / "x"
    {"folder": place.mkdir, "file": place.touch, "link to nothing": lambda: place.symlink_to("gone")}[kind]()
    with pytest.raises(UserError, match=f"'{place}' is there already"), new_folder(place):
        raise AssertionError("not reached")
    with pytest.raises(UserError, match="meanwhile"), new_folder(tmp_path / "y"):
        write_atomically(tmp_path / "y" / "theirs", b"")
    assert [each.name for each in (tmp_path / "y").iterdir()] == ["theirs"]


def test_a_full_disk_names_the_folder_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=f"no space left for '{tmp_path}/m/x'"), new_folder(tmp_path / "m") as folder:
        write_atomically(folder / "x", b"1")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from cbm.files import new_folder, write_atomically
with new_folder(Path(sys.argv[1])) as folder:
    write_atomically(folder / "x", b"1")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_was_filling_goes_with_the_next_write(tmp_path: Path):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m")], check=False)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".partial.folder.")
    with new_folder(tmp_path / "n") as living:
        with new_folder(tmp_path / "m"):
            assert sorted(each.name for each in tmp_path.iterdir()) != [left.name]
        assert living.exists()  # that of a living process stays
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m", "n"]


def test_a_leftover_that_leads_elsewhere_is_no_leftover(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".partial.folder.x").symlink_to("../there")
    write_atomically(tmp_path / "here" / "file", b"")
    assert (tmp_path / "there" / "x").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_or_a_pipe_keeps_its_name(tmp_path: Path, linked: bool):
    """``--out /dev/null``, as root, would replace it."""
    os.mkfifo(path := tmp_path / "pipe")
    if linked:
        path = tmp_path / "link"
        path.symlink_to("pipe")
    with pytest.raises(UserError, match="a device, a pipe or a socket"):
        write_atomically(path, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert path.is_symlink() == linked
    assert not list(tmp_path.glob(".partial.*"))


def test_a_link_to_a_file_is_replaced_and_the_file_stays(tmp_path: Path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "link").read_bytes() == b"x"
