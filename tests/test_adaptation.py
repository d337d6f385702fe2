"""``python -m cbm adapt``."""

import math

import pytest
from birds_run import COUNTS, QUICK, small

from cbm import config
from cbm.adaptation import Adaptation, overlap
from cbm.editing import EditSet, load_edits
from cbm.editing.test_time import Change, Plan


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


def test_another_camera(command, module, small_cards):
    status, errors = command("train", *small(), *QUICK, "run_dir=one", "report=false", "controls=false", "nec=[]")
    assert status == 0, errors
    cache = small()[1].removeprefix("cache=")

    def adapt(*arguments: str) -> tuple[int, str, str]:
        return module("adapt", *arguments, "--cache", cache)

    status, out, errors = adapt("one", "birds_shift", "--shots", "2", "--draws", "2", "--out", "edits.yaml")
    assert status == 0, errors
    for name in ("unedited", "test-time", "recentre", "refit"):
        assert name in out
    assert "of 2 draws edit" in out
    load_edits("edits.yaml")
    for arguments, message in (
        (("one", "birds_shift", "--guard", "strikt"), "unknown guard 'strikt': did you mean 'strict'"),
        (("one", "birds_shfit"), "unknown dataset 'birds_shfit': did you mean 'birds_shift'"),
        (("one", "birds_shift", "--shots", "500"), "labelled test pictures: shots=500 is more than there is"),
        (("one", "birds_shift", "--protect", "no such concept"), "no such concept"),
    ):
        status, _, errors = adapt(*arguments)
        assert status == 2
        assert message in errors


def test_overlap_of_draws():
    def draw(*concepts: int) -> Adaptation:
        changes = tuple(Change("mask", k, 0.0, 0.0, 0.0) for k in concepts)
        return Adaptation(Plan(changes, "", concepts, 4, (0, 0)), EditSet(), {}, {})

    assert overlap([draw(1, 2), draw(2, 3), draw()]) == (1 / 3 + 0 + 0) / 3
    assert math.isnan(overlap([draw(), draw()]))
