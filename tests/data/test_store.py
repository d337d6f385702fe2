import errno
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
from PIL import Image

from cbm.data import FeatureStore, TextStore, index, read_dataset, unit_norm
from cbm.data import store as store_module
from cbm.data.images import ImageFiles
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
    assert pixel_encoder.seen == 0  # the store knows that picture
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
    assert list(stored.errors) == ["green/03.png", "red/04.png"]
    assert str(colour_folder) not in str(stored.errors)  # the same bytes may stand elsewhere
    some = encode(store, pixel_encoder, images.take([bad[1], 0]))  # in another list, the other errors are not
    assert some.errors == {"red/04.png": stored.errors["red/04.png"]}


LISTS = {
    "a subset": list(range(3, 60, 7)), "another order": list(range(59, -1, -1)), "twice": [5, 5, 0, 59, 5], "one": [17],
    "shuffled": np.random.default_rng(0).permutation(60).tolist(),
}  # fmt: skip


@pytest.mark.parametrize("rows", LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize("scattered", [0, 10**6])
def test_another_list_of_the_same_pictures_encodes_nothing(
    tmp_path: Path, images, pixel_encoder, rows: list[int], scattered: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_module, "SCATTERED", scattered)
    store = FeatureStore(tmp_path / "c")
    first = encode(store, pixel_encoder, images).tensor().clone()
    counting(pixel_encoder)
    other = images.take(rows)
    found = encode(store, pixel_encoder, other)
    assert pixel_encoder.seen == 0
    assert torch.equal(found.tensor(), first[rows])
    some = np.arange(len(rows))[::-2]
    assert torch.equal(found.tensor(some), first[rows][some.copy()])
    names = [other.names[row] for row in some]
    inside = found.unit_rows(some, names)
    assert torch.equal(inside, unit_norm(first[rows][some.copy()], names))
    monkeypatch.setattr(store_module, "IN_MEMORY", 0)
    assert torch.equal(found.unit_rows(some, names), inside)


def test_the_same_pictures_in_another_folder_under_other_names_are_known(
    tmp_path: Path, images, pixel_encoder, colour_folder: Path
):
    store = FeatureStore(tmp_path / "c")
    first = encode(store, pixel_encoder, images).tensor()
    names = [f"{row:03d}.png" for row in range(60)]
    (tmp_path / "copies").mkdir()
    for name, original in zip(names, images.names):
        (tmp_path / "copies" / name).write_bytes((colour_folder / original).read_bytes())
    counting(pixel_encoder)
    assert torch.equal(encode(store, pixel_encoder, ImageFiles(tmp_path / "copies", names)).tensor(), first)
    assert pixel_encoder.seen == 0


def test_an_overlapping_list_encodes_what_is_new(tmp_path: Path, images, pixel_encoder):
    store = FeatureStore(tmp_path / "c")
    counting(pixel_encoder)
    encode(store, pixel_encoder, images.take(range(20, 45)))
    assert pixel_encoder.seen == 25
    whole = encode(store, pixel_encoder, images)
    assert pixel_encoder.seen == 60
    torch.testing.assert_close(whole.tensor(), expected(pixel_encoder, images))


def test_a_picture_that_stands_twice_in_a_list_is_encoded_once(tmp_path: Path, images, pixel_encoder):
    counting(pixel_encoder)
    stored = encode(FeatureStore(tmp_path / "c"), pixel_encoder, images.take([4, 9, 4, 4, 9, 30]))
    assert pixel_encoder.seen == 3
    torch.testing.assert_close(stored.tensor(), expected(pixel_encoder, images.take([4, 9, 30]))[[0, 1, 0, 0, 1, 2]])


def test_pictures_that_stand_together_are_not_copied(
    tmp_path: Path, images, pixel_encoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_module, "SCATTERED", 0)
    stored = encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    parts = list(stored.parts(np.arange(3, 60)))
    assert [len(part) for part in parts] == [13, 16, 16, 12]
    shards = {shard.untyped_storage().data_ptr() for shard in stored.shards}
    assert all(part.untyped_storage().data_ptr() in shards for part in parts)


def test_rows_on_disk_belong_to_pictures_not_to_positions(
    tmp_path: Path, images, pixel_encoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_module, "IN_MEMORY", 0)
    rows = np.arange(10)
    for part in (images.take(range(10)), images.take(range(30, 40))):
        found = encode(FeatureStore(tmp_path / "c"), pixel_encoder, part).unit_rows(rows, part.names)
        torch.testing.assert_close(found, unit_norm(expected(pixel_encoder, part), part.names))


def test_a_file_that_is_not_there_is_looked_for_again(tmp_path: Path, images, pixel_encoder, colour_folder: Path):
    """Two missing files look the same; neither is mistaken for what the other becomes."""
    store, kept = FeatureStore(tmp_path / "c"), {}
    for name in ("red/00.png", "red/01.png"):
        kept[name] = (colour_folder / name).read_bytes()
        (colour_folder / name).unlink()
    stored = encode(store, pixel_encoder, images)
    assert list(stored.errors) == ["red/00.png", "red/01.png"]
    assert all("FileNotFoundError" in why for why in stored.errors.values())
    (colour_folder / "red/01.png").write_bytes(kept["red/01.png"])
    stored = encode(store, pixel_encoder, images)
    assert list(stored.errors) == ["red/00.png"]
    assert not stored.tensor(np.array([images.names.index("red/00.png")])).any()
    torch.testing.assert_close(
        stored.tensor(np.array([images.names.index("red/01.png")])),
        expected(pixel_encoder, images.take([images.names.index("red/01.png")])),
    )


def test_only_what_the_content_is_to_blame_for_is_remembered(tmp_path: Path, images, pixel_encoder):
    """A network that fails once: the picture is reported, and read the next time."""
    whole, fails = images.open, True

    def unsteady(row: int, least: int | None = None):
        if fails and row == 7:
            raise OSError(errno.EIO, "Input/output error")
        return whole(row, least)

    images.open = unsteady
    stored = encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    assert list(stored.errors) == [images.names[7]]
    assert stored.readable.sum() == 59
    fails = False
    counting(pixel_encoder)
    assert encode(FeatureStore(tmp_path / "c"), pixel_encoder, images).readable.all()
    assert pixel_encoder.seen == 1


def test_an_interrupted_encoding_goes_on_with_the_next_shard(tmp_path: Path, images, pixel_encoder):
    original, batches = pixel_encoder.image_features, []

    def interrupt(pictures):
        batches.append(len(pictures))
        if sum(batches) > 40:
            raise KeyboardInterrupt
        return original(pictures)

    pixel_encoder.image_features = interrupt
    with pytest.raises(KeyboardInterrupt):
        encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    pixel_encoder.image_features = original
    counting(pixel_encoder)
    again = encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    assert pixel_encoder.seen == 60 - 32
    torch.testing.assert_close(again.tensor(), expected(pixel_encoder, images))


def test_nan_features_stop_with_the_picture(tmp_path: Path, images, pixel_encoder):
    pixel_encoder.model.weight.data[:] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite features, first for image 'blue/00.png'"):
        encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, images, pixel_encoder, monkeypatch: pytest.MonkeyPatch
):
    store = FeatureStore(tmp_path / "c")
    writes = []
    real = index.write_new_shard

    def fill_up(folder, stem, tensors, metadata):
        if len(writes) == 2:
            from cbm.files import cannot_write

            raise cannot_write(folder / stem, OSError(errno.ENOSPC, "No space left on device"))
        writes.append(stem)
        return real(folder, stem, tensors, metadata)

    monkeypatch.setattr(index, "write_new_shard", fill_up)
    with pytest.raises(UserError, match="no space left"):
        encode(store, pixel_encoder, images)
    monkeypatch.setattr(index, "write_new_shard", real)
    counting(pixel_encoder)
    encode(store, pixel_encoder, images)
    assert pixel_encoder.seen == 60 - 32


