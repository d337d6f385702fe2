"""Runs that were written before the house was rebuilt (``tests/fixtures/runs_f47ba49``): evaluated, edited and explored
with the numbers of then.

Each was trained on 240 paper birds (``n_train=12``) by its method's defaults with ``method.max_epochs=15``;
``expected.json`` holds what ``eval.py``, ``eval.py edits=edits.yaml`` and the explorer said at that commit.
Of what was written then only the folder before ``concepts/birds.json`` was cut from the bank of ``labo``, and its
checksum made anew.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

import cbm
from cbm.app import Explorer

FIXTURES = PROJECT / "tests" / "fixtures" / "runs_f47ba49"
METHODS = ["labo", "sparse", "energy"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the birds are drawn and encoded once; the runs lie beside them."""
    folder = tmp_path_factory.mktemp("old")
    shutil.copytree(FIXTURES, folder / "runs")
    return folder


@pytest.fixture
def old(place: Path, command, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place / "runs"


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    added = {key.removeprefix("test/") for key in found.keys() - expected.keys()}
    later = ("_low", "_high", "ece_debiased")  # intervals, and what took and what told wrongly does
    newer = ("deletion_", "insertion_", "flipped_without_", "concepts_needed", "intervention_wrong_")
    assert not [key for key in added if not key.endswith(later) and not key.startswith(newer)]
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-6, rel=1e-6), key


@pytest.mark.parametrize("method", METHODS)
def test_evaluated_and_edited(method: str, old: Path, command):
    expected = json.loads((old / method / "expected.json").read_text())
    for what, more in (("plain", []), ("edited", [f"edits=runs/{method}/edits.yaml"])):
        status, errors = command("eval", f"run=runs/{method}", "cache=cache", "output=out.json", *more)
        assert status == 0, errors
        same(json.loads(Path("out.json").read_text()), expected[what])


@pytest.mark.parametrize("method", METHODS)
def test_explored(method: str, old: Path):
    expected = json.loads((old / method / "expected.json").read_text())["explored"]
    explorer = Explorer(f"runs/{method}", Path("cache"))
    assert explorer.headline[1] == pytest.approx(expected["accuracy"], abs=1e-9)
    assert explorer.split.names[:3] == expected["names"]
    torch.testing.assert_close(explorer.logits[:3], torch.tensor(expected["logits"]), atol=1e-5, rtol=1e-5)
    editor = cbm.Editor(explorer.model, f"runs/{method}/edits.yaml")
    after = editor.logits(explorer.split.x, explorer.split.names, explorer.logits)
    torch.testing.assert_close(after[:3], torch.tensor(expected["edited_logits"]), atol=1e-5, rtol=1e-5)


def test_reported_without_what_an_older_run_did_not_say(old: Path, module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(old.parent)
    shutil.copytree(old / "labo", old / "older")
    about = json.loads((old / "older" / "about.json").read_text())
    del about["integrity"], about["baselines"]
    (old / "older" / "about.json").write_text(json.dumps(about))
    (old / "older" / "state.json").unlink()
    status, _, errors = module("report", "runs/older", "--cache=cache")
    assert status == 0, errors
    (old / "older" / "bank" / "bank.json").unlink()
    shutil.copy(old / "labo" / "state.json", old / "older")
    shutil.copy(old / "labo" / "about.json", old / "older")
    status, _, errors = module("report", "runs/older", "--cache=cache")
    assert status == 2
    assert "bank.json' is missing: restore it or train again" in errors


def test_reported_and_listed(old: Path, module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(old.parent)
    status, _, errors = module("report", "runs/labo", "--cache=cache")
    assert status == 0, errors
    page = (old / "labo" / "report.html").read_text()
    assert "tested by an earlier version" in page  # whose verdict said more than it had tested
    assert "The concepts carry the decision" not in page
    status, shown, errors = module("compare", *(f"runs/{method}" for method in METHODS), "--style=csv")
    assert status == 0, errors
    assert len(shown.strip().splitlines()) == 4
