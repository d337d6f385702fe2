"""The labels of a model that says any number of them: a table as a file, and the page."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from cbm.config import report_form
from cbm.data.features import spaced
from cbm.files import write_atomically
from cbm.files.tables import write_table
from cbm.files.without_paths import without_paths
from cbm.layers import predict_logits, thresholds_of
from cbm.metrics.bootstrap import auroc_interval
from cbm.metrics.evaluate import concept_ground_truth
from cbm.metrics.integrity import Evidence
from cbm.metrics.label_integrity import CONTROLS, control_test
from cbm.metrics.multilabel import label_table
from cbm.report.attributes import attribute_facts, number_figure, read_attributes
from cbm.report.command import reproduce_command
from cbm.report.evidence import AccuracyRow, ResolvedRow, not_counted
from cbm.report.explanations import Breakdown, explain
from cbm.report.facts import TIMES, header_facts
from cbm.report.figures import (
    as_image,
    correlation_figure,
    label_calibration_figure,
    label_sparsity_figure,
    write_figures,
)
from cbm.report.groups import describe_groups
from cbm.report.headline import INTERVALS, headline
from cbm.report.result import RunResult
from cbm.report.templates import load_template
from cbm.report.thumbnails import Thumbnail, thumbnail
from cbm.report.verdict import verdict
from cbm.report.vocabulary import both_ends, dropped_groups, grounded_concepts
from cbm.report.wording import clip, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS_IN_TABLE = 100
LABELS_IN_MATRIX = 20
LABELS_IN_CALIBRATION = 12
LABELS_WITH_PICTURES = 20
FIRST_LABELS = 2
"""Of them, those whose pictures are shown before anything is unfolded."""
ENOUGH = 20
"""Images with a label from which it is said that another is named with it too often, or too seldom."""
APART = 0.05
"""How far the shares must be apart for that."""
METRICS = {
    "auroc_macro": ("AUROC", "How well labels rank the images that have them above the others, mean of the labels."),
    "map": ("Average precision", "Precision at every recall, mean of the labels (mAP)."),
    "f1_macro": ("F1", "Harmonic mean of precision and recall at the thresholds from validation, mean of the labels."),
    "ece_macro": (
        "ECE",
        "Calibration error: how far stated probabilities are from the share that is right, mean of the labels (15 bins "
        "of as many images, without what noise adds; 0 is best).",
    ),
    "auroc_macro_nec5_resolved": (
        "With 5 concepts a label",
        "AUROC of new sparse heads with exactly five of these concepts for every label, solved to a certified optimum.",
    ),
    "auroc_macro_nec5": (
        "Own head cut to 5",
        "AUROC when every label may use only its five most important concepts, with the weights it has.",
    ),
}
"""Key in ``metrics.json`` (after ``test/``) to the column's name and what it means."""
OTHER_METRICS: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "exact_match": ("All labels right", "Share of the images without a wrong label, where all are known.", percent),
    "hamming": ("Wrong entries", "Share of the known labels of all images that are decided wrongly.", percent),
    "balanced_accuracy_macro": (
        "Balanced accuracy",
        "Mean of the share of images with a label that are found and of those without it that are left alone.",
        percent,
    ),
    "f1_macro_half": ("F1 at one half", "The same model, if it said what is more likely than not.", "{:.3f}".format),
    "f1_micro": ("F1 of all entries", "F1 of all labels together: frequent labels count more.", "{:.3f}".format),
    "auroc_micro": ("AUROC of all entries", "All labels ranked in one list.", "{:.3f}".format),
    "concept_accuracy": (
        "Concept accuracy",
        "Share of right yes/no answers about the concepts whose truth is known (cut chosen on validation).",
        percent,
    ),
    "residual_share": ("Outside the concepts", "Share of the decision that bypasses the concepts.", percent),
}
BASELINES = {
    "zero_shot": "the names of the labels against their absence, nothing trained",
    "linear_probe": "linear classifiers on the features, no concepts",
}
FIGURES = {
    "label_calibration": "Is a label there as often as it says?",
    "auroc_nec": "AUROC at equal sparsity",
    "concept_correlation": "Which concepts say the same thing",
    "numbers": "Numbers that are told, against the true ones",
}


