"""Features that were made elsewhere: ``dataset=features``. No encoder is needed, and none is pretended.

What is looked for, in a file or a folder of files (``cbm.files.arrays``), by the usual names in any case:

==============  =======================================================================================
features        ``X``, ``features``, ``embeddings``, ``img_emb``, ... ``[N, D]`` floats; or the only such array
labels          ``y``, ``labels``, ``target``, ``class`` ... ``[N]`` numbers from 0, names, or one-hot rows
class names     ``classes``, ``class_names`` ... ``[C]``
image names     ``names``, ``paths``, ``image_path`` ... ``[N]``
splits          in the names (``X_train``, ``train/X.npy``), or an array ``split`` ``[N]``
images          ``images`` ``[N, H, W, 3]`` uint8, or files that the image names lead to; only to be shown
concepts        ``concepts`` ``[N, A]`` of 1, 0 or NaN, with ``concept_names`` ``[A]``
==============  =======================================================================================

Numbered files (``img_emb/img_emb_0.npy``, ``metadata/metadata_0.parquet``) are one array, in the order of the numbers.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbm.data.dataset import ImageDataset, Split, class_index
from cbm.data.given import GivenFeatures, GivenImages
from cbm.data.images import ImageArray, ImageFiles, Images, file_key
from cbm.data.labels import NO, UNKNOWN, YES
from cbm.data.lists import is_there
from cbm.data.readers import SPLIT_ALIASES, SPLITS, reader
from cbm.data.roles import Keys, Part, find_parts, names_in
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path
from cbm.files.arrays import read_arrays
from cbm.files.names import one_form


@reader("features")
def read_features(
    name: str,
    root: Path,
    features: str | None = None,
    labels: str | None = None,
    names: str | None = None,
    split: str | None = None,
    classes: list[str] | None = None,
    concepts: list[str] | None = None,
    subject: str | None = None,
    images: str | None = None,
    labels_from_paths: bool = False,
    cache: Path = Path("cache"),
) -> ImageDataset:
    """Features made elsewhere: ``.npz``, ``.npy``, ``.safetensors``, ``.pt``, Parquet, or a folder of such files.

    Args:
        name: name of the data set.
        root: the file, or the folder.
        features: name of the array (or column) of the features; by default a usual one (see above).
        labels: name of the labels.
        names: name of the images' names or paths.
        split: name of the splits (train, val, test).
        classes: class names in the order of the labels, if no array has them.
        concepts: names of columns of concepts, of 1 and 0.
        subject: name of the array that says what belongs together (a patient): its images stay in one split.
        images: folder that the images' names are seen from, so that reports and the explorer show them; by default the
            folder of the features, if they are there.
        labels_from_paths: whether the class of an image is the name of its folder.
        cache: folder for copies of unit norm of features that are too many for the memory.

    Raises:
        UserError: no features or labels are found, they do not fit together, or a file cannot be read.
    """
    keys = Keys(features, labels, names, split, tuple(concepts or ()), subject)
    parts, common = find_parts(root, keys)
    given = {key: _features(part, root, key, cache) for key, part in parts.items()}
    if len(widths := {each.dim for each in given.values()}) > 1:
        raise UserError(f"data set '{name}': its splits are {' and '.join(map(str, sorted(widths)))} features wide")
    said = common.values("classes")
    known = list(classes or ([] if said is None else map(str, said)))
    found = {key: _labels(part, given[key], keys, known, labels_from_paths, root) for key, part in parts.items()}
    named, known = bool(known), known or _class_names(list(found.values()))
    dataset = ImageDataset(name, known, {}, _concept_names(parts, common, keys))
    for key, part in parts.items():
        whole = Split(
            GivenImages(root, given[key], _shown(part, given[key], images, root)),
            _indices(found[key], known, named, part, root),
            _concepts(part, keys, dataset.concept_names, len(given[key])),
            _per_image(part, "subject", len(given[key])),
            features=given[key],
        )
        for place, rows in _divided(part, key, len(whole)):
            dataset.splits[place] = whole if len(rows) == len(whole) else whole.take(rows)
    dataset.splits = {key: dataset.splits[key] for key in SPLITS if key in dataset.splits}
    dataset.subject = subject or ""
    return dataset


def given_rows(
    root: Path, cache: Path = Path("cache"), features: str | None = None, names: str | None = None
) -> Iterator[GivenImages]:
    """The features of a file or folder without their labels, split by split.

    Args:
        root: the file, or the folder.
        cache: as for ``read_features``.
        features: name of the features, where there are some of that name.
        names: name of the images' names, likewise.

    Raises:
        UserError: no features are found, or a file cannot be read.
    """
    there = [name for key in read_arrays(root) for name in names_in(key)]
    features, names = (said if said and one_form(said).casefold() in there else None for said in (features, names))
    parts, _ = find_parts(root, Keys(features, names=names))
    for key, part in parts.items():
        given = _features(part, root, key, cache)
        yield GivenImages(root, given, _shown(part, given, None, root))


def _features(part: Part, root: Path, split: str, cache: Path) -> GivenFeatures:
    """The features of a split, with a name for every row.

    Raises:
        UserError: they are no matrix, or names are not as many.
    """
    arrays = part.arrays["features"]
    tensors: list[Tensor] = []
    for array in arrays:
        tensor = array.read()
        if not isinstance(tensor, Tensor):
            raise UserError(f"{array.where} is {tensor.dtype}: expected features [N, D] of floats")
        if tensor.dim() != 2 or not tensor.shape[1]:
            raise UserError(f"{array.where} is {list(tensor.shape)}: expected features [N, D]")
        if tensors and tensor.shape[1] != tensors[0].shape[1]:
            raise UserError(
                f"{array.where} is {tensor.shape[1]} features wide, {arrays[0].where} is {tensors[0].shape[1]}"
            )
        tensors.append(tensor)
    count = sum(map(len, tensors))
    if not count:
        raise UserError(f"{arrays[0].where} has no rows")
    dtype = tensors[0].dtype if len({tensor.dtype for tensor in tensors}) == 1 else torch.float32
    given = _per_image(part, "names", count)
    numbers = (f"{split or 'row'}/{row:07d}" for row in range(count))
    names = list(numbers) if given is None else _told_apart(given.tolist())
    key = "|".join(file_key(file) for file in dict.fromkeys(array.file for array in arrays)) + str(root.absolute())
    parts = [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]
    return GivenFeatures(parts, f"{key}|{split}", names, cache)


def _told_apart(names: list[str]) -> list[str]:
    """Names, with a number after one that stands before: no two images have the same."""
    there = set(names)
    if len(there) == len(names):
        return names
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        other = name
        while seen[name] > 1 and (other := f"{name} ({seen[name]})") in there:
            seen[name] += 1
        found.append(other)
    return found


def _texts(values: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values).astype(str)


def _per_image(part: Part, role: str, count: int) -> np.ndarray | None:
    """Texts ``[N]`` of a role; None if there are none.

    Raises:
        UserError: they are not as many as the features.
    """
    found = _texts(part.values(role))
    if found is not None and len(found) != count:
        features = part.where("features")
        raise UserError(f"{part.where(role)} has {len(found):,} entries, {features} {count:,} rows of features")
    return found


def _labels(
    part: Part, given: GivenFeatures, keys: Keys, classes: list[str], from_paths: bool, root: Path
) -> np.ndarray:
    """The labels of a split as they are: ``[N]`` whole numbers or names.

    Raises:
        UserError: there are none, they are not as many as the features, or an image has several or none.
    """
    count = len(given)
    if from_paths:
        folders = [name.replace("\\", "/").rstrip("/").split("/")[-2:-1] for name in given.names]
        if bare := [name for name, folder in zip(given.names, folders) if not folder]:
            raise UserError(f"dataset.args.labels_from_paths=true: '{bare[0]}' is in no folder that would be its class")
        return np.array([folder[0] for folder in folders])
    if "labels" not in part.arrays:
        near = "" if keys.labels is None else f"; no array is called '{keys.labels}'"
        raise UserError(
            f"{part.where('features')} are features without labels{near}: expected an array (or column) called y, "
            "labels or label, or dataset.args.labels=NAME, or dataset.args.labels_from_paths=true if images lie in a "
            "folder per class"
        )
    values, where = part.values("labels"), part.where("labels")
    if len(values) != count:
        shape = list(part.arrays["features"][0].shape)
        swapped = " (are its rows and columns exchanged?)" if given.dim == len(values) else ""
        raise UserError(f"{where} has {len(values):,} labels, but the features are {shape}{swapped}")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        if ((values != 0) & (values != 1)).any() or (values.sum(axis=1) != 1).any():
            raise UserError(f"{where} is {list(values.shape)}: expected one label per image, or rows with one 1")
        return values.argmax(axis=1)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != values.round()).any():
            row = int(np.flatnonzero(~np.isfinite(values) | (values != np.round(values)))[0])
            raise UserError(f"{where}: the label of '{given.names[row]}' is {values[row]}; expected a whole number")
        return values.astype(np.int64)
    numbers = values.dtype.kind == "U" and all(re.fullmatch(r"0|[1-9]\d{0,8}", value.strip()) for value in values)
    if numbers and not set(map(one_form, values)) & set(map(one_form, classes)):
        return values.astype(np.int64)  # a table of numbers is read as text
    if values.dtype.kind != "U":
        return values.astype(np.int64)
    if bare := [name for name, value in zip(given.names, values.tolist()) if not one_form(value)]:
        raise UserError(f"{where}: {len(bare):,} image(s) have no label, first '{bare[0]}'")
    return values


def _class_names(labels: list[np.ndarray]) -> list[str]:
    """Names of the classes that labels know: sorted, numbers by their size."""
    every = {label for each in labels for label in np.unique(each).tolist()}
    if all(isinstance(label, int) for label in every):
        return [str(label) for label in sorted(every)]
    return sorted({one_form(str(label)) for label in every})


def _indices(labels: np.ndarray, classes: list[str], named: bool, part: Part, root: Path) -> np.ndarray:
    """Class indices ``[N]`` of labels; numbers are indices if the classes were ``named``.

    Raises:
        UserError: a label is no class.
    """
    where = part.where("labels") if "labels" in part.arrays else f"'{root}'"
    if labels.dtype.kind == "U":
        names = [one_form(label) for label in labels.tolist()]
        known = [one_form(name) for name in classes]
        if unknown := sorted(set(names) - set(known)):
            raise UserError(f"{where}: class '{unknown[0]}' is not among the class names: "
                            f"{did_you_mean(unknown[0], known)}")  # fmt: skip
        return class_index(names, known)
    if not named:  # numbers are their own names
        return class_index(list(map(str, labels.tolist())), classes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise UserError(
            f"{where}: labels are {low} to {high}, but there are {len(classes)} class names, which are counted from 0"
        )
    return labels


def _concept_names(parts: Mapping[str, Part], common: Part, keys: Keys) -> list[str]:
    """Names of the labelled concepts.

    Raises:
        UserError: a column is not there, or concepts have no names.
    """
    if keys.concepts:
        for part in parts.values():
            if absent := [name for name in keys.concepts if f"concept {name}" not in part.arrays]:
                raise UserError(f"dataset.args.concepts: there is no array or column '{absent[0]}'")
        return list(keys.concepts)
    labelled = [part for part in parts.values() if "concepts" in part.arrays]
    if not labelled:
        return []
    names, width = _texts(common.values("concept_names")), labelled[0].arrays["concepts"][0].shape[1]
    if names is None or len(names) != width:
        found = "no names" if names is None else f"{len(names)} names"
        raise UserError(f"{labelled[0].where('concepts')} has {width} columns, and {found}: expected concept_names [A]")
    return names.tolist()


def _concepts(part: Part, keys: Keys, names: list[str], count: int) -> np.ndarray | None:
    """Concept labels ``[N, A]`` float32: 1, 0 or NaN; None if this split has none.

    Raises:
        UserError: a value is something else, or there are not as many as images.
    """
    if keys.concepts:
        columns = [_yes_or_no(part.values(f"concept {name}"), part.where(f"concept {name}")) for name in keys.concepts]
        values, where = np.stack(columns, axis=1), part.where(f"concept {keys.concepts[0]}")
    elif "concepts" in part.arrays:
        values, where = part.values("concepts").astype(np.float32), part.where("concepts")
    else:
        return None
    if values.shape != (count, len(names)):
        raise UserError(f"{where} is {list(values.shape)}: expected {[count, len(names)]}")
    if (wrong := ~(np.isnan(values) | (values == 0) | (values == 1))).any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(f"{where}: '{names[column]}' of row {row} is {values[row, column]:g}: expected 1, 0 or NaN")
    return values


def _yes_or_no(values: np.ndarray, where: str) -> np.ndarray:
    """A column of concepts as float32."""
    if values.dtype.kind != "U":
        return values.astype(np.float32)
    meaning = {**dict.fromkeys(YES, 1.0), **dict.fromkeys(NO, 0.0), **dict.fromkeys(UNKNOWN, np.nan)}
    cells = [cell.strip().lower() for cell in values.tolist()]
    if unknown := [cell for cell in cells if cell not in meaning]:
        raise UserError(f"{where}: '{unknown[0]}' is neither yes nor no: expected 1, 0 or empty")
    return np.array([meaning[cell] for cell in cells], np.float32)


def _divided(part: Part, split: str, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """The splits in an array of features, with their rows.

    Raises:
        UserError: a split has another name than train, val or test.
    """
    said = _per_image(part, "split", count)
    if split or said is None:
        yield split or "train", np.arange(count)
        return
    meant = {each: SPLIT_ALIASES.get(each.strip().casefold(), each.strip().casefold()) for each in np.unique(said)}
    if unknown := [each for each, name in meant.items() if name not in SPLITS]:
        raise UserError(f"{part.where('split')}: unknown split '{unknown[0]}', choose one of {', '.join(SPLITS)}")
    for name in SPLITS:
        rows = np.flatnonzero(np.isin(said, [each for each, place in meant.items() if place == name]))
        if len(rows):
            yield name, rows


def _shown(part: Part, given: GivenFeatures, said: str | None, root: Path) -> Images | None:
    """The images of a split, from its array ``images`` or from files; None if they are not on this machine.

    Raises:
        UserError: the folder that was named does not have the first image.
    """
    if "images" in part.arrays:
        pixels = [np.asarray(array.read()) for array in part.arrays["images"]]
        if sum(map(len, pixels)) == len(given):
            return ImageArray(np.concatenate(pixels) if len(pixels) > 1 else pixels[0], given.names)
    first = given.names[0]
    if said is not None:
        folder = resolve_path(said)
        if not is_there(folder / first):
            raise UserError(f"dataset.args.images={said}: there is no '{first}' in it")
        return ImageFiles(folder, given.names)
    folder = root if root.is_dir() else root.parent
    return ImageFiles(folder, given.names) if is_there(folder / first) else None
