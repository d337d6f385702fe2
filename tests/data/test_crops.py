import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PixelEncoder, paint
from PIL import Image

from cbm.data import store as store_module
from cbm.data.crops import Crops, encode_crops
from cbm.data.encoded import Encoding
from cbm.data.feature_files import given_rows
from cbm.data.images import ImageArray, ImageFiles, store_keys
from cbm.data.webdataset import open_tars
from cbm.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        paint(tmp_path / "pictures" / name, (40 * i, 90, 200 - 30 * i), seed=i, size=25)
    return ImageFiles(tmp_path / "pictures", names)


@pytest.fixture
def settings(tmp_path: Path) -> Encoding:
    return Encoding(cache=tmp_path / "cache", batch_size=7, num_workers=0, progress=False)


def counting(images):
    """Count how often pictures are opened."""
    images.opened = []
    original = images.open

    def count(row, least=None):
        images.opened.append((row, least))
        return original(row, least)

    images.open = count
    return images


def test_the_cells_of_a_grid_cover_the_picture_once(files):
    picture = np.asarray(files.open(2))
    for side in (2, 3, 7):
        crops = Crops(files, (side,)).take(range(2 * side * side, 3 * side * side))
        pixels = [np.asarray(crops.open(row)) for row in range(side * side)]
        rows = [np.concatenate(pixels[start : start + side], axis=1) for start in range(0, side * side, side)]
        assert np.array_equal(np.concatenate(rows, axis=0), picture)  # 25 pixels: not a multiple of any


def test_names_and_boxes(files):
    crops = Crops(files)
    assert len(crops) == 5 * 13
    assert crops.names[:5] == ["0.png#2x2:1", "0.png#2x2:2", "0.png#2x2:3", "0.png#2x2:4", "0.png#3x3:1"]
    assert crops.names[-1] == "4.png#3x3:9"
    assert len(set(crops.names)) == len(crops)
    assert crops.image.tolist() == [i for i in range(5) for _ in range(13)]
    assert crops.box[1].tolist() == [0.5, 0, 1, 0.5]
    np.testing.assert_allclose(crops.box[4 + 5], [2 / 3, 1 / 3, 1, 2 / 3])
    some = crops.take([64, 1, 17])
    assert some.names == ["4.png#3x3:9", "0.png#2x2:2", "1.png#3x3:1"]
    assert some.image.tolist() == [4, 0, 1]
    assert np.array_equal(np.asarray(some.open(2)), np.asarray(crops.open(17)))
    assert len(crops.take([])) == 0


def test_a_picture_is_opened_once_for_all_its_crops(files, settings, pixel_encoder):
    counting(files)
    crops = Crops(files)
    for row in range(len(crops)):
        crops.open(row, 8)
    assert files.opened == [(i, 24) for i in range(5)]
    files.opened.clear()
    encode_crops(files, pixel_encoder, settings, "crops")
    assert len(files.opened) == 5
    crops.open(0)  # another size is another picture
    assert len(files.opened) == 6
    del files.open
    again = pickle.loads(pickle.dumps(crops))
    assert again._opened is None  # what a process that decodes is sent
    assert np.array_equal(np.asarray(again.open(3)), np.asarray(crops.open(3)))


def test_features_are_those_of_the_cut_picture(files, settings, pixel_encoder):
    found = encode_crops(files, pixel_encoder, settings, "crops")
    assert found.x.shape == (65, 16)
    assert len(found) == len(found.crops) == 65
    torch.testing.assert_close(found.x.norm(dim=1), torch.ones(65))
    for row in (0, 3, 12, 40, 64):
        picture = files.open(int(found.image[row]))
        left, top, right, bottom = (found.box[row] * 25 + 1e-9).astype(int).tolist()
        cut = picture.crop((left, top, right, bottom))
        expected = pixel_encoder.encode_images(pixel_encoder.preprocess(cut)[None])[0]
        torch.testing.assert_close(found.x[row], expected / expected.norm())
        assert found.names[row].startswith(f"{found.image[row]}.png#")


def test_every_crop_is_encoded_once(files, settings):
    encoder = PixelEncoder()
    seen = []
    original = encoder.image_features
    encoder.image_features = lambda pictures: seen.append(len(pictures)) or original(pictures)
    whole = encode_crops(files, encoder, settings, "crops")
    assert sum(seen) == 65
    seen.clear()
    some = encode_crops(files.take([3, 1]), encoder, settings, "crops", grids=(3,))
    assert seen == []  # another list, and fewer grids
    torch.testing.assert_close(some.x[:9], whole.x[3 * 13 + 4 : 4 * 13])
    more = encode_crops(files, encoder, settings, "crops", grids=[4, 2, 2])
    assert sum(seen) == 5 * 16
    assert len(more) == 5 * 20


