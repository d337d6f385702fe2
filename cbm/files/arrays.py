"""Arrays by name, as people store features: .npy, .npz, .safetensors, .pt, Parquet, and folders of such files.

Arrays are mapped from disk where the format allows it, and read when they are asked for where it does not. Nothing in a
file is executed: no pickle, no objects.
"""

import io
import logging
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cbm.errors import UserError, did_you_mean
from cbm.files.loading import load_tensors
from cbm.files.opening import LARGEST_HEADER, Limited, check_regular, check_unpacked, fits
from cbm.files.parsing import parse_json, read_json, read_table, read_text

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth", ".parquet")
"""Files of arrays."""
BESIDE = (".csv", ".tsv", ".txt", ".json")
"""Tables and lists that lie beside arrays in a folder: columns of a table, one name per line, a list of names."""
LINE = 1 << 20
"""Bytes of a line of JSON that may stand before the content of a file, at most."""
FLOATS = "f"
"""Kind of an array of floating-point numbers (``numpy.dtype.kind``)."""


@dataclass(frozen=True)
class Stored:
    """An array in a file.

    Attributes:
        where: its file and name, for messages.
        shape: its shape; the width of a column of lists is -1 until it is read.
        kind: ``f`` floats, ``i`` integers and truth values, ``U`` text, ``O`` what is not read, ``?`` what holds no
            names or numbers either (pictures in a table).
        read: function that returns it: a tensor if it holds floats, else a numpy array.
        file: the file that holds it.
    """

    where: str
    shape: tuple[int, ...]
    kind: str
    read: "Callable[[], Tensor | np.ndarray]"
    file: Path

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0


def read_arrays(path: Path) -> dict[str, Stored]:
    """The arrays of a file or folder by name: ``X_train``; ``train/X`` for ``X`` of a file ``train.npz`` in a folder.

    Args:
        path: a file of one of ``ARRAYS``, or a folder with such files, tables and lists, also in folders.

    Raises:
        UserError: there is no such path, a file cannot be read, or it holds objects that would have to be executed.
    """
    if path.is_dir():
        found: dict[str, Stored] = {}
        for file in _files(path):
            stem = file.relative_to(path).with_suffix("").as_posix()
            for name, array in read_file(file).items():
                key = f"{stem}/{name}" if name else stem
                if key in found:
                    raise UserError(f"{array.where} and {found[key].where} have the same name: keep one")
                found[key] = array
        if not any(array.kind == FLOATS for array in found.values()):
            raise UserError(f"no arrays in '{path}': expected files such as {', '.join(ARRAYS)}")
        return found
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no file or folder '{path}' {did_you_mean(path.name, siblings)}".rstrip())
    if path.suffix.lower() not in ARRAYS:
        raise UserError(f"'{path}': features are read from {', '.join(ARRAYS)} files, or a folder of them")
    return {name or path.stem: array for name, array in read_file(path).items()}


def read_file(file: Path) -> dict[str, Stored]:
    """The arrays of a file by name; an empty name for the only array of a file that names none.

    Args:
        file: a file of ``ARRAYS`` or ``BESIDE``.

    Raises:
        UserError: it cannot be read, or holds objects that would have to be executed.
    """
    check_regular(file)
    try:
        found = _READ[file.suffix.lower()](file)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UserError(f"'{file}' cannot be read: {type(error).__name__}: {_line(error)}") from error
    return {name: replace(array, read=partial(_read_whole, array)) for name, array in found.items()}


def _read_whole(array: Stored) -> "Tensor | np.ndarray":
    """The values of an array; damage inside a file is found only now."""
    try:
        return array.read()
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{array.where} is {list(array.shape)}, which is more than the memory holds") from error
    except Exception as error:
        raise UserError(f"{array.where} cannot be read: {type(error).__name__}: {_line(error)}") from error


def holds_arrays(path: Path) -> bool:
    """Whether a path is a file of arrays by its name, or a folder with one directly inside it or one folder deeper."""
    if path.is_dir():
        return any(file.suffix.lower() in ARRAYS for pattern in ("*", "*/*") for file in path.glob(pattern))
    return path.suffix.lower() in ARRAYS


