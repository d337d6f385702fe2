"""The six numbers of a run, by hand; every method has some."""

import pytest
import torch

from cbm.metrics.integrity import Integrity
from cbm.metrics.intervals import wilson_interval
from cbm.report.headline import headline

LABELS = torch.tensor([0] * 50 + [1] * 50)
BASE = {"test/accuracy": 0.9, "test/accuracy_macro": 0.8, "test/ece": 0.05}


def names(metrics: dict[str, float], **more) -> list[str]:
    return [each.name for each in headline(metrics, LABELS, **more)]


def test_interval_by_its_definition():
    """The ends are where the normal test of the share is just not rejected."""
    for share, count in ((0.9, 100), (0.0, 20), (1.0, 7), (0.37, 41)):
        for end in wilson_interval(share, count):
            assert 0 <= end <= 1
            assert abs(share - end) == pytest.approx(1.959964 * (end * (1 - end) / count) ** 0.5, abs=1e-6)
    assert wilson_interval(1.0, 7)[0] < 0.7  # seven right ones prove little
    assert wilson_interval(0.5, 0) == (0, 1)


def test_accuracy_has_its_interval_and_what_nothing_learned_gives():
    first = headline(BASE, LABELS)[0]
    assert (first.name, first.value, first.range) == ("test accuracy", "90.0%", "82.6 to 94.5%")
    assert first.meaning == "of 100 images; largest class alone 50.0%, mean of the classes (macro) 80.0%"
    skewed = headline(BASE | {"data/n_skipped_test": 2}, torch.tensor([0] * 80 + [1] * 20))
    assert skewed[0].meaning == "of 100 images (2 more could not be read); largest class alone 80.0%"
    assert (skewed[1].name, skewed[1].value) == ("mean of the classes", "80.0%")


def test_six_numbers_the_most_important_first():
    three = {"real": 0.9, "random": 0.7, "shuffled": 0.6}
    integrity = Integrity((), three, three)
    baselines = {"linear_probe": {"test/accuracy": 0.95}, "zero_shot": {"test/accuracy": 0.3}}
    metrics = BASE | {
        "test/accuracy_nec5": 0.6, "test/accuracy_nec5_resolved": 0.75, "test/nec": 40.0, "test/image_hoyer": 0.5,
        "test/self_rank": 1.0, "test/accuracy_nec_avg_resolved": 0.8, "test/intervention_accuracy_100": 1.0,
    }  # fmt: skip
    found = headline(metrics, LABELS, integrity=integrity, baselines=baselines)
    assert [(each.name, each.value) for each in found] == [
        ("test accuracy", "90.0%"), ("with 5 concepts per class", "75.0%"), ("linear probe", "95.0%"),
        ("random concepts", "70.0%"), ("concepts per class", "40"), ("all concepts told", "100.0%"),
    ]  # fmt: skip
    assert "cut to 5: 60.0%" in found[1].meaning
    assert "class names alone: 30.0%" in found[2].meaning
    assert "shuffled ones 60.0%" in found[3].meaning


def test_other_methods_and_splits():
    assert names(BASE) == ["test accuracy", "calibration error"]
    assert names(BASE, baselines={"zero_shot": {"test/accuracy": 0.3}})[1] == "zero-shot"
    assert names({"val/accuracy": 0.9}, split="val") == ["val accuracy"]
    assert names({"val/accuracy": 0.9}) == []
    energy = headline(BASE | {"test/concept_auroc": 0.92, "test/concepts_matched": 31.0}, LABELS)[1]
    assert (energy.name, energy.value) == ("concept AUROC", "0.920")
    assert "31 concepts" in energy.meaning


def test_measured_intervals_are_shown_and_the_cut_head_has_its_own_name():
    metrics = BASE | {
        "test/accuracy_low": 0.7, "test/accuracy_high": 0.95, "test/accuracy_nec5": 0.6, "test/ece_low": 0.01,
        "test/ece_high": 0.09, "test/ece_debiased": 0.03, "test/concept_auroc": 0.9998, "test/concepts_matched": 3.0,
        "test/concept_auroc_low": 0.9991, "test/concept_auroc_high": 1.0,
    }  # fmt: skip
    found = {each.name: each for each in headline(metrics, LABELS)}
    assert found["test accuracy"].range == "70.0 to 95.0%"  # of subjects: wider than Wilson's of images
    assert found["concept AUROC"].range == "0.999 to 1.000"
    assert found["calibration error"].range == "0.010 to 0.090"
    assert "0.030 without" in found["calibration error"].meaning
    assert "with 5 concepts per class" not in found  # that is a new head, which this run did not solve
    assert found["own head cut to 5"].value == "60.0%"
