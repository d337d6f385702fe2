"""``python -m cbm adapt``."""

import math

import pytest
from birds_run import COUNTS, QUICK, small

from cbm import config
from cbm.editing import Edit, EditSet, Proposal, load_edits
from cbm.run.adapt import overlap


@pytest.fixture
def small_cards(monkeypatch: pytest.MonkeyPatch):
    """Cards of birds whose sets are as small as those of the run."""
    whole = config.load_card

    def load(name: str):
        card = whole(name)
        if name.startswith("birds"):
            card.args.update(COUNTS)
            card.root = small()[0].removeprefix("dataset.root=")
        return card

    monkeypatch.setattr(config, "load_card", load)


def test_another_camera(command, module, small_cards, tmp_path):
    status, errors = command("train", *small(), *QUICK, "run_dir=one", "report=false", "controls=false", "nec=[]")
    assert status == 0, errors
    cache = small()[1].removeprefix("cache=")

    def adapt(*arguments: str) -> tuple[int, str, str]:
        return module("adapt", *arguments, "--cache", cache)

    status, out, errors = adapt("one", "birds_shift", "--shots", "2", "--draws", "2", "--out", "edits.yaml")
    assert status == 0, errors
    for name in ("unedited", "test_time", "prune", "recentre", "conda", "refit"):
        assert name in out
    assert load_edits("edits.yaml").domains <= {"birds_shift"}
    for arguments, message in (
        (("one", "birds_shift", "--guard", "strikt"), "unknown guard 'strikt': did you mean 'strict'"),
        (("one", "birds_shfit"), "unknown dataset 'birds_shfit': did you mean 'birds_shift'"),
        (("one", "birds_shift", "--shots", "500"), "labelled test pictures: shots=500 is more than there is"),
        (("one", "birds_shift", "--protect", "no such concept"), "no such concept"),
        (("one", "birds_shift", "--editors", "refitt"), "unknown editor 'refitt': did you mean 'refit'"),
        (("one", "birds_shift", "--shots", "2", "--editors", "refit", "--out", "x.yaml"), "cannot be said as edits"),
    ):
        status, _, errors = adapt(*arguments)
        assert status == 2
        assert message in errors
    (tmp_path / "one" / "source_card.safetensors").unlink()
    status, _, errors = adapt("one", "birds_shift", "--shots", "2")
    assert status == 2
    assert "no source card" in errors


def test_overlap_of_draws():
    def draw(*concepts: str) -> Proposal:
        return Proposal(None, "", EditSet(tuple(Edit("mask", text) for text in concepts)))

    assert overlap([draw("1", "2"), draw("2", "3"), draw()]) == (1 / 3 + 0 + 0) / 3
    assert math.isnan(overlap([draw(), draw()]))
