"""Two processes on one store at the same time: both succeed, and nothing is there twice."""

import json
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
import cbm.data.encoding_loop  # what takes seconds to import is there before the forks
from conftest import PixelEncoder
from cbm.data import FeatureStore, read_dataset, store

root, cache = Path(sys.argv[1]), Path(sys.argv[2])
logging.basicConfig(level="INFO")
store.SHARD_ROWS = 4
PixelEncoder()
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
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "cannot be" not in result.stderr  # the memory of fingerprints was never locked out
    folders = list((cache / "features").iterdir())
    assert len(folders) == 2
    for folder in folders:
        shards = [read_shard(path) for path in sorted(folder.glob("0*.safetensors"))]
        pictures = [tuple(picture) for tensors, _ in shards for picture in tensors["fingerprints"].tolist()]
        assert len(pictures) == len(set(pictures)) == 60
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    monkeypatch.setattr(store, "SHARD_ROWS", 4)
    images = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    for seed in (0, 1):
        encoder = PixelEncoder(seed=seed)
        expected = torch.cat([encoder.encode_images(encoder.preprocess(images.open(i))[None]) for i in range(60)])
        encoder.image_features = None  # nothing is left to encode
        stored = FeatureStore(cache).encode(encoder, images, num_workers=0, progress=False)
        torch.testing.assert_close(stored.tensor(), expected)


RACE = """
import json, os, sys, time
from pathlib import Path
from conftest import PixelEncoder
import cbm.data.encoding_loop
import cbm.files.atomic
from cbm.data import FeatureStore, read_dataset, store

root, place, lists = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
store.SHARD_ROWS = 8
encoder = PixelEncoder()
children = {}
for me in range(3):  # the libraries are imported once
    if child := os.fork():
        children[child] = me
    else:
        children = {}
        break
if children:
    while children:
        child, status = os.wait()
        del children[child]
        if status:  # the others would wait for one that has failed
            for other in children:
                os.kill(other, 9)
            sys.exit(1)
    sys.exit(0)

meetings = []
begin = cbm.files.atomic._locked_file

def meet(folder):
    if meetings and "features" in folder.parts:  # before the first shard is written, and after whatever is checked
        meeting = meetings.pop()
        (meeting / str(me)).touch()
        while len(list(meeting.iterdir())) < 3:
            time.sleep(0.01)
    return begin(folder)

cbm.files.atomic._locked_file = meet
original = encoder.image_features
encoder.image_features = lambda pictures: original(pictures) * (1 + 1e-6 * me)  # what other batches do to the last bits
everything = read_dataset("folder", "f", root, {}).splits["train"].images
for number, parts in enumerate(lists):
    meetings.append(place / str(number) / "meeting")
    images = everything.take(range(*parts[me]))
    stored = FeatureStore(place / str(number) / "cache").encode(
        encoder, images, num_workers=0, batch_size=4, progress=False
    )
    assert stored.readable.all()
    assert not meetings
    (place / str(number) / f"found-{me}").write_bytes(stored.tensor().numpy().tobytes())
"""
LISTS = [[(0, 24)] * 3, [(0, 24), (8, 40), (4, 60)], [(0, 8)] * 3]
"""First and last image of the lists that three processes encode: the same, overlapping ones, one shard."""


def test_three_that_write_at_the_same_moment(tmp_path: Path, colour_folder: Path):
    """Each has seen that no shard is there before any writes one. No picture is there twice, none is missing, and
    whoever asks is given the same features as those that encoded them."""
    for number in range(len(LISTS)):
        (tmp_path / str(number) / "meeting").mkdir(parents=True)
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", RACE, str(colour_folder), str(tmp_path), json.dumps(LISTS)], capture_output=True,
        text=True, check=False, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    encoder = PixelEncoder()
    encoder.image_features = None  # nothing is left to encode
    everything = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    for number, lists in enumerate(LISTS):
        place = tmp_path / str(number)
        (folder,) = (place / "cache" / "features").iterdir()
        files = [path for path in folder.glob("*.safetensors") if path.stem != "index"]
        assert len({path.stem.partition("-")[0] for path in files}) == len(files)
        shards = [read_shard(path) for path in sorted(files)]
        pictures = [tuple(picture) for tensors, _ in shards for picture in tensors["fingerprints"].tolist()]
        assert len(pictures) == len(set(pictures)) == max(last for _, last in lists)
        for me, part in enumerate(lists):
            images = everything.take(range(*part))
            stored = FeatureStore(place / "cache").encode(encoder, images, num_workers=0, progress=False)
            assert stored.tensor().numpy().tobytes() == (place / f"found-{me}").read_bytes()


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
