"""One table over many runs: those that differ only in the seed are one row, mean ± standard deviation (runs)."""

import csv
import io
import json
import logging
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cbm.errors import UserError, did_you_mean
from cbm.files.inert import for_csv, for_latex, for_markdown
from cbm.files.run_directory import read_about, read_config, read_metrics, verify_run
from cbm.report.pairing import Contender, Judgement, judge, notes

log = logging.getLogger(__name__)

COLUMNS = {
    "test/accuracy": "accuracy",
    "test/auroc_macro": "AUROC",
    "test/accuracy_macro": "macro",
    "test/worst_group": "worst group",
    "test/reader_accuracy": "reader of the names",
    "test/name_value": "name value",
    "test/accuracy_nec5_resolved": "with 5 concepts",
    "integrity/random_accuracy_nec5_resolved": "random directions, with 5",
    "test/accuracy_nec_avg_resolved": "with 5 to 30, mean",
    "test/accuracy_nec5": "own head cut to 5",
    "test/auroc_macro_nec5_resolved": "with 5 concepts a label",
    "controls/random": "random directions",
    "test/map": "mAP",
    "test/f1_macro": "F1",
    "test/ece": "ECE",
    "test/ece_macro": "ECE of labels",
    "test/concept_accuracy": "concept acc.",
    "test/concept_auroc": "concept AUROC",
    "leak/joint": "leak ≥",
    "test/grounding_gap_std": "grounding gap [sd]",
    "integrity/random_accuracy_nec5": "random, own head cut to 5",
    "integrity/shuffled_accuracy_nec5": "shuffled, own head cut to 5",
    "test/image_l0": "concepts/picture",
    "test/self_rank": "names kept",
    "top10_stability": "top-10 stability",
    "model/n_concepts": "concepts",
    "time/fit_s": "fit [s]",
    "memory/peak_mb": "memory [MB]",
}
"""Key in ``metrics.json`` (or ``STABILITY``) to the column's name; a column that no run has is left out."""

STABILITY = "top10_stability"
"""Not of a run but of all seeds of a row: overlap of every class's ten most important concepts."""

