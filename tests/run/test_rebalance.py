"""``cbm rebalance``, from the command line: rows, edits, a model that loads again, and what it refuses."""

import json
from pathlib import Path

import torch
from birds_run import QUICK, small
from conftest import one_line

import cbm
from cbm.editing import edited_model, load_edits
from cbm.layers import predict_logits

CACHE = ["--cache", small()[1].removeprefix("cache=")]
PLAIN = [a for a in QUICK if not a.startswith(("method.", "nec"))]
SETTINGS = [*PLAIN, "nec=[]", "report=false", "controls=false"]
PICTURES = ["dataset=birds_spurious", *small("birds_spurious")[:-1], "dataset.args.n_test=20"]
ROWS = ["as trained", "remove", "remove + refit", "rebalance"]


def test_rows_edits_and_a_model_that_loads(command, module, tmp_path: Path):
    status, said = command("train", *PICTURES, *SETTINGS, "method=posthoc", "run_dir=one")
    assert status == 0, said
    status, shown, errors = module("rebalance", "one", *CACHE, "--out", "balanced", "--json")
    assert status == 0, errors
    told = json.loads(shown)
    assert list(told["rows"]) == ROWS
    for name, row in told["rows"].items():
        assert row["interval"][0] < row["accuracy"] < row["interval"][1]
        assert row["worst_interval"][0] - 1e-9 <= row["worst"] <= row["worst_interval"][1] + 1e-9
        assert (row["change"] is None) == (name == "remove")
    assert all(each["gap"] <= 1e-4 for each in told["certificates"].values())
    assert told["auroc"] > 0.8
    assert len(told["removed"]) == 6

    one, balanced = cbm.load("one"), cbm.load("balanced")
    split = one.split("test", cache=CACHE[1])

    def accuracy(model: torch.nn.Module) -> float:
        return float((predict_logits(model, split.x).argmax(dim=1) == split.y).double().mean())

    edits = load_edits("balanced/edits.yaml")
    assert [edit.concept for edit in edits.edits] == told["removed"]
    assert accuracy(one.model) == told["rows"]["as trained"]["accuracy"]
    assert accuracy(edited_model(one.model, edits, one.bank.texts, one.classes)) == told["rows"]["remove"]["accuracy"]
    assert accuracy(balanced.model) == told["rows"]["rebalance"]["accuracy"]
    columns = [one.bank.texts.index(text) for text in told["removed"]]
    assert (balanced.model.weights()[:, columns] == 0).all()
    assert "head fitted again without 6 concepts" in str(balanced.changes)

    status, shown, errors = module("rebalance", "one", *CACHE, "--with-alike", "--json")
    assert status == 0, errors
    more = json.loads(shown)["removed"]
    assert set(more) > set(told["removed"])

    status, shown, errors = module("rebalance", "one", *CACHE, "--concept", "long tail", "--group", "habitat")
    assert status == 0, errors
    assert "1 concepts removed" in shown
    assert "remove + refit" in shown

    for arguments, line in (
        (["--out", "balanced"], "is there already"),
        (["--split", "train"], "--split=train"),
        (["--concept", "long tial"], "long tail"),
        (["--group", "plaec"], "place"),
        (["--group", "place"], "column 'place': the class is told from it with AUROC"),
    ):
        assert line in one_line(module("rebalance", "one", *CACHE, *arguments)[::2]), arguments


def test_a_set_that_names_nothing_says_so(command, module, tmp_path: Path):
    assert command("train", *small(), *SETTINGS, "method=posthoc", "run_dir=one")[0] == 0
    assert "expected --concept NAME" in one_line(module("rebalance", "one", *CACHE)[::2])
    line = one_line(module("rebalance", "one", *CACHE, "--group", "site")[::2])
    assert "has no columns of groups" in line
