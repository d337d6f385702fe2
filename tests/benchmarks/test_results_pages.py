"""The pages on real data say what the rows say."""

import importlib
import runpy
import sys

import pytest
import torch
from conftest import PROJECT


@pytest.mark.parametrize(
    ("script", "page_of", "least"),
    [("real_cells", "results_cells", 80), ("real_clip", "results_clip", 30), ("found_units", "results_found", 20)],
)
def test_every_table_of_the_page_is_what_the_script_prints(
    script: str, page_of: str, least: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Run in this process: the libraries are there already."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{script}.py", "table"])
    runpy.run_path(f"benchmarks/{script}.py", run_name="__main__")
    printed = {line for line in capsys.readouterr().out.splitlines() if line.startswith(("|", "**"))}
    page = {line for line in (PROJECT / "docs" / f"{page_of}.md").read_text().splitlines() if line.startswith("|")}
    assert len(page) > least
    assert page - printed == set()


@pytest.fixture
def real_cells(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    return importlib.import_module("real_cells")


def test_an_attribute_is_right_if_its_most_probable_value_is(real_cells):
    probability = torch.tensor([[0.2, 0.1, 0.9, 0.8, 0.7], [0.6, 0.7, 0.1, 0.2, 0.3]])
    truth = torch.tensor([[1.0, 0, 0, 1, 0], [1, 0, 0, 0, 1]])
    right = real_cells.values_right(probability, truth, [[0, 1], [2, 3, 4]])
    assert right.tolist() == [[True, False], [False, True]]
