"""``report.html``: one file that shows what a run learned, what it is worth, and where it goes wrong."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.config import report_form
from cbm.data.dataset import ImageDataset
from cbm.data.features import FeatureData, spaced
from cbm.files import write_atomically
from cbm.files.without_paths import without_paths
from cbm.layers import (
    Activation,
    Coded,
    ConceptBottleneck,
    Cube,
    Largest,
    Sigmoid,
    SparseCode,
    TopK,
    UnitCode,
    predict_logits,
)
from cbm.metrics import class_accuracies
from cbm.metrics.evaluate import concept_ground_truth
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
from cbm.report.figures import (
    as_image,
    calibration_figure,
    correlation_figure,
    intervention_figure,
    sparsity_figure,
    write_figures,
)
from cbm.report.headline import INTERVALS, headline
from cbm.report.people import answers_as_evidence
from cbm.report.result import RunResult
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
FIDELITY = {
    "repaired": "the published method with its mistakes repaired: the page of the method says what differs",
    "paper": "the formulas as they were published",
    "released": "what the authors' published code computes",
}
FIGURES = {
    "accuracy_nec": "Accuracy at equal sparsity",
    "calibration": "Is it right as often as it says?",
    "interventions": "Accuracy as concepts are told",
    "concept_correlation": "Which concepts say the same thing",
}
TIMES = {
    "time/encode_s": "Encoding the pictures (or reading them from the store)",
    "time/concepts_s": "Preparing the concepts",
    "time/fit_s": "Fitting",
    "time/controls_s": "Fitting the controls",
    "time/total_s": "Everything",
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
    """Write ``report.html`` and ``figures/`` into the run directory; returns the page."""
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
        "matrix": confusion_shares(predicted, test.y, classes) if len(classes) <= CLASSES_IN_MATRIX else None,
        "ranking": sorted(accuracies[~accuracies.isnan()].tolist()),
        "right": examples(bottleneck, texts, data, dataset, probabilities, typical, part_name(bank)),
        "wrong": examples(bottleneck, texts, data, dataset, probabilities, mistakes, part_name(bank)),
        "first_pictures": FIRST_PICTURES,
        "n_wrong": int((predicted != test.y).sum()),
        "grounded": both_ends(grounded),
        "n_grounded": len(grounded),
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
    }
    if bottleneck is not None and bank is not None:
        figures["concept_correlation"] = lambda: correlation_figure(bottleneck, bank.texts, spaced(test.x, 2000))
    written = write_figures(result.path / "figures", figures)
    return {FIGURES[name]: as_image(element) for name, element in written.items()}


def header_facts(
    model: nn.Module, bank: ConceptBank | None, data: FeatureData, cfg: DictConfig
) -> list[tuple[str, str, str]]:
    """What was run, as name, value and, where the value is a word of ours, its meaning."""
    encoder = "none: features were given"
    if cfg.encoder is not None:
        encoder = str(cfg.encoder.model) + (f" ({cfg.encoder.pretrained})" if cfg.encoder.pretrained else "")
    pictures = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    facts = [] if cfg.dataset.root is None else [("Data", str(cfg.dataset.root))]
    facts += [("Encoder", encoder), ("Pictures", pictures), ("Classes", f"{len(data.classes):,}")]
    if bank is not None:
        facts.append(("Concepts", f"{len(bank):,}"))
    if isinstance(model, ConceptBottleneck):
        if model.mixing is not None:
            kind = "Random" if cfg.method.get("mixing") == "random" else "Learned"
            rows, columns = model.mixing.shape
            weights = f"{rows:,} × {columns:,} weights, {int(model.mixing.count_nonzero()):,} not zero"
            facts.append((f"{kind} layer", weights))
        if model.activation is not None:
            facts.append(("Per picture", what_is_read(model.activation, part_name(bank))))
    shots = "all" if str(cfg.shots) == "all" else f"{cfg.shots} per class"
    facts += [("Shots", shots), ("Seed", str(cfg.seed))]
    if "fidelity" in cfg.method:
        facts.append(("Fidelity", str(cfg.method.fidelity)))
    return [(name, value, FIDELITY.get(value, "") if name == "Fidelity" else "") for name, value in facts]


def what_is_read(activation: Activation, part: str = "word") -> str:
    """What the head reads of a picture.

    Args:
        activation: what makes it of the scores.
        part: what a sparse code is made of: word, or unit.
    """
    if isinstance(activation, TopK) and int(activation.k) > 1:
        return f"the {int(activation.k):,} concepts with the largest scores"
    if isinstance(activation, (TopK, Largest)):
        return "the concept with the largest score"
    if isinstance(activation, Sigmoid):
        return "probabilities of the concepts"
    if isinstance(activation, Cube):
        return "cubes of the scores"
    if isinstance(activation, SparseCode):
        count = f"exactly {int(activation.k)} {part}s" if int(activation.k) else f"a few {part}s"
        return f"{count} whose sum comes nearest to the picture"
    if isinstance(activation, UnitCode):
        return f"the {int(activation.k):,} units that fire most" if int(activation.k) else "the units that fire"
    return type(activation).__name__


def unit_of_weights(model: ConceptBottleneck) -> str:
    """What adds one weight of the head to a logit."""
    if isinstance(model.activation, Cube):
        return "one unit of the concept's cubed score"
    if isinstance(model.activation, Sigmoid):
        return "the concept's being certain"
    if isinstance(model.activation, Largest):
        return "having the largest score"
    if isinstance(model.activation, UnitCode):
        return "firing by 1"
    if isinstance(model.activation, Coded):
        return "one unit of the word's weight in the picture"
    unit_norm = bool(((model.concepts.norm(dim=1) - 1).abs() < 1e-3).all())
    return "one unit of cosine" if unit_norm else "one unit of the concept's score"


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