DIGITS = {
    "model/n_concepts": 0, "memory/peak_mb": 0, "time/fit_s": 1, "test/ece": 3, "test/concept_auroc": 3,
    "test/grounding_gap_std": 2, "test/image_l0": 1, "test/auroc_macro": 3, "test/auroc_macro_nec5_resolved": 3,
    "controls/random": 3, "test/map": 3, "test/f1_macro": 3, "test/ece_macro": 3,
}  # fmt: skip
PERCENT = (
    "test/accuracy",
    "test/accuracy_macro",
    "test/worst_group",
    "leak/joint",
    "test/reader_accuracy",
    "test/name_value",
    "integrity/random_accuracy_nec5_resolved",
    "test/accuracy_nec5",
    "test/accuracy_nec5_resolved",
    "test/accuracy_nec_avg_resolved",
    "test/concept_accuracy",
    "test/self_rank",
    "integrity/random_accuracy_nec5",
    "integrity/shuffled_accuracy_nec5",
)
LOWER_IS_BETTER = ("test/ece", "test/ece_macro")
NOT_RANKED = (
    "leak/joint",
    "model/n_concepts",
    "time/fit_s",
    "memory/peak_mb",
    "test/image_l0",
    "test/self_rank",
    "integrity/random_accuracy_nec5_resolved",
    "integrity/random_accuracy_nec5",
    "integrity/shuffled_accuracy_nec5",
    "controls/random",
)
"""Columns that are never marked as best: a model that learns no names keeps them all."""
EQUAL = "≈"
"""Stands behind a number that is not significantly worse than the best (``cbm.report.pairing``)."""
LABELS = ("method", "dataset", "encoder", "concepts", "shots", "settings")


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed.

    Attributes:
        labels: ``method``, ``dataset``, ``encoder``, ``concepts``, ``shots``, and ``settings``: the
            method's fidelity, and where its settings differ from other rows.
        values: metric to its value in every run that has it; ``STABILITY`` has one value for all runs.
        seeds: seeds of the runs.
        paths: directories of the runs.
        intervals: metric to the ends of its 95 % interval over test images, mean over the runs.
        best: metrics in which no row of the same data set and shots is better.
        judged: what a comparison on the test images says.
    """

    labels: dict[str, str]
    values: dict[str, list[float]]
    seeds: tuple[int, ...]
    paths: tuple[Path, ...]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    best: frozenset[str] = frozenset()
    judged: Judgement = field(default_factory=Judgement)

    def mean(self, key: str) -> float | None:
        """Mean of a metric, or None if no run has it."""
        return statistics.fmean(self.values[key]) if self.values.get(key) else None

    @property
    def many(self) -> bool:
        """Whether its images have any number of labels. What is measured then stands in a table of its own."""
        return bool(self.values.get("test/auroc_macro"))

    @property
    def main(self) -> float:
        """Accuracy, or mean AUROC of labels: what rows are ordered by."""
        return self.mean("test/auroc_macro" if self.many else "test/accuracy") or 0.0

    @property
    def equal(self) -> frozenset[str]:
        """Metrics in which a better row is not significantly better."""
        return self.judged.equal - self.best


def compare_runs(paths: list[Path]) -> list[Row]:
    """Read finished runs and group them; unfinished ones are named in a warning and left out.

    Args:
        paths: run directories, or directories of run directories.

    Raises:
        UserError: a path that is no run and holds none (with the nearest names), or no finished run at all.
    """
    groups: dict[str, dict[int, tuple[Path, dict[str, Any], dict[str, float]]]] = {}
    for path in sorted(_finished(paths), key=lambda run: (run / "metrics.json").stat().st_mtime_ns):
        settings = _settings(path)
        group = groups.setdefault(_identity(settings), {})
        if (older := group.get(settings["seed"])) is not None:
            log.warning("run '%s' has the settings and the seed of '%s', which is newer: left out", older[0], path)
        group[settings["seed"]] = (path, settings, read_metrics(path))
    members = [[runs[seed] for seed in sorted(runs)] for runs in groups.values()]
    methods = [group[0][1]["method"] for group in members]
    rows = [
        Row(
            _labels(group[0][1], methods),
            {key: [metrics[key] for _, _, metrics in group if key in metrics] for key in COLUMNS}
            | {STABILITY: _stability([path for path, _, _ in group])},
            tuple(settings["seed"] for _, settings, _ in group),
            tuple(path for path, _, _ in group),
            _intervals([metrics for _, _, metrics in group]),
        )
        for group in members
    ]
    rows.sort(key=lambda row: (row.many, row.labels["dataset"], _shots(row), -row.main))
    judged = judge([_contender(row) for row in rows])
    return [replace(row, best=_best(row, rows), judged=each) for row, each in zip(rows, judged)]


def _contender(row: Row) -> Contender:
    means = {key: mean for key in COLUMNS if (mean := row.mean(key)) is not None}
    group = f"{row.labels['shots']}, labels" if row.many else row.labels["shots"]
    return Contender(row.labels["dataset"], group, dict(zip(row.seeds, row.paths)), means)


def _intervals(runs: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """The ends of every metric's interval, mean over the runs; metrics that a run has none of are left out."""
    found = {}
    for key in COLUMNS:
        ends = [[run[f"{key}_{end}"] for run in runs if f"{key}_{end}" in run] for end in ("low", "high")]
        if all(len(each) == len(runs) for each in ends):
            found[key] = (statistics.fmean(ends[0]), statistics.fmean(ends[1]))
    return found


