"""Only regular files of a size that somebody means are opened, whoever asks for them, and nobody waits."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cbm.concepts import read_bank
from cbm.data.webdataset import open_tars
from cbm.editing import load_edits
from cbm.errors import UserError
from cbm.files import opening
from cbm.files.arrays import read_arrays
from cbm.files.parsing import read_json, read_table, read_text, read_yaml
from cbm.files.pictures import look, open_picture
from cbm.files.tensors import read_tensors

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("a.txt", read_text),
    "json": ("a.json", read_json),
    "yaml": ("a.yaml", read_yaml),
    "table": ("a.csv", read_table),
    "bank": ("b.json", read_bank),
    "list of phrases": ("b.txt", read_bank),
    "edits": ("e.yaml", load_edits),
    "tensors": ("t.safetensors", read_tensors),
    **{f"features {ending}": (f"f{ending}", read_arrays)
       for ending in (".npy", ".npz", ".safetensors", ".pt", ".parquet")},
    "picture": ("p.png", open_picture),
    "look of a picture": ("p.png", look),
    "tar": ("t.tar", lambda path: open_tars(path.parent, [path.name], path.parent / "cache")),
}  # fmt: skip
SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe"))[0],
    "a link in a circle": lambda path: path.symlink_to(path.name),
}


def soon(call: Callable[[], object]) -> BaseException | None:
    """What a call raises, which must not take long."""
    raised: list[BaseException | None] = []

    def attempt() -> None:
        try:
            call()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(30)
    assert raised, "it waits"
    return raised[0]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_nobody_waits_for_what_is_no_file(tmp_path: Path, reader: str, kind: str):
    name, read = READERS[reader]
    SPECIAL[kind](tmp_path / name)
    error = soon(lambda: read(tmp_path / name))
    assert isinstance(error, UserError | OSError)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "read", "largest"),
    [
        ("a.txt", read_text, opening.LARGEST_TEXT),
        ("a.csv", read_table, opening.LARGEST_TEXT),
        ("a.json", read_json, opening.LARGEST_JSON),
        ("a.yaml", read_yaml, opening.LARGEST_YAML),
        ("a.png", open_picture, opening.LARGEST_PICTURE),
    ],
)
def test_a_hole_of_terabytes_is_not_read(tmp_path: Path, name: str, read: Callable, largest: int):
    with (tmp_path / name).open("wb") as file:
        file.truncate(largest + 1)
    with pytest.raises((UserError, ValueError), match=rf"a\.\w+' has {largest + 1:,} bytes"):
        read(tmp_path / name)


def test_links_to_files_are_read_and_never_written_through(tmp_path: Path):
    (tmp_path / "there").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("there")
    with opening.open_to_read(tmp_path / "link") as file:
        assert file.read() == b"precious"
    with pytest.raises(OSError, match="a link, not a file"):
        opening.open_regular(tmp_path / "link", os.O_WRONLY)


def test_a_parser_cannot_ask_for_much(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"abcdef")
    with (tmp_path / "f").open("rb") as file:
        limited = opening.Limited(file, 4)
        assert limited.read(4) == b"abcd"
        assert limited.tell() == 4
        for size in (5, -1):
            with pytest.raises(ValueError, match="it states a part"):
                limited.read(size)


def test_newlines_are_those_of_any_system(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "f") == "a\nb\nc\n"
