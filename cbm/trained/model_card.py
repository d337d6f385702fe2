"""The model card of a published model, made from a template; it shows only numbers that the run measured."""

from pathlib import Path
from typing import Any

from torch import nn

from cbm.concepts.bank import ConceptBank
from cbm.concepts.units import units_of
from cbm.config import AboutConfig, about_card, card_names
from cbm.layers import Linked, is_many, linear_or_none
from cbm.metrics.integrity import integrity_from_json
from cbm.report.classes import ConceptUse
from cbm.report.templates import load_template
from cbm.report.wording import percent

CLASSES = 50
CONCEPTS = 5
MEASURED = {
    "test/accuracy": "accuracy",
    "test/accuracy_macro": "accuracy, mean over classes",
    "test/worst_group": "accuracy of the worst group of ten test pictures or more (balanced, of several labels)",
    "test/accuracy_nec5_resolved": "accuracy with 5 concepts per class (a new sparse head on these concepts)",
    "test/accuracy_nec5": "accuracy of its own head cut to 5",
    "test/concept_accuracy": "concept accuracy",
    "test/ece": "expected calibration error",
}
RANKED = {
    "test/auroc_macro": "AUROC, mean over labels",
    "test/auroc_macro_nec5_resolved": "AUROC with 5 concepts per label (new sparse heads on these concepts)",
    "test/map": "average precision, mean over labels",
    "test/f1_macro": "F1 at the thresholds below, mean over labels",
    "test/ece_macro": "calibration error, mean over labels",
    "test/concept_auroc": "AUROC of the concepts with labels, mean",
}
"""Of several labels an image, and not in per cent."""


def model_card(
    model: nn.Module,
    bank: ConceptBank | None,
    place: str,
    config: dict[str, Any],
    about: dict[str, Any],
    metrics: dict[str, float],
) -> str:
    """The text of ``README.md`` of a published model.

    Args:
        model: the classifier, as it is published.
        bank: the concepts of the model's columns, or None.
        place: argument for ``cbm.load`` that reads the model.
        config: configuration of the run, without paths.
        about: facts about the run, as in ``about.json``.
        metrics: metrics of the model; empty if the model was changed after training.
    """
    dataset = config["dataset"]["name"]
    card = about_card(dataset) if dataset in card_names() else AboutConfig()
    classes: list[str] = about["classes"]
    bottleneck, units = linear_or_none(model, bank), units_of(bank)
    uses: list[tuple[str, list[str]]] = []
    if bottleneck is not None:
        assert bank is not None
        use = ConceptUse(bottleneck, bank, classes, {}, CONCEPTS)
        shown = enumerate(classes[:CLASSES])
        uses = [(name, [concept.text for concept in use.of(label)]) for label, name in shown]
    return load_template(Path(__file__).parent / "model_card.md").render(
        place=place,
        method=config["method"]["name"],
        fidelity=config["method"].get("fidelity"),
        dataset=dataset,
        seed=config["seed"],
        title=card.title or dataset,
        homepage=card.homepage,
        licence=card.licence,
        classes=classes,
        concepts=None if bank is None else len(bank),
        units_named=None if units is None else sum(unit.named for unit in units),
        bank_name=bank and bank.name,
        encoder=about["encoder"],
        dim=about.get("dim"),
        n_train=f"{metrics['data/n_train']:,.0f}" if "data/n_train" in metrics else None,
        changes=about["changes"],
        many=is_many(model),
        chosen=isinstance(model, Linked) and model.thresholds is not None,
        thresholds=label_thresholds(model, len(classes)),
        lead=random_lead(metrics),
        metrics=[
            *((name, percent(metrics[key])) for key, name in MEASURED.items() if key in metrics),
            *((name, f"{metrics[key]:.3f}") for key, name in RANKED.items() if key in metrics),
        ],
        verdict=about.get("verdict") if integrity_from_json(about.get("integrity") or {}) else None,
        uses=uses,
        rest=len(classes) > len(uses),
        residual=bottleneck is not None and bottleneck.residual is not None,
    )


def label_thresholds(model: nn.Module, count: int) -> list[str]:
    """Probability above which a model says each of its labels, in words; nothing for a model of classes."""
    if not isinstance(model, Linked) or not model.many:
        return []
    return (
        [percent(0.5)] * count
        if model.thresholds is None
        else [percent(t) for t in model.thresholds.sigmoid().tolist()]
    )


def random_lead(metrics: dict[str, float]) -> str:
    """How much better the labels are ranked than on meaningless concepts, in words; empty if that was not measured."""
    if "controls/random_lead_low" not in metrics:
        return ""
    low, high = metrics["controls/random_lead_low"], metrics["controls/random_lead_high"]
    how = "better than" if low > 0 else "worse than" if high < 0 else "as well as"
    return f"they rank labels {how} random directions under the same names do (lead in AUROC {low:+.3f} to {high:+.3f})"
