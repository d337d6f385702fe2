"""Leakage and purity from the command line to the numbers, the report and the table of runs."""

import json
from pathlib import Path

from birds_run import QUICK, small
from conftest import one_line

from cbm.report.compare import compare_runs, format_table

FAST = [*QUICK, "evidence.random_draws=0", "evidence.draws=20"]


def metrics_of(run: str) -> dict[str, float]:
    return json.loads(Path(run, "metrics.json").read_text())


def test_a_run_with_concept_labels(command, module, tmp_path: Path):
    status, said = command("train", *small(), *FAST, "method=posthoc", "run_dir=runs/one")
    assert status == 0, said
    values = metrics_of("runs/one")
    keys = ("own_mean", "own_mean_low", "own_mean_high", "own_significant", "joint", "joint_low", "ceiling", "n")
    assert {f"leak/{key}" for key in keys} <= set(values)
    assert values["leak/n"] == values["data/n_test"]
    assert values["leak/own_mean_low"] <= values["leak/own_mean"] <= values["leak/own_mean_high"]
    assert 0 <= values["leak/joint_low"] <= values["leak/joint"] < 1
    assert values["leak/ceiling"] > 0.5
    assert {"purity/ois", "purity/ncc", "purity/ncc_all"} <= set(values)
    told = {each["key"]: each for each in json.loads(Path("runs/one/about.json").read_text())["integrity"]["evidence"]}
    assert told["beyond"]["status"] == "fact"  # it decides nothing
    assert told["beyond"]["value"] == values["leak/joint"]
    lines = Path("runs/one/concepts.csv").read_text().splitlines()
    assert len(lines) == 1 + values["model/n_concepts"]
    page = Path("runs/one/report.html")
    first = page.read_text()
    assert "Do the scores say only what their names say?" in first
    page.unlink()
    cache = small()[1]
    status, _, errors = module("report", "runs/one", "--cache", cache.removeprefix("cache="))
    assert status == 0, errors
    again = page.read_text()
    cut = [each[each.index('id="leakage"') : each.index('id="accuracy"')] for each in (first, again)]
    assert cut[0] == cut[1]  # measured again, with the same draws
    assert "leak ≥ %" in format_table(compare_runs([Path("runs/one")]), "markdown")

    status, shown, errors = module("leak", "runs/one", "--cache", cache.removeprefix("cache="), "--json")
    assert status == 0, errors
    told = json.loads(shown)
    assert told == {key: value for key, value in values.items() if key.startswith(("leak/", "purity/"))}
    status, shown, errors = module("leak", "runs/one", "--cache", cache.removeprefix("cache="), "--split=val")
    assert status == 0, errors
    assert "higher on" in shown or "lower on" in shown
    assert "(100 pictures)" in errors + shown
    line = one_line(module("leak", "runs/one", "--split=train")[::2])
    assert "--split=train: " in line


def test_where_nothing_is_tested_nothing_is_measured(command, module, tmp_path: Path):
    settings = [*small(), *QUICK, "method=posthoc", "report=false"]
    assert command("train", *settings, "controls=false", "run_dir=runs/plain")[0] == 0
    assert not [key for key in metrics_of("runs/plain") if key.startswith(("leak/", "purity/"))]
    no_concepts = [*small(), "trainer.progress=false", "encoder.num_workers=0", "method=linear_probe", "report=false"]
    assert command("train", *no_concepts, "run_dir=runs/probe")[0] == 0
    assert not [key for key in metrics_of("runs/probe") if key.startswith(("leak/", "purity/"))]
    line = one_line(module("leak", "runs/probe")[::2])
    assert "run 'runs/probe' has no concepts: expected one of a method with concepts" in line
