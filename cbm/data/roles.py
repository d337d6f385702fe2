"""Which of the arrays in a file or folder are features, labels, names, splits: by their usual names, or as is said.

Numbered files (``img_emb/img_emb_0.npy``, ``metadata/metadata_0.parquet``) are one array, in the order of the numbers.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbm.data.readers import SPLIT_ALIASES, SPLITS
from cbm.data.tables import LABELS, PATHS, SPLIT_NAMES
from cbm.errors import UserError, did_you_mean
from cbm.files.arrays import ARRAYS, BESIDE, Stored, in_number, read_arrays, read_file
from cbm.files.names import one_form, quoted

log = logging.getLogger(__name__)

ROLES: dict[str, tuple[str, ...]] = {
    "features": ("x", "features", "feature", "feats", "feat", "embeddings", "embedding", "emb", "embs", "vectors",
                 "image_features", "image_embeddings", "image_embeds", "image_emb", "img_emb", "img_embs",
                 "img_features", "clip_features"),
    "labels": ("y", "labels", "targets", "class_id", "label_id", "class_idx", "gt", *LABELS),
    "classes": ("classes", "class_names", "classnames", "label_names", "target_names", "categories"),
    "names": ("names", "name", "paths", "filenames", "files", "image_paths", "image_names", "ids", "keys", "key",
              *PATHS),
    "split": ("splits", *SPLIT_NAMES),
    "images": ("images", "pictures", "pixels"),
    "concepts": ("concepts", "attributes", "concept_labels"),
    "concept_names": ("concept_names", "attribute_names"),
}  # fmt: skip
"""How arrays are called that hold what a data set needs."""
_WORDS = "|".join([*SPLITS, *SPLIT_ALIASES])
_SPLIT = re.compile(rf"(?P<first>{_WORDS})(?:[_\-.](?P<after>.*))?|(?P<before>.*?)[_\-.](?P<last>{_WORDS})")
"""The name of an array that says its split: ``train``, ``train_X``, ``X-train``."""
METADATA = ("metadata", "meta", "index", "table")
"""How a table beside a file of features is called."""


@dataclass(frozen=True)
class Keys:
    """What the user says about the names of arrays; by default they are told from the usual ones (``ROLES``).

    Attributes:
        features: name of the features.
        labels: name of the labels.
        names: name of the images' names.
        split: name of the splits.
        concepts: names of columns of concepts.
        subject: name of what belongs together.
    """

    features: str | None = None
    labels: str | None = None
    names: str | None = None
    split: str | None = None
    concepts: Sequence[str] = ()
    subject: str | None = None


def _as_numpy(values: Tensor) -> np.ndarray:
    """Numbers as they are: float64 stays, as float32 has no odd numbers above 2 ** 24."""
    return (values if values.dtype == torch.float64 else values.float()).numpy()


@dataclass
class Part:
    """The arrays of one split (or of all, as long as they are not divided), by what they hold.

    Attributes:
        arrays: arrays by role; several are parts of one, in order.
    """

    arrays: dict[str, list[Stored]] = field(default_factory=dict)

    def values(self, role: str) -> Any:
        """The values of a role: ``[N]`` or ``[N, A]``, text or numbers; None if there are none."""
        if role not in self.arrays:
            return None
        read = [array.read() for array in self.arrays[role]]
        return np.concatenate([_as_numpy(each) if isinstance(each, Tensor) else each for each in read])

    def where(self, role: str) -> str:
        """Where the values of a role are, for messages."""
        return self.arrays[role][0].where


def find_parts(root: Path, keys: Keys) -> tuple[dict[str, Part], Part]:
    """The arrays of each split, and those that are of all; an undivided set is one split with an empty name.

    Raises:
        UserError: no features are found, or it is not clear which arrays they are.
    """
    arrays = _with_siblings(root, read_arrays(root), keys)
    parts: dict[str, Part] = {}
    for key, array in arrays.items():
        split, plain = _place(key)
        for role in _roles(key, plain, array, keys):
            parts.setdefault(split, Part()).arrays.setdefault(role, []).append(array)
    _all_there(root, arrays, parts, keys)
    if not any("features" in part.arrays for part in parts.values()):
        _only_matrix(root, arrays, parts)
    for part in parts.values():
        part.arrays = {role: _one_series(role, found) for role, found in part.arrays.items()}
        _same_numbers(part)
    common = parts.get("", Part())
    divided = {split: part for split, part in parts.items() if "features" in part.arrays}
    if "" in divided and len(divided) > 1:
        other = next(split for split in divided if split)
        raise UserError(
            f"'{root}' has features of no split ({common.where('features')}) beside those of {other}: say "
            "dataset.args.features=NAME, or keep one kind"
        )
    for role in ("classes", "concept_names"):  # of all splits, wherever they are
        said = [part for part in parts.values() if role in part.arrays]
        if any(part.values(role).tolist() != said[0].values(role).tolist() for part in said):
            raise UserError(f"{said[0].where(role)} and {said[1].where(role)} differ: expected the same in every split")
        common.arrays |= {role: said[0].arrays[role]} if said else {}
    return {split: divided[split] for split in ("", *SPLITS) if split in divided}, common


def _all_there(root: Path, arrays: Mapping[str, Stored], parts: Mapping[str, Part], keys: Keys) -> None:
    """Refuse a name that the user says and no array has, instead of going on as if nothing had been said.

    Raises:
        UserError: there is no such array.
    """
    for role in ("features", "names", "split", "subject"):  # labels and concepts are asked for later
        said = getattr(keys, role)
        if said is not None and not any(role in part.arrays for part in parts.values()):
            raise UserError(f"dataset.args.{role}={said}: '{root}' has no such array: {did_you_mean(said, arrays)}")


def _place(key: str) -> tuple[str, str]:
    """The split that an array's name says (or an empty one), and the name without it and without its number.

    >>> _place("X_train"), _place("valid/img_emb/img_emb_12"), _place("metadata_3/label")
    (('train', 'x'), ('val', 'img_emb'), ('', 'label'))
    """
    split, plain = "", ""
    for component in key.split("/"):
        plain = re.sub(r"[_\-.]?\d+$", "", component.casefold())
        if match := _SPLIT.fullmatch(plain):
            word, plain = match["first"] or match["last"], match["after"] or match["before"] or ""
            split = SPLIT_ALIASES.get(word, word)
    return split, plain


def names_in(key: str) -> tuple[str, str, str]:
    """What an array may be called by: with its file, without it, and without its split and number."""
    return key.casefold(), key.rpartition("/")[2].casefold(), _place(key)[1]


def _roles(key: str, plain: str, array: Stored, keys: Keys) -> list[str]:
    """What an array holds, by its name or by what the user says."""
    last = key.rpartition("/")[2]
    found = []
    called = names_in(key)
    for role in ("features", "labels", "names", "split", "subject"):
        said = getattr(keys, role)
        if said is not None and one_form(said).casefold() in called:
            found.append(role)
    found += [f"concept {name}" for name in keys.concepts if one_form(name) == one_form(last)]
    if found:
        return found
    for role, usual in ROLES.items():
        if plain in usual and getattr(keys, role, None) in (None, ()) and _suits(role, array):
            return [role]
    return []


def _suits(role: str, array: Stored) -> bool:
    """Whether an array can hold what its name says: a column ``name`` of captions is fine, a matrix of them is not."""
    if role == "features":
        return array.kind == "f" and len(array.shape) >= 2
    if role == "labels":
        return array.kind in "iUfO" and 1 <= len(array.shape) <= 2
    if role == "images":
        return array.kind == "i" and len(array.shape) == 4 and array.shape[-1] == 3
    if role in ("classes", "concept_names", "names", "split"):
        return array.kind in "UiO" and len(array.shape) == 1
    return array.kind in "fi" and len(array.shape) == 2


def _only_matrix(root: Path, arrays: Mapping[str, Stored], parts: dict[str, Part]) -> None:
    """Take the only array of floats with rows and columns for the features, in every split.

    Raises:
        UserError: there is none, or there are several.
    """
    able: dict[str, list[tuple[str, Stored]]] = {}
    for key, array in arrays.items():
        if array.kind == "f" and len(array.shape) == 2 and _roles_of(parts, array) == []:
            able.setdefault(_place(key)[0], []).append((key, array))
    series = {split: {re.sub(r"\d+", "", key) for key, _ in found} for split, found in able.items()}
    if not able or any(len(names) > 1 for names in series.values()):
        names = sorted({key for found in able.values() for key, _ in found}, key=in_number)
        what = (
            f"several arrays could be the features ({quoted(names)})"
            if able
            else (f"no array could be the features ([N, D] floats); there are {quoted(arrays)}")
        )
        raise UserError(f"'{root}': {what}: say dataset.args.features=NAME")
    for split, found in able.items():
        parts.setdefault(split, Part()).arrays["features"] = [array for _, array in found]


def _roles_of(parts: Mapping[str, Part], array: Stored) -> list[str]:
    return [role for part in parts.values() for role, found in part.arrays.items() if array in found]


def _one_series(role: str, found: list[Stored]) -> list[Stored]:
    """The arrays of a role: numbered parts of one. Of several labels or names, those with the first of the usual names.

    Text says more than numbers do: ``class_name`` is taken before ``label`` where that is a number.

    Raises:
        UserError: two arrays could be meant.
    """
    series: dict[str, list[Stored]] = {}
    for array in found:
        series.setdefault(re.sub(r"\d+", "", array.where), []).append(array)
    if len(series) > 1 and role in ("labels", "names"):

        def rank(where: str) -> tuple[bool, int]:
            plain = _place(re.split(r"[ /]", where)[-1].strip("'"))[1]
            order = ROLES[role].index(plain) if plain in ROLES[role] else len(ROLES[role])
            return series[where][0].kind != "U", order

        first, second = sorted(series, key=rank)[:2]
        if rank(first) != rank(second):
            log.info("%s: %s (not %s; dataset.args.%s=NAME chooses)", role, first, second, role)
            return series[first]
    if len(series) > 1:
        names = " and ".join(each[0].where for each in list(series.values())[:2])
        setting = {"classes": "dataset.args.classes=[...]"}.get(role, f"dataset.args.{role}=NAME")
        raise UserError(f"{names} could both be the {role}: say {setting}, or keep one")
    return found


def _numbers(arrays: Sequence[Stored]) -> list[tuple[int, ...]]:
    """The numbers in which the names of some arrays differ: ``[(0,), (1,)]``."""
    found = [[int(each) for each in re.findall(r"\d+", array.where)] for array in arrays]
    return [tuple(column) for column in zip(*(place for place in zip(*found) if len(set(place)) > 1))]


def _same_numbers(part: Part) -> None:
    """Refuse parts that do not go together: one is missing here and another there, or they are of several models.

    Raises:
        UserError: numbers of labels or names are other than those of the features, or every folder has all labels.
    """
    features = part.arrays.get("features", [])
    for role in ("labels", "names", "split", "subject"):
        others = part.arrays.get(role, [])
        if 1 < len(features) == len(others) and (here := _numbers(features)) != (there := _numbers(others)):
            place = next((i for i, (one, other) in enumerate(zip(here, there)) if one != other), 0)
            raise UserError(f"{features[place].where} and {others[place].where} have other numbers: is a part missing?")
    numbers = [each[0] for each in _numbers(features) if len(each) == 1]
    labels = part.arrays.get("labels", [])
    apart = len(numbers) == len(labels) > 1 and any(np.diff(numbers) != 1)
    if apart and len({len(array) for array in labels}) == 1 and "names" not in part.arrays:
        first, *rest = (np.asarray(array.read()) for array in labels)
        if all(np.array_equal(first, each) for each in rest):
            raise UserError(
                f"{features[0].where} and {features[1].where} have the same labels: are they features of several "
                "models? name one of the files or folders, dataset.root=..."
            )


def _with_siblings(root: Path, arrays: dict[str, Stored], keys: Keys) -> dict[str, Stored]:
    """With what lies beside a file of features that has no labels itself: ``labels.npy`` or ``features_labels.npy``, a
    table ``metadata.csv`` or ``features.csv``, ``classes.txt``, or the file that ``dataset.args.labels`` names."""
    roles = {role for key, array in arrays.items() for role in _roles(key, _place(key)[1], array, keys)}
    if root.is_dir() or "labels" in roles:
        return arrays
    found, stem = dict(arrays), root.stem.casefold()
    splits = {_place(key)[0] for key in arrays}
    split = splits.pop() if len(splits) == 1 else ""
    for file in sorted(root.parent.iterdir()):
        own = file.stem.casefold()
        plain = own.removeprefix(stem).strip("_-.") or METADATA[0]
        said = file.name == keys.labels
        usual = plain in METADATA or any(plain in names for role, names in ROLES.items() if role != "features")
        if split and _place(plain)[0] == split:  # y_train.npy beside X_train.npy
            usual |= any(_place(plain)[1] in names for role, names in ROLES.items() if role != "features")
        usual &= own != stem or file.suffix.lower() in BESIDE  # features.npz beside features.npy is another set
        if file == root or file.suffix.lower() not in ARRAYS + BESIDE or not (said or usual):
            continue
        for name, array in read_file(file).items():
            key = keys.labels if said else f"{plain}/{name}" if name else plain
            if set(_roles(str(key), _place(str(key))[1], array, keys)) - {"features"}:
                log.info("%s goes with '%s'", array.where, root.name)
                found[str(key) if split in ("", _place(str(key))[0]) else f"{split}/{key}"] = array
    return found
