"""A shard is what was written, or absent: whatever its checksum says."""

import hashlib
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cbm.data.shards import find_shards, peek, read_shard, write_shard

CONTENTS = {
    "nothing": b"",
    "no tensors": b"hello",
    "no metadata": safetensors.torch.save({"features": torch.ones(2)}),
    "metadata that is no JSON": safetensors.torch.save({"features": torch.ones(2)}, {"json": "{"}),
    "metadata that is a list": safetensors.torch.save({"features": torch.ones(2)}, {"json": "[]"}),
    "metadata without ours": safetensors.torch.save({"features": torch.ones(2)}, {"other": "{}"}),
    "a header of terabytes": (1 << 40).to_bytes(8, "little"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("form", ["behind", "in the name"])
def test_a_right_checksum_of_something_else(tmp_path: Path, content: str, form: str):
    digest = hashlib.blake2b(CONTENTS[content], digest_size=16)
    path = tmp_path / ("00000.safetensors" if form == "behind" else f"00000-{digest.hexdigest()}.safetensors")
    path.write_bytes(CONTENTS[content] + (digest.digest() if form == "behind" else b""))
    assert read_shard(path) is None
    assert peek(path, "features") is None or content == "no metadata"
    assert not find_shards(tmp_path)  # its name stays taken, but nothing is read from it
    write_shard(tmp_path, "00001", {"features": torch.ones(2, 3)}, {"errors": {}})
    tensors, metadata = read_shard(tmp_path / "00001.safetensors")
    assert tensors["features"].shape == (2, 3)
    assert metadata == {"errors": {}}


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device"])
def test_what_is_no_file_is_passed_over(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture):
    make = {"a pipe": os.mkfifo, "a folder": Path.mkdir, "a device": lambda path: path.symlink_to("/dev/zero")}
    make[kind](tmp_path / "00000.safetensors")
    assert read_shard(tmp_path / "00000.safetensors") is None
    assert "cannot be read (not a regular file): what it holds is made again" in caplog.text
    assert peek(tmp_path / "00000.safetensors", "features") is None
