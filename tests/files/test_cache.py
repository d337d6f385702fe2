"""What the stores write is found again as entries, and removed whole or not at all; nothing else is touched."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PixelEncoder

from cbm.concepts.llm.client import AnswerCache, Request
from cbm.data import FeatureStore, complete_splits, read_dataset
from cbm.data.shards import write_rows, write_shard
from cbm.errors import UserError
from cbm.files.cache import choose, links_in, read_cache, remove
from cbm.files.locks import lock

FINGERPRINT = "ab" * 16


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one entry of every kind, beside files of somebody else."""
    cache = tmp_path / "cache"
    features = cache / "features" / f"{FINGERPRINT}-fp32-float16"
    for number in range(2):
        write_shard(features, f"{number:06d}", {"features": torch.ones(3, 2)}, {"errors": {}})
    write_rows(features / "unit", "cd" * 16, [torch.ones(4, 2)], (4, 2), torch.float32)
    about = {"encoder": "ViT-B-32", "encoder_fingerprint": FINGERPRINT}
    (features / "about.json").write_text(json.dumps(about))
    write_shard(cache / "text" / FINGERPRINT, "12ab", {"features": torch.ones(5, 2)}, {"texts": list("abcde")})
    write_shard(cache / "vocabulary" / FINGERPRINT / "ef", "000000", {"features": torch.ones(7, 2)}, {"first": "a"})
    write_rows(cache / "given", "01" * 16, [torch.ones(4, 2)], (4, 2), torch.float32)
    for name in ("tars/0123456789ab.parquet", "splits/birds-0123456789ab.json", "vision/0123456789ab.jsonl"):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text('{"a.png": "train", "b.png": "val"}')
    answers = AnswerCache(cache / "llm")
    file = answers.file(Request("m", "", "why?", "concepts"))
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with sqlite3.connect(cache / "fingerprints.sqlite") as database:
        database.execute("create table files (key text primary key, hash)")
        database.execute("insert into files values ('a', 'b')")
    (cache / "thesis.pdf").write_text("mine")
    (cache / "features" / "mine").mkdir()
    (cache / "features" / "mine" / "x.npy").write_text("mine")
    return cache


def mine(cache: Path) -> bool:
    return {"thesis.pdf", "features/mine/x.npy"} <= {path.relative_to(cache).as_posix() for path in cache.rglob("*")}


def test_every_kind_is_found_and_removed_and_nothing_else(cache: Path):
    found = {entry.name: (entry.kind, entry.count) for entry in read_cache(cache)}
    assert found == {
        f"features/{FINGERPRINT}-fp32-float16": ("features", 6),
        f"text/{FINGERPRINT}": ("text", 5),
        f"vocabulary/{FINGERPRINT}/ef": ("vocabulary", 7),
        "given": ("copies", 1),
        "tars": ("archives", 1),
        "splits/birds-0123456789ab.json": ("split", 2),
        "llm": ("answers", 1),
        "vision": ("answers", 1),
        "fingerprints.sqlite": ("fingerprints", 1),
    }
    assert [entry.kind for entry in read_cache(cache) if entry.lasting] == ["split", "answers", "answers"]
    assert {entry.what for entry in read_cache(cache)[:2]} == {"ViT-B-32 fp32-float16", "ViT-B-32"}
    for entry in read_cache(cache):
        remove(cache, entry)
    assert sorted(path.name for path in cache.iterdir()) == ["features", "thesis.pdf"]
    assert mine(cache)
    assert read_cache(cache) == []


def test_what_the_stores_really_write(tmp_path: Path, colour_folder: Path):
    cache = tmp_path / "cache"
    dataset = complete_splits(
        read_dataset("folder", "f", colour_folder, {}), cache, val_fraction=0.1, test_fraction=0.2, seed=0
    )
    FeatureStore(cache).encode(PixelEncoder(), dataset.splits["train"].images, num_workers=0, progress=False)
    entries = {entry.kind: entry for entry in read_cache(cache)}
    assert set(entries) == {"features", "split", "fingerprints"}
    assert entries["features"].count == len(dataset.splits["train"])
    assert entries["features"].what == "pixels fp32-float32"
    assert entries["split"].count == entries["fingerprints"].count == 60
    assert sum(entry.size for entry in entries.values()) == sum(
        path.stat().st_size for path in cache.rglob("*") if path.is_file()
    )


def test_looking_is_no_use(cache: Path):
    for path in cache.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert {entry.used for entry in read_cache(cache)} == {1e9}
    assert {entry.used for entry in read_cache(cache) if entry.kind != "fingerprints"} == {1e9}


