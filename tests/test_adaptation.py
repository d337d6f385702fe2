"""``python -m cbm adapt``."""

import logging
import sys
from pathlib import Path

import pytest
from birds_run import COUNTS, QUICK, small

from cbm import config
from cbm.adaptation import overlap
from cbm.editing import load_edits


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


def test_another_camera(command, small_cards, monkeypatch, capsys, tmp_path: Path):
    import cbm.__main__

    status, errors = command("train", *small(), *QUICK, "run_dir=one", "report=false", "controls=false", "nec=[]")
    assert status == 0, errors
    monkeypatch.setattr(cbm.__main__.out, "width", 160, raising=False)

    def adapt(*arguments: str) -> tuple[int, str, str]:
        logging.getLogger("cbm").handlers.clear()
        cache = small()[1].removeprefix("cache=")
        monkeypatch.setattr(sys, "argv", ["cbm", "adapt", *arguments, "--cache", cache])
        with pytest.raises(SystemExit) as stop:
            cbm.__main__.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    status, out, errors = adapt("one", "birds_shift", "--shots", "2", "--draws", "2", "--out", "edits.yaml")
    assert status == 0, errors
    for name in ("unedited", "test-time", "recentre", "refit"):
        assert name in out
    assert "of 2 draws edit" in out
    load_edits("edits.yaml")
    for arguments, message in (
        (("one", "birds_shift", "--guard", "strikt"), "--guard strikt: did you mean 'strict'"),
        (("one", "birds_shfit"), "unknown dataset 'birds_shfit': did you mean 'birds_shift'"),
        (("one", "birds_shift", "--shots", "500"), "labelled test pictures: shots=500 is more than there is"),
        (("one", "birds_shift", "--protect", "no such concept"), "no such concept"),
    ):
        status, _, errors = adapt(*arguments)
        assert status == 2
        assert message in errors


def test_overlap_of_nothing():
    assert overlap([]) != overlap([])