@torch.no_grad()
def label_rows(result: RunResult) -> list[dict[str, Any]]:
    """A row of ``cbm.metrics.multilabel.label_table`` for every label, on the test images, with its five concepts."""
    test, classes = result.data.test, result.data.classes
    logits = predict_logits(result.model, test.x)
    rows = label_table(logits, test.y, thresholds_of(result.model, len(classes)), classes, test.subjects)
    concepts: list[list[str]] = [[] for _ in classes]
    if result.bottleneck is not None and result.bank is not None:
        importance = result.bottleneck.importance()
        order = importance.abs().topk(min(5, importance.shape[1]), dim=1).indices
        concepts = [
            [f"{'+' if importance[label, k] > 0 else '-'} {result.bank.texts[k]}" for k in row if importance[label, k]]
            for label, row in enumerate(order.tolist())
        ]
    return [{**row, "concepts": found} for row, found in zip(rows, concepts)]


def write_label_table(path: Path, result: RunResult) -> None:
    """Write ``label_metrics.csv``; thresholds are probabilities, as in ``predictions.parquet``."""
    rows = [{**row, "threshold": float(torch.tensor(row["threshold"]).sigmoid())} for row in label_rows(result)]
    write_table(path, [{**row, "concepts": "; ".join(row["concepts"])} for row in rows])


# ------------------------------------------------------------------------------------------------------------ the page


@dataclass(frozen=True)
class LabelFacts:
    """One label on the test split.

    Attributes:
        name: name of the label.
        known: number of images of which it is known.
        positives: number of them that have it.
        auroc: AUROC, or None where images with it or without it are missing; so are the others.
        interval: ends of the 95 % interval of the AUROC.
        ap: average precision.
        f1: F1 at its threshold.
        threshold: probability above which it is said.
        ece: calibration error.
        concepts: sign and text of the concepts that move it most.
    """

    name: str
    known: int
    positives: int
    auroc: float | None
    interval: tuple[float, float] | None
    ap: float | None
    f1: float | None
    threshold: float
    ece: float | None
    concepts: list[tuple[str, str]]


@dataclass(frozen=True)
class LabelExample:
    """A test image on which a label is decided wrongly.

    Attributes:
        picture: the image.
        invented: the label was said and is not there; else it is there and was not said.
        probability: what was stated.
        threshold: probability above which it is said.
        has: labels that the image really has.
        why: distance from the decision as a sum: logit minus threshold; None without concepts.
    """

    picture: Thumbnail
    invented: bool
    probability: float
    threshold: float
    has: list[str]
    why: Breakdown | None = None


@dataclass(frozen=True)
class LabelMistakes:
    """Where one label goes wrong.

    Attributes:
        name: name of the label.
        invented: number of images on which it was said and is not there.
        missed: number of images on which it is there and was not said.
        examples: the highest of those, and the lowest of these.
    """

    name: str
    invented: int
    missed: int
    examples: list[LabelExample]


@dataclass(frozen=True)
class Together:
    """A label that is said together with another one too often, or too seldom.

    Attributes:
        name: the label that is said.
        given: the label that the images have.
        said: share of these images on which it is said.
        true: share of them that have it.
        count: number of these images, of which it is known.
    """

    name: str
    given: str
    said: float
    true: float
    count: int


def write_label_report(result: RunResult) -> Path:
    """Write ``report.html`` and ``figures/`` of a run of several labels into its directory; returns the page."""
    context = describe_labels(result)
    context["figures"] = draw_labels(result)
    page = load_template(Path(__file__).parent / "labels.html").render(context)  # everything is escaped
    write_atomically(path := result.path / "report.html", page.encode())
    return path