def _finished(paths: list[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        inside = sorted(file.parent for file in path.glob("*/config.yaml"))
        if (path / "config.yaml").is_file():
            inside = [path]
        if not inside:
            siblings = path.parent.iterdir() if path.parent.is_dir() else []
            near = did_you_mean(path.name, [s.name for s in siblings if s.is_dir() and s.name != path.name])
            raise UserError(f"no run in '{path}': {near}")
        for run in inside:
            if (run / "metrics.json").is_file():
                verify_run(run, ("config.yaml", "metrics.json"))
                found[run] = None
            else:
                log.warning("run '%s' is not finished: left out", run)
    if not found:
        raise UserError("none of these runs is finished")
    return list(found)


def _settings(path: Path) -> dict[str, Any]:
    return OmegaConf.to_container(read_config(path))  # type: ignore[return-value]


def _identity(settings: dict[str, Any]) -> str:
    """Everything that makes a run another experiment: not the seed, not where it runs and writes."""
    parts = {key: settings.get(key) for key in ("method", "dataset", "encoder", "concepts", "shots", "val_shots")}
    aside = ("device", "num_workers", "batch_size", "precision")
    parts["encoder"] = {key: value for key, value in (settings["encoder"] or {}).items() if key not in aside}
    return json.dumps(parts, sort_keys=True, default=str)


def _labels(settings: dict[str, Any], methods: list[dict[str, Any]]) -> dict[str, str]:
    method, encoder, concepts = settings["method"], settings["encoder"] or {"model": "given"}, settings["concepts"]
    tag = f" {encoder['pretrained']}" if encoder.get("pretrained") else ""
    source = str(concepts.get("source", "auto"))
    name = Path(source).stem if source != "auto" else "auto"
    name += f":{concepts['key']}" if concepts.get("key") else ""
    same = [other for other in methods if other["name"] == method["name"]]
    differing = [key for key in method if key == "fidelity" or any(other.get(key) != method[key] for other in same)]
    root = settings["dataset"].get("root")
    dataset = settings["dataset"]["name"]
    return {
        "method": str(method["name"]),
        "dataset": Path(root).stem if dataset in ("folder", "csv", "features") and root else str(dataset),
        "encoder": Path(str(encoder["model"])).name + tag,
        "concepts": f"{name} ({concepts['control']})" if concepts.get("control") else name,
        "shots": str(settings["shots"]),
        "settings": ", ".join(f"{key}={method[key]}" for key in differing),
    }


def _stability(paths: list[Path], count: int = 10) -> list[float]:
    """Do the seeds name the same concepts? One value, or none: without concepts, or without two runs that can be read.

    For every class, of the concepts that matter most to it, ``count`` at most (``cbm.metrics.TopConceptStability``).
    """
    if len(paths) < 2:
        return []
    there = [path for path in paths if (path / "model.safetensors").is_file()]
    for path in paths:
        if path not in there:
            log.warning("run '%s' is left out of the stability over seeds: it has no model.safetensors", path)
    if len(there) < 2:
        return []
    from cbm.metrics import TopConceptStability  # torch takes seconds to load, and most tables do without

    named = []
    for path in there:
        try:
            named.append(_top_concepts(path, count))
        except Exception as error:  # whatever damaged files make the parsers raise
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            log.warning("run '%s' is left out of the stability over seeds: %s", path, reason)
    rows = [run for run in named if run is not None]
    if any(run.keys() != rows[0].keys() for run in rows):
        log.warning("no stability over seeds: the runs beside '%s' have other classes", paths[0])
        return []
    if len(rows) < 2:
        return []
    stability = TopConceptStability()
    for run in rows:
        stability.update([run[name] for name in rows[0]])
    value = float(stability.compute())
    return [] if math.isnan(value) else [value]


def _top_concepts(path: Path, count: int) -> dict[str, list[str]] | None:
    """Class to the texts of its most important concepts in a run; those of no importance are not named.

    Returns:
        None for a model without concepts.
    """
    from cbm.concepts import load_bank
    from cbm.layers import ConceptBottleneck, load_model
    from cbm.metrics import top_concepts

    model = load_model(path / "model.safetensors")
    if not isinstance(model, ConceptBottleneck):
        return None
    texts = load_bank(path / "bank").texts
    classes = read_about(path)["classes"]
    importance = model.importance()
    if importance.shape != (len(classes), len(texts)):
        raise UserError(
            f"its model has {importance.shape[0]} classes and {importance.shape[1]} concepts, the files beside it "
            f"{len(classes)} and {len(texts)}"
        )
    columns = top_concepts(model, count).tolist()
    return {
        name: [texts[k] for k in row if importance[c, k] != 0] for c, (name, row) in enumerate(zip(classes, columns))
    }


def _shots(row: Row) -> tuple[int, int]:
    shots = row.labels["shots"]
    return (0, int(shots)) if shots.isdigit() else (1, 0)


def _best(row: Row, rows: list[Row]) -> frozenset[str]:
    """The metrics of a row that no rival beats: same task, data set and shots, and a rival has the metric."""
    alike = [r for r in rows if r.many == row.many]
    rivals = [r for r in alike if all(r.labels[key] == row.labels[key] for key in ("dataset", "shots"))]
    best = set()
    for key in COLUMNS:
        means = [value for r in rivals if (value := r.mean(key)) is not None]
        mine = row.mean(key)
        if mine is not None and len(means) > 1 and key not in NOT_RANKED:
            top = min(means) if key in LOWER_IS_BETTER else max(means)
            if _number(key, mine) == _number(key, top):  # as equal as the table shows
                best.add(key)
    return frozenset(best)


# -------------------------------------------------------------------------------------------------------------- writing


def format_table(rows: list[Row], style: str = "rich") -> str:
    """The rows as text, the best of each data set and number of shots in bold; runs of several labels an image make a
    table of their own, below that of runs of one class.

    Args:
        rows: from ``compare_runs``.
        style: ``rich`` (for the terminal), ``markdown``, ``latex`` or ``csv``.

    Raises:
        UserError: another style.
    """
    styles: dict[str, Callable[[list[Row]], str]] = {"rich": _rich, "markdown": _markdown, "latex": _latex, "csv": _csv}
    if style not in styles:
        raise UserError(f"unknown style '{style}': {did_you_mean(style, styles)}")
    tables = [[row for row in rows if row.many == many] for many in (False, True)]
    return "\n".join(styles[style](table) for table in tables if table)


def table_notes(rows: list[Row]) -> list[str]:
    """What the intervals and marks of a table mean, in sentences; none where there are neither."""
    said = notes([(row.labels["dataset"], row.labels["method"], row.judged) for row in rows], EQUAL)
    if any(row.intervals for row in rows):
        said.insert(
            0, "in brackets: the 95% interval over the test images; ±: standard deviation over seeds (how many)"
        )
    return said


def columns(rows: list[Row]) -> tuple[list[str], list[str]]:
    """Labels that say something, and metrics that somebody has."""
    labels = [key for key in LABELS if any(row.labels[key] for row in rows)]
    return labels, [key for key in COLUMNS if any(row.values.get(key) for row in rows)]


def _number(key: str, value: float) -> str:
    return f"{100 * value:.1f}" if key in PERCENT else f"{value:z.{DIGITS.get(key, 2)}f}"


def cell(row: Row, key: str) -> str:
    """``53.4 ± 0.6 (3) [50.1, 56.7]``, ≈ if it may be as good as the best; one run without ±; shares in per cent."""
    values = row.values.get(key)
    if not values:
        return "–"
    shown = _number(key, statistics.fmean(values))
    if len(values) > 1:
        shown += f" ± {_number(key, statistics.stdev(values))} ({len(values)})"
    if key in row.intervals:
        shown += f" [{', '.join(_number(key, end) for end in row.intervals[key])}]"
    return shown + f" {EQUAL}" * (key in row.equal)


def title(key: str) -> str:
    """A column's name."""
    return f"{COLUMNS[key]} %" if key in PERCENT else COLUMNS[key]


def _rich(rows: list[Row]) -> str:
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from cbm.files.terminal import Terminal

    labels, metrics = columns(rows)
    shared = [key for key in labels if len(rows) > 1 and len({row.labels[key] for row in rows}) == 1]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key in (key for key in labels if key not in shared):
        narrow = 26 if key == "settings" else 200  # settings may be wrapped, nothing else
        table.add_column(key, overflow="fold", min_width=min(narrow, max(len(row.labels[key]) for row in rows)))
    for key in metrics:
        width = max(len(text) for text in (title(key), *(cell(row, key) for row in rows)))
        table.add_column(Text(title(key)), justify="right", min_width=width)
    for row in rows:
        texts = [Text(row.labels[key]) for key in labels if key not in shared]
        table.add_row(*texts, *(Text(cell(row, key), "bold" if key in row.best else "") for key in metrics))
    console = Terminal()
    unbounded = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, unbounded, table).minimum)
    with console.capture() as capture:
        if shared:
            console.print(Text("all with " + "; ".join(f"{key} {rows[0].labels[key]}" for key in shared), "dim"))
        console.print(table)
        for note in table_notes(rows):
            console.print(Text(note, "dim"))
    return capture.get()


