"""``predictions.parquet``: what a model decided about every image of a split, so that others can be compared on them.

One row per image: ``image`` (its name in the data set), ``subject`` where the data set has them, ``label`` and
``decision`` (class names), ``confidence`` (the probability of the decision, float32), ``label_probability`` and
``probabilities`` (half precision), and ``decision_KEY`` of further heads (``decision_accuracy_nec5_resolved``). The
probabilities are those of all classes in the order of the classes; where that would be more than ``MOST`` numbers they
are those of the ``TOP`` most probable classes, whose numbers are in ``probabilities_of``. The metadata entry ``cbm``
says which, and names the data set, the split and the classes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbm.errors import UserError
from cbm.files import write_atomically
from cbm.files.arrays import check_columns, check_texts, longest_text
from cbm.files.names import file_name
from cbm.files.run_directory import PREDICTIONS, read_config, verify_run

MOST = 4_000_000
"""Probabilities of which all are kept (8 MB); of more, only those of the ``TOP`` classes."""
TOP = 5
OTHER = "decision_"
"""How the columns of further heads begin."""


class NoPredictionsError(UserError):
    """A run has no predictions, as it was made before they were kept."""


@dataclass(frozen=True)
class Predictions:
    """What a model decided about N images.

    Attributes:
        dataset: name of the data set.
        split: name of the split.
        classes: C class names.
        images: names of the N images.
        labels: class indices ``[N]``.
        decisions: indices ``[N]`` of the predicted classes.
        confidence: probability ``[N]`` of the decision, float32.
        label_probability: probability ``[N]`` of the label, float16.
        probabilities: probabilities ``[N, P]`` float16: P = C classes in order, or the most probable ones first.
        probabilities_of: class indices ``[N, P]`` of the probabilities; None where they are those of all classes.
        subjects: subject ``[N]`` of every image, as text; None if unknown.
        others: decisions ``[N]`` of further heads, by the key of their accuracy (``accuracy_nec5``).
    """

    dataset: str
    split: str
    classes: list[str]
    images: list[str]
    labels: np.ndarray
    decisions: np.ndarray
    confidence: np.ndarray
    label_probability: np.ndarray
    probabilities: np.ndarray
    probabilities_of: np.ndarray | None = None
    subjects: np.ndarray | None = None
    others: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """Stands for the images and their classes, in any order: runs can be paired where it is the same."""
        named = sorted(f"{image}\0{self.classes[label]}" for image, label in zip(self.images, self.labels.tolist()))
        content = _text("\n".join([self.dataset, self.split, *named]))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def order(self) -> np.ndarray:
        """Rows ``[N]`` in the order of the images' names, in which runs of one fingerprint stand beside each other."""
        return np.array(sorted(range(len(self)), key=lambda row: (self.images[row], self.labels[row])), dtype=np.int64)


