"""Two processes on one store at the same time: both succeed, and nothing is there twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, PixelEncoder

from cbm.data import FeatureStore, read_dataset, store
from cbm.data.shards import read_shard

SCRIPT = """
import logging, os, sys
from pathlib import Path
from conftest import PixelEncoder
from cbm.data import FeatureStore, read_dataset, store

root, cache = Path(sys.argv[1]), Path(sys.argv[2])
logging.basicConfig(level="INFO")
store.SHARD_ROWS = 4
children = []
for seed, batch in ((0, 3), (0, 5), (1, 3)):
    if child := os.fork():
        children.append(child)
        continue
    status = 1
    try:
        for _ in range(3):
            images = read_dataset("folder", "f", root, {}).splits["train"].images
            encoder = PixelEncoder(seed=seed)
            FeatureStore(cache).encode(encoder, images, num_workers=0, batch_size=batch, progress=False)
        status = 0
    finally:
        os._exit(status)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_the_same_pictures_and_other_encoders(tmp_path: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Two with the same encoder, whose batches and so whose rounding differ, and one with another."""
    cache = tmp_path / "cache"
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(colour_folder), str(cache)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "cannot be" not in result.stderr  # the memory of fingerprints was never locked out
    folders = list((cache / "features").iterdir())
    assert len(folders) == 2
    for folder in folders:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        assert [name[:5] for name in names] == [f"{number:05d}" for number in range(15)]
        assert all(read_shard(folder / name) for name in names)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    images = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    for seed in (0, 1):
        encoder = PixelEncoder(seed=seed)
        expected = torch.cat([encoder.encode_images(encoder.preprocess(images.open(i))[None]) for i in range(60)])
        encoder.image_features = None  # nothing is left to encode
        stored = FeatureStore(cache).encode(encoder, images, num_workers=0, progress=False)
        torch.testing.assert_close(stored.tensor(), expected)


@pytest.mark.parametrize("state", ["locked", "damaged", "a folder"])
def test_a_memory_of_fingerprints_that_cannot_be_used_costs_time_only(
    tmp_path: Path, colour_folder: Path, state: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    import sqlite3

    images = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    before = images.fingerprints(tmp_path / "c")
    memory = tmp_path / "c" / "fingerprints.sqlite"
    if state == "locked":
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.01))
        other = connect(memory)
        other.execute("begin exclusive")
    elif state == "damaged":
        memory.write_bytes(b"no database" + memory.read_bytes()[11:])
    else:
        memory.unlink()
        memory.mkdir()
    assert images.fingerprints(tmp_path / "c") == before
    assert "fingerprints.sqlite' cannot be" in caplog.text
    if state == "locked":
        other.close()
    caplog.clear()
    if state != "a folder":
        assert images.fingerprints(tmp_path / "c") == before
        assert "cannot be" not in caplog.text