def _markdown(rows: list[Row]) -> str:
    labels, metrics = columns(rows)
    lines = [[*labels, *map(title, metrics)], ["---"] * len(labels) + ["---:"] * len(metrics)]
    for row in rows:
        cells = [f"**{cell(row, key)}**" if key in row.best else cell(row, key) for key in metrics]
        lines.append([for_markdown(row.labels[key]) for key in labels] + cells)
    said = "".join(f"\n{for_markdown(note)}\n" for note in table_notes(rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + said


def _latex(rows: list[Row]) -> str:
    labels, metrics = columns(rows)
    lines = [f"\\begin{{tabular}}{{{'l' * len(labels)}{'r' * len(metrics)}}}", "\\toprule"]
    lines += [" & ".join(for_latex(name) for name in (*labels, *map(title, metrics))) + " \\\\", "\\midrule"]
    for row in rows:
        cells = [for_latex(cell(row, key)) for key in metrics]
        cells = [f"\\textbf{{{cell}}}" if key in row.best else cell for key, cell in zip(metrics, cells)]
        lines.append(" & ".join([for_latex(row.labels[key]) for key in labels] + cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _csv(rows: list[Row]) -> str:
    """Mean, standard deviation and number of runs in columns of their own, and the ends of the interval over images
    where there is one; numbers as they are, not in per cent.

    ``STABILITY`` is one number for all runs of a row.
    """
    labels, metrics = columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [key for key in metrics if any(key in row.intervals for row in rows)]
    suffixes = {key: ("", "/sd", "/n", *(("/low", "/high") if key in ends else ())) for key in metrics}
    writer.writerow([*labels, *(f"{key}{suffix}" for key in metrics for suffix in suffixes[key]), "seeds"])
    for row in rows:
        cells: list[object] = []
        for key in metrics:
            values = row.values.get(key) or []
            sd = statistics.stdev(values) if len(values) > 1 else ""
            cells += [statistics.fmean(values) if values else "", sd, len(values)]
            cells += row.intervals.get(key, ("", "")) if key in ends else ()
        writer.writerow([*(for_csv(row.labels[key]) for key in labels), *cells, for_csv(" ".join(map(str, row.seeds)))])
    return text.getvalue()
