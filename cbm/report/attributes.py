"""Attributes with values, levels and numbers: how well the concepts of a run tell them, as a table and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cbm.metrics.attributes import AttributeReading, attribute_readings
from cbm.metrics.valued import mae
from cbm.report.figures import BLUE, GREY, label
from cbm.report.result import RunResult
from cbm.report.wording import clip, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"categorical": "one of", "ordinal": "levels", "continuous": "a number"}
NUMBERS_SHOWN = 9
"""Numbers with a plot, at most."""
POINTS = 2000
"""Images of a plot, at most: the first ones."""


@dataclass(frozen=True)
class AttributeFacts:
    """An attribute in the table of a page.

    Attributes:
        name: its name.
        kind: what it is, in words.
        known: number of test images of which it is known.
        found: how well it is told, in words.
    """

    name: str
    kind: str
    known: int
    found: str


def read_attributes(result: RunResult) -> list[AttributeReading]:
    """The attributes that the concepts of a run tell, on its test images; none without a linear head on concepts."""
    if result.bottleneck is None or result.bank is None:
        return []
    return attribute_readings(result.bottleneck, result.bank, result.data.test, result.data)


def attribute_facts(readings: Sequence[AttributeReading]) -> list[AttributeFacts]:
    """The rows of the table: values first, then levels, then numbers."""
    order = list(KINDS)
    return [_facts(each) for each in sorted(readings, key=lambda each: order.index(each.spec.kind))]


def _facts(reading: AttributeReading) -> AttributeFacts:
    spec, values = reading.spec, reading.values
    kind = f"{KINDS[spec.kind]} {len(spec.values)}" if spec.kind == "categorical" else KINDS[spec.kind]
    if spec.kind == "ordinal":
        kind = f"{len(spec.values)} {kind}"
    if spec.kind == "continuous" and spec.unit:
        kind += f" ({label(spec.unit, 20)})"
    said = []
    if "concept_value_accuracy" in values:
        said += [f"{percent(values['concept_value_accuracy'])} right", f"F1 {values['concept_value_f1']:.3f}"]
    if "concept_kappa" in values:
        said += [f"kappa {values['concept_kappa']:.3f}", f"{percent(values['concept_off_by_one'])} at most one off"]
    if "concept_r2" in values and reading.said is not None:
        error = mae(reading.said, reading.true).value
        said += [f"R\u00b2 {values['concept_r2']:.3f}", f"off by {error:.3g} {label(spec.unit, 20)}".rstrip()]
    if "concept_concordance" in values:
        said.append(f"{percent(values['concept_concordance'])} of the pairs in order")
    known = int((~reading.true.isnan()).sum())
    return AttributeFacts(clip(spec.name), kind, known, ", ".join(said).replace("-", "\u2212"))


def number_figure(readings: Sequence[AttributeReading]) -> "Figure | None":
    """Predicted against true numbers, one small plot an attribute, in its unit; None without numbers that are learned.

    Args:
        readings: the attributes; of the numbers the first ``NUMBERS_SHOWN`` are drawn.
    """
    from matplotlib.figure import Figure

    shown = [each for each in readings if each.spec.kind == "continuous" and each.said is not None][:NUMBERS_SHOWN]
    if not shown:
        return None
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.6 * across + 0.6, 2.5 * down + 0.4), layout="constrained")
    for place, each in enumerate(shown):
        assert each.said is not None
        rows = (~each.true.isnan()).nonzero().flatten()[:POINTS]
        true, said = each.true[rows].double(), each.said[rows].double()
        low, high = float(min(true.min(), said.min())), float(max(true.max(), said.max()))
        edge = 0.04 * (high - low or 1.0)
        axes = figure.add_subplot(down, across, place + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot([low, high], [low, high], ":", color=GREY)
        axes.plot(true, said, ".", color=BLUE, markersize=4, alpha=0.5)
        limits = (low - edge, high + edge)
        unit = f" ({label(each.spec.unit, 20)})" if each.spec.unit else ""
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_xlabel(f"true{unit}", fontsize=9, parse_math=False)
        axes.set_ylabel(f"predicted{unit}", fontsize=9, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.set_title(label(each.spec.name, 26), fontsize=9, parse_math=False)
    return figure
