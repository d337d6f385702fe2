"""Files of others give plain data or an error; nothing in them is made, run or looked up."""

import datetime
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from cbm.files.loading import PlainLoader, call_in, interpolation_in, load_tensors, tensors_only


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.mkdir, (self.mark,))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_objects_are_never_made(tmp_path: Path, mapped: bool, old: bool):
    torch.save(
        {"x": torch.ones(2), "y": Evil(tmp_path / "ran")}, tmp_path / "f.pt", _use_new_zipfile_serialization=not old
    )
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        load_tensors(tmp_path / "f.pt", mapped=mapped)
    assert not (tmp_path / "ran").exists()


def test_tensors_and_plain_values_are(tmp_path: Path):
    torch.save({"x": torch.ones(2), "names": ["a"]}, tmp_path / "f.pt")
    assert load_tensors(tmp_path / "f.pt")["names"] == ["a"]
    with (tmp_path / "f.pt").open("rb") as file:
        assert load_tensors(file)["x"].tolist() == [1, 1]


class Zeros:
    """So many bytes as a number says."""

    def __reduce__(self):
        return (bytearray, (1 << 40,))


@pytest.mark.parametrize("old", [False, True])
def test_no_memory_by_number(tmp_path: Path, old: bool):
    torch.save({"x": torch.ones(2), "y": Zeros()}, tmp_path / "f.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(pickle.UnpicklingError, match="bytes by their number"):
        load_tensors(tmp_path / "f.pt")
    torch.save({"x": torch.ones(2), "names": ["bytearray", "builtins"]}, tmp_path / "f.pt")
    assert load_tensors(tmp_path / "f.pt")["names"] == ["bytearray", "builtins"]


def test_no_parts_that_are_compressed_or_there_twice(tmp_path: Path):
    torch.save({"x": torch.ones(2)}, tmp_path / "f.pt")
    with zipfile.ZipFile(tmp_path / "f.pt") as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "g.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(ValueError, match="compressed"):
        load_tensors(tmp_path / "g.pt")
    with zipfile.ZipFile(tmp_path / "h.pt", "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
        (large,) = [part for part in archive.infolist() if part.filename.endswith("/data/0")]
        archive.writestr("archive/data/1", bytes(9))
        archive.filelist[-1].header_offset = large.header_offset
        archive.filelist[-1].file_size = archive.filelist[-1].compress_size = 1 << 20
    with pytest.raises(ValueError, match="compressed"):
        load_tensors(tmp_path / "h.pt")


def test_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save(Evil(tmp_path / "ran"), tmp_path / "f.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "f.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"a": "${oc.env:HOME}"}, "a"),
        ({"a": {"b": ["x", "y ${c}"]}}, "a.b[1]"),
        ({"${a}": 1}, "${a}"),
        ({"a": [{"${b}": 1}]}, "a[0].${b}"),
        ({"a": "$ {b} costs $5", "b": [1, None, 0.5, True]}, None),
    ],
)
def test_interpolations_are_found_wherever_they_stand(settings: dict, key: str | None):
    assert interpolation_in(settings) == key


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!x a", "a: &b [1]\nc: *b", "{a: 1, a: 2}",
     "<<: {a: 1}\nb: !!python/tuple [1]"],
)  # fmt: skip
def test_yaml_is_plain(text: str):
    with pytest.raises(yaml.YAMLError):
        yaml.load(text, PlainLoader)


def test_yaml_that_is():
    assert yaml.load("{a: [1, 0.5, x, null, true, 2026-01-01]}", PlainLoader) == {
        "a": [1, 0.5, "x", None, True, datetime.date(2026, 1, 1)]
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"callbacks": {"x": {"_target_": "os.mkdir", "path": "x"}}}, "callbacks.x._target_"),
        ({"job_logging": {"formatters": {"f": {"()": "os.mkdir"}}}}, "job_logging.formatters.f.()"),
        ({"a": [1, {"b": [{"_target_": None}]}]}, "a[1].b[0]._target_"),
        ({"launcher": {"_target_": "x", "y": {"_target_": "os.mkdir"}}}, "launcher.y._target_"),
        ({"launcher": {"_target_": "x"}, "text": "_target_", "(": 1}, None),
    ],
)
def test_what_a_library_would_call_is_found(settings: dict, found: str | None):
    assert call_in(settings, ("launcher._target_",)) == found
