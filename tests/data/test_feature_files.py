"""Features made elsewhere, in the layouts that people have: the right rows, labels, splits and names, or one line."""

import re
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import COLOURS, paint
from hypothesis import example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cbm.data import given, read_dataset
from cbm.data.copies import find_copies
from cbm.data.encoded import Encoding, encode_splits
from cbm.data.feature_files import given_rows
from cbm.data.given import GivenFeatures
from cbm.data.images import NoImage
from cbm.errors import UserError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(12, 5)).astype(np.float32)
Y = np.arange(12) % 3
CLASSES = np.array(["cat", "dog", "emu"])
UNIT = X / np.linalg.norm(X, axis=1, keepdims=True)


def read(root: Path, **args):
    return read_dataset("features", "mine", root, args, root.parent / "cache", to_train=False)


def features(dataset, split: str = "train") -> np.ndarray:
    _, data = encode_splits(dataset, None, Encoding(Path("cache"), progress=False), (split,))
    return data.splits[split].x.numpy()


def assert_whole(dataset, split: str = "train", classes=tuple(CLASSES)):
    assert dataset.classes == list(classes)
    assert dataset.splits[split].labels.tolist() == Y.tolist()
    np.testing.assert_allclose(features(dataset, split), UNIT, atol=1e-6)


def test_splits_by_names_in_one_file(tmp_path: Path):
    np.savez(tmp_path / "f.npz", X_train=X[:6], y_train=Y[:6], X_test=X[6:], y_test=Y[6:], classes=CLASSES)
    dataset = read(tmp_path / "f.npz")
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.classes == list(CLASSES)
    np.testing.assert_allclose(features(dataset, "test"), UNIT[6:], atol=1e-6)
    assert dataset.splits["test"].images.names[0] == "test/0000000"


@pytest.mark.parametrize(
    "key", ["validation/features", "features_val", "VAL.Features", "dev-emb", "valid_image_features"]
)
def test_names_of_splits_are_read_as_people_write_them(tmp_path: Path, key: str):
    labels = re.sub("(image_)?features|emb", "labels", key, flags=re.I)
    np.savez(tmp_path / "f.npz", **{key: X, labels: Y})
    assert list(read(tmp_path / "f.npz").splits) == ["val"]


def test_splits_by_an_array_and_labels_that_are_names(tmp_path: Path):
    split = np.array(["train", "test", "validation"])[np.arange(12) % 3]
    np.savez(tmp_path / "f.npz", embeddings=X, labels=CLASSES[Y], split=split)
    dataset = read(tmp_path / "f.npz")
    assert list(dataset.splits) == ["train", "val", "test"]
    np.testing.assert_allclose(features(dataset, "val"), UNIT[2::3], atol=1e-6)
    np.savez(tmp_path / "g.npz", embeddings=X, labels=CLASSES[Y], split=np.where(Y == 0, "trian", "test"))
    with pytest.raises(UserError, match="unknown split 'trian', choose one of train, val, test"):
        read(tmp_path / "g.npz")


def test_a_folder_of_npy_files(tmp_path: Path):
    root = tmp_path / "f"
    for split, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        (root / split).mkdir(parents=True)
        np.save(root / split / "features.npy", X[rows].astype(np.float16))
        np.save(root / split / "labels.npy", Y[rows])
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    dataset = read(root)
    assert dataset.classes == list(CLASSES)
    np.testing.assert_allclose(features(dataset, "test"), UNIT[8:], atol=1e-3)
    assert dataset.splits["train"].features.parts[0].dtype == torch.float16


def test_one_file_with_its_labels_beside_it(tmp_path: Path):
    np.save(tmp_path / "clip.npy", X)
    np.save(tmp_path / "clip_labels.npy", Y)
    np.save(tmp_path / "other.npy", X)  # of something else
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert_whole(read(tmp_path / "clip.npy"))
    (tmp_path / "clip_labels.npy").rename(tmp_path / "mine.npy")
    assert_whole(read(tmp_path / "clip.npy", labels="mine.npy"))
    with pytest.raises(UserError, match="clip.npy. are features without labels: expected an array .* called y"):
        read(tmp_path / "clip.npy")
    (tmp_path / "metadata.csv").write_text("label\n" + "\n".join(CLASSES[Y]))
    assert_whole(read(tmp_path / "clip.npy"))


