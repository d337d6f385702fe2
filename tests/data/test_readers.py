from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, paint

from cbm.data import read_dataset
from cbm.errors import UserError


def test_class_folders(colour_folder: Path):
    data = read_dataset("folder", "folder", colour_folder, {})
    assert data.classes == ["blue", "green", "red"]
    assert len(data.splits["train"]) == 60
    assert data.splits["train"].images.names[0] == "blue/00.png"
    assert data.splits["train"].images.open(0).mode == "RGB"


def test_split_folders_with_other_names(tmp_path: Path):
    for split in ("training", "valid"):
        for name, colour in COLOURS.items():
            paint(tmp_path / split / name / "a.png", colour, 0)
    data = read_dataset("folder", "folder", tmp_path, {})
    assert set(data.splits) == {"train", "val"}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: [p.unlink() for p in root.rglob("*.png")], r"class folder '.*blue' \(and 2 more\) has no images"),
        (lambda root: [__import__("shutil").rmtree(root / c) for c in ("red", "blue")], "two classes or more.*'green'"),
        (lambda root: __import__("shutil").rmtree(root), "no folder '.*colours'"),
        (lambda root: [__import__("shutil").rmtree(root / c) for c in COLOURS], "has no class folders"),
    ],
)
def test_folders_that_cannot_be_learned_from(colour_folder: Path, break_it, message: str):
    break_it(colour_folder)
    with pytest.raises(UserError, match=message):
        read_dataset("folder", "folder", colour_folder, {})


def test_a_class_only_in_test(tmp_path: Path):
    for name in ("red", "green"):
        paint(tmp_path / "train" / name / "a.png", COLOURS[name], 0)
    paint(tmp_path / "test" / "gren" / "a.png", COLOURS["green"], 0)
    with pytest.raises(UserError, match="class 'gren' is in test but not in train.*did you mean 'green'"):
        read_dataset("folder", "folder", tmp_path, {})


def write_table(root: Path, text: str) -> Path:
    for name in ("a", "b", "c"):
        paint(root / f"{name}.png", COLOURS["red"], 0)
    (root / "images.csv").write_text(text)
    return root / "images.csv"


def test_table_with_concepts_and_splits(tmp_path: Path):
    table = write_table(
        tmp_path, "path,label,split,red,has edge\na.png,x,train,1,\nb.png,y,train,0,1\nc.png,x,test,1,0\n"
    )
    for root in (table, tmp_path):
        data = read_dataset("csv", "t", root, {})
        assert data.concept_names == ["red", "has edge"]
        np.testing.assert_array_equal(data.splits["train"].concepts, [[1, np.nan], [0, 1]])
        assert data.splits["test"].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nummer,label\na.png,x\n", "no column 'path' .*columns: nummer, label.*args.path_column=COLUMN"),
        ("path,lable\na.png,x\n", "no column 'label'.*did you mean 'lable'"),
        ("path,label\na.png,x\nd.png,y\n", "names 1 file.* not there, first: 'd.png'"),
        ("path,label,red\na.png,x,1\nb.png,y,maybe\n", "column 'red' of 'b.png' is 'maybe'"),
        ("path,label,split\na.png,x,train\nb.png,y,tets\n", "line 3: unknown split 'tets'"),
        ("path,label\na.png,\n", "line 2: path and label must not be empty"),
        ("path,label\n", "has no rows"),
        ("", "no column 'path'"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        read_dataset("csv", "t", write_table(tmp_path, text), {})


def test_unknown_reader_argument_and_missing_root(tmp_path: Path):
    with pytest.raises(UserError, match="unknown reader 'foldr': did you mean 'folder'"):
        read_dataset("foldr", "t", tmp_path, {})
    with pytest.raises(UserError, match=r"dataset.args.varient.*did you mean 'variant'"):
        read_dataset("birds", "t", tmp_path, {"varient": "birds"})
    with pytest.raises(UserError, match="say dataset.root="):
        read_dataset("folder", "t", None, {})


def test_cifar_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torchvision.datasets

    def refuse(*args, **kwargs):
        raise RuntimeError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    with pytest.raises(UserError, match="could not be downloaded.*dataset=folder"):
        read_dataset("torchvision", "cifar10", tmp_path, {"dataset": "CIFAR10"})


def test_cifar_in_torchvisions_format(tmp_path: Path):
    """The reader goes through torchvision itself: files in its on-disk format, without a download."""
    import pickle
    import tarfile  # noqa: F401

    import torchvision.datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    kind = torchvision.datasets.CIFAR10
    for name, _ in kind.train_list + kind.test_list:
        content = {"data": rng.integers(0, 255, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({"label_names": names}))
    check = "torchvision.datasets.cifar.check_integrity"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, lambda *a, **k: True)
        data = read_dataset("torchvision", "cifar10", tmp_path, {"dataset": "CIFAR10", "download": False})
    assert data.classes == names
    assert len(data.splits["train"]) == 50
    assert len(data.splits["test"]) == 10
    assert data.splits["test"].images.open(3).size == (32, 32)
