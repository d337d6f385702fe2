"""What was said about every image with several labels: written and read again, and refused where it is damaged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from decided_run import label_predictions, labelled_run, predictions

from cbm.errors import UserError
from cbm.files import opening
from cbm.files.label_predictions import label_predictions_of, read_label_predictions, write_label_predictions
from cbm.files.predictions import NoPredictionsError, read_predictions_file, write_predictions


def test_what_is_written_is_read(tmp_path: Path):
    kept = label_predictions(1.0, subjects=np.arange(60) // 3)
    write_label_predictions(tmp_path / "p.parquet", kept)
    found = read_label_predictions(tmp_path / "p.parquet")
    for name in ("images", "labels", "dataset", "split", "fingerprint"):
        assert getattr(found, name) == getattr(kept, name), name
    np.testing.assert_array_equal(found.y, kept.y)  # NaN stays NaN
    np.testing.assert_array_equal(found.probabilities, kept.probabilities)
    np.testing.assert_array_equal(found.thresholds, kept.thresholds)
    assert found.subjects.tolist() == [str(row // 3) for row in range(60)]
    assert np.isnan(found.y).any()


def test_names_that_are_no_text(tmp_path: Path):
    kept = replace(label_predictions(1.0), labels=["caf\udce9", "b", "c"])
    write_label_predictions(tmp_path / "p.parquet", kept)
    assert read_label_predictions(tmp_path / "p.parquet").labels == ["caf\\udce9", "b", "c"]


def test_images_and_labels_are_the_same_in_any_order():
    one = label_predictions(1.0)
    rows, columns = np.random.default_rng(0).permutation(60), np.array([2, 0, 1])
    other = replace(
        one, images=[one.images[row] for row in rows], labels=[one.labels[each] for each in columns],
        y=one.y[rows][:, columns], probabilities=one.probabilities[rows][:, columns],
    )  # fmt: skip
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(
        one.probabilities[one.order()][:, one.columns()], other.probabilities[other.order()][:, other.columns()]
    )
    y = one.y.copy()
    y[0, 0] = np.nan if y[0, 0] == y[0, 0] else 1.0
    assert replace(one, y=y).fingerprint != one.fingerprint
    assert replace(one, labels=["other", *one.labels[1:]]).fingerprint != one.fingerprint


def test_a_run_without_them_says_what_to_do(tmp_path: Path):
    run = labelled_run(tmp_path, "labo", 0, 1.0, keep=False)
    with pytest.raises(NoPredictionsError, match=r"run python eval\.py run="):
        label_predictions_of(run)
    write_label_predictions(run / "eval" / "birds-test.parquet", label_predictions(1.0))
    assert len(label_predictions_of(run)) == 60


@pytest.mark.parametrize("where", ["pages", "middle", "end", "cut", "empty", "foreign"])
def test_damage_is_one_line(tmp_path: Path, where: str):
    file = labelled_run(tmp_path, "labo", 0, 1.0) / "predictions.parquet"
    content = bytearray(file.read_bytes())
    place = {"pages": 40, "middle": len(content) // 2, "end": len(content) - 3}.get(where)
    if place is not None:
        content[place] ^= 0x40
    elif where == "foreign":
        pyarrow.parquet.write_table(pyarrow.table({"image": ["a"]}), file)
        content = bytearray(file.read_bytes())
    else:
        content = content[: len(content) // 2] if where == "cut" else bytearray()
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.parquet' is (damaged|not as)") as caught:
        label_predictions_of(file.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thresholds": np.array([0.5])}, "its thresholds are not those of 3 labels"),
        ({"thresholds": np.array([0.5, np.nan, 0.5])}, "its thresholds are not those of 3 labels"),
        ({"y": np.full((60, 3), 2, np.float32)}, "its labels are not 0 or 1"),
        ({"probabilities": np.full((60, 3), np.nan, np.float32)}, "its probabilities not between"),
        ({"labels": ["a", "b"]}, "damaged or was not written by cbm"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict, said: str):
    write_label_predictions(tmp_path / "p.parquet", replace(label_predictions(1.0), **changes))
    with pytest.raises(UserError, match=said):
        read_label_predictions(tmp_path / "p.parquet")


def test_the_two_kinds_are_told_apart(tmp_path: Path):
    write_label_predictions(tmp_path / "many.parquet", label_predictions(1.0))
    write_predictions(tmp_path / "one.parquet", predictions(np.ones(8, dtype=bool)))
    with pytest.raises(UserError, match="holds any number of labels an image"):
        read_predictions_file(tmp_path / "many.parquet")
    with pytest.raises(UserError, match="holds one class an image"):
        read_label_predictions(tmp_path / "one.parquet")


def test_a_table_of_a_few_bytes_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "UNPACKED", 1 << 10)
    monkeypatch.setattr(opening, "PACKED", 0)
    write_label_predictions(tmp_path / "p.parquet", label_predictions(1.0, count=20_000))
    with pytest.raises(UserError, match="bytes of memory"):
        read_label_predictions(tmp_path / "p.parquet")
