"""Several runs side by side as one page: the table of ``compare``, and curves with their spread over seeds."""

import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbm.files import write_atomically
from cbm.files.console import failing_softly
from cbm.files.run_directory import read_metrics
from cbm.report.compare import EQUAL, Row, cell, columns, table_notes, title
from cbm.report.figures import add_legend, as_image, new_figure, svg
from cbm.report.templates import load_template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {
    "Accuracy at equal sparsity: re-solved heads": (r"test/accuracy_nec(\d+)_resolved", "concepts per class"),
    "AUROC at equal sparsity: re-solved heads": (r"test/auroc_macro_nec(\d+)_resolved", "concepts per label"),
    "Accuracy as concepts are told": (r"test/intervention_accuracy_(\d+)", "per cent of concepts told"),
}
"""Caption to the keys of ``metrics.json`` that make the curve, and its axis."""
MOST_CURVES = 10
"""Of a figure, the most accurate experiments first."""


def write_comparison(path: Path, rows: list[Row]) -> None:
    """Write one page about the rows of ``compare_runs``; nothing in it is loaded from elsewhere."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        dataset, shots = row.labels["dataset"], row.labels["shots"]
        name = dataset if shots == "all" else f"{dataset}, {shots} shots"
        both = len({other.many for other in rows if other.labels["dataset"] == dataset}) > 1
        groups.setdefault(f"{name}, several labels an image" if both and row.many else name, []).append(row)
    tables: list[tuple[str, list[str], list[str], list[Any]]] = []
    figures: dict[str, list[tuple[str, str]]] = {}
    for name, members in groups.items():
        labels, metrics = columns(members)
        lines = [
            ([row.labels[key] for key in labels], [(cell(row, key), key in row.best) for key in metrics])
            for row in members
        ]
        tables.append((name, labels, [title(key) for key in metrics], lines))
        figures[name] = []
        for caption, settings in CURVES.items():
            with failing_softly(f"the figure '{caption}' of {name} is left out"):
                if (figure := curve_figure(members, *settings)) is not None:
                    figures[name].append((as_image(svg(figure)), caption))
    page = load_template(Path(__file__).parent / "comparison.html").render(
        rows=rows,
        runs=sum(len(row.paths) for row in rows),
        tables=tables,
        figures=figures,
        equal=EQUAL,
        notes=[note for many in (False, True) for note in table_notes([row for row in rows if row.many == many])],
    )
    write_atomically(path, page.encode())


def curve_figure(rows: list[Row], pattern: str, axis: str) -> "Figure | None":
    """A curve per experiment: the mean over its runs, and the band of a standard deviation; None without any."""
    curves = []
    for row in sorted(rows, key=lambda row: -row.main):
        values: dict[int, list[float]] = {}
        for path in row.paths:
            for key, value in read_metrics(path).items():
                if match := re.fullmatch(pattern, key):
                    values.setdefault(int(match[1]), []).append(value)
        if len(values) > 1:  # one point is in the table
            curves.append((row, sorted(values.items())))
    if not curves:
        return None
    figure, axes = new_figure(7.0, 4.0)
    methods = [row.labels["method"] for row, _ in curves]
    drawn, names = [], []
    for row, points in curves[:MOST_CURVES]:
        name = row.labels["method"]
        further = [row.labels[key] for key in ("concepts", "settings") if row.labels[key]]
        name = f"{name} ({', '.join(further)})" if methods.count(name) > 1 else name
        x, means = [place for place, _ in points], [statistics.fmean(values) for _, values in points]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        (line,) = axes.plot(x, means, "o-", markersize=3)
        drawn.append(line)
        names.append(name)
        low, high = ([m + sign * s for m, s in zip(means, spread)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=axis, ylabel="mean test AUROC" if rows[0].many else "test accuracy")
    add_legend(axes, drawn, names, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
