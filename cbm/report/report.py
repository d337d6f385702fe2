"""``report.html``: one file that shows what a run learned, what it is worth, and where it goes wrong."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from cbm.config import report_form
from cbm.data.dataset import ImageDataset
from cbm.data.features import FeatureData, spaced
from cbm.files import write_atomically
from cbm.files.without_paths import without_paths
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.metrics import class_accuracies
from cbm.metrics.evaluate import concept_ground_truth
from cbm.report.attributes import attribute_facts, number_figure, read_attributes
from cbm.report.classes import ConceptUse, describe_classes
from cbm.report.command import reproduce_command
from cbm.report.energies import describe_energies, told_rows
from cbm.report.evidence import METRICS, OTHER_METRICS, accuracy_rows, not_counted, resolved_rows
from cbm.report.explanations import (
    Breakdown,
    SumOfWords,
    blame,
    confident_mistakes,
    explain,
    sums_of_words,
    typical_rows,
)
from cbm.report.facts import TIMES, header_facts, unit_of_weights
from cbm.report.figures import (
    as_image,
    calibration_figure,
    correlation_figure,
    intervention_figure,
    sparsity_figure,
    write_figures,
)
from cbm.report.groups import describe_groups
from cbm.report.headline import INTERVALS, headline
from cbm.report.labels import write_label_report
from cbm.report.leakage import describe_leakage
from cbm.report.people import answers_as_evidence
from cbm.report.result import RunResult
from cbm.report.slices import describe_slices
from cbm.report.templates import load_template
from cbm.report.thumbnails import Thumbnail, thumbnail
from cbm.report.units import describe_units, part_name
from cbm.report.verdict import verdict
from cbm.report.vocabulary import both_ends, dropped_groups, grounded_concepts
from cbm.report.wording import clip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

CLASSES_IN_DETAIL = 40
CLASSES_IN_MATRIX = 20
PICTURES = 12
FIRST_PICTURES = 2
"""Of them, those that are shown before anything is unfolded."""
FIGURES = {
    "accuracy_nec": "Accuracy at equal sparsity",
    "calibration": "Is it right as often as it says?",
    "interventions": "Accuracy as concepts are told",
    "concept_correlation": "Which concepts say the same thing",
    "numbers": "Numbers that are told, against the true ones",
}


@dataclass(frozen=True)
class Example:
    """A test image with the explanation of its decision.

    Attributes:
        picture: the image.
        true: its true class.
        predicted: its predicted class.
        probability: probability of the predicted class.
        other: class of comparison: the second most probable one, or for a mistake the true class.
        other_probability: probability of that class.
        why: the predicted logit as a sum; None without concepts.
        lead: predicted minus other logit as a sum; None without concepts.
        sentence: description of a mistake in words; empty without concepts.
        words: the picture as a sum of words; None without a sparse code.
    """

    picture: Thumbnail
    true: str
    predicted: str
    probability: float
    other: str
    other_probability: float
    why: Breakdown | None = None
    lead: Breakdown | None = None
    sentence: str = ""
    words: SumOfWords | None = None


def write_report(result: RunResult) -> Path:
    """Write ``report.html`` and ``figures/`` into the run directory; returns the page. A run of several labels has a
    page of its own."""
    if result.data.many:
        return write_label_report(result)
    context = describe_run(result)
    context["figures"] = draw(result)
    page = load_template(Path(__file__).parent / "report.html").render(context)  # everything is escaped
    write_atomically(path := result.path / "report.html", page.encode())
    return path


@torch.no_grad()
def describe_run(result: RunResult) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    model, bank, data, dataset, cfg = result.model, result.bank, result.data, result.dataset, result.cfg
    metrics, integrity, bottleneck = result.metrics, result.integrity, result.bottleneck
    test, classes = data.test, data.classes
    probabilities = predict_logits(model, test.x).softmax(dim=1)
    predicted = probabilities.argmax(dim=1)
    accuracies = class_accuracies(predicted, test.y, len(classes))
    aurocs: dict[int, float] = {}
    grounded, use = [], None
    if bottleneck is not None and bank is not None:
        _, aurocs = concept_ground_truth(bottleneck, bank, test, data)
        if aurocs and test.concepts is not None:
            grounded = grounded_concepts(bank, aurocs, test.concepts, data.concept_names)
        use = ConceptUse(bottleneck, bank, classes, aurocs)
    typical = typical_rows(probabilities, test.y, PICTURES)
    mistakes = confident_mistakes(probabilities, test.y, PICTURES)
    rows = accuracy_rows(str(cfg.method.name), metrics, integrity, result.baselines)
    texts = [] if bank is None else [clip(text) for text in bank.texts]
    settings = OmegaConf.to_container(cfg, resolve=True)
    shared = OmegaConf.create(without_paths(settings))
    return {
        "method": str(cfg.method.name),
        "dataset": dataset.name,
        "facts": header_facts(model, bank, data, shared),
        "unfolded": report_form(cfg.report) == "full",
        "verdict": verdict(result),
        "headline": headline(metrics, test.y, integrity=integrity, baselines=result.baselines),
        "intervals": INTERVALS,
        "metrics": metrics,
        "not_counted": not_counted(metrics, without_paths(data.skipped)),
        "unseen": [clip(classes[c]) for c in accuracies.isnan().nonzero().flatten().tolist()],
        "evidence": (*(() if integrity is None else integrity.evidence), *answers_as_evidence(result.path)),
        "draws": 0 if integrity is None else cfg.evidence.draws,
        "columns": {key: METRICS[key] for key in METRICS if any(key in row.values for row in rows)},
        "rows": rows,
        "resolved": resolved_rows(metrics),
        "further": [
            (name, meaning, form.format(metrics[f"test/{key}"]).replace("-", "−"))
            for key, (name, meaning, form) in OTHER_METRICS.items()
            if f"test/{key}" in metrics
        ],
        "has_concepts": bottleneck is not None,
        "gated": bottleneck is not None and bottleneck.activation is not None and bottleneck.activation.rests_at_zero,
        "unit": "" if bottleneck is None else unit_of_weights(bottleneck),
        "n_classes": len(classes),
        "n_test": len(test),
        "classes": describe_classes(classes, predicted, test.y, use, CLASSES_IN_DETAIL),
        "owned_bank": bank is not None and bool(bank.classes),
        "owners_chosen": bank is not None and bank.owners_chosen,
        "groups": describe_groups(result),
        "leakage": describe_leakage(result),
        "slices": describe_slices(result),
        "matrix": confusion_shares(predicted, test.y, classes) if len(classes) <= CLASSES_IN_MATRIX else None,
        "ranking": sorted(accuracies[~accuracies.isnan()].tolist()),
        "right": examples(bottleneck, texts, data, dataset, probabilities, typical, part_name(bank)),
        "wrong": examples(bottleneck, texts, data, dataset, probabilities, mistakes, part_name(bank)),
        "first_pictures": FIRST_PICTURES,
        "n_wrong": int((predicted != test.y).sum()),
        "grounded": both_ends(grounded),
        "n_grounded": len(grounded),
        "attributes": attribute_facts(read_attributes(result)),
        "told": told_rows(metrics),
        "energies": bank and result.energies and describe_energies(result.energies, bank, classes, accuracies),
        "units": bottleneck and bank and describe_units(bottleneck, bank, data, dataset, metrics, cfg.method.get("k")),
        "bank": bank,
        "bank_source": bank and without_paths(bank.source),
        "dropped": [] if bank is None else dropped_groups(bank),
        "command": reproduce_command(shared),
        "config": OmegaConf.to_yaml(shared),
        "shortened": shared != OmegaConf.create(settings),
        "times": [(name, metrics[key]) for key, name in TIMES.items() if key in metrics],
    }


@torch.no_grad()
def draw(result: RunResult) -> dict[str, str]:
    """Write the figures of a run; returns them by title as ``data:`` addresses."""
    metrics, test, bottleneck, bank = result.metrics, result.data.test, result.bottleneck, result.bank
    figures: dict[str, Callable[[], Figure | None]] = {
        "accuracy_nec": lambda: sparsity_figure(metrics),
        "calibration": lambda: calibration_figure(predict_logits(result.model, test.x).softmax(dim=1), test.y),
        "interventions": lambda: intervention_figure(metrics),
        "numbers": lambda: number_figure(read_attributes(result)),
    }
    if bottleneck is not None and bank is not None:
        figures["concept_correlation"] = lambda: correlation_figure(bottleneck, bank.texts, spaced(test.x, 2000))
    written = write_figures(result.path / "figures", figures)
    return {FIGURES[name]: as_image(element) for name, element in written.items()}


def confusion_shares(predicted: Tensor, labels: Tensor, names: list[str]) -> list[tuple[str, list[float | None]]]:
    """Per true class, in order: its name and the share of its pictures called each class (None without pictures)."""
    count = len(names)
    table = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count)
    shares = (table / table.sum(dim=1, keepdim=True)).tolist()
    return [(clip(name), [None if share != share else share for share in row]) for name, row in zip(names, shares)]


def examples(
    model: ConceptBottleneck | None,
    texts: list[str],
    data: FeatureData,
    dataset: ImageDataset,
    probabilities: Tensor,
    rows: list[int],
    part: str = "word",
) -> list[Example]:
    """The test pictures at ``rows``, explained; mistakes against the true class, others against the runner-up.

    Args:
        model: the bottleneck; None without concepts.
        texts: K concepts.
        data: encoded splits.
        dataset: the images.
        probabilities: class probabilities ``[N, C]`` of the test pictures.
        rows: rows of the test split.
        part: what a sparse code is made of: word, or unit.
    """
    if not rows:
        return []
    index = torch.tensor(rows)
    labels, chosen = data.test.y[index], probabilities[index]
    best = chosen.topk(2, dim=1).indices
    predicted = best[:, 0]
    other = torch.where(predicted == labels, best[:, 1], labels)
    whys: list[Breakdown | None] = [None] * len(rows)
    leads: list[Breakdown | None] = [None] * len(rows)
    sums: list[SumOfWords] | None = None
    if model is not None:
        x = data.test.x[index]
        whys[:] = explain(model, texts, x, predicted)
        leads[:] = explain(model, texts, x, predicted, other)
        sums = sums_of_words(model, texts, x, part=part)
    found = []
    for n, row in enumerate(rows):
        called, true, compared = (clip(data.classes[int(c[n])]) for c in (predicted, labels, other))
        lead = leads[n]
        found.append(
            Example(
                picture=thumbnail(dataset.splits["test"].images, row),
                true=true,
                predicted=called,
                probability=float(chosen[n, predicted[n]]),
                other=compared,
                other_probability=float(chosen[n, other[n]]),
                why=whys[n],
                lead=lead,
                sentence=blame(lead, called, true) if lead is not None and predicted[n] != labels[n] else "",
                words=None if sums is None else sums[n],
            )
        )
    return found
