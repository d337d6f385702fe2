"""What a run says at its end: the verdict, numbers in plain words, and the rest on request."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from cbm.config import report_form
from cbm.errors import UserError
from cbm.metrics.integrity import Evidence, Integrity
from cbm.report.verdict import verdict
from cbm.run import announce

THREE = {"real": 0.9, "random": 0.5, "shuffled": 0.4}
FAILED = Integrity((Evidence("names", "?", "a reader gets nothing", "", "failed"),), THREE, THREE)
METRICS = {
    "test/accuracy": 0.9, "test/accuracy_macro": 0.9, "test/ece": 0.1, "test/self_rank": 1.0, "test/nec": 30.0,
    "test/image_hoyer": 0.5, "test/accuracy_nec_avg_resolved": 0.8, "time/total_s": 2.0,
}  # fmt: skip


def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, report: object) -> str:
    monkeypatch.setattr(announce, "log", logging.getLogger("announced"))
    caplog.set_level("INFO")
    caplog.clear()
    (tmp_path / "report.html").touch()
    cfg = OmegaConf.create({"report": report, "method": {"name": "labo"}, "dataset": {"name": "birds"}})
    data = SimpleNamespace(test=SimpleNamespace(y=torch.tensor([0, 1] * 50)), many=False)
    result = SimpleNamespace(
        path=tmp_path, cfg=cfg, metrics=METRICS, data=data, integrity=FAILED, baselines={}, heads=()
    )
    announce.announce(result)
    return "\n".join(record.getMessage() for record in caplog.records)


def test_the_verdict_is_first_and_the_rest_is_asked_for(tmp_path: Path, monkeypatch, caplog):
    text = said(tmp_path, monkeypatch, caplog, "short")
    lines = text.splitlines()
    assert lines[0] == "labo on birds: the names say nothing about the classes: a reader gets nothing"
    assert lines[1].split()[:5] == ["test", "accuracy", "90.0%", "(82.6", "to"]
    assert sum(line.startswith("  ") for line in lines) <= 7
    for private in ("self_rank", "image_hoyer", "nec_avg"):
        assert private not in text
    assert lines[-1] == f"done in 2.0 s: {tmp_path / 'report.html'}"
    assert "metrics.json (report=full shows them here)" in lines[-2]
    full = said(tmp_path, monkeypatch, caplog, "full")
    assert full.splitlines()[:3] == lines[:3]
    for key, value in METRICS.items():
        assert (f"  {key:<32} {value:.4f}" in full) == key.startswith("test/")
    assert said(tmp_path, monkeypatch, caplog, False).endswith("metrics.json")


def test_all_numbers_of_labels_are_said_per_label(monkeypatch, caplog):
    monkeypatch.setattr(announce, "log", logging.getLogger("announced"))
    caplog.set_level("INFO")
    metrics = {"test/auroc_macro": 0.9, "test/auroc_macro_nec5_resolved": 0.8, "time/total_s": 2.0}
    head = SimpleNamespace(nec=5.0, target=5, gap=1e-6, kkt=1e-4)
    baselines = {"linear_probe": {"test/auroc_macro": 0.95}}
    announce.say_everything(
        SimpleNamespace(metrics=metrics, data=SimpleNamespace(many=True), heads=(head,), baselines=baselines)
    )
    text = caplog.text
    assert "re-solved with 5 concepts per label: test AUROC 0.8000" in text
    assert "linear_probe AUROC" in text
    assert "time" not in text


def test_the_setting_takes_what_old_runs_say():
    assert [report_form(value) for value in (True, False, None, "short", "full", "none")] == [
        "short", "none", "none", "short", "full", "none",
    ]  # fmt: skip
    with pytest.raises(UserError, match="report=ful: .*did you mean 'full'"):
        report_form("ful")


@pytest.mark.parametrize(
    ("control", "energies", "bottleneck", "begins", "good"),
    [
        ("random", None, object(), "this run is a control: its concepts are random", False),
        (None, object(), None, "the concepts of this model were learned from labels", None),
        (None, None, object(), "the concepts were not tested", None),
        (None, None, None, "this model has no concepts", None),
    ],
)
def test_without_evidence_the_verdict_says_why(control, energies, bottleneck, begins: str, good: bool | None):
    cfg = OmegaConf.create({"concepts": {"control": control}})
    run = SimpleNamespace(integrity=None, cfg=cfg, energies=energies, bottleneck=bottleneck, tested_before=False)
    run.data = SimpleNamespace(many=False)
    found = verdict(run)
    assert found.sentence.startswith(begins)
    assert found.good is good
