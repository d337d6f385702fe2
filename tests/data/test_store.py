import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, PixelEncoder

from cbm.data import FeatureStore, TextStore, encoding, read_dataset
from cbm.data import store as store_module
from cbm.errors import UserError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "SHARD_ROWS", 16)


@pytest.fixture
def images(colour_folder: Path):
    return read_dataset("folder", "f", colour_folder, {}).splits["train"].images


def encode(store: FeatureStore, encoder, images, **options):
    return store.encode(encoder, images, num_workers=0, batch_size=7, progress=False, **options)


def counting(encoder):
    """Count the pictures an encoder is given."""
    encoder.seen = 0
    original = encoder.image_features

    def count(pictures):
        encoder.seen += len(pictures)
        return original(pictures)

    encoder.image_features = count
    return encoder


def expected(encoder, images) -> torch.Tensor:
    return torch.cat([encoder.encode_images(encoder.preprocess(images.open(i))[None]) for i in range(len(images))])


def test_features_equal_the_encoder_and_are_encoded_once(tmp_path: Path, images, pixel_encoder):
    counting(pixel_encoder)
    first = encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    assert pixel_encoder.seen == 60
    torch.testing.assert_close(first.tensor(), expected(pixel_encoder, images))
    pixel_encoder.seen = 0
    again = encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    assert pixel_encoder.seen == 0
    assert torch.equal(first.tensor(), again.tensor())
    assert torch.equal(again.tensor(np.array([3, 59])), first.tensor()[[3, 59]])


def test_many_features_stay_on_disk(tmp_path: Path, images, pixel_encoder, monkeypatch: pytest.MonkeyPatch):
    stored = encode(FeatureStore(tmp_path), pixel_encoder, images, dtype="float16")
    rows = np.array([0, 3, 15, 16, 17, 40, 59])
    names = [images.names[row] for row in rows]
    inside = stored.unit_rows(rows, names)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.norm(dim=1), torch.ones(7))
    monkeypatch.setattr(store_module, "IN_MEMORY", 0)
    mapped = stored.unit_rows(rows, names).clone()
    assert mapped.dtype == torch.float16
    torch.testing.assert_close(mapped.float(), inside, rtol=1e-3, atol=1e-4)
    (file,) = (stored.folder / "unit").iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(stored.unit_rows(rows, names), mapped)  # read again, not written again
    assert file.stat().st_mtime_ns == written
    stored.unit_rows(rows[1:], names[1:])
    assert len(list((stored.folder / "unit").iterdir())) == 2
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # a flipped bit in the features
    file.write_bytes(bytes(content))
    assert torch.equal(stored.unit_rows(rows, names), mapped)


def test_workers_give_the_same(tmp_path: Path, images, pixel_encoder):
    one = encode(FeatureStore(tmp_path / "a"), pixel_encoder, images)
    two = FeatureStore(tmp_path / "b").encode(pixel_encoder, images, num_workers=2, batch_size=11, progress=False)
    torch.testing.assert_close(one.tensor(), two.tensor())


def test_the_address_depends_on_weights_dtype_and_pictures(tmp_path: Path, images, pixel_encoder, colour_folder: Path):
    store = FeatureStore(tmp_path / "c")
    encode(store, pixel_encoder, images)
    encode(store, PixelEncoder(seed=1), images)
    half = encode(store, pixel_encoder, images, dtype="float16")
    assert half.tensor().dtype == torch.float16
    assert len(list((tmp_path / "c" / "features").iterdir())) == 3
    picture = colour_folder / "red" / "00.png"
    picture.write_bytes((colour_folder / "blue" / "01.png").read_bytes())
    counting(pixel_encoder)
    changed = encode(store, pixel_encoder, images)
    assert pixel_encoder.seen == 60
    row = images.names.index("red/00.png")
    torch.testing.assert_close(changed.tensor()[row], changed.tensor()[images.names.index("blue/01.png")])


