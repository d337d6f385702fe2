"""Where pictures are: in shards that come, go and are damaged, with an index that is right, wrong or not there."""

import errno
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from trust.test_bit_flips import flips

from cbm.data import FeatureStore, index, shards
from cbm.data import store as store_module
from cbm.data.fingerprints import derived, to_digests
from cbm.data.images import ImageArray
from cbm.data.index import FeatureIndex
from cbm.data.old_store import OldStores
from cbm.data.shards import read_shard, replace_shard, write_new_shard
from cbm.errors import UserError
from cbm.files import place_new

ADDRESS = ("encoder", "fp32", "float32")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "SHARD_ROWS", 16)


def opened(folder: Path) -> FeatureIndex:
    return FeatureIndex(folder, OldStores(folder.parent, ADDRESS, []))


def write(folder: Path, number: int, digests: np.ndarray, dim: int = 1) -> None:
    tensors = {
        "features": torch.zeros(len(digests), dim), "readable": torch.ones(len(digests), dtype=torch.uint8),
        "fingerprints": torch.from_numpy(digests.view(np.int64)),
    }  # fmt: skip
    assert write_new_shard(folder, f"{number:06d}", tensors, {"errors": {}})


def small_array(count: int, seed: int = 0) -> ImageArray:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return ImageArray(pixels, [str(number) for number in range(count)])


def encode(root: Path, encoder, images):
    return FeatureStore(root).encode(encoder, images, num_workers=0, batch_size=7, progress=False)


def counted(encoder):
    """An encoder that counts the pictures it is given."""
    original, encoder.seen = type(encoder).image_features, 0

    def count(pictures):
        encoder.seen += len(pictures)
        return original(encoder, pictures)

    encoder.image_features = count
    return encoder


def test_digests_are_the_fingerprints():
    hexadecimal = [f"{number:032x}" for number in (1, 2**64, 2**128 - 1)]
    others = ["", "sha256:x", "ab" * 20, "0" * 31 + "g", "unreadable:OSError"]
    found = to_digests(hexadecimal)
    assert found.tolist() == [[0, 1], [1, 0], [2**64 - 1, 2**64 - 1]]
    mixed = to_digests(hexadecimal + others)
    assert np.array_equal(mixed[:3], found)
    assert len(np.unique(mixed, axis=0)) == 8
    assert mixed[-1].tolist() == [0, 0]  # not known
    assert to_digests([]).shape == (0, 2)


@pytest.mark.parametrize("saved", [0, 2, 4])
def test_every_picture_is_found_in_the_first_shard_that_has_it(tmp_path: Path, saved: int):
    """Digests whose halves are alike, pictures in several shards, an index of none, some, or all of them."""
    generator = np.random.default_rng(1)
    all_ = np.stack([generator.integers(0, 5, 300), generator.integers(0, 30, 300)], axis=1).astype(np.uint64)
    truth: dict[tuple[int, int], tuple[int, int]] = {}
    folder = tmp_path / "f"
    for number in range(4):
        part = np.unique(all_[generator.choice(300, 40)], axis=0)
        part = part[generator.permutation(len(part))]
        write(folder, number, part)
        for row, digest in enumerate(part.tolist()):
            truth.setdefault(tuple(digest), (number, row))
        if number + 1 == saved:
            opened(folder).save()
    shard, row = opened(folder).find(all_)
    assert [(s, r) if s >= 0 else None for s, r in zip(shard.tolist(), row.tolist())] == [
        truth.get(tuple(digest)) for digest in all_.tolist()
    ]
    assert (shard < 0).any()