def write_predictions(path: Path, found: Predictions) -> None:
    """Write the predictions into one Parquet file, whose pages carry checksums.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    names = [_text(name) for name in found.classes]

    def class_column(rows: np.ndarray) -> arrow.Array:
        return arrow.DictionaryArray.from_arrays(arrow.array(rows.astype(np.int32)), arrow.array(names))

    width = found.probabilities.shape[1]
    columns: dict[str, Any] = {"image": arrow.array([_text(name) for name in found.images], arrow.string())}
    if found.subjects is not None:
        columns["subject"] = arrow.array([_text(str(each)) for each in found.subjects], arrow.string())
    columns["label"], columns["decision"] = class_column(found.labels), class_column(found.decisions)
    columns |= {OTHER + key: class_column(rows) for key, rows in found.others.items()}
    columns["confidence"] = arrow.array(found.confidence.astype(np.float32))
    columns["label_probability"] = arrow.array(found.label_probability.astype(np.float16))
    columns["probabilities"] = _lists(found.probabilities.astype(np.float16), width)
    if found.probabilities_of is not None:
        columns["probabilities_of"] = _lists(found.probabilities_of.astype(np.int32), width)
    kept = "of all classes, in their order" if found.probabilities_of is None else f"of the {width} most probable"
    about = {
        "dataset": found.dataset, "split": found.split, "classes": names, "fingerprint": found.fingerprint,
        "probabilities": kept,
    }  # fmt: skip
    table = arrow.table(columns).replace_schema_metadata({"cbm": json.dumps(about)})
    buffer = arrow.BufferOutputStream()
    parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_atomically(path, buffer.getvalue().to_pybytes())


def read_predictions(run: Path) -> Predictions:
    """What the model of a run decided about its test images.

    A run that was made before predictions were kept has them once ``eval.py`` has measured its test split again.

    Raises:
        NoPredictionsError: there are none.
        UserError: they are damaged.
    """
    if (file := run / PREDICTIONS).is_file():
        verify_run(run, (PREDICTIONS,))
        return read_predictions_file(file)
    name = file_name(f"{read_config(run).dataset.name}-test")
    if (again := run / "eval" / f"{name}.parquet").is_file():
        return read_predictions_file(again)
    raise NoPredictionsError(
        f"run '{run}' was made before predictions were kept (it has no {PREDICTIONS}): run python eval.py run={run}"
    )


def read_predictions_file(file: Path) -> Predictions:
    """Read what ``write_predictions`` wrote.

    Raises:
        UserError: there is no such file, it is damaged, or it was not written by cbm.
    """
    import pyarrow.parquet as parquet

    try:
        names = [name for name in ("image", "subject") if name in parquet.read_schema(file).names]
        with parquet.ParquetFile(file, page_checksum_verification=True, read_dictionary=names) as content:
            check_columns(content, file)
            table = content.read(use_threads=False)
        for name in names:
            for part in table[name].chunks:
                check_texts(f"'{file}' {name}", longest_text(part), len(table), file)
        about = json.loads((table.schema.metadata or {})[b"cbm"])
        if about.get("task") == "many":
            raise UserError(f"'{file}' holds any number of labels an image, not one class")
        classes = [str(name) for name in about["classes"]]
        index = {name: number for number, name in enumerate(classes)}
        found = Predictions(
            about["dataset"],
            about["split"],
            classes,
            table["image"].to_pylist(),
            _indices(table["label"], index),
            _indices(table["decision"], index),
            table["confidence"].to_numpy(),
            table["label_probability"].to_numpy(),
            _rectangle(table["probabilities"]),
            _rectangle(table["probabilities_of"]) if "probabilities_of" in table.column_names else None,
            np.array(table["subject"].to_pylist()) if "subject" in table.column_names else None,
            {
                name.removeprefix(OTHER): _indices(table[name], index)
                for name in table.column_names
                if name.startswith(OTHER)
            },
        )
        if found.fingerprint != about["fingerprint"]:
            raise UserError(f"'{file}' is damaged: its images are not those that it was written with")
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UserError(f"'{file}' is damaged or was not written by cbm ({type(error).__name__})") from error
    return found


def _text(name: str) -> str:
    """A name as Parquet can hold it: names of files that are no UTF-8 have their bytes spelt out."""
    return name.encode(errors="backslashreplace").decode()


def _lists(values: np.ndarray, width: int) -> Any:
    import pyarrow as arrow

    return arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), width)


def _rectangle(column: Any) -> np.ndarray:
    """A column of lists of one length as ``[N, P]``."""
    chunk = column.combine_chunks()
    return chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)


def _indices(column: Any, classes: dict[str, int]) -> np.ndarray:
    """Class indices ``[N]`` of a column of class names."""
    coded = column.combine_chunks()
    if not hasattr(coded, "dictionary"):
        coded = coded.dictionary_encode()
    places = np.array([classes[name] for name in coded.dictionary.to_pylist()], dtype=np.int64)
    return places[coded.indices.to_numpy(zero_copy_only=False)] if len(coded) else np.empty(0, dtype=np.int64)


def same_images(found: Sequence[Predictions]) -> bool:
    """Whether predictions are of the same images with the same labels, so that they can be paired."""
    return len({each.fingerprint for each in found}) <= 1
