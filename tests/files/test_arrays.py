"""Arrays of every format by name: mapped where possible, the same values, nothing executed."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import save_file

from cbm.errors import UserError
from cbm.files import opening
from cbm.files.arrays import holds_arrays, in_number, read_arrays
from cbm.files.vectors import read_vectors

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
NAMES = ["a", "b", "ä ö", "d", "e", "f", "g"]


def write(path: Path) -> Path:
    """The same content in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.arange(7)
    if path.name.endswith("compressed.npz"):
        np.savez_compressed(path, X=X, y=labels, names=np.array(NAMES))
    elif path.suffix == ".npz":
        np.savez(path, X=X, y=labels, names=np.array(NAMES))
    elif path.suffix == ".safetensors":
        tensors = {"X": torch.from_numpy(X), "y": torch.from_numpy(labels)}
        save_file(tensors, path, {"names": json.dumps(NAMES), "format": "pt"})
    elif path.suffix == ".pt":
        torch.save({"X": torch.from_numpy(X), "y": torch.from_numpy(labels), "names": NAMES}, path)
    elif path.suffix == ".parquet":
        parquet.write_table(arrow.table({"X": list(X), "y": labels, "names": NAMES}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("name", ["a.npz", "compressed.npz", "a.safetensors", "a.pt", "a.parquet"])
def test_all_formats_hold_the_same(tmp_path: Path, name: str):
    arrays = read_arrays(write(tmp_path / name))
    assert set(arrays) == {"X", "y", "names"}
    assert arrays["X"].kind == "f"
    assert len(arrays["X"]) == 7
    assert torch.equal(arrays["X"].read(), torch.from_numpy(X))
    assert arrays["X"].read().dtype == torch.float32
    assert arrays["y"].read().tolist() == list(range(7))
    assert arrays["names"].read().tolist() == NAMES


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_types_are_kept(tmp_path: Path, dtype):
    np.save(tmp_path / "x.npy", X.astype(dtype))
    found = read_arrays(tmp_path / "x.npy")["x"].read()
    assert found.dtype == {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}[np.dtype(dtype).str[1:]]
    assert torch.allclose(found.float(), torch.from_numpy(X), atol=1e-2)


def test_bfloat16_and_columns_first(tmp_path: Path):
    save_file({"x": torch.from_numpy(X).bfloat16()}, tmp_path / "x.safetensors")
    assert read_arrays(tmp_path / "x.safetensors")["x"].read().dtype == torch.bfloat16
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(X))
    assert torch.equal(read_arrays(tmp_path / "f.npz")["x"].read(), torch.from_numpy(X))


def test_arrays_are_mapped_and_never_written_to(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=X)
    np.save(tmp_path / "b.npy", X)
    before = [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npy")]
    for name in ("a.npz", "b.npy"):
        tensor = next(iter(read_arrays(tmp_path / name).values())).read()
        tensor[0] = 99.0
    assert [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npy")] == before


def test_a_folder_names_arrays_by_its_files_in_the_order_of_their_numbers(tmp_path: Path):
    for number in (10, 2, 0):
        (tmp_path / "img_emb").mkdir(exist_ok=True)
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", X + number)
    write(tmp_path / "train.npz")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    (tmp_path / "table.csv").write_text("path,label\na.png,1\n")
    (tmp_path / ".hidden.npy").write_bytes(b"x")
    arrays = read_arrays(tmp_path)
    emb = [name for name in arrays if name.startswith("img_emb")]
    assert emb == ["img_emb/img_emb_0", "img_emb/img_emb_2", "img_emb/img_emb_10"]
    assert arrays["classes"].read().tolist() == ["cat", "dog"]
    assert arrays["table/label"].read().tolist() == ["1"]
    assert "train/X" in arrays
    assert sorted(["x10", "x9"], key=in_number) == ["x9", "x10"]
    assert holds_arrays(tmp_path)
    assert not holds_arrays(tmp_path / "img_emb" / "..." / "nothing")


class Harm:
    """What a pickle could do."""

    def __reduce__(self):
        return (Path("harm.txt").touch, ())


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"X": Harm()}, "a.pt")
    np.save("b.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    np.savez("c.npz", X=X, names=np.array([Harm()], dtype=object))
    Path("d.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UserError, match="holds Python objects, which are not loaded"):
        read_arrays(Path("a.pt"))
    with pytest.raises(UserError, match="holds Python objects"):
        read_arrays(Path("b.npy"))["b"].read()
    found = read_arrays(Path("c.npz"))
    assert torch.equal(found["X"].read(), torch.from_numpy(X))
    with pytest.raises(UserError, match="names holds Python objects"):
        found["names"].read()
    with pytest.raises(UserError):
        read_arrays(Path("d.pt"))
    assert not Path("harm.txt").exists()


def test_what_cannot_be_read_is_said(tmp_path: Path):
    write(tmp_path / "features.npz")
    with pytest.raises(UserError, match=r"no file or folder .* did you mean 'features.npz'"):
        read_arrays(tmp_path / "feature.npz")
    (tmp_path / "x.mat").write_bytes(b"x")
    with pytest.raises(UserError, match=r"features are read from .npy"):
        read_arrays(tmp_path / "x.mat")
    for name in ("x.npy", "x.npz", "x.safetensors", "x.pt", "x.parquet"):
        (tmp_path / name).write_bytes(b"no such format")
        with pytest.raises(UserError, match=name):
            read_arrays(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no arrays in"):
        read_arrays(tmp_path / "empty")
    whole = (write(tmp_path / "cut.npz")).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.npz"):
        read_arrays(tmp_path / "cut.npz")


def test_lists_of_several_lengths_are_no_features(tmp_path: Path):
    parquet.write_table(arrow.table({"x": [[1.0, 2.0], [3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="several lengths"):
        read_arrays(tmp_path / "x.parquet")["x"].read()
    parquet.write_table(arrow.table({"x": [[1.0, 2.0], None]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="1 row"):
        read_arrays(tmp_path / "y.parquet")["x"].read()


def test_vectors_with_their_names(tmp_path: Path):
    np.savez(tmp_path / "many.npz", lvis=X, lvis_names=np.array(NAMES), other=X[:2], other_names=np.array(["p", "q"]))
    with pytest.raises(UserError, match=r"several: lvis, other; say concepts.key=NAME"):
        read_vectors(tmp_path / "many.npz")
    with pytest.raises(UserError, match="did you mean 'lvis'"):
        read_vectors(tmp_path / "many.npz", "lvs")
    names, vectors = read_vectors(tmp_path / "many.npz", "other")
    assert names == ["p", "q"]
    assert torch.equal(vectors, torch.from_numpy(X[:2]))
    np.save(tmp_path / "bare.npy", X)
    assert read_vectors(tmp_path / "bare.npy")[0] is None
    names, _ = read_vectors(write(tmp_path / "one.parquet"))
    assert names == NAMES


def test_damage_inside_a_file_is_said_when_it_is_read(tmp_path: Path):
    file = tmp_path / "f.npz"
    np.savez_compressed(file, X=np.random.default_rng(0).normal(size=(50, 20)))
    damaged = bytearray(file.read_bytes())
    damaged[3000:3030] = b"\xff" * 30
    file.write_bytes(damaged)
    array = read_arrays(file)["X"]
    with pytest.raises(UserError, match="X cannot be read: "):
        array.read()


def member(shape: tuple[int, ...], held: int, kind: str = "<f4") -> bytes:
    """An array of numpy's that says a shape and holds so many bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue() + bytes(held)


def packed(file: Path, content: bytes, how: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr("X.npy", content)


def laughing(file: Path) -> None:
    """Two to the power of forty tensors, in a kilobyte."""
    content: dict = {"X": torch.ones(3, 2)}
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, file)


def rows(file: Path, **columns) -> None:
    parquet.write_table(arrow.table(columns), file, compression="zstd")


MANY = 200_000
SMALL_AND_LARGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "zeros, deflated": (".npz", lambda file: packed(file, member((MANY, 10), 40 * MANY)), "8,000,[0-9]+ bytes of mem"),
    "zeros, by LZMA": (
        ".npz", lambda file: packed(file, member((MANY, 10), 40 * MANY), zipfile.ZIP_LZMA), "8,000,[0-9]+ bytes of mem"
    ),
    "letters, deflated": (
        ".npz", lambda file: packed(file, member((MANY,), 80 * MANY, "<U20"), zipfile.ZIP_DEFLATED), "bytes of memory"
    ),
    "a header alone, deflated": (".npz", lambda file: packed(file, member((10**9, 10**4), 8)), "and is cut off"),
    "a header alone, stored": (".npz", lambda file: packed(file, member((10**9, 10**4), 8), 0), "and is cut off"),
    "a header alone": (".npy", lambda file: file.write_bytes(member((10**9, 10**4), 8)), "and is cut off"),
    "less than nothing": (".npy", lambda file: file.write_bytes(member((-2, -2), 16)), "cannot be read"),
    "a header of gigabytes": (
        ".npz", lambda file: packed(file, b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + bytes(99)), "states a part of"
    ),
    "a tensor of one number": (
        ".pt", lambda file: torch.save({"X": torch.zeros(1).expand(10**9, 512)}, file), "2,048,000,000,000 bytes of"
    ),
    "a sparse tensor": (
        ".pt",
        lambda file: torch.save(torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 512)), file),
        "2,048,000,000,000 bytes of",
    ),
    "a tensor of nowhere": (
        ".pt", lambda file: torch.save(torch.empty(10**9, 512, device="meta"), file), "2,048,000,000,000 bytes of"
    ),
    "tensors of tensors": (".pt", laughing, "says the same parts again and again"),
    "numbers that repeat": (
        ".parquet", lambda file: rows(file, X=np.zeros(MANY * 10), y=np.zeros(MANY * 10)), "16,000,000 bytes of memory"
    ),
    "lists that repeat": (
        ".parquet",
        lambda file: rows(file, X=arrow.FixedSizeListArray.from_arrays(arrow.array(np.zeros(MANY * 10)), 10)),
        "16,000,000 bytes of memory",
    ),
    "one long text": (
        ".parquet", lambda file: rows(file, X=["a"] * 2000 + ["b" * 5000]), "2,001 texts has 5,000 letters"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SMALL_AND_LARGE)
def test_what_is_small_on_disk_stays_small(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a file says it is takes no memory before it is compared with what it is."""
    monkeypatch.setattr(opening, "UNPACKED", 1 << 20)
    ending, make, message = SMALL_AND_LARGE[kind]
    make(file := tmp_path / f"f{ending}")
    assert file.stat().st_size < 1 << 16
    with pytest.raises(UserError, match=message) as error:
        [array.read() for array in read_arrays(file).values()]
    assert "\n" not in str(error.value)


def test_a_long_text_beside_features_is_said_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One caption of a table would make an array of gigabytes; the other columns are read."""
    monkeypatch.setattr(opening, "UNPACKED", 1 << 20)
    np.save(tmp_path / "X.npy", X)
    lines = [f"cat,{'x' * 30_000 if row == 3 else 'y'}" for row in range(900)]
    (tmp_path / "metadata.csv").write_text("label,caption\n" + "\n".join(lines))
    arrays = read_arrays(tmp_path)
    assert arrays["metadata/label"].read().tolist() == ["cat"] * 900
    (tmp_path / "small.csv").write_text("label\n" + "x" * 30_000)
    assert len(read_arrays(tmp_path)["small/label"].read()[0]) == 30_000
    monkeypatch.setattr(opening, "PACKED", 10)
    with pytest.raises(UserError, match="caption: one of 900 texts has 30,000 letters"):
        arrays["metadata/caption"].read()


def test_what_repeats_itself_and_is_large_on_disk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Labels in one-hot rows are packed a hundred times over."""
    monkeypatch.setattr(opening, "UNPACKED", 1 << 16)
    np.savez_compressed(
        tmp_path / "f.npz", y=np.eye(100, dtype=np.float32)[np.random.default_rng(0).integers(0, 100, 9000)]
    )
    assert read_arrays(tmp_path / "f.npz")["y"].read().shape == (9000, 100)


def test_fewer_rows_than_are_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is missing is not filled with whatever is in memory."""
    parquet.write_table(arrow.table({"X": np.arange(50_000.0), "names": ["a"] * 50_000}), tmp_path / "f.parquet")
    whole = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *a, **b: iter(list(whole(*a, **b))[:2]))
    for array in read_arrays(tmp_path / "f.parquet").values():
        with pytest.raises(UserError, match="is damaged: it has 32,768 rows, and the file says 50,000"):
            array.read()