@pytest.mark.parametrize("fixed", [False, True])
def test_a_table_with_a_column_of_features(tmp_path: Path, fixed: bool):
    kind = arrow.list_(arrow.float32(), 5) if fixed else arrow.list_(arrow.float32())
    table = {
        "image_path": [f"{CLASSES[y]}/{i}.jpg" for i, y in enumerate(Y)],
        "clip": arrow.array(list(X), type=kind),
        "label": Y,
        "class_name": CLASSES[Y],
        "caption": ["text"] * 12,
        "spotted": (Y == 1).astype(int),
    }
    parquet.write_table(arrow.table(table), tmp_path / "f.parquet", row_group_size=5)
    dataset = read(tmp_path / "f.parquet", concepts=["spotted"], features="clip")
    assert_whole(dataset)
    assert dataset.concept_names == ["spotted"]
    assert dataset.splits["train"].concepts[:, 0].tolist() == (Y == 1).tolist()
    assert dataset.splits["train"].images.names[1] == "dog/1.jpg"
    assert read(tmp_path / "f.parquet").classes == list(CLASSES)  # the only column of lists
    assert read(tmp_path / "f.parquet", labels="label").classes == ["0", "1", "2"]


def test_embedding_dumps_as_they_are_published(tmp_path: Path):
    root = tmp_path / "dump"
    for folder in ("img_emb", "text_emb", "metadata"):
        (root / folder).mkdir(parents=True)
    order = [(0, slice(0, 5)), (1, slice(5, 6)), (10, slice(6, 12))]
    for number, rows in order:
        np.save(root / "img_emb" / f"img_emb_{number}.npy", X[rows].astype(np.float16))
        np.save(root / "text_emb" / f"text_emb_{number}.npy", -X[rows])
        paths = [f"train/{CLASSES[y]}/{i}.jpg" for i, y in enumerate(Y)][rows]
        captions = ["a picture"] * len(paths)
        table = arrow.table({"image_path": paths, "caption": captions})
        parquet.write_table(table, root / "metadata" / f"metadata_{number}.parquet")
    dataset = read(root, labels_from_paths=True)
    assert dataset.classes == list(CLASSES)
    assert dataset.splits["train"].labels.tolist() == Y.tolist()
    np.testing.assert_allclose(features(dataset), UNIT, atol=1e-3)
    with pytest.raises(UserError, match="labels_from_paths=true"):
        read(root)
    (root / "metadata" / "metadata_10.parquet").unlink()
    with pytest.raises(UserError, match="6 entries, .* 12 rows of features"):
        read(root, labels_from_paths=True)


def test_labels_of_every_form(tmp_path: Path):
    one_hot = np.eye(3)[Y]
    for number, labels in enumerate(
        (Y.astype(np.float64), one_hot, one_hot.astype(bool), Y[:, None], Y.astype(np.int8))
    ):
        np.savez(tmp_path / f"{number}.npz", X=X, y=labels, classes=CLASSES)
        assert_whole(read(tmp_path / f"{number}.npz"))
    np.savez(tmp_path / "n.npz", X=X, y=Y + 7)
    assert_whole(read(tmp_path / "n.npz"), classes=("7", "8", "9"))
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "x.npy", X)
    (tmp_path / "t" / "labels.csv").write_text("label\n" + "\n".join(str(9 + y) for y in Y))
    assert_whole(read(tmp_path / "t"), classes=("9", "10", "11"))  # by size, not as text


def test_labels_and_classes_as_they_are_found(tmp_path: Path):
    torch.save((torch.from_numpy(X), torch.from_numpy(Y)), tmp_path / "pair.pt")
    assert_whole(read(tmp_path / "pair.pt"), classes=("0", "1", "2"))
    np.savez(tmp_path / "sk.npz", data=X, target=Y, target_names=CLASSES)
    assert_whole(read(tmp_path / "sk.npz"))
    np.save(tmp_path / "pair.npy", X)  # beside pair.pt, which is another set
    with pytest.raises(UserError, match="pair.npy. are features without labels"):
        read(tmp_path / "pair.npy")
    root = tmp_path / "folder"
    root.mkdir()
    np.save(root / "x.npy", X)
    np.save(root / "y.npy", Y)
    for content in ('{"1": "dog", "0": "cat", "2": "emu"}', '{"emu": 2, "cat": 0, "dog": 1}', '["cat", "dog", "emu"]'):
        (root / "classes.json").write_text(content)
        assert_whole(read(root))
    (root / "y.npy").unlink()
    (root / "labels.txt").write_text("\n".join(CLASSES[Y]) + "\n\n")
    assert_whole(read(root))