def test_copies_and_other_cells(files, tmp_path):
    cache = tmp_path / "cache"
    (files.root / "copy.png").write_bytes((files.root / "0.png").read_bytes())
    crops = Crops(ImageFiles(files.root, ["0.png", "copy.png", "1.png"]))
    for keys in (crops.fingerprints(cache), crops.contents(cache)):
        assert keys[:13] == keys[13:26]
        assert len(set(keys)) == 26
        assert not set(keys) & set(files.fingerprints(cache))


def test_arrays_and_tars_as_files(files, settings, pixel_encoder, tmp_path):
    expected = encode_crops(files, pixel_encoder, settings, "files").x
    pixels = np.stack([np.asarray(files.open(i)) for i in range(5)])
    array = ImageArray(pixels, [f"a{i}" for i in range(5)])
    torch.testing.assert_close(encode_crops(array, pixel_encoder, settings, "array").x, expected)
    with tarfile.open(tmp_path / "pool.tar", "w") as tar:
        for name in files.names:
            content = (files.root / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    tars, _ = open_tars(tmp_path, ["pool.tar"], settings.cache)
    found = encode_crops(tars, pixel_encoder, settings, "tar")
    torch.testing.assert_close(found.x, expected)
    assert found.names[0] == "pool.tar/0.png#2x2:1"


def test_given_features_need_their_pictures(files, settings, pixel_encoder, tmp_path):
    np.savez(tmp_path / "x.npz", X=np.random.default_rng(0).normal(size=(5, 8)).astype("f4"))
    (given,) = given_rows(tmp_path / "x.npz")
    with pytest.raises(UserError, match=r"crops need the pictures.*dataset\.args\.images=FOLDER"):
        encode_crops(given, pixel_encoder, settings, "crops")
    given.shown = files
    assert len(encode_crops(given, pixel_encoder, settings, "crops")) == 65


def test_unreadable_and_tiny_pictures_are_left_out(files, settings, pixel_encoder, caplog):
    (files.root / "1.png").write_bytes(b"no picture")
    Image.new("RGB", (2, 40), "red").save(files.root / "3.png")
    found = encode_crops(files, pixel_encoder, settings, "crops of birds")
    assert len(found) == 3 * 13 + 4  # two pixels are enough for a grid of 2
    assert sorted(set(found.image.tolist())) == [0, 2, 3, 4]
    assert [name for name in found.names if name.startswith("3")] == [f"3.png#2x2:{i}" for i in (1, 2, 3, 4)]
    assert "crops of birds: 22 of 65 images could not be read and are skipped" in caplog.text
    with pytest.raises(UserError, match="1 x 1 pixels are too few for 2 x 2 cells"):
        encode_crops(ImageArray(np.zeros((1, 1, 1, 3), "u1"), ["dot"]), pixel_encoder, settings, "dots")


def test_a_large_photograph_is_decoded_at_a_fraction_and_known_by_that(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1024, 768)).save(tmp_path / "large.jpg")
    large = ImageFiles(tmp_path, ["large.jpg"])
    crops = Crops(large, (2, 4))
    assert crops.open(0).size == (512, 384)
    assert crops.open(0, 96).size == (256, 192)  # 3 x 96 suffice: half the size
    assert crops.open(4, 96).size == (128, 96)  # 4 x 96: half the size too
    assert crops.open(4, 100).size == (256, 192)
    keys, looks = crops.fingerprints(tmp_path), crops.looks(tmp_path)
    assert looks.tolist() == [256] * 4 + [192] * 16
    assert all(a != b for a, b in zip(keys, store_keys(keys, looks, 96)))
    assert [a != b for a, b in zip(keys, store_keys(keys, looks, 100))] == [True] * 4 + [False] * 16
    assert store_keys(keys, looks, 200) == keys
    assert crops.open(0, 200).size == (512, 384)


def test_many_crops_stay_on_disk(files, settings, pixel_encoder, monkeypatch):
    inside = encode_crops(files, pixel_encoder, settings, "crops").x
    monkeypatch.setattr(store_module, "IN_MEMORY", 0)
    mapped = encode_crops(files, pixel_encoder, settings, "crops").x
    torch.testing.assert_close(mapped, inside)
    assert list(settings.cache.glob("features/*/unit/*"))


@pytest.mark.parametrize("grids", [(), (1,), (9,), (2.5,)])
def test_grids_are_checked(files, grids):
    with pytest.raises(UserError, match=r"expected numbers of 2 to 8, such as 2 and 3"):
        Crops(files, grids)


def test_no_encoder(files, settings):
    with pytest.raises(UserError, match="no encoder"):
        encode_crops(files, None, settings, "crops")


def test_processes_that_decode(files, settings, pixel_encoder):
    alone = encode_crops(files, pixel_encoder, settings, "crops").x
    settings = replace(settings, cache=settings.cache / "other", num_workers=2, batch_size=20)
    torch.testing.assert_close(encode_crops(files, pixel_encoder, settings, "crops").x, alone)
