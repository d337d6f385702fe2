"""Attributes with values, levels and numbers in a report: what the table says, and the plot of numbers."""

import math

import torch

from cbm.data.dataset import ConceptSpec
from cbm.metrics.attributes import AttributeReading
from cbm.report.attributes import NUMBERS_SHOWN, attribute_facts, number_figure

TRUE = torch.tensor([10.0, 20.0, math.nan, 40.0])
SAID = torch.tensor([12.0, 20.0, 30.0, 36.0])
WEIGHT = AttributeReading(
    ConceptSpec("weight", "continuous", ["weight"], unit="g"), TRUE, SAID,
    {"concept_concordance": 1.0, "concept_r2": -0.25},
)  # fmt: skip
LEVEL = AttributeReading(
    ConceptSpec("size", "ordinal", ["a", "b"], ["small", "middle", "large"]), torch.tensor([0.0, 2.0]),
    torch.tensor([0.0, 1.0]), {"concept_concordance": 1.0, "concept_kappa": 0.5, "concept_off_by_one": 1.0},
)  # fmt: skip
COLOUR = AttributeReading(
    ConceptSpec("colour", "categorical", ["r", "g"], ["red", "green"]), torch.tensor([0.0, 1.0, math.nan]),
    torch.tensor([0.0, 0.0, 0.0]), {"concept_value_accuracy": 0.5, "concept_value_f1": 0.3333},
)  # fmt: skip


def test_a_row_says_what_the_kind_has():
    rows = attribute_facts([WEIGHT, LEVEL, COLOUR])
    assert [(row.name, row.kind, row.known) for row in rows] == [
        ("colour", "one of 2", 2), ("size", "3 levels", 2), ("weight", "a number (g)", 3),
    ]  # fmt: skip
    assert rows[0].found == "50.0% right, F1 0.333"
    assert rows[1].found == "kappa 0.500, 100.0% at most one off, 100.0% of the pairs in order"
    assert rows[2].found == "R² −0.250, off by 2 g, 100.0% of the pairs in order"  # 2, 0 and 4 g
    only_ranked = AttributeReading(WEIGHT.spec, TRUE, None, {"concept_concordance": 0.75})
    assert attribute_facts([only_ranked])[0].found == "75.0% of the pairs in order"


def test_numbers_are_drawn_against_the_truth_in_their_unit():
    figure = number_figure([COLOUR, WEIGHT, LEVEL])
    assert figure is not None
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("true (g)", "predicted (g)", "weight")
    diagonal, points = (line.get_xydata().tolist() for line in axes.lines)
    assert points == [[10, 12], [20, 20], [40, 36]]  # the unknown one is not there
    assert diagonal == [[10, 10], [40, 40]]
    assert axes.get_xlim() == axes.get_ylim()


def test_no_plot_without_learned_numbers_and_not_endlessly_many():
    assert number_figure([COLOUR, LEVEL]) is None
    assert number_figure([AttributeReading(WEIGHT.spec, TRUE, None, {"concept_concordance": 1.0})]) is None
    many = number_figure([WEIGHT] * (NUMBERS_SHOWN + 3))
    assert many is not None
    assert len(many.axes) == NUMBERS_SHOWN
    equal = AttributeReading(ConceptSpec("$x_1$", "continuous", ["x"]), torch.ones(2), torch.ones(2), WEIGHT.values)
    one = number_figure([equal])
    assert one is not None
    assert one.axes[0].get_xlim()[0] < 1 < one.axes[0].get_xlim()[1]
    assert one.axes[0].get_xlabel() == "true"