@torch.no_grad()
def describe_labels(result: RunResult) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    model, bank, data, cfg = result.model, result.bank, result.data, result.cfg
    metrics, bottleneck, test, names = result.metrics, result.bottleneck, data.test, data.classes
    logits, thresholds = predict_logits(model, test.x), thresholds_of(model, len(names))
    said = logits > thresholds
    facts = label_facts(result, logits)
    grounded = []
    if bottleneck is not None and bank is not None and test.concepts is not None:
        _, aurocs = concept_ground_truth(bottleneck, bank, test, data)
        grounded = grounded_concepts(bank, aurocs, test.concepts, data.concept_names) if aurocs else []
    ranks = [math.inf if each.auroc is None else each.auroc for each in facts]  # those without one come last
    ranked = sorted(facts, key=lambda each: (each.auroc is None, -(each.auroc or 0.0)))
    half = LABELS_IN_TABLE // 2
    order = sorted(range(len(names)), key=lambda label: ranks[label])
    mistakes = label_mistakes(result, logits, thresholds, order)
    settings = OmegaConf.to_container(cfg, resolve=True)
    shared = OmegaConf.create(without_paths(settings))
    rows = comparison_rows(result)
    return {
        "method": str(cfg.method.name),
        "dataset": result.dataset.name,
        "facts": header_facts(model, bank, data, shared),
        "unfolded": report_form(cfg.report) == "full",
        "verdict": verdict(result),
        "headline": headline(metrics, test.y, baselines=result.baselines),
        "intervals": INTERVALS,
        "metrics": metrics,
        "not_counted": not_counted(metrics, without_paths(data.skipped)),
        "unseen": [each.name for each in facts if each.auroc is None],
        "n_labels": len(names),
        "n_test": len(test),
        "labels": ranked if len(ranked) <= LABELS_IN_TABLE else ranked[:half] + ranked[-half:],
        "matrix": said_and_true(said, test.y, names) if len(names) <= LABELS_IN_MATRIX else None,
        "together": said_together(said, test.y, names),
        "enough": ENOUGH,
        "groups": describe_groups(result),
        "mistakes": mistakes[:LABELS_WITH_PICTURES],
        "n_mistaken": len(mistakes),
        "first_labels": FIRST_LABELS,
        "has_concepts": bottleneck is not None,
        "gated": bottleneck is not None and bottleneck.activation is not None and bottleneck.activation.rests_at_zero,
        "tests": label_evidence(result),
        "columns": {key: METRICS[key] for key in METRICS if any(key in row.values for row in rows)},
        "rows": rows,
        "resolved": resolved_label_rows(metrics),
        "further": [
            (name, meaning, form(metrics[f"test/{key}"]))
            for key, (name, meaning, form) in OTHER_METRICS.items()
            if f"test/{key}" in metrics
        ],
        "grounded": both_ends(grounded),
        "n_grounded": len(grounded),
        "attributes": attribute_facts(read_attributes(result)),
        "bank": bank,
        "bank_source": bank and without_paths(bank.source),
        "dropped": [] if bank is None else dropped_groups(bank),
        "command": reproduce_command(shared),
        "config": OmegaConf.to_yaml(shared),
        "shortened": shared != OmegaConf.create(settings),
        "times": [(name, metrics[key]) for key, name in TIMES.items() if key in metrics],
    }


@torch.no_grad()
def draw_labels(result: RunResult) -> dict[str, str]:
    """Write the figures of a run of several labels; returns them by title as ``data:`` addresses."""
    test, bottleneck, bank = result.data.test, result.bottleneck, result.bank
    figures: dict[str, Callable[[], Figure | None]] = {
        "label_calibration": lambda: label_calibration_figure(
            predict_logits(result.model, test.x).sigmoid(), test.y, result.data.classes, LABELS_IN_CALIBRATION
        ),
        "auroc_nec": lambda: label_sparsity_figure(result.metrics),
        "numbers": lambda: number_figure(read_attributes(result)),
    }
    if bottleneck is not None and bank is not None:
        figures["concept_correlation"] = lambda: correlation_figure(bottleneck, bank.texts, spaced(test.x, 2000))
    written = write_figures(result.path / "figures", figures)
    return {FIGURES[name]: as_image(element) for name, element in written.items()}


