"""Plots of a run, ``figures/NAME.svg`` of its directory and in its report: matplotlib figures, without a display."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cbm.files import write_atomically
from cbm.files.console import failing_softly
from cbm.files.inert import one_line
from cbm.layers import ConceptBottleneck
from cbm.report.wording import LONGEST, clip

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 15
CORRELATED = 24
"""Concepts of the correlation plot: those that matter most to any class."""
NAME = 44
"""Characters of a concept's name beside the plot."""
BLUE, GREY, RED = "#2f6db3", "#8a8f98", "#c2452d"


def new_figure(width: float = 5.0, height: float = 3.2) -> "tuple[Figure, Axes]":
    """An empty figure in the report's manner, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    return figure, axes


def svg(figure: "Figure") -> str:
    """The figure as an ``<svg>`` element: text stays text, the same figure gives the same bytes."""
    import matplotlib
    from matplotlib.text import Text

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cbm",
        "font.family": "sans-serif",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks: whoever shows the figure has others
        for text in figure.findobj(Text):
            text.set(parse_math=False, usetex=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    content = buffer.getvalue()
    return content[content.index("<svg") :]


def as_image(drawn: str) -> str:
    """An ``<svg>`` element as an address that holds it, for pages that load nothing."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()


def label(text: str, longest: int = LONGEST) -> str:
    """Text of others as one line that a figure can show: no control characters, no halves of letters, not endless."""
    return clip(one_line(text), longest)


def add_legend(axes: "Axes", handles: "Sequence[Artist]", names: Sequence[str], **settings: Any) -> None:
    """A legend with names of others: matplotlib would leave out those that begin with ``_``."""
    legend = axes.legend(handles, [str(number) for number in range(len(names))], frameon=False, **settings)
    for text, name in zip(legend.get_texts(), names):
        text.set(text=label(name), parse_math=False)


