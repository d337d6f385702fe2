"""``concepts.csv``: every concept in a line, its numbers those of the measures."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reported_run import Run
from sklearn.metrics import roc_auc_score
from written_page import configuration

from cbm.metrics.leakage import model_leakage
from cbm.report.concept_table import concept_rows, write_concept_table
from cbm.report.result import RunResult

CLASSES = ["finch", "wren", "=owl"]


def result(folder: Path, **changes) -> RunResult:
    run = Run(CLASSES, per_class=40)
    found = RunResult(folder, configuration(), run.model, run.bank, run.data, run.dataset, {})
    return replace(found, **changes)


def test_every_concept_in_the_order_of_its_column(tmp_path: Path):
    run = result(tmp_path)
    rows = concept_rows(run)
    assert [row["concept"] for row in rows] == run.bank.texts
    importance = run.model.importance()
    for k, row in enumerate(rows):
        strongest = int(importance[:, k].abs().argmax())
        assert row["class"] == CLASSES[strongest]
        assert row["weight"] == float(importance[strongest, k])
    test = run.data.test
    for k in (0, 1):
        assert rows[k]["known"] == len(test)
        expected = roc_auc_score(test.concepts[:, k].numpy(), run.model.scores(test.x)[:, k].numpy())
        assert rows[k]["auroc"] == pytest.approx(expected, abs=1e-6)
        assert rows[k]["owners"] == ""
    assert rows[2]["known"] == 0
    assert math.isnan(rows[2]["auroc"])
    assert rows[4]["owners"] == "=owl"


def test_an_unknown_label_counts_for_nothing(tmp_path: Path):
    run = result(tmp_path)
    run.data.test.concepts[:30, 0] = torch.nan
    row, test = concept_rows(run)[0], run.data.test
    assert row["known"] == len(test) - 30
    expected = roc_auc_score(test.concepts[30:, 0].numpy(), run.model.scores(test.x)[30:, 0].numpy())
    assert row["auroc"] == pytest.approx(expected, abs=1e-6)


def test_leaks_stand_beside_their_concepts(tmp_path: Path):
    run = result(tmp_path)
    found = model_leakage(run.model, run.bank, run.data, "test", 0)
    rows = concept_rows(replace(run, leakage=found))
    for name, share in zip(found.names, found.own.share.tolist()):
        (row,) = [row for row in rows if row["concept"] == name]
        assert row["leak"] == pytest.approx(share, nan_ok=True)
    assert math.isnan(rows[3]["leak"])


def test_a_spreadsheet_runs_nothing_and_reads_every_line(tmp_path: Path):
    write_concept_table(tmp_path / "concepts.csv", result(tmp_path))
    rows = list(csv.DictReader((tmp_path / "concepts.csv").read_text().splitlines()))
    assert len(rows) == 2 + 2 * len(CLASSES)
    assert all(not cell.startswith("=") for row in rows for cell in row.values())
    assert rows[3]["auroc"] == ""


def test_without_concepts_there_is_no_table(tmp_path: Path):
    write_concept_table(tmp_path / "concepts.csv", result(tmp_path, bank=None))
    assert not (tmp_path / "concepts.csv").exists()
