"""Pictures in tar files."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import COLOURS
from PIL import Image

from cbm.data import FeatureStore, read_dataset, webdataset
from cbm.data.copies import find_copies
from cbm.data.images import ImageFiles
from cbm.data.webdataset import open_tars, read_pool
from cbm.errors import UserError
from cbm.files.opening import LARGEST_PICTURE


def picture(colour: tuple[int, int, int], seed: int, kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).normal(0, 20, (12, 12, 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(content, kind)
    return content.getvalue()


def pack(file: Path, members: dict[str, bytes | str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def shards(root: Path, label=lambda c, name: {"cls": str(c)}) -> Path:
    """Two tar files for training, one for test; three colours."""
    for tar, (split, start) in enumerate((("train", 0), ("train", 12), ("test", 24))):
        members: dict[str, bytes | str] = {}
        for i in range(start, start + 12):
            name = list(COLOURS)[i % 3]
            members[f"s{i:04d}.png"] = picture(COLOURS[name], i)
            members |= {f"s{i:04d}.{ending}": text for ending, text in label(i % 3, name).items()}
        pack(root / split / f"{tar:05d}.tar", members)
    return root


def read(root: Path, cache: Path):
    return read_dataset("webdataset", "tars", root, {}, cache)


def test_numbers_with_class_names(tmp_path: Path):
    root = shards(tmp_path / "tars")
    (root / "classnames.txt").write_text("red\ngreen\nblue\n")
    data = read(root, tmp_path / "cache")
    assert data.classes == list(COLOURS)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 24, "test": 12}
    train = data.splits["train"]
    assert train.images.names[:2] == ["train/00000.tar/s0000.png", "train/00000.tar/s0001.png"]
    for row in (23, 0, 13):  # in any order, from either tar file
        pixels = np.asarray(train.images.open(row)).mean(axis=(0, 1))
        assert pixels.argmax() == train.labels[row]
    part = pickle.loads(pickle.dumps(train.take(np.array([5, 20]))))  # as a process that decodes gets it
    assert part.images.names == ["train/00000.tar/s0005.png", "train/00001.tar/s0020.png"]
    assert np.array_equal(np.asarray(part.images.open(1)), np.asarray(train.images.open(20)))
    (root / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(UserError, match="label 2, but '.*classnames.txt' names 2 classes"):
        read(root, tmp_path / "cache")


@pytest.mark.parametrize(
    "label",
    [
        lambda c, name: {"cls": name},
        lambda c, name: {"json": json.dumps({"label": name, "url": "x"}), "txt": "a caption"},
        lambda c, name: {"txt": name},
    ],
    ids=["cls", "json", "txt"],
)
def test_labels_in_words(label, tmp_path: Path):
    data = read(shards(tmp_path, label), tmp_path / "cache")
    assert data.classes == ["blue", "green", "red"]
    assert data.splits["test"].labels.tolist() == [2, 1, 0] * 4


def test_splits_in_the_names_of_files(tmp_path: Path):
    for name in ("imagenet1k-train-0000", "imagenet1k-validation-00"):
        pack(
            tmp_path / f"{name}.tar",
            {f"{c}.{e}": x for c in range(2) for e, x in (("jpg", picture((9, 9, 9), c, "JPEG")), ("cls", str(c)))},
        )
    assert {split: len(part) for split, part in read(tmp_path, tmp_path).splits.items()} == {"train": 2, "val": 2}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda c, name: {}, "36 of 36|24 of 24 pictures have no label.*first 'train/00000.tar/s0000.png'.*--pool"),
        (lambda c, name: {"txt": f"photo {os.urandom(8).hex()}"}, "36 different labels.*are they captions"),
        (lambda c, name: {"json": "{"}, "00000.tar': the JSON beside 's0000.png' is not JSON"),
    ],
)
def test_labels_that_are_none(label, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        read(shards(tmp_path, label), tmp_path / "cache")


def test_a_tar_file_is_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, cache = shards(tmp_path / "tars"), tmp_path / "cache"
    first, _ = open_tars(root, ["train/00000.tar"], cache)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("read again"))
        again, labels = open_tars(root, ["train/00000.tar"], cache)
    assert again.names == first.names
    assert labels[:3] == ["0", "1", "2"]
    index = next((cache / "tars").iterdir())
    index.write_bytes(b"damaged")
    assert open_tars(root, ["train/00000.tar"], cache)[0].names == first.names
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(index).drop_columns("label"), index)
    assert open_tars(root, ["train/00000.tar"], cache)[1] == labels
    pack(root / "train/00000.tar", {"new.png": picture((1, 2, 3), 0), "new.cls": "7"})
    changed, labels = open_tars(root, ["train/00000.tar"], cache)
    assert (changed.names, labels) == (["train/00000.tar/new.png"], ["7"])


def test_cut_off_and_compressed_files(tmp_path: Path):
    whole = pack(tmp_path / "a.tar", {f"{i}.png": picture((9, 9, 9), i) for i in range(20)}).read_bytes()
    for cut in (len(whole) // 2, 512 * 3, 512):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="a.tar' is (no tar file or is )?cut off after"):
            read_pool(tmp_path, tmp_path / "cache")
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match="a.tar' is no tar file"):
        read_pool(tmp_path, tmp_path / "cache")


def test_nothing_is_unpacked_whatever_a_member_is_called(tmp_path: Path):
    root = tmp_path / "tars"
    file = pack(
        root / "pool.tar",
        {"../../evil.png": picture((250, 0, 0), 0), "/etc/x.png": picture((0, 250, 0), 1), "._a.png": b"mac"},
    )
    with tarfile.open(file, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    pool = read_pool(root, tmp_path / "cache")
    assert pool.names == ["pool.tar/../../evil.png", "pool.tar//etc/x.png"]
    assert np.asarray(pool.open(0)).mean(axis=(0, 1)).argmax() == 0
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and "cache" not in path.parts]
    assert left == []


def test_through_the_feature_store(tmp_path: Path, pixel_encoder):
    root = shards(tmp_path / "tars")
    pack(root / "train/00009.tar", {"bad.png": b"no picture", "bad.cls": "1"})
    images = read(root, tmp_path / "cache").splits["train"].images
    store = FeatureStore(tmp_path / "cache")
    options = dict(num_workers=0, progress=False)
    stored = store.encode(pixel_encoder, images, **options)
    assert stored.readable.tolist() == [True] * 24 + [False]
    again = store.encode(pixel_encoder, images, **options)
    assert np.array_equal(again.tensor().numpy(), stored.tensor().numpy())
    one = store.encode(pixel_encoder, images.take([13]), **options)
    np.testing.assert_allclose(one.tensor().numpy(), stored.tensor()[13:14].numpy(), atol=1e-6)


def test_from_tar_files_to_a_run(tmp_path: Path, command):
    from birds_run import QUICK

    root = shards(tmp_path / "tars", lambda c, name: {"cls": name})
    status, errors = command(
        "train", "dataset=webdataset", f"dataset.root={root}", "method=linear_probe", *QUICK[:2], "cache=cache",
        "run_dir=run", "report=false",
    )  # fmt: skip
    assert status == 0, errors
    assert json.loads((tmp_path / "run/metrics.json").read_text())["data/n_test"] == 12


def test_a_pool_of_tar_files(tmp_path: Path, pixel_encoder):
    from cbm.concepts.codebook import encode_pool
    from cbm.data.encoded import Encoding

    settings = Encoding(tmp_path / "cache", num_workers=0)
    assert encode_pool(shards(tmp_path / "tars", lambda c, name: {}), pixel_encoder, settings).shape == (36, 16)


def test_two_members_of_one_name_are_refused(tmp_path: Path):
    for members in (["a.png", "b.png", "a.png"], ["a.png", "b.png", "./a.png"]):
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for number, name in enumerate(members):
                content = picture((9, 9, 9), number)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        with pytest.raises(UserError, match=r"t.tar' holds 1 picture\(s\) twice under one name, first 'a.png'"):
            read_pool(tmp_path, tmp_path / "cache")


def test_copies_are_found_wherever_they_lie(tmp_path: Path):
    """The fingerprint of a picture in a tar file is its place; copies are known by their bytes."""
    content = {f"{i}.png": picture(COLOURS["red"], i) for i in range(4)}
    pack(tmp_path / "tars/train/0.tar", content | {f"{i}.cls": "ab"[i % 2] for i in range(4)})
    other = {"x.png": content["1.png"], "x.cls": "b", "y.png": picture(COLOURS["blue"], 9), "y.cls": "a"}
    pack(tmp_path / "tars/test/0.tar", other)
    (tmp_path / "tars/same.png").write_bytes(content["1.png"])
    data = read(tmp_path / "tars", tmp_path / "cache")
    found = find_copies(data, tmp_path / "cache")
    assert found.leaks == {("test", "train"): [("test/0.tar/x.png", "train/0.tar/1.png")]}
    one = ImageFiles(tmp_path / "tars", ["same.png"]).contents(tmp_path / "cache")
    assert data.splits["train"].images.contents(tmp_path / "cache")[1:2] == one
    assert data.splits["train"].images.take([2, 1]).contents(tmp_path / "cache")[1:] == one


def test_a_tar_file_is_read_once_for_all_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pack(tmp_path / "t.tar", {f"{i}.png": picture((9, 9, 9), i) for i in range(5)})
    pool = read_pool(tmp_path, tmp_path / "cache")
    before = ImageFiles(tmp_path, ["t.tar"]).fingerprints(tmp_path / "elsewhere")
    pool.looks(tmp_path / "cache")
    monkeypatch.setattr(webdataset, "look", lambda file: pytest.fail("read again"))
    monkeypatch.setattr("cbm.data.images._file_hash", lambda file: pytest.fail("read again"))
    assert len(set(pool.contents(tmp_path / "cache"))) == 5
    assert len(set(pool.fingerprints(tmp_path / "cache"))) == 5
    assert ImageFiles(tmp_path, ["t.tar"]).fingerprints(tmp_path / "cache") == before


def test_pictures_to_evaluate_and_members_that_are_not_read(tmp_path: Path):
    members = {f"{i}.{e}": x for i in range(4) for e, x in (("png", picture((9, 9, 9), i)), ("cls", "ab"[i % 2]))}
    others = {"1.npy": b"x", "2.mp4": b"x", "3.mp4": b"x", "__MACOSX/._1.png": b"x", ".DS_Store": b"x"}
    pack(tmp_path / "tars/test-0.tar", members | others)
    data = read(tmp_path / "tars", tmp_path / "cache")
    assert list(data.splits) == ["test"]
    assert data.doubts == ["3 file(s) are not read as images: 2 .mp4, 1 .npy"]


def head(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def with_hole(file: Path, name: str, size: int, kind: bytes = tarfile.REGTYPE) -> None:
    """A member of gigabytes that takes no space, and a good picture behind it."""
    good = picture(COLOURS["red"], 0)
    with file.open("wb") as content:
        content.write(head(name, size, kind))
        content.seek(512 + -(-size // 512) * 512)
        content.write(head("b.png", len(good)) + good.ljust(-(-len(good) // 512) * 512, b"\0") + bytes(1024))


def peak(call) -> float:
    """Gigabytes that a call takes in Python at most."""
    import tracemalloc

    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e9
    finally:
        tracemalloc.stop()


def test_a_picture_of_gigabytes_is_one_that_cannot_be_read(tmp_path: Path):
    with_hole(tmp_path / "t.tar", "a.png", LARGEST_PICTURE + 1)

    def use() -> None:
        images, _ = open_tars(tmp_path, ["t.tar"], tmp_path / "cache")
        assert images.names == ["t.tar/a.png", "t.tar/b.png"]
        with pytest.raises(ValueError, match=f"'t.tar/a.png' has {LARGEST_PICTURE + 1:,} bytes, more than a picture"):
            images.open(0)
        assert images.open(1).size == (12, 12)
        assert images.contents(tmp_path / "cache")[0].startswith("unreadable")

    assert peak(use) < 0.05


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes):
    with_hole(tmp_path / "t.tar", "././@LongLink", 2600 << 20, kind)

    def use() -> None:
        with pytest.raises(UserError, match="it states a part of 2,726,297,600 bytes"):
            open_tars(tmp_path, ["t.tar"], tmp_path / "cache")

    assert peak(use) < 0.05


def test_a_size_below_nothing(tmp_path: Path):
    block = bytearray(head("a.png", 0))
    block[124:136] = b"\xff" * 11 + b"\xfe"  # -2 in base 256
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    (tmp_path / "t.tar").write_bytes(bytes(block) + bytes(1024))
    with pytest.raises(UserError, match=r"t\.tar'"):
        open_tars(tmp_path, ["t.tar"], tmp_path / "cache")


def test_names_that_are_not_utf_8(tmp_path: Path):
    pack(tmp_path / "t.tar", {"caf.png": picture(COLOURS["red"], 0), "caf.cls": "x"})
    content = bytearray((tmp_path / "t.tar").read_bytes())
    for start in (0, content.index(b"caf.cls")):
        content[start + 2 : start + 3] = b"\xe9"
        content[start + 148 : start + 156] = b"%06o\0 " % (
            sum(content[start : start + 148]) + 256 + sum(content[start + 156 : start + 512])
        )
    (tmp_path / "t.tar").write_bytes(bytes(content))
    images, labels = open_tars(tmp_path, ["t.tar"], tmp_path / "cache")
    assert images.names == ["t.tar/ca\\udce9.png"]
    assert labels == ["x"]
    assert images.open(0).size == (12, 12)


@pytest.mark.parametrize("name", ["t.tar", "t/t.tar"])
def test_a_tar_file_that_is_a_pipe(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises((UserError, OSError), match="not a regular file"):
        open_tars(tmp_path, [name], tmp_path / "cache")
