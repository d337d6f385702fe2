"""Names with vectors, as vocabularies are passed around: one file that holds both, or vectors alone."""

from collections.abc import Mapping
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
        UserError: it cannot be read, has no vectors or not as many as names, or has several and none was named.
    """
    import torch

    arrays = read_arrays(file)
    matrices = {name: array for name, array in arrays.items() if array.kind == "f" and len(array.shape) == 2}
    if key is not None and key not in matrices:
        raise UserError(f"'{file}' has no vectors '{key}': {did_you_mean(key, matrices)}")
    usual = [name for name in matrices if name.casefold() in VECTORS]
    chosen = [key] if key is not None else list(matrices) if len(matrices) == 1 else usual
    if len(chosen) != 1:
        have = f"several: {', '.join(matrices)}; say concepts.key=NAME" if matrices else "none"
        raise UserError(f"'{file}': expected one matrix of vectors [K, D], found {have}")
    vectors = torch.as_tensor(matrices[chosen[0]].read()).float()
    names = _names_of(chosen[0], len(vectors), arrays, matrices)
    return (None if names is None else names.read().tolist()), vectors


def _names_of(key: str, count: int, arrays: dict[str, Stored], matrices: Mapping[str, Stored]) -> Stored | None:
    """The array of names that goes with the vectors ``key``: ``KEY_names``, a usual name, or the only texts as many.

    Raises:
        UserError: an array that is called so has another number of names.
    """
    texts = {name.casefold(): array for name, array in arrays.items() if array.kind in "UO" and len(array.shape) == 1}
    own = [f"{key}{mark}{name}".casefold() for mark in "_./-" for name in NAMES]
    usual = [texts[name] for name in (*own, *NAMES) if name in texts]
    if found := next((array for array in usual if len(array) == count), None):
        return found
    others = tuple(f"{name.casefold()}{mark}" for name in matrices if name != key for mark in "_./-")
    free = [array for name, array in texts.items() if len(array) == count and not name.startswith(others)]
    if len(free) == 1:
        return free[0]
    taken = {len(matrix) for name, matrix in matrices.items() if name != key}
    if wrong := next((array for array in usual if len(array) not in taken), None):
        raise UserError(f"{wrong.where} has {len(wrong):,} names, {matrices[key].where} {count:,} vectors")
    return None
