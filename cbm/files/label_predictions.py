"""What a model said about every image where an image has any number of labels: one Parquet file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbm.errors import UserError
from cbm.files.arrays import check_columns, check_texts, longest_text
from cbm.files.atomic import write_atomically
from cbm.files.names import as_text, file_name
from cbm.files.predictions import NoPredictionsError
from cbm.files.run_directory import PREDICTIONS, read_config, verify_run


@dataclass(frozen=True)
class LabelPredictions:
    """What a model said about N images.

    Attributes:
        dataset: name of the data set.
        split: name of the split.
        labels: names of the L labels.
        images: names of the N images.
        y: labels ``[N, L]`` float32: 1, 0, or NaN if unknown.
        probabilities: probabilities ``[N, L]`` float32.
        thresholds: probabilities ``[L]`` above which a label was said to be there.
        subjects: subject ``[N]`` of every image, as text; None if unknown.
    """

    dataset: str
    split: str
    labels: list[str]
    images: list[str]
    y: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    subjects: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """Stands for the images and their labels, in any order: runs can be paired where it is the same."""
        columns = self.columns()
        words = np.where(np.isnan(self.y), "?", np.where(self.y == 1, "1", "0"))[:, columns]
        named = sorted(f"{image}\0{''.join(row)}" for image, row in zip(self.images, words.tolist()))
        content = "\n".join([self.dataset, self.split, *(self.labels[each] for each in columns), *named])
        return hashlib.blake2b(as_text(content).encode(), digest_size=16).hexdigest()

    def order(self) -> np.ndarray:
        """Rows ``[N]`` in the order of the images' names, in which runs of one fingerprint stand beside each other;
        images of one name are ordered by their labels."""
        labels = np.nan_to_num(self.y[:, self.columns()], nan=2.0).tolist()
        return np.array(sorted(range(len(self)), key=lambda row: (self.images[row], labels[row])), dtype=np.int64)

    def columns(self) -> np.ndarray:
        """Columns ``[L]`` in the order of the labels' names."""
        return np.array(sorted(range(len(self.labels)), key=lambda each: self.labels[each]), dtype=np.int64)


def write_label_predictions(path: Path, found: LabelPredictions) -> None:
    """Write the predictions: image, subject, ``labels`` and ``probabilities`` as lists in the order of the names.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    def lists(values: np.ndarray) -> arrow.Array:
        flat = arrow.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
        return arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])

    columns = {"image": arrow.array([as_text(name) for name in found.images], arrow.string())}
    if found.subjects is not None:
        columns["subject"] = arrow.array([as_text(str(each)) for each in found.subjects], arrow.string())
    columns |= {"labels": lists(found.y), "probabilities": lists(found.probabilities)}
    about = {
        "task": "many", "dataset": found.dataset, "split": found.split, "labels": [as_text(n) for n in found.labels],
        "thresholds": found.thresholds.tolist(), "fingerprint": found.fingerprint,
    }  # fmt: skip
    table = arrow.table(columns).replace_schema_metadata({"cbm": json.dumps(about)})
    buffer = arrow.BufferOutputStream()
    parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_atomically(path, buffer.getvalue().to_pybytes())


def read_label_predictions(file: Path) -> LabelPredictions:
    """Read what ``write_label_predictions`` wrote.

    Raises:
        UserError: there is no such file, it is damaged, or it was not written by cbm.
    """
    import pyarrow.parquet as parquet

    file = Path(file)
    if not file.is_file():
        raise UserError(f"no predictions '{file}'")
    try:
        names = [name for name in ("image", "subject") if name in parquet.read_schema(file).names]
        with parquet.ParquetFile(file, page_checksum_verification=True, read_dictionary=names) as content:
            check_columns(content, file)
            table = content.read(use_threads=False)
        for name in names:
            for part in table[name].chunks:
                check_texts(f"'{file}' {name}", longest_text(part), len(table), file)
        about = json.loads((table.schema.metadata or {})[b"cbm"])
        if about.get("task") != "many":
            raise UserError(f"'{file}' holds one class an image, not any number of labels")
        labels = [str(name) for name in about["labels"]]
        y, probabilities = (
            np.asarray(table[name].combine_chunks().flatten(), dtype=np.float32).reshape(len(table), len(labels))
            for name in ("labels", "probabilities")
        )
        subjects = np.array(table["subject"].to_pylist()) if "subject" in table.column_names else None
        images = [str(name) for name in table["image"].to_pylist()]
        thresholds = np.array(about["thresholds"], dtype=np.float64)
        if thresholds.shape != (len(labels),) or not np.isfinite(thresholds).all():
            raise UserError(f"'{file}' is damaged: its thresholds are not those of {len(labels)} labels")
        if not np.isin(y[~np.isnan(y)], (0, 1)).all() or not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise UserError(f"'{file}' is damaged: its labels are not 0 or 1, or its probabilities not between")
        found = LabelPredictions(
            str(about["dataset"]), str(about["split"]), labels, images, y, probabilities, thresholds, subjects
        )
        if found.fingerprint != about.get("fingerprint"):
            raise UserError(f"'{file}' is damaged: its images are not those that it was written with")
        return found
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parsers raise
        raise UserError(f"'{file}' is damaged or was not written by cbm ({type(error).__name__})") from error


def label_predictions_of(run: Path) -> LabelPredictions:
    """What the model of a run said about its test images, when it was trained or else when it was evaluated.

    Raises:
        NoPredictionsError: there are none.
        UserError: they are damaged.
    """
    if (file := run / PREDICTIONS).is_file():
        verify_run(run, (PREDICTIONS,))
        return read_label_predictions(file)
    again = run / "eval" / f"{file_name(f'{read_config(run).dataset.name}-test')}.parquet"
    if again.is_file():
        return read_label_predictions(again)
    raise NoPredictionsError(f"run '{run}' has no {PREDICTIONS}: run python eval.py run={run}")
