"""Tables over runs: what is grouped, what is left out, and how it looks."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cbm.concepts import Concept, ConceptBank
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead, LinearProbe, save_model
from cbm.report.compare import compare_runs, format_table
from cbm.report.comparison import CURVES, curve_figure, write_comparison


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


CLASSES = ["finch", "wren"]
TEXTS = [f"mark {k}" for k in range(30)]


def plant(run: Path, finch: range, wren: range, classes: list[str] = CLASSES, texts: list[str] = TEXTS) -> Path:
    """Files of a model whose classes use some concepts, the others not at all; rows in the order of ``classes``."""
    weight = torch.zeros(len(classes), len(texts))
    for name, used in (("finch", finch), ("wren", wren)):
        weight[classes.index(name), list(used)] = torch.arange(len(used)) - 50.0  # the sign does not count
    bank = ConceptBank("planted", "bank.json", tuple(map(Concept, texts)), "x", torch.eye(len(texts)))
    save_model(ConceptBottleneck(bank.directions(), LinearHead(weight)), run / "model.safetensors")
    bank.save(run / "bank")
    (run / "about.json").write_text(json.dumps({"classes": classes, "encoder": {"fingerprint": "x"}}))
    return run


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Two seeds: finch shares 5 of 15 concepts, wren has the same two (others are of no importance)."""
    plant(make_run(tmp_path, "a0", 0.8, seed=0), range(10), range(20, 22))
    turned, reverse = CLASSES[::-1], TEXTS[::-1]  # 29 - k is the column of concept k
    plant(make_run(tmp_path, "a1", 0.9, seed=1), range(15, 25), range(8, 10), turned, reverse)
    return tmp_path


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
    first, *lines = format_table(compare_runs([runs]), "rich").split("birds: 3 rows not compared")[0].splitlines()
    assert first.startswith("all with method labo; dataset birds; encoder ViT-B-32 openai")
    assert not any("…" in line or "labo" in line for line in lines)
    assert "fit [s]" in lines[0]


def test_stability_over_seeds(planted: Path):
    row = compare_runs([planted])[0]
    assert row.values["top10_stability"] == [pytest.approx((5 / 15 + 1) / 2)]
    for style, cell in (("markdown", "| 0.67 |"), ("latex", "& 0.67 &"), ("rich", " 0.67 ")):
        table = format_table([row], style)
        assert cell in table, style
        assert "top-10 stability" in table
    table = list(csv.DictReader(io.StringIO(format_table([row], "csv"))))
    assert float(table[0]["top10_stability"]) == pytest.approx(2 / 3)


def test_only_the_ten_most_important_concepts_count(tmp_path: Path):
    plant(make_run(tmp_path, "a0", 0.8, seed=0), range(20), range(3))
    plant(make_run(tmp_path, "a1", 0.8, seed=1), range(10), range(3))  # the weights shrink from the first on
    assert compare_runs([tmp_path])[0].values["top10_stability"] == [1.0]


@pytest.mark.parametrize("damage", ["missing", "model", "bank", "about", "size"])
def test_run_that_cannot_be_read_is_left_out_of_the_stability(planted: Path, damage: str, caplog, monkeypatch):
    broken = plant(make_run(planted, "a2", 0.8, seed=2), range(10), range(2))
    if damage == "missing":
        (broken / "model.safetensors").unlink()
    elif damage == "model":
        (broken / "model.safetensors").write_bytes(b"not a model")
    elif damage == "bank":
        (broken / "bank" / "bank.json").write_text("{")
    elif damage == "about":
        (broken / "about.json").unlink()
    else:
        (broken / "about.json").write_text(json.dumps({"classes": [*CLASSES, "owl"], "encoder": {"fingerprint": "x"}}))
    monkeypatch.setattr(logging.getLogger("cbm"), "propagate", True)
    with caplog.at_level("WARNING", "cbm.report.compare"):
        row = compare_runs([planted])[0]
    assert row.seeds == (0, 1, 2)
    assert row.values["top10_stability"] == [pytest.approx(2 / 3)]
    assert [record.getMessage() for record in caplog.records if "a2" in record.getMessage()]
    assert not any("a0" in record.getMessage() or "a1" in record.getMessage() for record in caplog.records)


def test_stability_needs_two_seeds_with_concepts_and_the_same_classes(planted: Path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("cbm"), "propagate", True)
    assert compare_runs([planted / "a0"])[0].values["top10_stability"] == []
    plant(planted / "a1", range(10), range(2), ["finch", "wren", "owl"])
    assert compare_runs([planted])[0].values["top10_stability"] == []
    assert "other classes" in caplog.text
    caplog.clear()
    for name in ("a0", "a1"):
        save_model(LinearProbe(torch.zeros(2, 4), torch.zeros(2)), planted / name / "model.safetensors")
    rows = compare_runs([planted])
    assert rows[0].values["top10_stability"] == []
    assert "stability" not in format_table(rows, "markdown")
    assert not caplog.text


def test_torch_is_not_loaded_for_single_runs(planted: Path):
    code = (
        "import pathlib, sys; from cbm.report.compare import compare_runs; "
        f"compare_runs([pathlib.Path({str(planted / 'a0')!r})]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sparsity_per_picture_and_names_kept_are_shown_but_not_ranked(runs: Path):
    for n, run in enumerate((runs / "paper", runs / "shuffled")):
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(
            json.dumps({**metrics, "test/image_l0": 5.0 + n, "test/self_rank": 0.875 + n / 10})
        )
    table = format_table(compare_runs([runs]), "markdown")
    assert "concepts/picture | names kept %" in table
    assert "| 5.0 | 87.5 |" in table
    assert "| 6.0 | 97.5 |" in table


def test_the_page_has_a_table_and_curves_for_every_data_set(tmp_path: Path):
    for method, values in (("labo", [0.8, 0.7, 0.9]), ("post<b>hoc", [0.6, 0.65, 0.5])):
        for seed, value in enumerate(values):
            for dataset in ("birds", "wings"):
                run = make_run(
                    tmp_path, f"{method[:4]}-{dataset}{seed}", value, seed=seed, method={"name": method},
                    dataset={"name": dataset},
                )  # fmt: skip
                metrics = json.loads((run / "metrics.json").read_text())
                metrics |= {"test/accuracy_nec5_resolved": value / 2, "test/accuracy_nec10_resolved": value}
                (run / "metrics.json").write_text(json.dumps(metrics))
    rows = compare_runs([tmp_path])
    figure = curve_figure([row for row in rows if row.labels["dataset"] == "birds"], *CURVES[next(iter(CURVES))])
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    drawn = {name: line.get_xydata().tolist() for name, line in zip(names, figure.axes[0].lines)}
    assert drawn["labo"] == [pytest.approx([5, 0.4]), pytest.approx([10, 0.8])]
    assert list(drawn) == ["labo", "post<b>hoc"]  # the most accurate first
    write_comparison(tmp_path / "page.html", rows)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == page.count("<table>") == 2
    assert page.count("<img ") == 2  # no run was told concepts
    assert "<b>80.0 ± 10.0 (3)</b>" in page
    assert "<b>hoc" not in page
    assert "http" not in page