def test_a_label_that_is_missing_is_said_and_moves_no_other(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    lines = CLASSES[Y].tolist()
    (tmp_path / "labels.txt").write_text("\n".join([lines[0], "", *lines[2:]]))
    with pytest.raises(UserError, match="1 image.s. have no label, first 'row/0000001'"):
        read(tmp_path / "x.npy")
    (tmp_path / "labels.txt").write_text("\n".join([lines[0], "", *lines[1:]]))
    with pytest.raises(UserError, match="has 13 labels"):
        read(tmp_path / "x.npy")
    table = arrow.table({"emb": list(X), "label": arrow.array([None, *lines[1:]])})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="1 image.s. have no label, first 'row/0000000'"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("arrays", "args", "said"),
    [
        ({"X": X, "y": Y[:5]}, {}, r"has 5 labels, but the features are \[12, 5\] \(are its rows and columns exch"),
        ({"X": X, "y": Y[:7]}, {}, r"has 7 labels, but the features are \[12, 5\]$"),
        ({"X": X, "y": Y + 1, "classes": CLASSES}, {}, "labels are 1 to 3, but there are 3 class names.*from 0"),
        ({"X": X, "y": Y + 0.5}, {}, "the label of 'row/0000000' is 0.5; expected a whole number"),
        ({"X": X, "y": np.ones((12, 3))}, {}, "expected one label per image, or rows with one 1"),
        ({"X": X, "features": X, "y": Y}, {}, "could both be the features: say dataset.args.features=NAME"),
        ({"a": X, "b": X, "y": Y}, {}, r"several arrays could be the features \('a', 'b'\)"),
        ({"X": X.astype(np.int32), "y": Y}, {}, r"no array could be the features \(\[N, D\] floats\)"),
        ({"X": X, "X_train": X, "y": Y, "y_train": Y}, {}, "features of no split .* beside those of train"),
        ({"X": X, "y": CLASSES[Y], "classes": np.array(["cat", "dog", "emu2"])}, {}, "did you mean 'emu2'"),
        ({"X": X, "y": Y, "concepts": np.ones((12, 2))}, {}, "has 2 columns, and no names"),
        ({"X": X, "y": Y, "concepts": np.full((12, 1), 2.0), "concept_names": np.array(["red"])}, {}, "of row 0 is 2"),
        ({"X": X, "y": Y}, {"concepts": ["red"]}, "there is no array or column 'red'"),
        ({"X": X, "y": Y, "names": np.array(["a"] * 3)}, {}, "3 entries, .* 12 rows"),
        ({"X": X, "y": Y}, {"images": "nowhere"}, "dataset.args.images=nowhere: there is no"),
        ({"X": X, "y": Y}, {"label": "y"}, "unknown setting 'dataset.args.label'.*did you mean 'labels'"),
        ({"X": X[0], "y": Y}, {}, "no array could be the features"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path: Path, arrays: dict, args: dict, said: str):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "f.npz", **args)


def test_rows_that_cannot_be_used_are_skipped_and_counted(tmp_path: Path):
    x = np.concatenate([X] * 30)
    x[3], x[100, 2] = 0, np.nan
    np.savez(tmp_path / "f.npz", X=x, y=np.concatenate([Y] * 30))
    dataset = read(tmp_path / "f.npz")
    settings = Encoding(tmp_path / "cache", progress=False)
    taken, data = encode_splits(dataset, None, settings, ("train",))
    assert data.skipped == {"train": ["row/0000003", "row/0000100"]}
    assert len(data.train) == 358
    assert "row/0000003" not in taken.splits["train"].images.names
    x[4] = np.inf
    x[5] = np.inf
    np.savez(tmp_path / "g.npz", X=x, y=np.concatenate([Y] * 30))
    with pytest.raises(UserError, match="4 of 360 .* 'row/0000003': its features are NaN, infinite or zero"):
        encode_splits(read(tmp_path / "g.npz"), None, settings, ("train",))


def test_images_are_shown_where_they_are(tmp_path: Path):
    for i, y in enumerate(Y):
        paint(tmp_path / "pictures" / f"{i}.png", list(COLOURS.values())[y], seed=i)
    names = np.array([f"pictures/{i}.png" for i in range(12)])
    np.savez(tmp_path / "f.npz", X=X, y=Y, paths=names)
    images = read(tmp_path / "f.npz").splits["train"].images
    assert images.open(3).size == (24, 24)
    assert images.take([5]).names == ["pictures/5.png"]
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "elsewhere" / "f.npz", X=X, y=Y, paths=names)
    with pytest.raises(NoImage, match="known by its features only"):
        read(tmp_path / "elsewhere" / "f.npz").splits["train"].images.open(0)
    images = read(tmp_path / "elsewhere" / "f.npz", images=str(tmp_path)).splits["train"].images
    assert images.open(0).size == (24, 24)
    pixels = GENERATOR.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "p.npz", X=X, y=Y, images=pixels)
    images = read(tmp_path / "p.npz").splits["train"].images.take([7, 2])
    assert np.array_equal(np.asarray(images.open(1)), pixels[2])