@pytest.mark.parametrize("inside", ["paper.txt", "unit/paper.txt", "000007.safetensors.bak"])
def test_an_entry_with_something_else_in_it_stays_whole(cache: Path, inside: str):
    entry = read_cache(cache)[0]
    (cache / entry.name / inside).write_text("mine")
    before = sorted(cache.rglob("*"))
    with pytest.raises(UserError, match=f"{inside}' is not of cbm: nothing of"):
        remove(cache, entry)
    assert sorted(cache.rglob("*")) == before


def test_links_are_not_followed(cache: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    shutil.move(cache / "text", outside)
    (cache / "text").symlink_to(outside)
    entry = read_cache(cache)[0]
    (cache / entry.name / "unit" / "123456.safetensors").symlink_to(outside / FINGERPRINT / "12ab.safetensors")
    assert "text" not in {found.kind for found in read_cache(cache)}
    assert links_in(cache) == [cache / "text"]
    with pytest.raises(UserError, match="is a link: nothing of"):
        remove(cache, entry)
    for place in ("features", "vocabulary"):
        found = next(each for each in read_cache(cache) if each.kind == place)
        shutil.move(cache / place, tmp_path / place)
        (cache / place).symlink_to(tmp_path / place)
        with pytest.raises(UserError, match="is a link to another place, where nothing is removed"):
            remove(cache, found)
    assert len(list(outside.rglob("*.safetensors"))) == 1
    assert len(list((tmp_path / "features").rglob("00*.safetensors"))) == 2


def test_what_somebody_writes_is_not_removed(cache: Path):
    entry = read_cache(cache)[0]
    with (cache / entry.name / ".partial.abc").open("wb") as file:
        lock(file)
        with pytest.raises(UserError, match="another process is writing to"):
            remove(cache, entry)
    assert read_cache(cache)[0].count == 6
    remove(cache, entry)
    assert not (cache / entry.name).exists()
    memory = next(each for each in read_cache(cache) if each.kind == "fingerprints")
    with sqlite3.connect(cache / memory.name) as database:
        database.execute("insert into files values ('c', 'd')")
        with pytest.raises(UserError, match="another process is writing to"):
            remove(cache, memory)
    database.close()
    remove(cache, memory)


def test_an_interrupted_removal_is_found_and_finished(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(path):
        raise KeyboardInterrupt

    entry = read_cache(cache)[0]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(cache, entry)
    assert entry.name not in {found.name for found in read_cache(cache)}
    left = next(found for found in read_cache(cache) if found.kind == "removed")
    assert left.size == entry.size
    remove(cache, left)
    assert not list(cache.glob(".removed*"))
    with pytest.raises(UserError, match="is gone already"):
        remove(cache, left)


def test_names(cache: Path):
    entries = read_cache(cache)
    assert [entry.kind for entry in choose(entries, ["features", f"text/{FINGERPRINT}", "features/ab"])] == [
        "features", "text",
    ]  # fmt: skip
    for name, message in (("tect", "did you mean"), ("v", "may be 2 entries"), ("", "nothing in the cache is called")):
        with pytest.raises(UserError, match=message):
            choose(entries, [name])
    with pytest.raises(UserError, match="it is empty"):
        choose([], ["x"])


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"encoder": [], "encoder_fingerprint": {}}', b"1e999"])
def test_damaged_lists_are_listed(cache: Path, content: bytes):
    """What stands in them may be nested too deeply to be read."""
    (split,) = (cache / "splits").iterdir()
    split.write_bytes(content)
    for about in (cache / "features").glob("*/about.json"):
        about.write_bytes(content)
    found = next(entry for entry in read_cache(cache) if entry.kind == "split")
    assert found.count in (None, 2)


def test_a_shard_that_says_any_number_of_rows_is_listed(cache: Path):
    header = b'{"features": {"shape": [1e999]}}'
    next((cache / "text").rglob("*.safetensors")).write_bytes(np.int64(len(header)).tobytes() + header)
    assert next(entry for entry in read_cache(cache) if entry.kind == "text").count is None


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 16, np.int64(5).tobytes() + b"[1,2]" * 3])
def test_damaged_shards_are_listed(cache: Path, content: bytes):
    next((cache / "text").rglob("*.safetensors")).write_bytes(content)
    entry = next(entry for entry in read_cache(cache) if entry.kind == "text")
    assert entry.count == (None if content else 0)


def test_a_file_is_no_cache(tmp_path: Path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(UserError, match="this is a file"):
        read_cache(tmp_path / "cache")
    assert read_cache(tmp_path / "none") == []