def label_facts(result: RunResult, logits: Tensor) -> list[LabelFacts]:
    """Facts about the labels of a run, in their order.

    Args:
        result: the run.
        logits: its logits ``[N, L]`` of the test images.
    """
    scores, truth, found = logits.double().cpu().numpy(), result.data.test.y.cpu().numpy(), []
    for label, row in enumerate(label_rows(result)):
        known = {key: None if row[key] != row[key] else row[key] for key in ("auroc", "ap", "f1", "ece")}
        ends = None
        if known["auroc"] is not None:
            ends = auroc_interval(scores[:, [label]], truth[:, [label]], result.data.test.subjects)
        concepts = [("+" if text[0] == "+" else "−", clip(text[2:])) for text in row["concepts"]]
        threshold = 1 / (1 + math.exp(-max(min(row["threshold"], 500.0), -500.0)))
        found.append(
            LabelFacts(
                clip(row["name"]), int(row["known"]), int(row["positives"]), known["auroc"], ends, known["ap"],
                known["f1"], threshold, known["ece"], concepts,
            )
        )  # fmt: skip
    return found


def said_and_true(
    said: Tensor, y: Tensor, names: list[str]
) -> list[tuple[str, int, list[tuple[float, float, int] | None]]]:
    """What is said of the images that have a label: for every label, its name, its images, and of every label the share
    of them on which it is said, the share that has it, and how many they are; None where it is never known.

    Args:
        said: whether a label is said, ``[N, L]`` bool.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        names: L names.
    """
    has, there = (y == 1).double(), (~y.isnan()).double()
    both = has.T @ there
    shares, truth = has.T @ (said.double() * there) / both, has.T @ has / both
    return [
        (
            clip(name),
            int(has[:, row].sum()),
            [
                (float(shares[row, column]), float(truth[row, column]), int(both[row, column]))
                if both[row, column]
                else None
                for column in range(len(names))
            ],
        )
        for row, name in enumerate(names)
    ]


def said_together(said: Tensor, y: Tensor, names: list[str], limit: int = 6) -> list[Together]:
    """The pairs of labels of which one is said too often, or too seldom, on the images that have the other.

    Args:
        said: whether a label is said, ``[N, L]`` bool.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        names: L names.
        limit: how many pairs, those that are furthest apart first.
    """
    found = [
        Together(clip(names[column]), given, *cell)
        for row, (given, _, cells) in enumerate(said_and_true(said, y, names))
        for column, cell in enumerate(cells)
        if cell is not None and column != row and cell[2] >= ENOUGH and abs(cell[0] - cell[1]) >= APART
    ]
    return sorted(found, key=lambda each: -abs(each.said - each.true))[:limit]


def label_mistakes(result: RunResult, logits: Tensor, thresholds: Tensor, order: list[int]) -> list[LabelMistakes]:
    """The labels that are wrong somewhere, with pictures of the first ``LABELS_WITH_PICTURES``.

    Args:
        result: the run.
        logits: its logits ``[N, L]`` of the test images.
        thresholds: logits ``[L]`` above which a label is said.
        order: labels in the order in which they are shown.
    """
    y, names, found = result.data.test.y, result.data.classes, list[LabelMistakes]()
    for label in order:
        above, truth = logits[:, label] - thresholds[label], y[:, label]
        invented, missed = int(((above > 0) & (truth == 0)).sum()), int(((above <= 0) & (truth == 1)).sum())
        if not invented + missed:
            continue
        chosen = [row for row in worst_rows(above, truth) if row is not None]
        chosen = chosen if len(found) < LABELS_WITH_PICTURES else []
        examples = [label_example(result, row, label, logits[row, label], thresholds[label]) for row in chosen]
        found.append(LabelMistakes(clip(names[label]), invented, missed, examples))
    return found


def worst_rows(above: Tensor, truth: Tensor) -> tuple[int | None, int | None]:
    """The image without a label that is most certainly said to have it, and the one with it that least is; None where
    there is no such mistake.

    Args:
        above: how far above its threshold the label's logit is, ``[N]``.
        truth: the label ``[N]``: 1, 0, or NaN if unknown.
    """
    invented, missed = ((above > 0) & (truth == 0)).nonzero()[:, 0], ((above <= 0) & (truth == 1)).nonzero()[:, 0]
    return (
        int(invented[above[invented].argmax()]) if len(invented) else None,
        int(missed[above[missed].argmin()]) if len(missed) else None,
    )


