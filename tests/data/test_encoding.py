"""Several processes encode into one store (gloo, on this machine): no gaps, nothing twice, one may be killed."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, PixelEncoder

from cbm.data import FeatureStore, read_dataset
from cbm.data import store as store_module

SCRIPT = textwrap.dedent("""
    import logging, sys, time
    from pathlib import Path
    from conftest import PixelEncoder
    from cbm.data import FeatureStore, read_dataset, store

    logging.basicConfig(level="INFO", format="%(message)s")
    root, cache, devices, hold = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    store.SHARD_ROWS = 4
    encoder, batches = PixelEncoder(), []
    original = encoder.image_features
    def slow(pictures):
        batches.append(pictures)
        while len(batches) == 5 and hold.exists():  # after three shards of four pictures
            time.sleep(0.05)
        return original(pictures)
    encoder.image_features = slow
    images = read_dataset("folder", "f", root, {}).splits["train"].images
    FeatureStore(cache).encode(encoder, images, num_workers=0, batch_size=3, progress=False, devices=devices)
""")


def start(folder: Path, root: Path, devices: int) -> subprocess.Popen:
    script = folder / "encode.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(folder / "cache"), str(devices), str(folder / "hold")],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("cache/features/*/0*.safetensors"))


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")
def test_a_killed_process_costs_its_unfinished_shard_and_any_number_of_processes_goes_on(
    tmp_path: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "hold").touch()
    first = start(tmp_path, colour_folder, devices=2)
    try:
        while len(shards(tmp_path)) < 6:  # three of each process, which then wait
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        (second,) = children(first.pid)
        os.kill(second, signal.SIGKILL)
        output = first.communicate()[0]
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode != 0, output
    kept = shards(tmp_path)
    assert len(kept) == 6

    (tmp_path / "hold").unlink()
    again = start(tmp_path, colour_folder, devices=3)  # another number of processes
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert f"{4 * len(kept)} of 60 already encoded" in output
    assert f"encoded {60 - 4 * len(kept)} images" in output
    assert "in 3 processes, of which the first: " in output
    assert "(limited by " in output
    assert set(kept) < set(shards(tmp_path))
    assert shards(tmp_path) == [f"{number:06d}.safetensors" for number in range(15)]

    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)
    encoder = PixelEncoder()
    images = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    expected = torch.cat([encoder.encode_images(encoder.preprocess(images.open(i))[None]) for i in range(60)])
    encoder.image_features = None  # nothing is left to encode
    stored = FeatureStore(tmp_path / "cache").encode(encoder, images, num_workers=0, progress=False)
    torch.testing.assert_close(stored.tensor(), expected)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("slow", ["model", "decoder", "disk"])
def test_what_limits_encoding_is_said(
    tmp_path: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    slow: str, workers: int,
):  # fmt: skip
    """The slow part takes over three seconds, which nothing else comes near."""
    from cbm.data import encoding_loop

    def slower(function, seconds: float):
        def wait(*arguments):
            time.sleep(seconds)
            return function(*arguments)

        return wait

    encoder = PixelEncoder()
    if slow == "model":
        encoder.image_features = slower(encoder.image_features, 1.0)
    elif slow == "decoder":
        encoder.preprocess = slower(encoder.preprocess, 0.06)
    else:
        monkeypatch.setattr(encoding_loop._Encoding, "_write", slower(encoding_loop._Encoding._write, 4.0))
    images = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    with caplog.at_level("INFO"):
        FeatureStore(tmp_path / "cache").encode(
            encoder, images, num_workers=workers, batch_size=15, progress=False, label="f/train"
        )
    (said,) = [record.message for record in caplog.records if record.message.startswith("encoded ")]
    assert said.startswith("encoded 60 f/train at ")
    limit = {
        "model": "(limited by the model)",
        "decoder": f"(limited by decoding: now encoder.num_workers={workers}, more may help)",
        "disk": "(limited by writing)",
    }
    assert said.endswith(limit[slow])
    shares = [int(share) for share in re.findall(r"(\d+)% ", said)]
    assert shares == sorted(shares, reverse=True)
    assert 98 <= sum(shares) <= 102
    assert shares[0] > 50
