"""The table of evidence of a model of several labels, where the truth is known, and on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from birds_run import QUICK, small
from labelled import labelled
from omegaconf import OmegaConf

from cbm.methods import create_method, fit_method
from cbm.run.evidence import Subject
from cbm.run.label_evidence import gather_label_evidence

CFG = OmegaConf.create({"evidence": {"draws": 99}, "seed": 0})


def refuse(texts: list[str]) -> torch.Tensor:
    raise AssertionError(texts)


def test_what_can_be_judged_is_judged_and_the_rest_is_said():
    data, bank = labelled(n=200)
    model, used = fit_method(create_method({"name": "posthoc"}), data, bank, 100.0)
    assert used is not None
    controls = {"controls/random": 0.7, "controls/random_lead_low": 0.1, "controls/random_lead_high": 0.2}
    found, values = gather_label_evidence(Subject(model, used, data, CFG, None, refuse), controls)
    status = {each.key: each.status for each in found.evidence}
    assert status == {
        "names": "passed", "association": "untested", "truth": "passed", "contradiction": "untested",
        "leak": "failed", "outside": "passed", "random": "passed", "deleted": "fact", "renamed": "fact",
    }  # fmt: skip
    assert found.many
    assert found.deleted == values["integrity/deleted_auroc_macro"] == 0.5
    assert not found.carries  # every phrase names its label
    assert found.verdict.startswith("label-associated: a reader of five words ranks with an AUROC of ")
    assert values["test/reader_auroc_low"] < values["test/reader_auroc"] <= values["test/reader_auroc_high"]
    assert all("accuracy" not in key for key in values)
    untold = {each.key: each.finding for each in found.evidence if each.status == "untested"}
    assert all(line.startswith("cannot be tested: ") and "\n" not in line for line in untold.values())


def test_names_of_other_labels_are_not_believed():
    data, bank = labelled(n=200)
    owners = [concept.classes for concept in bank.concepts]
    order = torch.randperm(len(owners), generator=torch.Generator().manual_seed(3)).tolist()
    dealt = replace(bank, concepts=tuple(replace(c, classes=owners[k]) for c, k in zip(bank.concepts, order)))
    model, used = fit_method(create_method({"name": "posthoc"}), data, dealt, 100.0)
    assert used is not None
    found, _ = gather_label_evidence(Subject(model, used, data, CFG, None, refuse), {})
    assert found.status("names") == "failed"


def test_the_evidence_of_a_run_is_kept_and_shown(command, module):
    plain = [a for a in QUICK if not a.startswith("method.")]
    head = ["method=posthoc", "method.n_lambdas=10", "method.max_nec=8", "dataset.args.task=attributes"]
    status, errors = command("train", *small(), *plain, *head, "run_dir=shown", "nec=[]", "controls=true")
    assert status == 0, errors
    about = json.loads(Path("shown/about.json").read_text())
    assert about["integrity"]["many"] is True
    assert about["integrity"]["deleted"] == 0.5
    metrics = json.loads(Path("shown/metrics.json").read_text())
    assert metrics["controls/random"] == about["integrity"]["accuracy"]["random"]
    page = Path("shown/report.html").read_text(encoding="utf-8")
    for each in about["integrity"]["evidence"]:
        assert each["question"] in page
    assert "AUROC alone cannot tell" in page
    status, _, errors = module("report", "shown", "--cache", small()[1].removeprefix("cache="))
    assert status == 0, errors
    assert "Do the names say the labels?" in Path("shown/report.html").read_text(encoding="utf-8")
