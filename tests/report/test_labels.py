"""The report of a run of several labels: sums that end at the threshold, and a page that holds what files said."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_run import NAMES, LabelRun
from written_page import Page

from cbm.layers import predict_logits
from cbm.report.figures import label_calibration_figure, label_sparsity_figure
from cbm.report.labels import label_mistakes, label_rows, said_and_true, said_together, write_label_table
from cbm.report.verdict import verdict

CONTROLS = {"controls/random": 0.5, "controls/random_lead_low": 0.1, "controls/random_lead_high": 0.2}


@pytest.fixture
def weather() -> LabelRun:
    return LabelRun()


def test_the_page_has_its_sections_and_stands_on_its_own(weather: LabelRun, tmp_path: Path):
    html = weather.write(tmp_path, **CONTROLS)
    page = Page(html)
    assert not page.open
    assert not page.wrong
    assert all(each.startswith(("#", "data:")) for each in page.asked)
    assert len(page.sections) == len(set(page.sections)) == 9
    for title in (
        "The labels", "Where it goes wrong", "What is shown about the concepts", "How well does it rank?",
        "Which labels are said together", "Plots", "Concepts whose truth is known", "Where the concepts come from",
        "The run",
    ):  # fmt: skip
        assert title in html, title
    assert "The concepts rank better than meaningless ones do" in html
    assert "Confusion" not in html
    assert "test accuracy" not in html
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        "label_calibration.svg", "concept_correlation.svg"
    }  # fmt: skip


def test_labels_are_sorted_by_auroc_with_their_threshold_as_a_probability(weather: LabelRun, tmp_path: Path):
    html = weather.write(tmp_path)
    rows = sorted(label_rows(weather.result(tmp_path)), key=lambda row: -row["auroc"])
    table = html[html.index('<table class="cmp labels"') : html.index('id="mistakes"')]
    found = re.findall(r'<th scope="row"><b class="name">(\w+)</b>', table)
    assert found == [row["name"] for row in rows]
    for row in rows:
        assert f"{100 / (1 + np.exp(-row['threshold'])):.1f}%" in table
        assert f"<b>{row['auroc']:.3f}</b>" in table
        assert f"{row['positives']} of {row['known']}" in table


def test_sums_end_at_the_distance_from_the_decision(weather: LabelRun, tmp_path: Path):
    result, test = weather.result(tmp_path), weather.data.test
    logits, thresholds = predict_logits(result.model, test.x), weather.model.thresholds
    found = label_mistakes(result, logits, thresholds, [2, 0, 1])
    assert [each.name for each in found] == ["loud", "wet", "cold"]
    for each in found:
        label = NAMES.index(each.name)
        above, truth = logits[:, label] - thresholds[label], test.y[:, label]
        assert each.invented == int(((above > 0) & (truth == 0)).sum())
        assert each.missed == int(((above <= 0) & (truth == 1)).sum())
        for example in each.examples:
            why = example.why
            assert why is not None
            parts = why.base + sum(c.value for c in why.shown) + why.others
            assert parts == pytest.approx(why.total, abs=1e-4)
            assert (why.total > 0) == example.invented
            wrong = above[truth == 0].max() if example.invented else above[truth == 1].min()
            assert why.total == pytest.approx(float(wrong), abs=1e-5)


def test_markup_in_names_is_text(tmp_path: Path):
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }}\x1b[2J\u202e"]
    texts = ["</table><b>red belly", *(f"&lt;{k}" for k in range(5))]
    html = LabelRun(names, texts).write(tmp_path, **CONTROLS)
    page = Page(html)
    assert not page.open
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "</table><b>red" not in html
    assert "{{ 7 * 7 }}" in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    write_label_table(tmp_path / "label_metrics.csv", LabelRun(["=1+1", "+cmd", "x"]).result(tmp_path))
    with (tmp_path / "label_metrics.csv").open(newline="") as file:
        assert not [row for row in csv.reader(file) if row[0][:1] in "=+-@"]


def test_a_label_that_no_picture_has_is_said_and_counts_nowhere(weather: LabelRun, tmp_path: Path):
    test = weather.data.test
    y = test.y.clone()
    y[:, 1] = torch.where(y[:, 1] == 1, 0.0, y[:, 1])
    weather.data = replace(weather.data, splits={**weather.data.splits, "test": replace(test, y=y)})
    html = weather.write(tmp_path)
    assert "“cold”: every test picture has it, or none does" in html
    assert "mean of 2 labels" in html
    assert "nan" not in re.sub(r'"data:[^"]*"', "", html).lower().replace("finance", "")
    assert weather.result(tmp_path).metrics["test/labels_scored"] == 2


def test_nothing_known_of_a_label(weather: LabelRun, tmp_path: Path):
    test = weather.data.test
    y = test.y.clone()
    y[:, 0] = float("nan")
    weather.data = replace(weather.data, splits={**weather.data.splits, "test": replace(test, y=y)})
    html = weather.write(tmp_path)
    assert '<span class="soft">unknown</span>' in html


def test_model_without_concepts(weather: LabelRun, tmp_path: Path):
    html = weather.write(tmp_path, concepts=False)
    assert not Page(html).open
    assert "This model has no concepts." in html
    assert "Where the concepts come from" not in html


def test_many_labels_are_cut(tmp_path: Path):
    html = LabelRun([f"label {k} " + "x" * 300 for k in range(120)], count=40).write(tmp_path)
    assert "<b>A selection:</b> 100 of 120 labels" in html
    assert "120 labels are too many for a table of all pairs" in html
    assert "x" * 200 not in html[: html.index("To do it again")]


def test_the_page_says_nothing_about_this_computer(weather: LabelRun, tmp_path: Path):
    weather.bank = replace(weather.bank, source=str(tmp_path / "secret" / "bank.json"))
    html = weather.write(tmp_path, **CONTROLS)
    assert str(tmp_path) not in html


def test_what_is_said_of_pictures_that_have_a_label():
    nan = float("nan")
    y = torch.tensor([[1, 0], [1, 1], [1, nan], [0, 1]]).float()
    said = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 1]]).bool()
    (first, count, cells), (_, _, second) = said_and_true(said, y, ["a", "b"])
    assert (first, count) == ("a", 3)
    assert cells == [(pytest.approx(2 / 3), 1.0, 3), (1.0, 0.5, 2)]
    assert second == [(0.0, 0.5, 2), (1.0, 1.0, 2)]
    apart = said_together(said.repeat(10, 1), y.repeat(10, 1), ["a", "b"])
    assert [(each.name, each.given, each.count) for each in apart] == [("b", "a", 20), ("a", "b", 20)]
    assert not said_together(said, y, ["a", "b"])  # too few pictures to say


@pytest.mark.parametrize(
    ("low", "high", "said", "good"),
    [
        (0.01, 0.02, "the concepts rank better than meaningless ones do", None),
        (-0.01, 0.02, "meaningless concepts rank as well as these", False),
        (-0.087, -0.064, "meaningless concepts rank better than these", False),
    ],
)
def test_the_verdict_says_who_ranks_better(weather: LabelRun, tmp_path: Path, low, high, said, good):
    ends = {"controls/random": 0.5, "controls/random_lead_low": low, "controls/random_lead_high": high}
    found = verdict(weather.result(tmp_path, **ends))
    assert found.sentence.startswith(said)
    assert found.good is good


def test_figures_of_labels(weather: LabelRun):
    probabilities = predict_logits(weather.model, weather.data.test.x).sigmoid()
    y = weather.data.test.y.clone()
    y[:, 1] = 0
    figure = label_calibration_figure(probabilities, y, ["_a", "b", "$c"], 12)
    assert [axes.get_title() for axes in figure.axes] == ["_a", "$c"]
    assert len(label_calibration_figure(probabilities, weather.data.test.y, NAMES, 2).axes) == 2
    assert label_calibration_figure(probabilities, torch.zeros_like(y), NAMES, 12) is None
    assert label_sparsity_figure({"test/auroc_macro": 0.9}) is None
    points = {f"test/auroc_macro_nec{k}{end}": 0.8 for k in (5, 10) for end in ("", "_resolved")}
    assert len(label_sparsity_figure({"test/auroc_macro": 0.9, **points}).axes[0].lines) == 3
