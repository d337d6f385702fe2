"""Names with vectors, as vocabularies are passed around: one file that holds both, or vectors alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from cbm.errors import UserError, did_you_mean
from cbm.files.arrays import Stored, read_arrays

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("names", "texts", "text", "phrases", "phrase", "concepts", "concept", "words", "word", "classes",
         "class_names", "labels", "name", "label")  # fmt: skip
"""How an array is called that holds the names of vectors."""
VECTORS = ("vectors", "embeddings", "embedding", "features", "emb", "x")
"""How the vectors are called, where a file holds several matrices."""


def read_vectors(file: Path, key: str | None = None) -> "tuple[list[str] | None, Tensor]":
    """The names (None if there are none) and vectors ``[K, D]`` of a file.

    Args:
        file: ``.npz``, ``.npy``, ``.safetensors``, ``.pt`` or ``.parquet``.
        key: name of the vectors, if the file holds several (``lvis`` with the names ``lvis_names``).

    Raises:
        UserError: it cannot be read, has no vectors, or has several and none was named.
    """
    arrays = read_arrays(file)
    matrices = {name: array for name, array in arrays.items() if array.kind == "f" and len(array.shape) == 2}
    if key is not None and key not in matrices:
        raise UserError(f"'{file}' has no vectors '{key}': {did_you_mean(key, matrices)}")
    usual = [name for name in matrices if name.casefold() in VECTORS]
    chosen = [key] if key is not None else list(matrices) if len(matrices) == 1 else usual
    if len(chosen) != 1:
        have = f"several: {', '.join(matrices)}; say concepts.key=NAME" if matrices else "none"
        raise UserError(f"'{file}': expected one matrix of vectors [K, D], found {have}")
    vectors = matrices[chosen[0]].read()
    names = _names_of(chosen[0], len(vectors), arrays)
    return (None if names is None else names.read().tolist()), vectors.float()  # type: ignore[union-attr]


def _names_of(key: str, count: int, arrays: dict[str, Stored]) -> Stored | None:
    """The array of names that goes with the vectors ``key``."""
    texts = {name: array for name, array in arrays.items() if array.kind == "U" and len(array) == count}
    own = [f"{key}{mark}{name}" for mark in "_./-" for name in NAMES]
    lower = {name.casefold(): array for name, array in texts.items()}
    found = next((lower[name.casefold()] for name in (*own, *NAMES) if name.casefold() in lower), None)
    return found or (next(iter(texts.values())) if len(texts) == 1 else None)
