"""How well a model's concepts tell the values, levels and numbers of attributes that a data set knows."""

import math

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.dataset import ConceptSpec
from cbm.data.features import FeatureData, FeatureSplit
from cbm.layers import ConceptBottleneck, Sigmoid
from cbm.metrics.valued import concordance, off_by_one, quadratic_kappa, r2, value_accuracy, value_f1_macro


@torch.no_grad()
def attribute_metrics(
    model: ConceptBottleneck, bank: ConceptBank, split: FeatureSplit, data: FeatureData
) -> dict[str, float]:
    """Means over the attributes whose concepts the bank has; empty if the data set has no attributes with values.

    Args:
        model: the bottleneck.
        bank: the concepts of its columns.
        split: the evaluated images.
        data: encoded splits, for the attributes.

    Returns:
        Of values that exclude each other ``concept_value_accuracy`` and ``concept_value_f1``: the value whose concept
        stands out most. Of levels ``concept_kappa`` (quadratic) and ``concept_off_by_one``, where the concepts are
        probabilities. Of numbers ``concept_r2``, where the model was trained on them. Of levels and numbers
        ``concept_concordance``: how often two images are in the right order.
    """
    if not data.specs:
        return {}
    found: dict[str, list[float]] = {}

    def note(key: str, value: float) -> None:
        found.setdefault(key, []).append(value)

    for spec in data.specs:
        names = [spec.name] if spec.kind == "continuous" else spec.columns
        place = {names[number]: k for k, number in match_concepts(bank.phrases, names)}
        if len(place) < len(names):
            continue
        columns = [place[name] for name in names]
        true = _true(spec, split, data)
        if true is None or bool(true.isnan().all()):
            continue
        read = torch.cat([model.activations(part)[:, columns] for part in split.x.split(4096)])
        away = (read - model.reference[columns]) / model.spread[columns].clamp(min=1e-12)
        sure = isinstance(model.activation, Sigmoid)
        if spec.kind == "categorical":
            said = (read if sure else away).argmax(dim=1).float()
            note("concept_value_accuracy", value_accuracy(said, true).value)
            note("concept_value_f1", value_f1_macro(said, true).value)
            continue
        note("concept_concordance", concordance(away.sum(dim=1), true).value)
        if spec.kind == "ordinal" and sure:
            level = (read > 0.5).sum(dim=1).float()
            note("concept_kappa", quadratic_kappa(level, true).value)
            note("concept_off_by_one", off_by_one(level, true).value)
        if spec.kind == "continuous" and (number := bank.concepts[columns[0]].provenance.get("number")):
            note("concept_r2", r2(number["mean"] + number["sd"] * read[:, 0], true, number["mean"]).value)
    means = {key: sum(values) / len(values) for key, values in found.items()}
    return {key: value for key, value in means.items() if not math.isnan(value)}


def _true(spec: ConceptSpec, split: FeatureSplit, data: FeatureData) -> Tensor | None:
    """The number of the value, the level or the number ``[N]`` of every image, NaN if unknown; None without labels."""
    if spec.kind == "continuous":
        place = [each.name for each in data.value_specs].index(spec.name)
        return None if split.values is None else split.values[:, place]
    if split.concepts is None:
        return None
    told = split.concepts[:, [data.concept_names.index(name) for name in spec.columns]]
    known = ~told.isnan().any(dim=1)
    if spec.kind == "ordinal":
        return told.sum(dim=1).where(known, torch.nan)
    return told.nan_to_num().argmax(dim=1).float().where(known & (told.sum(dim=1) == 1), torch.nan)