def label_example(result: RunResult, row: int, label: int, logit: Tensor, threshold: Tensor) -> LabelExample:
    """A test image with the sum that decided one label.

    Args:
        result: the run.
        row: row of the test split.
        label: the label.
        logit: its logit.
        threshold: logit above which it is said.
    """
    test, names, why = result.data.test, result.data.classes, None
    if result.bottleneck is not None and result.bank is not None:
        texts = [clip(text) for text in result.bank.texts]
        (whole,) = explain(result.bottleneck, texts, test.x[[row]], torch.tensor([label]))
        cut = float(threshold)
        why = replace(whole, base=whole.base - cut, total=whole.total - cut)
    return LabelExample(
        thumbnail(result.dataset.splits["test"].images, row),
        bool(logit > threshold),
        float(logit.sigmoid()),
        float(threshold.sigmoid()),
        [clip(names[each]) for each in (test.y[row] == 1).nonzero().flatten().tolist()],
        why,
    )


def label_evidence(result: RunResult) -> list[Evidence]:
    """What was tested about the concepts of a run of several labels: whether they beat meaningless ones, whether they
    are true where that is known, and what bypasses them. A run whose evidence was gathered has all of it."""
    if result.integrity is not None:
        return list(result.integrity.evidence)
    metrics, found = result.metrics, list[Evidence]()
    for name in CONTROLS:
        if (theirs := metrics.get(f"controls/{name}")) is None:
            continue
        low, high = metrics.get(f"controls/{name}_lead_low", 0.0), metrics.get(f"controls/{name}_lead_high", 0.0)
        found.append(control_test(name, metrics["test/auroc_macro"], theirs, low, high))
    if "test/concept_auroc" in metrics and "test/concepts_matched" in metrics:
        ends = [f"{metrics[key]:.3f}" for end in ("low", "high") if (key := f"test/concept_auroc_{end}") in metrics]
        span = f" ({' to '.join(ends)})" if len(ends) == 2 else ""
        found.append(
            Evidence(
                "truth",
                "Are the concepts true of the images?",
                f"mean AUROC {metrics['test/concept_auroc']:.3f}{span} of the {int(metrics['test/concepts_matched'])} "
                "concepts with labels",
                "The score of a concept should be higher on images that show it; 0.5 is guessing.",
                "fact",
            )
        )
    if "test/residual_share" in metrics:
        found.append(
            Evidence(
                "outside",
                "Does anything bypass the concepts?",
                f"{percent(metrics['test/residual_share'])} of the decision does",
                "What reads the features past the concepts cannot be explained by them.",
                "fact",
            )
        )
    return found


def comparison_rows(result: RunResult) -> list[AccuracyRow]:
    """This run, the same method on meaningless concepts, and the baselines; all on the test split."""
    metrics = result.metrics

    def known(of: dict[str, float]) -> dict[str, float]:
        return {key: of[f"test/{key}"] for key in METRICS if f"test/{key}" in of}

    rows = [AccuracyRow(f"{result.cfg.method.name} (this run)", "the model of this report", known(metrics), this=True)]
    for name, meaning in CONTROLS.items():
        if f"controls/{name}" in metrics:
            values = {"auroc_macro": metrics[f"controls/{name}"]}
            rows.append(AccuracyRow(f"{name} concepts", f"same method; {meaning}", values))
    for name, values in result.baselines.items():  # they have no concepts to be cut to five of
        shown = {key: value for key, value in known(values).items() if "_nec" not in key}
        rows.append(AccuracyRow(name, BASELINES.get(name, ""), shown))
    return rows


def resolved_label_rows(metrics: dict[str, float]) -> list[ResolvedRow]:
    """The re-solved heads of a run of labels, with their certificates; ``accuracy`` is their mean AUROC."""
    found = []
    for key, value in metrics.items():
        target = key.removeprefix("test/auroc_macro_nec").removesuffix("_resolved")
        if key == f"test/auroc_macro_nec{target}_resolved" and f"nec/resolved{target}_nec" in metrics:
            nec, gap, kkt = (metrics[f"nec/resolved{target}_{name}"] for name in ("nec", "gap", "kkt"))
            found.append(ResolvedRow(nec, value, gap, kkt))
    return found
