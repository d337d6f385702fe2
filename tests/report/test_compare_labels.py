"""Tables of runs of several labels: their own columns, never beside one class an image, paired by their AUROC."""

import csv
import io
from pathlib import Path

import numpy as np
from decided_run import decided_run, labelled_run

from cbm.report.compare import compare_runs, format_table
from cbm.report.comparison import write_comparison


def test_labels_have_columns_and_a_table_of_their_own(tmp_path: Path):
    decided_run(tmp_path, "labo", 0, np.arange(40) % 3 > 0)
    labelled_run(tmp_path / "more", "sparse", 0, 2.0)
    rows = compare_runs([tmp_path, tmp_path / "more"])
    assert [row.many for row in rows] == [False, True]
    one, many = format_table(rows, "markdown").split("\n\n")[0], format_table(rows[1:], "markdown")
    assert "accuracy %" in one
    assert "AUROC" not in one
    for column in ("AUROC", "mAP", "F1", "ECE of labels"):
        assert f"| {column} |" in many
    assert "accuracy" not in many
    assert not rows[0].best
    assert not rows[1].best  # neither has a rival
    tables = format_table(rows, "csv").split("\n\n")
    assert len(tables) == 2
    assert float(next(csv.DictReader(io.StringIO(tables[1])))["test/auroc_macro"]) == rows[1].main
    write_comparison(tmp_path / "page.html", rows)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<table>") == 2
    assert "<h2>birds, several labels an image</h2>" in page


def test_runs_are_paired_by_their_mean_auroc(tmp_path: Path):
    labelled_run(tmp_path, "best", 0, 3.0, count=300)
    labelled_run(tmp_path, "near", 0, 3.0, count=300)
    labelled_run(tmp_path, "noise", 0, 0.0, count=300)
    rows = {row.labels["method"]: row for row in compare_runs([tmp_path])}
    judged = {name: "test/auroc_macro" in row.best | row.equal for name, row in rows.items()}
    assert judged == {"best": True, "near": True, "noise": False}
    assert {row.judged.images for row in rows.values()} == {0, 300}
    assert "paired on the same 300 test images" in format_table(list(rows.values()), "markdown")


def test_seeds_and_other_images(tmp_path: Path):
    for seed in range(3):
        labelled_run(tmp_path, "labo", seed, 3.0, count=200)
        labelled_run(tmp_path, "sparse", seed, 0.2, count=200)
    labelled_run(tmp_path, "other", 0, 0.1, count=90)
    labelled_run(tmp_path, "kept", 0, 0.1, keep=False)
    rows = {row.labels["method"]: row for row in compare_runs([tmp_path])}
    assert rows["labo"].seeds == (0, 1, 2)
    assert not rows["sparse"].equal
    assert rows["sparse"].judged.family == {"test/auroc_macro": 1}
    assert rows["other"].judged.unpaired == "it was tested on other images than the best of its table"
    assert "eval.py" in rows["kept"].judged.unpaired
