"""Tables over runs: what is grouped, what is left out, and how it looks."""

import csv
import io
import json
import logging
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cbm.errors import UserError
from cbm.report.compare import compare_runs, format_table


def make_run(folder: Path, name: str, accuracy: float | None, **changes) -> Path:
    settings = {
        "method": {"name": "labo", "fidelity": "repaired", "lr": 0.02},
        "dataset": {"name": "birds", "reader": "birds", "root": "datasets/birds"},
        "encoder": {"model": "ViT-B-32", "pretrained": "openai", "device": "auto"},
        "concepts": {"source": "concepts/birds.json", "control": None},
        "seed": 0, "shots": "all", "val_shots": "all",
    }  # fmt: skip
    config = OmegaConf.merge(settings, changes)
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    if accuracy is not None:
        metrics = {"test/accuracy": accuracy, "test/ece": 1 - accuracy, "time/fit_s": 2.0}
        (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, accuracy in enumerate((0.80, 0.82, 0.84)):
        make_run(tmp_path, f"a{seed}", accuracy, seed=seed, encoder={"device": "cpu" if seed else "auto"})
    make_run(tmp_path, "paper", 0.70, method={"fidelity": "paper"})
    make_run(tmp_path, "shuffled", 0.60, concepts={"control": "shuffled"})
    make_run(tmp_path, "few", 0.50, shots=4)
    return tmp_path


def test_runs_that_differ_in_the_seed_are_one_row(runs: Path):
    rows = compare_runs([runs])
    assert [(row.labels["shots"], row.labels["concepts"], len(row.paths)) for row in rows] == [
        ("4", "birds", 1), ("all", "birds", 3), ("all", "birds", 1), ("all", "birds (shuffled)", 1),
    ]  # fmt: skip
    assert rows[1].seeds == (0, 1, 2)
    assert rows[1].mean("test/accuracy") == pytest.approx(0.82)
    assert rows[1].labels["settings"] == "fidelity=repaired"
    assert rows[2].labels["settings"] == "fidelity=paper"


def test_best_of_a_data_set_and_its_shots_is_bold(runs: Path):
    table = format_table(compare_runs([runs]), "markdown")
    header, _, few, best, *rest = table.splitlines()
    assert "accuracy %" in header
    assert "**82.0 ± 2.0 (3)**" in best
    assert "**0.180 ± 0.020 (3)**" in best  # the lowest calibration error
    assert "**" not in few  # it has no rival
    assert not any("**" in line for line in rest)
    assert "concept AUROC" not in table  # nobody has it


def test_other_styles(runs: Path):
    rows = compare_runs([runs])
    latex = format_table(rows, "latex")
    assert r"\textbf{82.0 $\pm$ 2.0 (3)}" in latex
    assert "accuracy \\%" in latex
    assert "82.0 ± 2.0 (3)" in format_table(rows, "rich")
    table = list(csv.DictReader(io.StringIO(format_table(rows, "csv"))))
    assert float(table[1]["test/accuracy"]) == pytest.approx(0.82)
    assert table[1]["test/accuracy/n"] == "3"
    assert table[0]["test/accuracy/sd"] == ""
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        format_table(rows, "markdwn")


def test_unfinished_runs_are_named_and_left_out(runs: Path, caplog, monkeypatch):
    make_run(runs, "halfway", None)
    monkeypatch.setattr(logging.getLogger("cbm"), "propagate", True)
    with caplog.at_level("WARNING", "cbm.report.compare"):
        rows = compare_runs([runs])
    assert "halfway" in caplog.text
    assert sum(len(row.paths) for row in rows) == 6
    with pytest.raises(UserError, match="finished"):
        compare_runs([runs / "halfway"])


def test_unknown_path_names_the_nearest(runs: Path):
    with pytest.raises(UserError, match="did you mean 'shuffled'"):
        compare_runs([runs / "a0", runs / "shufled"])


def test_the_same_run_twice_counts_once(runs: Path):
    assert len(compare_runs([runs / "a0", runs / "a0", runs])[1].paths) == 3


def test_of_runs_with_the_same_seed_the_newest_counts(runs: Path, caplog, monkeypatch):
    again = make_run(runs, "again", 0.90, seed=0)
    os.utime(again / "metrics.json", (4e9, 4e9))
    monkeypatch.setattr(logging.getLogger("cbm"), "propagate", True)
    row = compare_runs([runs])[1]
    assert [path.name for path in row.paths] == ["again", "a1", "a2"]
    assert "a0" in caplog.text


def test_terminal_table_says_once_what_all_rows_share(runs: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    first, *lines = format_table(compare_runs([runs]), "rich").splitlines()
    assert first.startswith("all with method labo; dataset birds; encoder ViT-B-32 openai")
    assert not any("…" in line or "labo" in line for line in lines)
    assert "fit [s]" in lines[0]