def test_two_rows_of_one_name_are_told_apart(tmp_path: Path):
    np.savez(tmp_path / "f.npz", X=X, y=Y, names=np.array(["a", "b"] * 6))
    names = read(tmp_path / "f.npz").splits["train"].images.names
    assert names[:4] == ["a", "b", "a (2)", "b (2)"]
    assert len(set(names)) == 12


def test_equal_features_in_two_splits_are_a_leak(tmp_path: Path):
    np.savez(tmp_path / "f.npz", X_train=X, y_train=Y, X_test=X[:2], y_test=Y[:2])
    leaks = find_copies(read(tmp_path / "f.npz"), tmp_path / "cache").leaks
    assert leaks[("test", "train")] == [("test/0000000", "train/0000000"), ("test/0000001", "train/0000001")]


def test_features_without_labels_are_rows_to_classify(tmp_path: Path):
    np.save(tmp_path / "new.npy", X)
    (images,) = given_rows(tmp_path / "new.npy")
    assert len(images.features) == 12
    assert images.names[11] == "row/0000011"


@example([1, 8, 4, 8, 5], 2, 3)  # rows of another part between two of one part
@settings(max_examples=30, deadline=None)
@drawn(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31 - 1), st.integers(1, 7))
def test_rows_from_several_parts_are_those_asked_for(lengths: list[int], seed: int, size: int):
    generator = np.random.default_rng(seed)
    parts = [torch.from_numpy(generator.normal(size=(n, 3)).astype(np.float32)) for n in lengths]
    whole = torch.cat(parts)
    names = [str(i) for i in range(len(whole))]
    store = GivenFeatures(parts, "key", names, Path("cache"))
    chosen = np.sort(generator.choice(len(whole), generator.integers(1, len(whole) + 1), replace=False))
    taken = store.take(chosen)
    again = generator.integers(0, len(chosen), 5)
    assert torch.equal(torch.cat(list(taken.blocks(size=size))), whole[torch.from_numpy(chosen)])
    assert torch.equal(torch.cat(list(taken.blocks(again, size))), whole[torch.from_numpy(chosen[again])])
    assert taken.names == [names[row] for row in chosen]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_many_features_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype):
    monkeypatch.setattr(given, "IN_MEMORY", 10)
    np.save(tmp_path / "x.npy", X.astype(dtype))
    np.save(tmp_path / "y.npy", Y)
    split = read(tmp_path / "x.npy").splits["train"]
    rows = np.array([0, 2, 3, 11])
    found = split.features.unit_rows(rows, [split.images.names[row] for row in rows])
    assert found.dtype == (torch.float16 if dtype == np.float16 else torch.float32)
    np.testing.assert_allclose(found.float().numpy(), UNIT[rows], atol=2e-3)
    (copy,) = (tmp_path / "cache" / "given").glob("*.safetensors")
    written = copy.stat().st_mtime_ns
    split.features.unit_rows(rows, [])
    assert copy.stat().st_mtime_ns == written
    np.save(tmp_path / "x.npy", (2 * X[::-1]).astype(dtype))  # another file of the same name
    split = read(tmp_path / "x.npy").splits["train"]
    found = split.features.unit_rows(rows, [split.images.names[row] for row in rows])
    np.testing.assert_allclose(found.float().numpy(), UNIT[::-1][rows], atol=2e-3)


