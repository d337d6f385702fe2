"""Stores of before, with a folder for every list: what they hold is not encoded again, and nothing else is taken."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data.test_index import counted
from old_store import FIXTURE, NAMES, ROWS, fixed_encoder, paint_all, write_old

from cbm.data import FeatureStore, old_store
from cbm.data.images import ImageFiles


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(old_store, "ROWS", ROWS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the store that f47ba49 wrote."""
    shutil.copytree(FIXTURE, tmp_path / "cache")
    return tmp_path / "cache"


def encode(root: Path, encoder, images, **options):
    return FeatureStore(root).encode(encoder, images, num_workers=0, batch_size=4, progress=False, **options)


def expected(encoder, images) -> torch.Tensor:
    return torch.stack([encoder.encode_images(encoder.preprocess(images.open(i))[None])[0] for i in range(len(images))])


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], NAMES[5:9], ["l.png", "a.png", "l.png"]], ids=len)
def test_a_store_of_before_is_read(root: Path, names: list[str]):
    encoder, images = counted(fixed_encoder()), ImageFiles(root / "pictures", names)
    before = {path: path.read_bytes() for path in root.rglob("*.safetensors")}
    for _ in range(2):  # from the old index, and from the new one
        stored = encode(root, encoder, images)
        assert encoder.seen == 0
        good = [row for row, name in enumerate(names) if name != "c.png"]
        assert np.flatnonzero(stored.readable).tolist() == good
        torch.testing.assert_close(stored.tensor(), expected(fixed_encoder(), images.take(good)))
        bad = ["c.png"] if "c.png" in names else []
        assert stored.errors == dict.fromkeys(bad, "OSError: image file is truncated")
    assert {path: path.read_bytes() for path in before} == before


def test_new_pictures_beside_old_ones(root: Path):
    paint_all(root.parent / "more")
    image = root.parent / "more" / "new.png"
    (root.parent / "more" / "c.png").write_bytes((root / "pictures" / "d.png").read_bytes())
    content = bytearray((root / "pictures" / "a.png").read_bytes())
    image.write_bytes(bytes(content) + b"\0")  # the same picture to the eye, other bytes
    encoder, images = counted(fixed_encoder()), ImageFiles(root.parent / "more", [*NAMES, "new.png"])
    stored = encode(root, encoder, images)
    assert encoder.seen == 1
    torch.testing.assert_close(stored.tensor(), expected(fixed_encoder(), images))


@pytest.mark.parametrize("other", ["width", "float16"])
def test_stores_of_other_encoders_and_types_are_left_alone(root: Path, other: str):
    encoder = counted(fixed_encoder(width=5 if other == "width" else 6))
    stored = encode(
        root, encoder, ImageFiles(root / "pictures", NAMES), dtype="float16" if other != "width" else "float32"
    )
    assert encoder.seen == 11
    assert stored.readable.sum() == 11


@pytest.mark.parametrize(("precision", "encoded"), [("fp32", 0), ("bf16", 12), ("fp16", 12)])
@pytest.mark.parametrize("about", [True, False])
def test_the_precision_is_told_by_the_folder_name(tmp_path: Path, precision: str, encoded: int, about: bool):
    """``about.json`` of before does not say it."""
    paint_all(tmp_path / "pictures")
    (tmp_path / "pictures" / "c.png").write_bytes((tmp_path / "pictures" / "a.png").read_bytes() + b"\0")
    encoder, images = counted(fixed_encoder()), ImageFiles(tmp_path / "pictures", NAMES)
    folder = write_old(tmp_path, encoder, images, precision)
    if not about:
        (folder / "about.json").unlink()
    for _ in range(2):
        stored = encode(tmp_path, encoder, images.take(range(12)))
        assert encoder.seen == encoded
        assert bool((stored.tensor() == 7).all()) == (encoded == 0)


def test_an_old_encoding_that_was_interrupted_goes_on(root: Path):
    """No index was written yet: the folder's name says that it is of this list."""
    (folder,) = (root / "features").iterdir()
    for name in ("about.json", "index.parquet"):
        (folder / name).unlink()
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    encoder, images = counted(fixed_encoder()), ImageFiles(root / "pictures", NAMES)
    stored = encode(root, encoder, images)
    assert encoder.seen == 2
    torch.testing.assert_close(stored.tensor(), expected(fixed_encoder(), images.take([0, 1, *range(3, 12)])))
    assert encode(root, encoder, images.take([3, 11])).readable.all()  # and is known from then on
    assert encoder.seen == 2


def test_a_damaged_old_shard_is_made_again(root: Path):
    encoder, images = counted(fixed_encoder()), ImageFiles(root / "pictures", NAMES)
    encode(root, encoder, images)
    shard = sorted(root.glob("features/*/00001-*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    stored = encode(root, encoder, images)
    assert encoder.seen == 5
    assert not shard.exists()
    torch.testing.assert_close(stored.tensor(), expected(fixed_encoder(), images.take([0, 1, *range(3, 12)])))


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1", None])
def test_a_damaged_old_index(root: Path, content: bytes | None):
    """The list itself is recognised, others are encoded anew."""
    (index,) = root.rglob("index.parquet")
    index.write_bytes(index.read_bytes()[: index.stat().st_size // 2] if content is None else content)
    encoder, images = counted(fixed_encoder()), ImageFiles(root / "pictures", NAMES)
    assert encode(root, encoder, images.take([0, 1])).readable.all()
    assert encoder.seen == 2
    assert encode(root, encoder, images).readable.sum() == 11
    assert encoder.seen == 2