def test_kill_9_loses_no_finished_shard(tmp_path: Path, images, colour_folder: Path):
    """A process that encodes is killed; shards that were finished are not encoded again."""
    script = textwrap.dedent(f"""
        import sys, time; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
        from conftest import PixelEncoder
        from cbm.data import FeatureStore, read_dataset, store
        from pathlib import Path
        store.SHARD_ROWS = 16
        encoder, batches = PixelEncoder(), []
        original = encoder.image_features
        def slow(pictures):
            print("batch", flush=True)
            batches.append(len(pictures))
            while len(batches) == 9: time.sleep(1)  # until it is killed: two shards of four batches are done
            return original(pictures)
        encoder.image_features = slow
        images = read_dataset("folder", "f", Path({str(colour_folder)!r}), {{}}).splits["train"].images
        FeatureStore(Path({str(tmp_path / "c")!r})).encode(encoder, images, num_workers=0, batch_size=4, progress=False)
        print("done", flush=True)
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(9):
        assert process.stdout.readline() == "batch\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list((tmp_path / "c" / "features").glob("*/0*.safetensors"))
    assert len(finished) == 2
    encoder = counting(PixelEncoder())
    stored = encode(FeatureStore(tmp_path / "c"), encoder, images)
    assert encoder.seen == 60 - 32
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
    assert (about["precision"], about["dtype"], about["dim"]) == ("fp32", "float32", 16)


def odd_pictures(folder: Path) -> dict[str, bool]:
    """Pictures by name, and whether version 1 read the same pixels."""
    folder.mkdir()
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(grey).save(folder / "plain.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(grey).save(folder / "turned.png", exif=exif)
    Image.fromarray(np.dstack([grey] * 4)).save(folder / "clear.png")
    for name, side in (("small.jpg", 47), ("large.jpg", 50)):  # the encoder needs 24
        Image.linear_gradient("L").resize((side, side)).save(folder / name)
    return {
        "plain.png": True, "deep.png": False, "turned.png": False, "clear.png": False, "small.jpg": True,
        "large.jpg": False,
    }  # fmt: skip


def test_features_of_before_are_used_only_where_pixels_are_the_same(
    tmp_path: Path, pixel_encoder, monkeypatch: pytest.MonkeyPatch
):
    same = odd_pictures(tmp_path / "odd")
    images, store = ImageFiles(tmp_path / "odd", list(same)), FeatureStore(tmp_path / "c")
    with monkeypatch.context() as then:  # what the code before wrote: a picture is known by its content alone
        then.setattr(store_module, "store_keys", lambda fingerprints, looks, least: fingerprints)
        then.setattr(pixel_encoder, "image_features", lambda pictures: torch.full((len(pictures), 16), 7.0))
        encode(store, pixel_encoder, images)
    counting(pixel_encoder)
    found = encode(store, pixel_encoder, images).tensor()
    assert [bool((row == 7).all()) for row in found] == list(same.values())
    assert pixel_encoder.seen == sum(not plain for plain in same.values())
    encode(store, pixel_encoder, images)
    assert pixel_encoder.seen == sum(not plain for plain in same.values())
    (tmp_path / "c" / "fingerprints.sqlite").unlink()  # nothing but headers is read to know it again
    assert torch.equal(encode(store, pixel_encoder, images).tensor(), found)


def test_a_memory_of_before_knows_no_looks(tmp_path: Path):
    """Hashes of files stay known; how files are read is looked up."""
    same = odd_pictures(tmp_path / "odd")
    images = ImageFiles(tmp_path / "odd", list(same))
    images.fingerprints(tmp_path / "c")
    looks = images.looks(tmp_path / "c").tolist()
    assert looks == [0, -1, -1, -1, 47, 50]
    assert images.looks(tmp_path / "c").tolist() == looks


def test_skipped_pictures_are_named_once_per_process(
    tmp_path: Path, images, pixel_encoder, colour_folder: Path, caplog: pytest.LogCaptureFixture
):
    (colour_folder / "green" / "03.png").write_bytes(b"")
    for _ in range(3):
        encode(FeatureStore(tmp_path / "c"), pixel_encoder, images)
    assert caplog.text.count("1 of 60 images could not be read and is skipped: 'green/03.png' (because of ") == 1
