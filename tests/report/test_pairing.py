"""Marks of a table on planted runs, through the command line: the sample is the test images, not the seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from decided_run import decided_run

from cbm.report.compare import compare_runs, format_table

N = 800
RIGHT = np.arange(N) >= 160


def wrong_at(*rows: int) -> np.ndarray:
    right = RIGHT.copy()
    right[list(rows)] = False
    return right


def compared(module, folder: Path, *more: str) -> dict[str, dict]:
    status, out, errors = module("compare", str(folder), "--json", *more)
    assert status == 0, errors
    return {row["method"]: row for row in json.loads(out)}


def test_equal_classifiers_that_differ_in_three_decisions_are_never_told_apart(module, tmp_path: Path):
    """Whatever the number of seeds: three equal ones were three "significant" ones."""
    for seed in range(3):
        decided_run(tmp_path, "labo", seed, RIGHT)
        decided_run(tmp_path, "posthoc", seed, wrong_at(200, 201, 202))
    rows = compared(module, tmp_path)
    assert rows["labo"]["best"] == rows["posthoc"]["equal"] == ["test/accuracy"]
    assert rows["posthoc"]["best"] == rows["labo"]["equal"] == ["test/ece"]
    assert rows["posthoc"]["family"] == {"test/accuracy": 1}
    status, out, _ = module("compare", str(tmp_path), "--style", "markdown")
    assert status == 0
    assert "79.6 ± 0.0 (3) ≈" in out
    assert (
        "≈ not significantly worse than the best, paired on the same 800 test images (p ≥ 0.05 after Holm over" in out
    )


def test_a_deterministic_method_with_three_equal_seeds(tmp_path: Path):
    """As on birds_shift: 82.5 against 83.1 %, 45 and 40 decisions apart."""
    one, other = np.ones((2, N), dtype=bool)
    one[:45] = other[45:85] = False
    for seed in range(3):
        decided_run(tmp_path, "labo", seed, other)
        decided_run(tmp_path, "linear_probe", seed, one)
    rows = {row.labels["method"]: row for row in compare_runs([tmp_path])}
    assert "test/accuracy" in rows["linear_probe"].equal


def test_real_differences_stay_and_the_family_is_counted(tmp_path: Path):
    """Of ten rows one is 2 % behind (p = .02, not after Holm) and one 10 %."""
    decided_run(tmp_path, "best", 0, RIGHT)
    few, many = wrong_at(*range(200, 207)), wrong_at(*range(200, 280))
    decided_run(tmp_path, "near", 0, few)
    decided_run(tmp_path, "far", 0, many)
    alone = {row.labels["method"]: row for row in compare_runs([tmp_path / "best0", tmp_path / "near0"])}
    assert "test/accuracy" not in alone["near"].equal  # seven to none
    for k in range(7):
        decided_run(tmp_path, f"equal{k}", 0, wrong_at(300 + k))
    rows = {row.labels["method"]: row for row in compare_runs([tmp_path])}
    assert rows["near"].judged.family["test/accuracy"] == 9
    assert "test/accuracy" in rows["near"].equal
    assert "test/accuracy" not in rows["far"].equal
    assert "over the 9 comparison(s) of a column" in format_table(list(rows.values()), "markdown")


def test_seeds_are_a_second_level(tmp_path: Path):
    """One method is better on these images in the mean of two seeds, but its seeds differ by more than that."""
    generator = np.random.default_rng(0)
    for seed, share in enumerate((0.6, 0.9)):
        decided_run(tmp_path, "shaky", seed, generator.random(N) < share)
        decided_run(tmp_path, "steady", seed, generator.random(N) < 0.85)
    rows = {row.labels["method"]: row for row in compare_runs([tmp_path])}
    assert "test/accuracy" in rows["steady"].best
    assert "test/accuracy" in rows["shaky"].equal


def test_images_of_a_subject_count_as_one(tmp_path: Path):
    """Forty decisions apart, all of the same two subjects."""
    subjects = np.arange(N) // 20
    for keep, folder in ((subjects, tmp_path / "known"), (None, tmp_path / "unknown")):
        decided_run(folder, "labo", 0, RIGHT, subjects=keep)
        decided_run(folder, "posthoc", 0, wrong_at(*range(200, 240)), subjects=keep)
    for folder, equal in (("known", True), ("unknown", False)):
        rows = {row.labels["method"]: row for row in compare_runs([tmp_path / folder])}
        assert ("test/accuracy" in rows["posthoc"].equal) == equal


@pytest.mark.parametrize("fault", ["before", "other images", "damaged"])
def test_what_cannot_be_paired_says_so_and_is_not_marked(module, tmp_path: Path, fault: str):
    decided_run(tmp_path, "labo", 0, RIGHT)
    decided_run(tmp_path, "sparse", 0, wrong_at(200, 201))
    more = {"before": {"keep": False}, "other images": {"names": "photo"}, "damaged": {}}[fault]
    run = decided_run(tmp_path, "posthoc", 0, wrong_at(200), **more)
    if fault == "damaged":
        (run / "predictions.parquet").write_bytes(b"PAR1 and no more")
    said = {
        "before": "made before predictions were kept (python eval.py run=RUN adds them)",
        "other images": "it was tested on other images than the best of its table",
        "damaged": "predictions.parquet' is damaged",
    }[fault]
    rows = compared(module, tmp_path)
    assert rows["posthoc"]["equal"] == []
    assert said in rows["posthoc"]["not_compared"]
    assert "test/accuracy" in rows["sparse"]["equal"]
    status, out, _ = module("compare", str(tmp_path), "--style", "markdown", "--out", str(tmp_path / "page.html"))
    assert status == 0
    assert "1 row (posthoc) not compared and not marked: " in out
    assert said in out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 row (posthoc) not compared and not marked" in page
    assert "79.8 ≈" in page


def test_if_the_best_cannot_be_compared_nobody_is_marked(tmp_path: Path):
    decided_run(tmp_path, "labo", 0, RIGHT, keep=False)
    decided_run(tmp_path, "posthoc", 0, wrong_at(200))
    rows = {row.labels["method"]: row for row in compare_runs([tmp_path])}
    assert not rows["posthoc"].equal
    assert "the best of its table cannot be compared: made before" in rows["posthoc"].judged.unpaired


def test_intervals_stand_in_the_table(tmp_path: Path):
    run = decided_run(tmp_path, "labo", 0, RIGHT)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"test/accuracy_low": 0.77, "test/accuracy_high": 0.826}))
    rows = compare_runs([tmp_path])
    table = format_table(rows, "markdown")
    assert "| 80.0 [77.0, 82.6] |" in table
    assert "in brackets: the 95% interval over the test images" in table
    assert "test/accuracy/low,test/accuracy/high" in format_table(rows, "csv")
