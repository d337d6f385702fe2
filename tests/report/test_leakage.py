"""The panel that asks whether scores say only what their names say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from leaky_scores import Leaky
from reported_run import Run
from written_page import Page, configuration

from cbm.metrics.leakage import Leakage, measure_leakage
from cbm.report import write_report
from cbm.report.leakage import WORST, describe_leakage, worst_concepts, worst_pairs
from cbm.report.result import RunResult

NAMES = tuple(f"mark <{k}>" for k in range(8))
CLASSES = ["finch", "wren", "owl", "heron"]


@pytest.fixture(scope="module")
def leaky() -> Leakage:
    return measure_leakage(*Leaky(4, 0.6, 0.7).draw(400, 0), NAMES, right=np.ones(400, dtype=bool))


@pytest.fixture(scope="module")
def honest() -> Leakage:
    return measure_leakage(*Leaky(4, 1.2, 0).draw(400, 0), NAMES)


def page(found: Leakage | None, folder: Path) -> str:
    run = Run(CLASSES)
    metrics = {"test/accuracy": 0.8123, "purity/ois": 0.1234, "purity/ncc": 6.54}
    result = RunResult(folder, configuration(), run.model, run.bank, run.data, run.dataset, metrics, leakage=found)
    write_report(result)
    return (folder / "report.html").read_text(encoding="utf-8")


def section(html: str) -> str:
    return html[html.index('id="leakage"') : html.index('id="accuracy"')]


def test_a_leak_is_said_with_the_concepts_and_classes(leaky: Leakage, tmp_path: Path):
    html = page(leaky, tmp_path)
    assert not Page(html).wrong
    part = section(html)
    assert '<span class="mark bad">✕</span> The scores tell more about the class than the concepts' in part
    assert f"at least {leaky.joint:.0%} of what the true concepts leave open" in part
    assert "That is no fault where the concepts do not determine the class" in part
    assert "mark &lt;0&gt;" in part
    assert "mark <" not in part
    for number in ("0.123", "6.5", "81.2%", f"{leaky.own.mean:.1%}", f"{leaky.ceiling:.1%}", f"{leaky.released:.3f}"):
        assert number in part


def test_nothing_found_is_said_with_care(honest: Leakage, tmp_path: Path):
    part = section(page(honest, tmp_path))
    assert '<span class="mark good">✓</span> The scores are not seen to tell more' in part
    assert "no fault" not in part


def test_what_cannot_be_measured_has_no_mark(tmp_path: Path):
    part = section(page(Leakage(why="the labels are those of classes"), tmp_path))
    assert "is not measurable: the labels are those of classes." in part
    assert "mark" not in part
    assert "<table" not in part


def test_without_concept_labels_there_is_no_panel(tmp_path: Path):
    assert "leakage" not in Page(page(None, tmp_path)).sections


def test_the_worst_come_first_and_point_to_the_classes_that_were_planted(leaky: Leakage):
    found = worst_concepts(leaky, CLASSES)
    assert len(found) <= WORST
    shares = [each.share for each in found]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(np.nanmax(leaky.own.share))
    pull = Leaky(4, 0.6, 0.7).pull
    for each in found:
        (name, higher), *_ = each.classes
        k, c = NAMES.index(each.name), CLASSES.index(name)
        assert abs(pull[c, k]) > np.abs(pull[:, k]).min()
        assert higher == (pull[c, k] > 0)


def test_rare_classes_are_called_so(leaky: Leakage):
    found = worst_concepts(replace(leaky, classes=(0, 1, 2, -1)), CLASSES)
    assert {name for each in found for name, _ in each.classes} <= {*CLASSES[:3], "rare classes"}


def test_only_significant_pairs_are_shown(leaky: Leakage, honest: Leakage):
    found = worst_pairs(leaky)
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)
    for each in found:
        assert leaky.inter.p[NAMES.index(each.name), NAMES.index(each.other)] < 0.05
    assert worst_pairs(honest) == []


def test_no_verdict_where_all_concepts_together_were_not_measured(leaky: Leakage):
    run = Run(CLASSES)
    few = replace(leaky, joint=np.nan, joint_low=np.nan, joint_p=np.nan, ceiling=np.nan, ceiling_p=np.nan)
    result = RunResult(Path(), configuration(), run.model, run.bank, run.data, run.dataset, {}, leakage=few)
    found = describe_leakage(result)
    assert found.good is None
    assert [name for name, _, _ in found.numbers] == ["Own leak, mean", "As published"]
