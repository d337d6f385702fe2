import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.nn.functional import normalize

from cbm.layers import ConceptBottleneck, LinearHead
from cbm.report.compare import Row
from cbm.report.figures import (
    calibration_figure,
    correlation_figure,
    intervention_figure,
    sparsity_figure,
    svg,
    write_figures,
)


def lines(figure) -> dict[str, list[list[float]]]:
    """Label to points of the lines of a figure."""
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}


def test_accuracy_over_concepts_per_class():
    metrics = {"test/accuracy_nec10_resolved": 0.8, "test/accuracy_nec5_resolved": 0.7, "test/accuracy": 0.9,
               "test/accuracy_nec5": 0.6, "integrity/random_accuracy_nec5": 0.2}  # fmt: skip
    drawn = lines(sparsity_figure(metrics))
    assert drawn["new head with so many"] == [[5, 0.7], [10, 0.8]]
    assert drawn["own head cut to 5"] == [[5, 0.6]]
    assert drawn["random concepts, own head cut to 5"] == [[5, 0.2]]
    assert "shuffled concepts, own head cut to 5" not in drawn
    assert sparsity_figure({"test/accuracy": 0.9}) is None


def test_equal_points_do_not_hide_each_other_and_the_axis_begins_at_zero():
    metrics = {"test/accuracy_nec5_resolved": 0.7, "test/accuracy": 0.9} | dict.fromkeys(
        ("test/accuracy_nec5", "integrity/random_accuracy_nec5", "integrity/shuffled_accuracy_nec5"), 0.6
    )
    axes = sparsity_figure(metrics).axes[0]
    looks = [(line.get_marker(), line.get_markersize()) for line in axes.lines if line.get_label().endswith("to 5")]
    assert len(set(looks)) == 3
    assert axes.get_ylim()[0] == 0


def test_interventions_in_their_order():
    metrics = {f"test/intervention_accuracy_{p}": p / 100 for p in (100, 0, 50)}
    metrics |= {"test/intervention_others_0": 0.5, "test/intervention_others_100": float("nan")}
    drawn = lines(intervention_figure(metrics))
    assert drawn["class"] == [[0, 0], [50, 0.5], [100, 1]]
    assert drawn["concepts not told"] == [[0, 0.5]]
    assert intervention_figure({}) is None


def test_calibration_by_hand():
    probabilities = torch.tensor([[0.99, 0.01], [0.97, 0.03], [0.6, 0.4], [0.55, 0.45]])
    points = sorted(lines(calibration_figure(probabilities, torch.tensor([0, 1, 0, 0])))["right"])
    expected = [[0.55, 1.0], [0.6, 1.0], [0.98, 0.5]]
    torch.testing.assert_close(torch.tensor(points), torch.tensor(expected))


def test_concepts_that_say_the_same_are_neighbours():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(3, 16, generator=g)
    concepts = normalize(torch.cat([base, base + 0.1 * torch.randn(3, 16, generator=g)]), dim=1)  # k and k + 3 agree
    model = ConceptBottleneck(concepts, LinearHead(torch.randn(2, 6, generator=g)))
    x = normalize(torch.randn(200, 16, generator=g), dim=1)
    figure = correlation_figure(model, [f"mark {k}" for k in range(6)], x)
    shown = [label.get_text().split() for label in figure.axes[0].get_yticklabels()]
    assert [number for _, _, number in shown] == [label.get_text() for label in figure.axes[0].get_xticklabels()]
    names = [int(mark) for _, mark, _ in shown]
    assert {tuple(sorted(names[i : i + 2])) for i in (0, 2, 4)} == {(0, 3), (1, 4), (2, 5)}
    shown = torch.as_tensor(figure.axes[0].images[0].get_array())
    torch.testing.assert_close(shown, torch.corrcoef((x @ concepts.T).T)[names][:, names].double(), atol=1e-5, rtol=0)
    assert correlation_figure(model, [""] * 6, x[:1].expand(5, -1)) is None  # nothing varies


def test_files_are_the_same_every_time_and_escape_names(tmp_path):
    g = torch.Generator().manual_seed(0)
    concepts = normalize(torch.randn(4, 8, generator=g), dim=1)
    model = ConceptBottleneck(concepts, LinearHead(torch.randn(2, 4, generator=g)))
    x = normalize(torch.randn(20, 8, generator=g), dim=1)
    texts = ["<script>alert(1)</script>", "a & b", "$x$ and $y", "plain"]
    figures = [correlation_figure(model, texts, x) for _ in range(2)]
    assert svg(figures[0]) == svg(figures[1])
    write_figures(tmp_path / "figures", {"one": lambda: figures[0]})
    content = (tmp_path / "figures" / "one.svg").read_text(encoding="utf-8")
    assert "<script" not in content
    text = " ".join(ElementTree.fromstring(content.encode()).itertext())
    assert "a & b" in text
    assert re.search(r"\$x\$ and \$y", text)  # no formula


FOREIGN = [
    "tag: $9{ $8 red", r"wing $x$ $\unknowncommand{b}$ stripe", "$x_1$ and $x^2$", "$", "$$", r"\frac{1}{2} \$",
    "_hidden",
    "two\nlines\rand\ttabs", "bell\x07 and nul\x00", "half \ud83d a letter", "x" * 10_000, "翼の色 🐦 أبيض", "", " ",
    "a & b < c > \"d\"",
]  # fmt: skip
"""Texts that matplotlib takes for formulas, that are no XML, or that its font cannot show."""


@pytest.mark.parametrize("usetex", [False, True])
def test_text_of_others_is_text(usetex: bool, recwarn: pytest.WarningsRecorder):
    import matplotlib

    g = torch.Generator().manual_seed(0)
    concepts = normalize(torch.randn(len(FOREIGN), 24, generator=g), dim=1)
    model = ConceptBottleneck(concepts, LinearHead(torch.randn(2, len(FOREIGN), generator=g)))
    with matplotlib.rc_context({"text.usetex": usetex}):  # whatever the user's matplotlibrc says
        figure = correlation_figure(model, FOREIGN, normalize(torch.randn(200, 24, generator=g), dim=1))
        content = svg(figure)
    every = [text.text for text in ElementTree.fromstring(content).iter("{http://www.w3.org/2000/svg}text")]
    shown = [re.sub(r"  \d+$", "", text) for text in every]
    for text in ("tag: $9{ $8 red", r"wing $x$ $\unknowncommand{b}$ stripe", "$x_1$ and $x^2$", "_hidden",
                 "two lines and tabs", "half \ufffd a letter", "翼の色 🐦 أبيض", 'a & b < c > "d"'):  # fmt: skip
        assert shown.count(text) == 1, text
    assert not [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)]


def test_curves_of_others_have_their_names_in_the_legend(tmp_path):
    from cbm.report.comparison import curve_figure

    rows = []
    for name in ("_hidden", "$x$", r"$\unknowncommand{b}$", "labo"):
        path = tmp_path / str(len(rows))
        path.mkdir()
        (path / "metrics.json").write_text('{"test/accuracy_nec5_resolved": 0.5, "test/accuracy_nec10_resolved": 0.6}')
        rows.append(Row({"method": name, "concepts": "", "settings": ""}, {}, (0,), (path,)))
    figure = curve_figure(rows, r"test/accuracy_nec(\d+)_resolved", "concepts per class")
    content = svg(figure)
    shown = {text.text for text in ElementTree.fromstring(content).iter("{http://www.w3.org/2000/svg}text")}
    assert shown >= {"_hidden", "$x$", r"$\unknowncommand{b}$", "labo"}