def in_number(name: str) -> list[Any]:
    """A key to sort names by, in which 2 stands before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder that are read, in the order of their numbers; hidden ones are passed over."""
    there = (file for file in folder.rglob("*") if file.suffix.lower() in ARRAYS + BESIDE and file.is_file())
    shown = (file for file in there if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    yield from sorted(shown, key=lambda file: in_number(file.relative_to(folder).as_posix()))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


# ------------------------------------------------------------------------------------------------------------- numpy


def _npy(file: Path) -> dict[str, Stored]:
    with file.open("rb") as content:
        shape, dtype, _ = _header(content, f"'{file}'", file.stat().st_size)
    if dtype.hasobject:
        return {"": Stored(f"'{file}'", shape, "O", _refuse(file, ""), file)}
    array = np.load(file, mmap_mode="c", allow_pickle=False)  # a private copy of what is written: nothing is
    return {"": _stored(file, "", lambda: array, array.shape, array.dtype)}


def _npz(file: Path) -> dict[str, Stored]:
    found = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            where = f"'{file}' {name}"
            with archive.open(entry) as member:
                shape, dtype, start = _header(member, where, entry.file_size)
            if dtype.hasobject:
                found[name] = Stored(where, shape, "O", _refuse(file, name), file)
                continue
            read = _compressed(file, name, entry)
            if entry.compress_type == zipfile.ZIP_STORED and shape:
                read = _mapped(file, entry.header_offset, start, shape, dtype)
            found[name] = _stored(file, name, read, shape, dtype)
    return found


def _header(member: Any, where: str, size: int) -> tuple[tuple[int, ...], np.dtype, tuple[int, bool]]:
    """Shape and type of an array, where its values begin after its header starts, and whether column by column.

    Args:
        member: the array, open at its beginning.
        where: where it is, for messages.
        size: bytes of header and values.

    Raises:
        UserError: there are not as many bytes as the header says.
    """
    member = Limited(member, LARGEST_HEADER)
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns, dtype = read(member)
    stated = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (not dtype.hasobject and stated > size - member.tell()):
        raise UserError(f"{where} cannot be read: it says {list(shape)} of {dtype}, {stated:,} bytes, and is cut off")
    return shape, dtype, (member.tell(), columns)


def _compressed(file: Path, name: str, entry: zipfile.ZipInfo) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        check_unpacked(f"'{file}' {name}", entry.file_size, min(entry.compress_size, file.stat().st_size))
        with np.load(file, allow_pickle=False) as archive:
            return archive[name]

    return read


def _mapped(
    file: Path, offset: int, start: tuple[int, bool], shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[], np.ndarray]:
    """An array of an archive that is not compressed, mapped from where it lies in there."""

    def read() -> np.ndarray:
        with file.open("rb") as archive:
            archive.seek(offset + 26)
            lengths = archive.read(4)
        begins = offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little") + start[0]
        return np.memmap(file, dtype, "c", begins, shape, "F" if start[1] else "C")

    return read


def _where(file: Path, name: str) -> str:
    return f"'{file}' {name}".rstrip()


def _refuse(file: Path, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        raise UserError(
            f"{_where(file, name)} holds Python objects, which are not loaded: save text as np.array(names, dtype=str)"
        )

    return read


def _stored(file: Path, name: str, read: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> Stored:
    """An array of numpy, whose floats are handed on as a tensor."""
    where = _where(file, name)
    kind = {"f": "f", "i": "i", "u": "i", "b": "i", "U": "U", "S": "U"}.get(dtype.kind, "O")
    if kind == "U":
        return Stored(where, shape, kind, lambda: _text(read(), where), file)
    if kind == "O":
        return Stored(where, shape, kind, lambda: _no_numbers(where, dtype), file)
    if kind != "f":
        return Stored(where, shape, kind, read, file)
    return Stored(where, shape, kind, lambda: _tensor(read()), file)


def _no_numbers(where: str, dtype: object) -> np.ndarray:
    raise UserError(f"{where} is of type {dtype}: expected numbers or text")


def _text(array: np.ndarray, where: str) -> np.ndarray:
    try:
        if array.dtype.kind == "S":
            return np.char.decode(array, "utf-8")
        "".join(np.asarray(array).ravel().tolist()).encode()  # half a character is no text
        return np.asarray(array)
    except UnicodeError as error:
        raise UserError(f"{where} holds bytes that are not UTF-8: save text as np.array(names, dtype=str)") from error


def _tensor(array: np.ndarray) -> "Tensor":
    import torch

    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.dtype.itemsize <= 8 else array.astype(np.float64))


# ----------------------------------------------------------------------------------------------- tensors, and objects


def _safetensors(file: Path) -> dict[str, Stored]:
    from safetensors import safe_open

    found: dict[str, Stored] = {}
    with safe_open(file, "pt") as content:
        for name in content.keys():  # noqa: SIM118
            part = content.get_slice(name)
            kind = "f" if part.get_dtype() in ("F16", "BF16", "F32", "F64") else "i"
            found[name] = Stored(f"'{file}' {name}", tuple(part.get_shape()), kind, _one_tensor(file, name, kind), file)
        said = content.metadata() or {}
    for name, text in said.items():  # lists of names, which no tensor can hold
        if text[:1] == "[" and name not in found:
            found |= _list_of_names(file, name, _json_or_none(text))
    return found


def _one_tensor(file: Path, name: str, kind: str) -> "Callable[[], Tensor | np.ndarray]":
    def read() -> "Tensor | np.ndarray":
        from safetensors import safe_open

        with safe_open(file, "pt") as content:
            tensor = content.get_tensor(name)
        return tensor if kind == "f" else tensor.numpy()

    return read


def _json_or_none(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return None


def _list_of_names(file: Path, name: str, value: Any) -> dict[str, Stored]:
    """A list of texts (or of numbers) as an array; nothing if it is something else."""
    if not isinstance(value, list | tuple) or not value:
        return {}
    if all(isinstance(each, str) for each in value):
        return {name: _names(file, name, value)}
    if all(isinstance(each, int | float) for each in value):
        array = np.array(value)
    else:
        return {}
    return {name: _stored(file, name, lambda: array, array.shape, array.dtype)}


def _names(file: Path, name: str, texts: Sequence[str]) -> Stored:
    """Texts as an array, which takes as much for every one of them as for the longest."""
    where = _where(file, name)

    def read() -> np.ndarray:
        check_texts(where, max(map(len, texts), default=0), len(texts), file)
        return _text(np.array(texts, dtype=str), where)

    return Stored(where, (len(texts),), "U", read, file)


def check_texts(where: str, longest: int, count: int, file: Path) -> None:
    """Refuse an array of texts of which one is so long that all of them are not held.

    Args:
        where: what they are, for the message.
        longest: letters of the longest.
        count: how many there are.
        file: the file that they are in.

    Raises:
        UserError: the array would be too large.
    """
    if not fits(4 * longest * count, file.stat().st_size):
        raise UserError(f"{where}: one of {count:,} texts has {longest:,} letters: expected names")


class HoldsObjects(UserError):
    """A file of PyTorch that cannot be read without running what it says."""


def leading_json(file: Path) -> Any:
    """The line of JSON that stands before the content of some files of PyTorch (saev's); None if there is none.

    Raises:
        UserError: it is cut off or no JSON.
    """
    with file.open("rb") as content:
        line = content.readline(LINE) if content.read(1) == b"{" and content.seek(0) == 0 else b""
    return parse_json(line.decode("utf-8", errors="replace"), f"'{file}', its first line") if line else None


def _torch(file: Path) -> dict[str, Stored]:
    import pickle

    try:
        if leading_json(file) is not None:
            with file.open("rb") as whole:
                whole.readline(LINE)
                behind = io.BytesIO(whole.read())
            content = load_tensors(behind)
        else:
            try:
                content = load_tensors(file, mapped=True)
            except RuntimeError:  # a file of before torch 1.6 cannot be mapped
                content = load_tensors(file)
    except pickle.UnpicklingError as error:
        raise HoldsObjects(
            f"'{file}' holds Python objects, which are not loaded (they could do anything): save a dict of tensors and "
            "lists of names, torch.save({'features': x, 'labels': y, 'classes': names}, FILE)"
        ) from error
    return _from_object(file, content, "", _Parts(file))


class _Parts:
    """The parts of a file, every one of which takes a byte: a pickle can say the same part any number of times."""

    def __init__(self, file: Path):
        self._file, self._left = file, file.stat().st_size

    def add(self, count: int) -> None:
        """Count some; raises a ``UserError`` if there are more than the file has bytes."""
        self._left -= count
        if self._left < 0:
            raise UserError(f"'{self._file}' says the same parts again and again: it is not read")


def _from_object(file: Path, content: Any, name: str, parts: _Parts) -> dict[str, Stored]:
    import torch

    if isinstance(content, torch.Tensor):
        tensor = content.detach()
        check_unpacked(_where(file, name), tensor.numel() * tensor.element_size(), file.stat().st_size)
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        shape, where = tuple(tensor.shape), _where(file, name)
        if tensor.is_floating_point():
            return {name: Stored(where, shape, "f", lambda: tensor, file)}
        if tensor.is_complex() or tensor.is_quantized:
            return {name: Stored(where, shape, "O", lambda: _no_numbers(where, tensor.dtype), file)}
        return {name: Stored(where, shape, "i", lambda: tensor.numpy(), file)}
    if isinstance(content, dict | list | tuple):
        parts.add(1 + len(content))
    if isinstance(content, dict):
        found: dict[str, Stored] = {}
        for key, value in content.items():
            found |= _from_object(file, value, f"{name}/{key}" if name else str(key), parts)
        return found
    if isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(x, torch.Tensor) for x in content):
        shapes = [tuple(each.shape) for each in content]
        if [len(shape) for shape in shapes] == [2, 1] and shapes[0][0] == shapes[1][0]:  # torch.save((x, y), FILE)
            both = zip(("features", "labels"), content)
            return {name: array for key, each in both for name, array in _from_object(file, each, key, parts).items()}
    return _list_of_names(file, name, content)


# ------------------------------------------------------------------------------------------------------------ tables


def _parquet(file: Path) -> dict[str, Stored]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    content = parquet.ParquetFile(file)
    rows, found = content.metadata.num_rows, {}
    for column in content.schema_arrow:
        kind, width = "O", []
        of = column.type
        if arrow.types.is_dictionary(of):
            of = of.value_type
        if arrow.types.is_list(of) or arrow.types.is_large_list(of) or arrow.types.is_fixed_size_list(of):
            width = [of.list_size if arrow.types.is_fixed_size_list(of) else -1]
            kind = "f" if arrow.types.is_floating(of.value_type) else "i" if _whole(of.value_type) else "O"
        elif arrow.types.is_string(of) or arrow.types.is_large_string(of) or arrow.types.is_string_view(of):
            kind = "U"
        elif arrow.types.is_floating(of):
            kind = "f"
        elif _whole(of):
            kind = "i"
        elif arrow.types.is_nested(of) or arrow.types.is_binary(of) or arrow.types.is_large_binary(of):
            kind = "?"  # pictures in a column ``image`` are not names
        where = f"'{file}' {column.name}"
        found[column.name] = Stored(
            where, (rows, *width), kind, _column(file, column.name, kind, bool(width), rows), file
        )
    return found


def _whole(of: Any) -> bool:
    import pyarrow as arrow

    return arrow.types.is_integer(of) or arrow.types.is_boolean(of)


def _column(file: Path, name: str, kind: str, lists: bool, rows: int) -> "Callable[[], Tensor | np.ndarray]":
    """Reads a column of a Parquet file: a part of its rows at a time."""

    def read() -> "Tensor | np.ndarray":
        import pyarrow.parquet as parquet

        where = f"'{file}' {name}"
        content = parquet.ParquetFile(file, read_dictionary=[name] if kind == "U" else None)
        check_columns(content, file, (name,))
        values = (_values(part, where, kind, lists, file) for part in _batches(content, file, name, lists))
        whole = _joined(values, rows, where, file)
        if len(whole) != rows:
            raise UserError(f"{where} is damaged: it has {len(whole):,} rows, and the file says {rows:,}")
        return _tensor(whole) if kind == "f" else whole

    return read


def check_columns(content: Any, file: Path, names: Sequence[str] | None = None) -> None:
    """Refuse columns of a Parquet file that would be far larger in memory than they are on disk.

    Args:
        content: the ``pyarrow.parquet.ParquetFile``.
        file: its path.
        names: the columns; all by default.

    Raises:
        UserError: a column is too large, or there are not as many rows as are stated.
    """
    import pyarrow as arrow

    metadata, packed = content.metadata, file.stat().st_size
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows or metadata.num_rows < 0:
        raise UserError(
            f"'{file}' is damaged: it says that it has {metadata.num_rows:,} rows, and its parts have others"
        )
    if any(group.num_columns != metadata.num_columns for group in groups):  # pyarrow ends the process at some of these
        raise UserError(f"'{file}' is damaged: its parts have other columns than the whole")
    check_unpacked(f"'{file}'", sum(max(group.total_byte_size, 0) for group in groups), packed)
    for column in content.schema_arrow:
        if names is None or column.name in names:
            width = column.type.list_size if arrow.types.is_fixed_size_list(column.type) else 1
            check_unpacked(f"'{file}' {column.name}", 8 * metadata.num_rows * width, packed)


def _batches(content: Any, file: Path, name: str, lists: bool) -> Iterator[Any]:
    """A column of a Parquet file, a part of its rows at a time.

    How long lists are, a file says where pyarrow ends the process if that is damaged: the first row shows it.
    """
    size = 1 << 14
    if lists:
        width = sum(len(batch.column(0).flatten()) for batch in islice(content.iter_batches(1, columns=[name]), 1))
        check_unpacked(f"'{file}' {name}", 8 * content.metadata.num_rows * width, file.stat().st_size)
        size = max(1, min(size, (1 << 24) // max(1, width)))
    return (batch.column(0) for batch in content.iter_batches(size, columns=[name]))


def _values(column: Any, where: str, kind: str, lists: bool, file: Path) -> np.ndarray:
    """Some rows of a column."""
    if kind == "U":
        check_texts(where, longest_text(column), len(column), file)
    if hasattr(column, "dictionary_decode"):
        column = column.dictionary_decode()
    if kind in "O?":
        raise UserError(f"{where}: a column of {column.type} is not read")
    if lists:
        return _rectangle(column, where)
    if kind == "U":
        return np.array(["" if text is None else text for text in column.to_pylist()], dtype=str)
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "O":  # truth values, some of them missing
        values = np.array([np.nan if each is None else float(each) for each in values])
    return values


def longest_text(column: Any) -> int:
    """Bytes of the longest text of a column, as it is stored."""
    import pyarrow.compute as compute

    texts = column.dictionary if hasattr(column, "dictionary") else column
    return compute.max(compute.binary_length(texts)).as_py() or 0


def _joined(parts: Iterator[np.ndarray], rows: int, where: str, file: Path) -> np.ndarray:
    """Parts one after the other; those of numbers are put where they belong at once, so that one is there twice."""
    first = next(parts, np.empty(0))
    if first.dtype.kind == "U":
        found = [first, *parts]
        check_texts(where, max(part.dtype.itemsize // 4 for part in found), rows, file)
        return np.concatenate(found)
    if len(first) == rows:
        return np.concatenate([first, *parts])
    check_unpacked(where, rows * first.dtype.itemsize * math.prod(first.shape[1:]), file.stat().st_size)
    whole, end = np.empty((rows, *first.shape[1:]), first.dtype), len(first)
    whole[:end] = first
    for part in parts:
        if part.shape[1:] != whole.shape[1:]:
            raise UserError(f"rows {end} and after are {part.shape[1:]} wide, those before {whole.shape[1:]}")
        if part.dtype != whole.dtype:  # numbers that are missing further down make floats of whole ones
            whole = whole.astype(np.result_type(whole, part))
        whole[end : end + len(part)] = part
        end += len(part)
    return whole[:end]


def _rectangle(column: Any, where: str) -> np.ndarray:
    """A column of lists as rows of one width, ``[n, D]``.

    Raises:
        UserError: lists have other lengths, or are missing.
    """
    if column.null_count:
        raise UserError(f"{where}: {column.null_count:,} row(s) have no list")
    values = column.flatten()
    width = len(values) // max(1, len(column))
    lengths = {len(each) for each in (column[0], column[-1])} if len(column) else {0}
    if lengths != {width} or set(np.diff(_offsets(column))) - {width}:
        raise UserError(f"{where}: its lists have several lengths: expected one width of features")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)


def _offsets(column: Any) -> np.ndarray:
    return column.offsets.to_numpy() if hasattr(column, "offsets") else np.empty(0, np.int64)


def _table(file: Path) -> dict[str, Stored]:
    columns, rows = read_table(file)
    found = {}
    for name in filter(None, columns):
        found[name] = _names(file, name, [row[name] for row in rows])
    return found


def _lines(file: Path) -> dict[str, Stored]:
    names = [line.strip() for line in read_text(file).rstrip().splitlines()]  # one left out would move all others
    return {"": _names(file, "", names)}


def _json(file: Path) -> dict[str, Stored]:
    content = _in_order(read_json(file))
    named = content if isinstance(content, dict) else {"": content}
    return {key: array for name, value in named.items() for key, array in _list_of_names(file, name, value).items()}


def _in_order(content: Any) -> Any:
    """The names of ``{"0": name, ...}`` or ``{name: 0, ...}`` in the order of their numbers; anything else as it is.

    >>> _in_order({"1": "dog", "0": "cat"}), _in_order({"dog": 1, "cat": 0}), _in_order({"cat": ["fur"]})
    (['cat', 'dog'], ['cat', 'dog'], {'cat': ['fur']})
    """
    if not isinstance(content, dict):
        return content
    by_name = all(isinstance(value, int) for value in content.values())
    pairs = [(str(value), key) if by_name else (str(key), value) for key, value in content.items()]
    numbers = {number for number, _ in pairs}
    whole = numbers == {str(number) for number in range(len(content))}
    named = all(isinstance(name, str) for _, name in pairs)
    return (
        [name for _, name in sorted(pairs, key=lambda pair: int(pair[0]))] if content and whole and named else content
    )


_READ: dict[str, Callable[[Path], dict[str, Stored]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".parquet": _parquet,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _lines,
    ".json": _json,
}
