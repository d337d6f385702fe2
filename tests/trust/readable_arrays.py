"""Every layout of features, vectors, predictions and dictionaries, small and valid, with what reads it."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import safetensors.torch
import torch
from trust.readable import Readable, tree

from cbm.concepts import read_bank
from cbm.data import read_dataset
from cbm.data.feature_files import given_rows
from cbm.errors import UserError
from cbm.files.arrays import read_arrays
from cbm.files.dictionaries import Dictionary, read_dictionary, write_dictionary
from cbm.files.label_predictions import LabelPredictions, read_label_predictions, write_label_predictions
from cbm.files.predictions import Predictions, read_predictions_file, write_predictions
from cbm.files.vectors import read_vectors

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
Y = np.arange(12) % 3
CLASSES = np.array(["cat", "dog", "emu"])
NAMES = np.array([f"{row}.png" for row in range(12)])
SPLIT = np.array(["train", "val", "test"])[np.arange(12) // 4]
WHOLE = {"X": X, "y": Y, "classes": CLASSES, "names": NAMES, "split": SPLIT}


def read_features(root: Path) -> None:
    """Every array, the data set, and the rows without labels."""
    for array in read_arrays(root).values():
        with suppress(UserError):  # one of them may be damaged and the others not
            found = array.read()
            assert len(found.shape) == len(array.shape)
            assert all(size in (said, found.shape[0]) or said == -1 for said, size in zip(array.shape, found.shape))
            assert (array.kind == "f") == isinstance(found, torch.Tensor)
            assert array.kind != "U" or found.dtype.kind == "U"
    with suppress(UserError):
        for images in given_rows(root, root.parent / "cache"):
            assert len(images.features) == len(images.names) == len(images.fingerprints(root.parent / "cache"))
    dataset = read_dataset("features", "d", root, {}, root.parent / "cache", to_train=False)
    for split in dataset.splits.values():
        assert len(split.labels) == len(split.images) == len(split.features)
        assert 0 <= split.labels.min() <= split.labels.max() < len(dataset.classes)
        rows = np.flatnonzero(split.features.readable)
        unit = split.features.unit_rows(rows, [split.images.names[row] for row in rows])
        assert unit.isfinite().all()
        assert unit.shape == (len(rows), split.features.dim)


def read_all_vectors(file: Path) -> None:
    names, vectors = read_vectors(file)
    assert vectors.dim() == 2
    assert names is None or len(names) == len(vectors)
    bank = read_bank(file)
    assert bank.embeddings is not None
    assert bank.embeddings.isfinite().all()
    assert len(bank.embeddings) == len(bank)


def features(name: str, write: Callable[[Path], object], *files: str) -> Readable:
    """A file or folder ``name`` of features that ``write`` makes; ``files`` of it are damaged."""

    def put(root: Path) -> None:
        (root / "a").mkdir()
        write(root / "a" / name)

    return Readable(put, lambda root: read_features(root / "a" / name), tuple(f"a/{file}" for file in files or (name,)))


def vectors(name: str, write: Callable[[Path], object]) -> Readable:
    return Readable(lambda root: write(root / name), lambda root: read_all_vectors(root / name), (name,))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tensors(file: Path) -> None:
    said = {name: json.dumps(WHOLE[name].tolist()) for name in ("classes", "names", "split")}
    safetensors.torch.save_file({"X": torch.tensor(X), "y": torch.tensor(Y)}, file, said)


def frame(file: Path, **options) -> None:
    """A table as data frames are written, with features as lists and an old-fashioned dictionary of names."""
    columns = {
        "embedding": arrow.array(X.tolist(), arrow.list_(arrow.float32())), "label": arrow.array(Y),
        "class_name": arrow.array(CLASSES[Y]).dictionary_encode(), "path": arrow.array(NAMES),
        "split": arrow.array(SPLIT), "aesthetic": arrow.array(X[:, 0]),
    }  # fmt: skip
    parquet.write_table(arrow.table(columns), file, **options)


def fixed_frame(file: Path) -> None:
    """The same with lists of one length, and half precision."""
    flat = arrow.array(X.astype(np.float16).reshape(-1))
    columns = {"emb": arrow.FixedSizeListArray.from_arrays(flat, X.shape[1]), "label": arrow.array(CLASSES[Y])}
    parquet.write_table(arrow.table(columns), file, row_group_size=5)


def folder(root: Path) -> None:
    """Splits as folders, numbered parts, and tables, lists and names beside them."""
    tree(**{
        "train/img_emb/img_emb_0.npy": npy(X[:3]), "train/img_emb/img_emb_1.npy": npy(X[3:6]),
        "train/metadata.csv": "path,label\n" + "".join(f"{n}.png,{CLASSES[Y[n]]}\n" for n in range(6)),
        "test/features.npy": npy(X[6:]), "test/labels.txt": "".join(f"{CLASSES[n]}\n" for n in Y[6:]),
        "classes.json": json.dumps({str(n): str(name) for n, name in enumerate(CLASSES)}),
    })(root)  # fmt: skip


def beside(file: Path) -> None:
    """Labels and names beside a bare matrix."""
    tree(**{"features.npy": npy(X), "features_labels.npy": npy(Y), "classes.txt": "cat\ndog\nemu\n"})(file.parent)
    tree(**{"metadata.tsv": "path\tsplit\n" + "".join(f"{n}.png\t{SPLIT[n]}\n" for n in range(12))})(file.parent)


def one_hot(file: Path) -> None:
    shown = (np.arange(24).reshape(12, 2) % 2).astype(np.float32)
    told = {"concepts": shown, "concept_names": np.array(["red", "blue"]), "images": np.zeros((12, 4, 4, 3), np.uint8)}
    np.savez(file, features=X.astype(">f8"), labels=np.eye(3)[Y], classes=CLASSES.astype("S"), **told)


def predictions(file: Path, *, most: bool = False) -> None:
    count, chances = 6, np.full((6, 3), 1 / 3, np.float16)
    labels = np.arange(count) % 3
    write_predictions(file, Predictions(
        "d", "test", list(map(str, CLASSES)), [f"{n}.png" for n in range(count)], labels, labels[::-1].copy(),
        np.full(count, 1 / 3, np.float32), chances[:, 0], chances[:, :2] if most else chances,
        np.zeros((count, 2), np.int64) if most else None, np.array(list("aabbcc")), {"accuracy_nec5": labels},
    ))  # fmt: skip


def read_decided(file: Path) -> None:
    found = read_predictions_file(file)
    count = len(found)
    assert found.labels.shape == found.decisions.shape == found.confidence.shape == found.label_probability.shape
    assert len(found.labels) == len(found.probabilities) == count
    assert found.probabilities_of is None or found.probabilities_of.shape == found.probabilities.shape
    assert all(len(rows) == count for rows in (*found.others.values(), found.order()))
    assert found.subjects is None or len(found.subjects) == count
    assert np.isfinite(found.confidence).all()
    assert np.isfinite(found.probabilities).all()
    assert found.probabilities_of is None or found.probabilities_of.max(initial=0) < len(found.classes)


def label_predictions(file: Path) -> None:
    y = np.array([[1, 0], [0, np.nan], [1, 1], [0, 0]], dtype=np.float32)
    names, subjects = [f"{n}.png" for n in range(4)], np.array(list("aabb"))
    chances, cuts = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2), np.array([0.4, 0.6])
    write_label_predictions(file, LabelPredictions("d", "test", ["wet", "cold"], names, y, chances, cuts, subjects))


def read_labels_decided(file: Path) -> None:
    found = read_label_predictions(file)
    assert found.y.shape == found.probabilities.shape == (len(found), len(found.labels))
    assert found.thresholds.shape == (len(found.labels),)
    assert len(found.order()) == len(found)
    assert found.subjects is None or len(found.subjects) == len(found)
    assert np.isfinite(found.probabilities).all()


VECTORS = {"embeddings": X, "names": NAMES}
LAYOUTS = {
    "overcomplete": {
        "dictionary._weights": torch.eye(4, 3), "encoder.final_block.0.weight": torch.eye(4, 3),
        "encoder.final_block.0.bias": torch.zeros(4), "thresholds": torch.zeros(4),
    },
    "sparse_autoencoder": {
        "encoder._weight": torch.eye(4, 3)[None], "encoder._bias": torch.zeros(1, 4),
        "decoder._weight": torch.eye(3, 4)[None], "pre_encoder_bias._bias_reference": torch.zeros(1, 3),
        "post_decoder_bias._bias_reference": torch.zeros(1, 3), "tied_bias": torch.zeros(1, 3),
    },
}  # fmt: skip

ARRAYS: dict[str, Readable] = {
    "features, .npy": features("features.npy", beside, "features.npy", "features_labels.npy", "classes.txt",
                               "metadata.tsv"),
    "features, .npz": features("f.npz", lambda file: np.savez(file, **WHOLE)),
    "features, .npz, compressed": features("f.npz", lambda file: np.savez_compressed(file, **WHOLE)),
    "features, .npz, one-hot, concepts": features("f.npz", one_hot),
    "features, .safetensors": features("f.safetensors", tensors),
    "features, .pt": features("f.pt", lambda file: torch.save(
        {"X": torch.tensor(X), "y": torch.tensor(Y), "classes": CLASSES.tolist(), "split": SPLIT.tolist()}, file)),
    "features, .pt, a pair": features("f.pt", lambda file: torch.save((torch.tensor(X), torch.tensor(Y)), file)),
    "features, .pt, old": features("f.pth", lambda file: torch.save(
        {"deep": {"X": torch.tensor(X), "y": torch.tensor(Y)}}, file, _use_new_zipfile_serialization=False)),
    "features, .parquet": features("f.parquet", frame),
    "features, .parquet, fixed": features("f.parquet", fixed_frame),
    "features, .parquet, plain": features(
        "f.parquet", lambda file: frame(file, compression="none", use_dictionary=False, store_schema=False)),
    "features, a folder": features("d", folder, "d/train/img_emb/img_emb_1.npy", "d/train/metadata.csv",
                                   "d/test/labels.txt", "d/classes.json"),
    "vectors, .npz": vectors("v.npz", lambda file: np.savez(file, **VECTORS)),
    "vectors, .safetensors": vectors("v.safetensors", lambda file: safetensors.torch.save_file(
        {"embeddings": torch.tensor(X)}, file, {"names": json.dumps(NAMES.tolist())})),
    "vectors, .pt": vectors("v.pt", lambda file: torch.save(
        {"embeddings": torch.tensor(X), "names": NAMES.tolist()}, file)),
    "vectors, .parquet": vectors("v.parquet", lambda file: parquet.write_table(
        arrow.table({"embeddings": X.tolist(), "word": NAMES}), file)),
    "predictions": Readable(lambda root: predictions(root / "p.parquet"),
                            lambda root: read_decided(root / "p.parquet"), ("p.parquet",)),
    "predictions, the most probable": Readable(
        lambda root: predictions(root / "p.parquet", most=True), lambda root: read_decided(root / "p.parquet"),
        ("p.parquet",)),
    "predictions of labels": Readable(
        lambda root: label_predictions(root / "p.parquet"), lambda root: read_labels_decided(root / "p.parquet"),
        ("p.parquet",)),
    "dictionary of others, .npz": Readable(
        lambda root: np.savez(root / "d.npz", atoms=X[:, :3]), lambda root: read_dictionary(root / "d.npz", dim=3),
        ("d.npz",)),
    **{
        f"dictionary of {name}": Readable(
            lambda root, each=each: torch.save(each, root / "d.pt"), lambda root: read_dictionary(root / "d.pt", dim=3),
            ("d.pt",))
        for name, each in LAYOUTS.items()
    },
    "dictionary, unsigned": Readable(
        lambda root: safetensors.torch.save_file(
            {"atoms": torch.eye(4, 3), "mean": torch.zeros(3), "threshold": torch.zeros(4)}, root / "d.safetensors",
            {"cbm": json.dumps({"kind": "dictionary", "k": 1, "scale": 1.0, "source": "x"})}),
        lambda root: write_dictionary(root / "again.safetensors", _sound(read_dictionary(root / "d.safetensors"))),
        ("d.safetensors",)),
}  # fmt: skip


def _sound(found: Dictionary) -> Dictionary:
    assert found.atoms.shape == (len(found), found.dim)
    assert found.atoms.isfinite().all()
    return found
