"""The editing experiment, from the command line."""

import sys
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from conftest import one_line

import cbm.__main__
from cbm.concepts import merge_duplicates
from cbm.data import read_dataset
from cbm.run.spurious import edit_spurious, mean_and_error, random_weights, spurious_weights

CACHE = Path(small()[1].removeprefix("cache="))


def test_spurious_weights_by_name_and_class():
    bank = merge_duplicates("b", "b", [("Yellow belly", (), None), ("water in background", (), None)])
    removed = spurious_weights(bank, {"duck": ["Water in background."], "crow": ["snow"]}, ["crow", "duck"])
    assert removed.tolist() == [[False, False], [False, True]]


def test_random_weights_are_as_many_and_used():
    weights = torch.tensor([[1.0, 0.0, 2.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    removed = torch.tensor([[True, True, False, True], [False, False, False, False]])
    chosen = random_weights(weights, removed, 0)
    assert chosen.sum(1).tolist() == [2, 0]
    assert (weights[chosen] != 0).all()


def test_mean_and_error():
    assert mean_and_error([0.5]) == "50.0"
    assert mean_and_error([0.5, 0.6]) == "55.0 ± 5.0"
    assert mean_and_error([0.1, 0.1], signed=True) == "+10.0 ± 0.0"


def test_a_table_names_what_is_spurious(tmp_path, colour_folder):
    rows = ["path,label,spurious,warm"]
    for name, cell in (("red", "beach; sun"), ("blue", "")):
        rows += [f"{p.relative_to(colour_folder)},{name},{cell},1" for p in sorted((colour_folder / name).iterdir())]
    (colour_folder / "images.csv").write_text("\n".join(rows))
    dataset = read_dataset("csv", "colours", colour_folder, {})
    assert dataset.spurious == {"red": ["beach", "sun"]}
    assert dataset.concept_names == ["warm"]


def test_pruning_the_habitat_helps_and_pruning_at_random_does_not(command, monkeypatch, capsys):
    arguments = [*small("birds_spurious"), *QUICK, "nec=[]", "report=false", "controls=false"]
    status, errors = command("train", "dataset=birds_spurious", "method=posthoc", "run_dir=one", *arguments)
    assert status == 0, errors
    values = edit_spurious(Path("one"), CACHE)
    assert list(values)[:3] == ["unedited", "prune", "prune + normalise"]
    assert values["prune"].accuracy > values["unedited"].accuracy
    assert values["prune"].accuracy > values["prune random concepts"].accuracy
    assert list(values)[-2:] == ["remove + refit", "rebalance"]
    assert all(row.worst is None for row in values.values())  # five pictures of a species are left: no group has ten

    monkeypatch.setattr(sys, "argv", ["cbm", "spurious", "one", "--cache", str(CACHE)])
    with pytest.raises(SystemExit) as stop:
        cbm.__main__.main()
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "prune + normalise" in printed
    assert "worst group" in printed


def test_a_set_that_names_nothing_spurious_says_so(command, monkeypatch, capsys):
    arguments = [*small(), *QUICK, "nec=[]", "report=false", "controls=false"]
    command("train", "method=posthoc", "run_dir=one", *arguments)
    monkeypatch.setattr(sys, "argv", ["cbm", "spurious", "one", "--cache", str(CACHE)])
    with pytest.raises(SystemExit) as stop:
        cbm.__main__.main()
    assert stop.value.code == 2
    assert "names no spurious concepts" in one_line((2, capsys.readouterr().err))