def sparsity_figure(metrics: dict[str, float]) -> "Figure | None":
    """Accuracy over concepts per class (NEC): re-solved heads, the method's own head, controls; None without heads."""
    points = _series(metrics, r"test/accuracy_nec(\d+)_resolved")
    if not points:
        return None
    figure, axes = new_figure()
    axes.plot(*zip(*points), "o-", color=BLUE, label="new head with so many")
    for key, label, colour, marker, size in (  # of other shape and size, so that equal ones do not hide each other
        ("test/accuracy_nec5", "own head cut to 5", BLUE, "s", 5),
        ("integrity/random_accuracy_nec5", "random concepts, own head cut to 5", GREY, "D", 9),
        ("integrity/shuffled_accuracy_nec5", "shuffled concepts, own head cut to 5", RED, "x", 8),
    ):
        if key in metrics:
            axes.plot(
                [5], [metrics[key]], marker, color=colour, fillstyle="none", markersize=size, linestyle="", label=label
            )
    axes.axhline(metrics["test/accuracy"], color=GREY, linestyle=":", label="own head, all concepts")
    axes.set(xlabel="concepts per class", ylabel="test accuracy", xlim=(0, None), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def label_sparsity_figure(metrics: dict[str, float]) -> "Figure | None":
    """Mean AUROC of the labels over concepts per label: heads solved anew, and the method's own cut; None without."""
    points = _series(metrics, r"test/auroc_macro_nec(\d+)_resolved")
    if not points:
        return None
    figure, axes = new_figure()
    axes.plot(*zip(*points), "o-", color=BLUE, label="new heads with so many")
    axes.plot(*zip(*_series(metrics, r"test/auroc_macro_nec(\d+)")), "s--", color=GREY, label="own head cut to so many")
    axes.axhline(metrics["test/auroc_macro"], color=GREY, linestyle=":", label="own head, all concepts")
    low = min(0.5, *(value for _, value in points))
    axes.set(xlabel="concepts per label", ylabel="mean test AUROC", xlim=(0, None), ylim=(low, 1.01))
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def intervention_figure(metrics: dict[str, float]) -> "Figure | None":
    """Accuracy of the class, and of the concepts not told, as more are told; None where nothing was told."""
    points = _series(metrics, r"test/intervention_accuracy_(\d+)")
    if not points:
        return None
    figure, axes = new_figure()
    axes.plot(*zip(*points), "o-", color=BLUE, label="class")
    if others := [(x, y) for x, y in _series(metrics, r"test/intervention_others_(\d+)") if y == y]:
        axes.plot(*zip(*others), "s--", color=GREY, label="concepts not told")
    axes.set(xlabel="per cent of concepts told", ylabel="accuracy")
    axes.legend(frameon=False, fontsize="small")
    return figure


def calibration_figure(probabilities: Tensor, labels: Tensor) -> "Figure":
    """Is the model right as often as it says? Share of right pictures by stated probability (reliability diagram).

    Args:
        probabilities: ``[N, C]``.
        labels: ``[N]``.
    """
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(place, minlength=BINS)
    shares = torch.bincount(place, weights=right, minlength=BINS) / counts.clamp(min=1)
    means = torch.bincount(place, weights=confidence.double(), minlength=BINS) / counts.clamp(min=1)
    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1], ":", color=GREY, label="as it says")
    used = counts > 0
    axes.bar((torch.arange(BINS) + 0.5)[used] / BINS, shares[used], 0.9 / BINS, color=BLUE, alpha=0.3)
    axes.plot(means[used], shares[used], "o", color=BLUE, label="right")
    axes.set(xlabel="stated probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    return figure


def label_calibration_figure(probabilities: Tensor, y: Tensor, names: Sequence[str], limit: int) -> "Figure | None":
    """Is a label there as often as it says? One small plot a label: bins of as many images each, by probability.

    Args:
        probabilities: ``[N, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        names: L names.
        limit: labels at most, those that most images have; those that no image has, or every one, have none.

    Returns:
        None without a label that some images have and some lack.
    """
    from matplotlib.figure import Figure

    count = (y == 1).sum(dim=0)
    mixed = ((count > 0) & ((y == 0).sum(dim=0) > 0)).nonzero().flatten().tolist()
    shown = sorted(sorted(mixed, key=lambda each: -int(count[each]))[:limit])
    if not shown:
        return None
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(1.8 * across + 0.4, 1.75 * down + 0.4), layout="constrained")
    for place, each in enumerate(shown):
        there = ~y[:, each].isnan()
        stated, order = probabilities[there, each].double().sort()
        true = y[there, each].double()[order]
        axes = figure.add_subplot(down, across, place + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot([0, 1], [0, 1], ":", color=GREY)
        parts = min(10, len(true))
        means = [[float(part.mean()) for part in whole.tensor_split(parts)] for whole in (stated, true)]
        axes.plot(*means, "o-", color=BLUE, markersize=3, linewidth=1)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
        axes.tick_params(labelsize=8)
        axes.set_title(label(names[each], 22), fontsize=9, parse_math=False)
    figure.supxlabel("stated probability", fontsize=9)
    figure.supylabel("share that has it", fontsize=9)
    return figure


@torch.no_grad()
def correlation_figure(model: ConceptBottleneck, texts: Sequence[str], x: Tensor) -> "Figure | None":
    """Which concepts say the same thing: correlations of what the head reads, neighbours being alike.

    Args:
        model: its most important concepts are shown.
        texts: K concepts.
        x: ``[N, D]`` pictures.

    Returns:
        None with fewer than three concepts that vary.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    matter = model.importance().abs().amax(dim=0)
    columns = matter.topk(min(CORRELATED, len(matter))).indices
    values = model.activations(x.float())[:, columns].double()
    columns, values = columns[values.std(dim=0) > 1e-9], values[:, values.std(dim=0) > 1e-9]
    if len(columns) < 3:
        return None
    correlation = torch.corrcoef(values.T).clamp(-1, 1)
    distance = (1 - correlation).clamp(min=0)
    distance.fill_diagonal_(0)
    order = leaves_list(linkage(squareform(distance.numpy(), checks=False), "average"))
    names = [label(texts[k], NAME) for k in columns[order].tolist()]
    numbers = [str(place) for place in range(1, len(names) + 1)]
    figure, axes = new_figure(max(5.5, 0.23 * len(names) + 4), max(3.0, 0.23 * len(names) + 1))
    axes.grid(visible=False)
    image = axes.imshow(correlation[order][:, order], cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_xticks(range(len(names)), numbers, fontsize=9)
    axes.set_yticks(
        range(len(names)), [f"{name}  {place}" for name, place in zip(names, numbers)], fontsize=10, parse_math=False
    )
    axes.set_xlabel("the same concepts by their numbers")
    figure.colorbar(image, shrink=0.6, label="correlation over test pictures")
    return figure


def write_figures(folder: Path, figures: "Mapping[str, Callable[[], Figure | None]]") -> dict[str, str]:
    """Draw every figure and write it to ``folder/NAME.svg``; returns them as ``<svg>`` elements.

    One that cannot be drawn or written costs itself: it is said and left out.

    Args:
        folder: where.
        figures: functions that draw, by name; one that returns None has nothing to show.
    """
    drawn = {}
    for name, draw in figures.items():
        with failing_softly(f"the figure '{name}' is left out"):
            if (figure := draw()) is not None:
                element = svg(figure)
                content = f'<?xml version="1.0" encoding="utf-8"?>\n{element}'
                write_atomically(folder / f"{name}.svg", content.encode())
                drawn[name] = element
    return drawn


def _series(metrics: dict[str, float], pattern: str) -> list[tuple[int, float]]:
    """Number in the key and value of the metrics that match, in order."""
    return sorted((int(m[1]), value) for key, value in metrics.items() if (m := re.fullmatch(pattern, key)))