def test_a_flipped_byte_is_found_and_only_its_shard_encoded_again(tmp_path: Path, images, pixel_encoder):
    store = FeatureStore(tmp_path / "c")
    first = encode(store, pixel_encoder, images).tensor().clone()
    shard = sorted((tmp_path / "c" / "features").glob("*/*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    counting(pixel_encoder)
    again = encode(store, pixel_encoder, images)
    assert pixel_encoder.seen == 16
    torch.testing.assert_close(again.tensor(), first)


def test_unreadable_pictures_are_named_and_skipped_or_fatal(
    tmp_path: Path, images, pixel_encoder, colour_folder: Path, caplog
):
    (colour_folder / "green" / "03.png").write_bytes(b"")
    (colour_folder / "red" / "04.png").write_bytes((colour_folder / "red" / "04.png").read_bytes()[:200])
    store = FeatureStore(tmp_path / "c")
    stored = encode(store, pixel_encoder, images)
    bad = [images.names.index("green/03.png"), images.names.index("red/04.png")]
    assert np.flatnonzero(~stored.readable).tolist() == bad
    assert len(stored.tensor()) == 58
    assert "green/03.png" in caplog.text
    for _ in range(2):  # also when the rest comes from the store
        with pytest.raises(UserError, match=r"2 of 60 image\(s\) cannot be read, first 'green/03.png'"):
            encode(store, pixel_encoder, images, on_error="fail")
    import pyarrow.parquet

    index = pyarrow.parquet.read_table(next((tmp_path / "c" / "features").glob("*/index.parquet"))).to_pydict()
    assert index["image"] == images.names
    assert [i for i, error in enumerate(index["error"]) if error] == bad


def test_nan_features_stop_with_the_picture(tmp_path: Path, images, pixel_encoder):
    pixel_encoder.model.weight.data[:] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite features, first for image 'blue/00.png'"):
        encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, images, pixel_encoder, monkeypatch: pytest.MonkeyPatch
):
    import errno

    store = FeatureStore(tmp_path / "c")
    writes = []
    real = encoding.write_shard

    def fill_up(folder, stem, tensors, metadata):
        if len(writes) == 2:
            from cbm.files import cannot_write

            raise cannot_write(folder / stem, OSError(errno.ENOSPC, "No space left on device"))
        writes.append(stem)
        return real(folder, stem, tensors, metadata)

    monkeypatch.setattr(encoding, "write_shard", fill_up)
    with pytest.raises(UserError, match="no space left"):
        encode(store, pixel_encoder, images)
    monkeypatch.setattr(encoding, "write_shard", real)
    counting(pixel_encoder)
    encode(store, pixel_encoder, images)
    assert pixel_encoder.seen == 60 - 32


def test_kill_9_at_any_moment_loses_no_finished_shard(tmp_path: Path, images, colour_folder: Path):
    """A process that encodes is killed again and again; shards that were finished are never encoded twice."""
    script = textwrap.dedent(f"""
        import sys, time; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
        from conftest import PixelEncoder
        from cbm.data import FeatureStore, read_dataset, store
        from pathlib import Path
        store.SHARD_ROWS = 16
        encoder = PixelEncoder()
        original = encoder.image_features
        def slow(pictures):
            print("batch", flush=True); time.sleep(0.02)
            return original(pictures)
        encoder.image_features = slow
        images = read_dataset("folder", "f", Path({str(colour_folder)!r}), {{}}).splits["train"].images
        FeatureStore(Path({str(tmp_path / "c")!r})).encode(encoder, images, num_workers=0, batch_size=4, progress=False)
        print("done", flush=True)
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(9):  # two shards of four batches are done, the third has begun
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list((tmp_path / "c" / "features").glob("*/*.safetensors"))
    assert 1 <= len(finished) <= 3
    encoder = counting(PixelEncoder())
    stored = encode(FeatureStore(tmp_path / "c"), encoder, images)
    assert encoder.seen == 60 - 16 * len(finished)
    torch.testing.assert_close(stored.tensor(), expected(encoder, images))


class TextPixels:
    fingerprint = "text"
    dim = 4

    def __init__(self):
        self.asked: list[str] = []

    def encode_text(self, texts, *, progress=False):
        self.asked += texts
        return torch.tensor([[len(text), ord(text[0]), 1.0, 0.0] for text in texts])


def test_text_is_encoded_once_per_phrase(tmp_path: Path):
    encoder, store = TextPixels(), TextStore(tmp_path)
    first = store.encode(encoder, ["red", "green", "red"])
    assert encoder.asked == ["red", "green"]
    assert torch.equal(first[0], first[2])
    second = store.encode(encoder, ["blue", "green"])
    assert encoder.asked == ["red", "green", "blue"]
    assert torch.equal(second[1], first[1])
    shard = next((tmp_path / "text" / "text").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    assert torch.equal(store.encode(encoder, ["red", "green", "blue"])[1], first[1])


def test_about_names_the_encoder(tmp_path: Path, images, pixel_encoder):
    encode(FeatureStore(tmp_path), pixel_encoder, images)
    about = json.loads(next((tmp_path / "features").glob("*/about.json")).read_text())
    assert about["encoder"] == "pixels"
    assert about["images"] == 60