@pytest.mark.parametrize("role", ["features", "names", "split", "subject"])
def test_a_name_that_is_not_there_is_not_passed_over(tmp_path: Path, role: str):
    np.savez(tmp_path / "f.npz", X=X, y=Y)
    with pytest.raises(UserError, match=f"dataset.args.{role}=XX: .* has no such array"):
        read(tmp_path / "f.npz", **{role: "XX"})


def test_lists_of_the_command_line(tmp_path: Path):
    np.savez(tmp_path / "f.npz", X=X, y=Y)
    assert_whole(read(tmp_path / "f.npz", classes=OmegaConf.create(CLASSES.tolist())))


@pytest.mark.parametrize(
    ("features_file", "labels_file", "split"),
    [
        ("train", "train_labels", "train"),
        ("emb_test", "emb_test_labels", "test"),
        ("emb_val", "labels", "val"),
        ("X_train", "y_train", "train"),
    ],
)
def test_labels_beside_a_file_whose_name_says_its_split(
    tmp_path: Path, features_file: str, labels_file: str, split: str
):
    np.save(tmp_path / f"{features_file}.npy", X)
    np.save(tmp_path / f"{labels_file}.npy", CLASSES[Y])
    np.save(tmp_path / "y_other.npy", Y[:3])
    assert_whole(read(tmp_path / f"{features_file}.npy"), split)


def test_parts_that_do_not_go_together(tmp_path: Path):
    for number in range(3):
        rows = slice(4 * number, 4 * number + 4)
        for folder, name, values in (("img_emb", "img_emb", X[rows]), ("label", "label", CLASSES[Y][rows])):
            (tmp_path / "dump" / folder).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "dump" / folder / f"{name}_{number}.npy", values)
    assert_whole(read(tmp_path / "dump"))
    (tmp_path / "dump/img_emb/img_emb_1.npy").unlink()
    (tmp_path / "dump/label/label_2.npy").unlink()  # as many rows of either, but not the same
    with pytest.raises(UserError, match="img_emb_2.npy. and .*label_1.npy. have other numbers: is a part missing"):
        read(tmp_path / "dump")
    for model in ("b16", "b32"):
        (tmp_path / "models" / model).mkdir(parents=True)
        np.save(tmp_path / "models" / model / "features.npy", X)
        np.save(tmp_path / "models" / model / "labels.npy", Y)
    with pytest.raises(UserError, match="have the same labels: are they features of several models"):
        read(tmp_path / "models")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([b"caf\xe9", b"tea", b"x"] * 4), "y holds bytes that are not UTF-8"),
        (Y.astype(complex), "y is of type complex128: expected numbers or text"),
        (Y.astype("M8[s]"), "y is of type datetime64"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray, said: str):
    np.savez(tmp_path / "f.npz", X=X, y=labels)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "f.npz")


def test_large_numbers_stay_apart(tmp_path: Path):
    np.savez(tmp_path / "f.npz", X=X, y=Y + float(1 << 24))
    assert_whole(read(tmp_path / "f.npz"), classes=("16777216", "16777217", "16777218"))


def test_truth_values_of_which_some_are_missing(tmp_path: Path):
    several = arrow.table({"emb": X.tolist() * 2000, "label": [True, False] * 11_999 + [True, None]})
    parquet.write_table(several, tmp_path / "f.parquet")  # the missing one is read after whole batches
    with pytest.raises(UserError, match="label of 'row/0023999' is nan"):
        read(tmp_path / "f.parquet")


def test_pictures_in_a_table_are_not_names(tmp_path: Path):
    for value in ({"bytes": b"x", "path": "a.jpg"}, b"x"):
        parquet.write_table(arrow.table({"emb": X.tolist(), "label": Y, "image": [value] * 12}), tmp_path / "f.parquet")
        assert_whole(read(tmp_path / "f.parquet"), classes=("0", "1", "2"))


def test_names_told_apart_stay_apart(tmp_path: Path):
    np.savez(tmp_path / "f.npz", X=X, y=Y, names=["a", "a", "a (2)"] * 4)
    names = read(tmp_path / "f.npz").splits["train"].images.names
    assert len(set(names)) == 12
    assert names[:3] == ["a", "a (3)", "a (2)"]