DAMAGE = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "flipped": lambda file: file.write_bytes(next(flips(file.read_bytes(), 1))),
    "foreign": lambda file: file.write_bytes(b"no index"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_without_a_sound_index_the_shards_are_read(tmp_path: Path, pixel_encoder, kind: str):
    images = small_array(60)
    first = encode(tmp_path, pixel_encoder, images).tensor().clone()
    (file,) = tmp_path.rglob(index.FILE)
    whole = file.read_bytes()
    DAMAGE[kind](file)
    counted(pixel_encoder)
    assert torch.equal(encode(tmp_path, pixel_encoder, images).tensor(), first)
    assert pixel_encoder.seen == 0
    assert file.read_bytes() == whole


def test_an_index_that_is_wrong_is_not_believed(tmp_path: Path, pixel_encoder):
    """Sound, but of other rows: a picture never gets another one's features."""
    images = small_array(60)
    first = encode(tmp_path, pixel_encoder, images).tensor().clone()
    (file,) = tmp_path.rglob(index.FILE)
    tensors, metadata = read_shard(file)
    rows = tensors["row"].clone()
    for wrong in (rows.flip(0), rows + 1000):
        replace_shard(file, tensors | {"row": wrong}, metadata)
        counted(pixel_encoder)
        assert torch.equal(encode(tmp_path, pixel_encoder, images).tensor(), first)
        assert pixel_encoder.seen == 0


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_pictures_of_a_lost_shard_are_encoded_again(tmp_path: Path, pixel_encoder, kind: str):
    images = small_array(60)
    stored = encode(tmp_path, pixel_encoder, images)
    first = stored.tensor().clone()
    DAMAGE[kind](stored.folder / "000001.safetensors")
    counted(pixel_encoder)
    torch.testing.assert_close(encode(tmp_path, pixel_encoder, images).tensor(), first)
    assert pixel_encoder.seen == 16
    if kind != "gone":  # a number is not given twice
        assert (stored.folder / "000001.safetensors").stat().st_size == 0
        assert (stored.folder / "000004.safetensors").stat().st_size > 0
    counted(pixel_encoder)
    encode(tmp_path, pixel_encoder, images)
    assert pixel_encoder.seen == 0


def test_an_index_that_cannot_be_written_stops_nobody(
    tmp_path: Path, pixel_encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(*_):
        raise UserError("no space left for 'index'")

    monkeypatch.setattr(index, "replace_shard", full)
    first = encode(tmp_path, pixel_encoder, small_array(20)).tensor()
    assert "without its index" in caplog.text
    assert torch.equal(encode(tmp_path, pixel_encoder, small_array(20)).tensor(), first)


def test_a_hundred_small_lists_leave_few_files_and_open_few(
    tmp_path: Path, pixel_encoder, monkeypatch: pytest.MonkeyPatch
):
    images, opened_shards = small_array(1000), []
    peek = index.peek
    monkeypatch.setattr(index, "peek", lambda path, name: opened_shards.append(path) or peek(path, name))
    counted(pixel_encoder)
    for start in range(0, 1000, 10):
        stored = encode(tmp_path, pixel_encoder, images.take(range(start, start + 10)))
    assert pixel_encoder.seen == 1000
    assert len(list(stored.folder.iterdir())) == 100 + 2  # shards, index, about
    assert len(opened_shards) < 1500  # 4950 without an index
    whole = encode(tmp_path, pixel_encoder, images)
    assert pixel_encoder.seen == 1000
    assert whole.readable.all()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links(tmp_path: Path, pixel_encoder, error: int, monkeypatch: pytest.MonkeyPatch):
    def refuse(self, target):
        raise OSError(error, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    images = small_array(40)
    first = encode(tmp_path / "c", pixel_encoder, images).tensor().clone()
    counted(pixel_encoder)
    assert torch.equal(encode(tmp_path / "c", pixel_encoder, images).tensor(), first)
    assert pixel_encoder.seen == 0
    (tmp_path / "new").write_text("new")
    (tmp_path / "there").write_text("there")
    assert not place_new(tmp_path / "new", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "there"
    assert place_new(tmp_path / "new", tmp_path / "free")
    assert (tmp_path / "free").read_text() == "new"


def test_what_was_killed_there_between_claim_and_content_blocks_nobody(tmp_path: Path, pixel_encoder):
    """An empty file has taken the number: the next one is used."""
    first = encode(tmp_path, pixel_encoder, small_array(16))
    (first.folder / "000001.safetensors").touch()
    again = encode(tmp_path, pixel_encoder, small_array(40))
    assert again.readable.all()
    assert sorted(path.name for path in again.folder.glob("0*.safetensors") if path.stat().st_size) == [
        "000000.safetensors", "000002.safetensors", "000003.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["features", "readable", "fingerprints", "errors", "width"])
def test_a_shard_of_something_else_is_encoded_again(tmp_path: Path, pixel_encoder, wrong: str):
    """Its checksum is right, and it does not hold what it says."""
    first = encode(tmp_path, pixel_encoder, small_array(16))
    path = first.folder / "000000.safetensors"
    tensors, metadata = read_shard(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if wrong == "errors":
        metadata = {}
    elif wrong == "width":
        tensors["features"] = tensors["features"][:, 1:].contiguous()
    else:
        tensors[wrong] = tensors[wrong][1:].contiguous()
    replace_shard(path, tensors, metadata)
    again = encode(tmp_path, pixel_encoder, small_array(16))
    assert again.readable.all()
    assert torch.equal(again.tensor(), first.tensor())


@pytest.mark.parametrize("wrong", ["high", "low", "shard", "row", "shards"])
def test_an_index_of_something_else_is_passed_over(tmp_path: Path, pixel_encoder, wrong: str):
    encode(tmp_path, pixel_encoder, small_array(16))
    found = opened(next((tmp_path / "features").iterdir()))
    found.save()
    tensors, metadata = read_shard(found.folder / "index.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if wrong == "shards":
        metadata = {"shards": []}
    else:
        tensors[wrong] = tensors[wrong][1:].contiguous()
    replace_shard(found.folder / "index.safetensors", tensors, metadata)
    assert encode(tmp_path, pixel_encoder, small_array(16)).readable.all()


@pytest.mark.parametrize("saved", [False, True])
def test_a_million_pictures_are_found_in_little_memory(tmp_path: Path, saved: bool):
    """All of ImageNet, shuffled, with and without the index file: the pictures' own fingerprints are not counted."""
    count, generator = 1_281_167, np.random.default_rng(0)
    digests = generator.integers(0, 2**64, (count, 2), dtype=np.uint64)
    for number, start in enumerate(range(0, count, 4096)):
        write(tmp_path / "f", number, digests[start : start + 4096])
    if saved:
        opened(tmp_path / "f").save()
    order = generator.permutation(count)
    fingerprints = [digest.tobytes().hex() for digest in digests[order].astype(">u8")]
    tracemalloc.start()
    try:
        shard, row = opened(tmp_path / "f").find(to_digests(fingerprints))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(shard, order // 4096)
    assert np.array_equal(row, order % 4096)
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"


def test_what_several_things_decide():
    """A known content has the fingerprint it always had; an unknown part leaves the whole unknown."""
    assert derived("ab", 512, 9) == hashlib.blake2b(b"ab|512|9", digest_size=16).hexdigest()
    assert derived("ab", "unreadable:PermissionError", "cell") == "unreadable:PermissionError"
    assert to_digests([derived("unreadable:OSError", 0, 1)]).tolist() == [[0, 0]]


def test_a_shard_that_this_user_may_not_read_is_as_good_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_new_shard(tmp_path, "00000", {"x": torch.ones(1)}, {})

    def refuse(path: Path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shards, "open_to_read", refuse)
    assert read_shard(tmp_path / "00000.safetensors") is None
    monkeypatch.undo()
    assert read_shard(tmp_path / "00000.safetensors") is not None  # nothing was emptied
