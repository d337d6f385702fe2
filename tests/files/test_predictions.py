"""What was decided about every image: written and read again, small, and refused where it is damaged."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from decided_run import CLASSES, decided_run, predictions

from cbm.errors import UserError
from cbm.files import opening
from cbm.files.predictions import (
    TOP,
    NoPredictionsError,
    Predictions,
    read_predictions,
    read_predictions_file,
    same_images,
    write_predictions,
)

RIGHT = np.random.default_rng(0).random(40) < 0.8


def test_what_is_written_is_read(tmp_path: Path):
    kept = predictions(RIGHT, subjects=np.arange(40) // 3, others={"accuracy_nec5": np.arange(40) % 3})
    write_predictions(tmp_path / "p.parquet", kept)
    found = read_predictions_file(tmp_path / "p.parquet")
    for name in ("images", "classes", "dataset", "split", "fingerprint", "probabilities_of"):
        assert getattr(found, name) == getattr(kept, name), name
    for name in ("labels", "decisions", "confidence", "label_probability", "probabilities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))
    assert found.probabilities.dtype == np.float16
    assert found.subjects.tolist() == [str(row // 3) for row in range(40)]
    np.testing.assert_array_equal(found.others["accuracy_nec5"], np.arange(40) % 3)


def test_others_can_read_it(tmp_path: Path):
    write_predictions(tmp_path / "p.parquet", predictions(RIGHT))
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["image", "label", "decision", "confidence", "label_probability", "probabilities"]
    assert table["label"].to_pylist()[:4] == CLASSES
    assert table["probabilities"].to_pylist()[0] == pytest.approx([0.75, *[0.25 / 3] * 3], abs=1e-3)


def test_names_that_are_no_text(tmp_path: Path):
    """Names of files that are not UTF-8 are kept with their bytes spelt out."""
    kept = predictions(RIGHT[:2], images=["caf\udce9.png", "b.png"])
    write_predictions(tmp_path / "p.parquet", kept)
    assert read_predictions_file(tmp_path / "p.parquet").images == ["caf\\udce9.png", "b.png"]


def test_a_large_set_stays_small(tmp_path: Path):
    """50,000 images of 1,000 classes: the most probable classes and the label's are kept."""
    n, c, generator = 50_000, 1_000, np.random.default_rng(0)
    labels = generator.integers(0, c, n)
    found = Predictions(
        "imagenet",
        "test",
        [f"class {k}" for k in range(c)],
        [f"val/n{row % c:08d}/{row:08d}.JPEG" for row in range(n)],
        labels,
        generator.integers(0, c, n),
        generator.random(n, dtype=np.float32),
        generator.random(n).astype(np.float16),
        generator.random((n, TOP)).astype(np.float16),
        generator.integers(0, c, (n, TOP)),
    )
    write_predictions(tmp_path / "p.parquet", found)
    assert (tmp_path / "p.parquet").stat().st_size < 4e6
    again = read_predictions_file(tmp_path / "p.parquet")
    np.testing.assert_array_equal(again.probabilities_of, found.probabilities_of)
    about = pyarrow.parquet.read_schema(tmp_path / "p.parquet").metadata[b"cbm"].decode()
    assert "of the 5 most probable" in about


def test_images_are_the_same_in_any_order_and_with_classes_in_any_order():
    kept = predictions(RIGHT)
    turned = predictions(
        RIGHT, images=kept.images[::-1], labels=3 - kept.labels[::-1], classes=CLASSES[::-1]
    )  # fmt: skip
    assert same_images([kept, turned])
    assert [kept.images[row] for row in kept.order()] == [turned.images[row] for row in turned.order()]
    for other in (predictions(RIGHT, names="photo"), predictions(RIGHT, dataset="wings"), predictions(RIGHT[:-1])):
        assert not same_images([kept, other])


def test_a_run_of_before_says_what_to_do(tmp_path: Path):
    run = decided_run(tmp_path, "labo", 0, RIGHT, keep=False)
    with pytest.raises(NoPredictionsError, match=r"made before predictions were kept .*run python eval\.py run="):
        read_predictions(run)
    write_predictions(run / "eval" / "birds-test.parquet", predictions(RIGHT))  # what eval.py writes
    assert len(read_predictions(run)) == 40


@pytest.mark.parametrize("where", ["pages", "middle", "end", "cut", "empty", "foreign"])
def test_damage_is_one_line(tmp_path: Path, where: str):
    run = decided_run(tmp_path, "labo", 0, RIGHT)
    file = run / "predictions.parquet"
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
        read_predictions(run)
    assert "\n" not in str(caught.value)


def test_a_table_of_a_few_bytes_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "UNPACKED", 1 << 20)
    write_predictions(tmp_path / "p.parquet", predictions(np.ones(50_000, dtype=bool), names="n"))
    monkeypatch.setattr(opening, "PACKED", 1)
    with pytest.raises(UserError, match="probabilities would take 1,600,000 bytes of memory"):
        read_predictions_file(tmp_path / "p.parquet")
    monkeypatch.setattr(opening, "PACKED", 200)
    write_predictions(tmp_path / "q.parquet", predictions(np.ones(900, dtype=bool), images=["x" * 9000] * 900))
    with pytest.raises(UserError, match="image: one of 900 texts has 9,000 letters"):
        read_predictions_file(tmp_path / "q.parquet")
