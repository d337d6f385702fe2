"""``doctor`` and ``cache`` through the command line."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import one_line

from cbm.data.shards import write_shard

TEXT = "text/" + "ab" * 16


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_shard(tmp_path / "cache" / TEXT, "12ab", {"features": torch.ones(5, 2)}, {"texts": list("abcde")})
    (tmp_path / "cache" / "splits").mkdir()
    (tmp_path / "cache" / "splits" / "birds-0123456789ab.json").write_text("{}")
    (tmp_path / "cache" / "thesis.pdf").write_text("mine")
    return tmp_path / "cache"


def test_what_is_there(module, cache: Path):
    status, said, _ = module("cache")
    assert status == 0
    assert "5 phrases" in said
    assert "thesis" not in said
    assert said.splitlines()[-1].startswith("cache: 2 entries, ")
    found = json.loads(module("cache", "--json")[1])
    assert [(each["name"], each["count"], each["unit"]) for each in found] == [
        (TEXT, 5, "phrases"), ("splits/birds-0123456789ab.json", 0, "images"),
    ]  # fmt: skip
    assert found[1]["kept"].startswith("a drawn split")
    assert module("cache", "--cache", "none")[:2] == (0, "none: nothing of cbm\n")


def test_nothing_is_removed_without_a_yes(module, cache: Path):
    status, _, errors = module("cache", "remove", "text")
    assert "1 entry would be removed: say --yes" in one_line_of(status, errors)
    assert (cache / TEXT).is_dir()
    for arguments in ((), ("text", "--all"), ("--all", "--older-than", "3")):
        status, _, errors = module("cache", "remove", *arguments, "--yes")
        assert "say what to remove" in one_line_of(status, errors)


def one_line_of(status: int, errors: str) -> str:
    one_line((status, errors))
    return errors


@pytest.mark.parametrize("place", [("cache", "--cache", "cache", "remove"), ("cache", "remove", "--cache", "cache")])
def test_all_but_what_cannot_be_made_again(module, cache: Path, place: tuple[str, ...]):
    status, said, errors = module(*place, "--all", "--yes", "--json")
    assert status == 0
    assert json.loads(said)["removed"] == [TEXT]
    assert "note: not removed unless named: 1 entry such as splits/birds-0123456789ab.json: a drawn split" in errors
    assert sorted(path.name for path in cache.iterdir()) == ["splits", "thesis.pdf"]
    assert "1 entry removed" in module("cache", "remove", "splits", "--yes")[1]
    assert sorted(path.name for path in cache.iterdir()) == ["thesis.pdf"]


def test_only_what_is_old(module, cache: Path):
    write_shard(cache / "text" / "cd", "12ab", {"features": torch.ones(5, 2)}, {"texts": list("abcde")})
    os.utime(cache / "text" / "cd" / "12ab.safetensors", (1e9, 1e9))
    assert "1 entry removed" in module("cache", "remove", "--older-than", "30", "--yes")[1]
    assert (cache / TEXT).is_dir()
    assert not (cache / "text" / "cd").exists()


def test_one_that_stays_does_not_keep_the_others(module, cache: Path):
    write_shard(cache / "text" / "cd", "12ab", {"features": torch.ones(5, 2)}, {"texts": list("abcde")})
    (cache / TEXT / "notes.txt").write_text("mine")
    status, said, errors = module("cache", "remove", "--all", "--yes")
    assert "notes.txt' is not of cbm" in one_line_of(status, errors)
    assert "1 entry removed" in said
    assert sorted(path.name for path in (cache / "text").iterdir()) == [TEXT.removeprefix("text/")]


def test_the_doctor(module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, said, _ = module("doctor")
    assert status == 0, said
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    assert "device=auto is: " in said
    assert "offline: HF_HUB_OFFLINE is set" in said
    facts = json.loads(module("doctor", "--json")[1])
    assert facts["problems"] == []
    assert facts["device"]["threads of torch"] == torch.get_num_threads()
    assert "heic" in facts["packages"]["extras that are complete"]


def test_the_doctor_says_what_to_do(module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "cache").write_text("mine")
    monkeypatch.setattr("cbm.files.installation.version_of", lambda name: "0.1" if name == "torch" else "1000")
    status, said, _ = module("doctor")
    assert status == 1
    assert "to do: pip install 'torch>=" in said
    assert "to do: 'cache' is" not in said
    assert "this is a file" in said
    assert "all right" not in said
