"""How well a model's concepts tell the values, levels and numbers of attributes that a data set knows."""

import math
from dataclasses import dataclass

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
    found: dict[str, list[float]] = {}
    for attribute in attribute_readings(model, bank, split, data):
        for key, value in attribute.values.items():
            found.setdefault(key, []).append(value)
    means = {key: sum(values) / len(values) for key, values in found.items()}
    return {key: value for key, value in means.items() if not math.isnan(value)}


@dataclass(frozen=True)
class AttributeReading:
    """One attribute as the concepts of a model tell it.

    Attributes:
        spec: the attribute.
        true: number of its value, its level, or its number in its unit ``[N]``, NaN if unknown.
        said: the same ``[N]`` by the model; None where it has no such answer (a score that is no level, no number).
        values: what is measured, by the keys of ``attribute_metrics``.
    """

    spec: ConceptSpec
    true: Tensor
    said: Tensor | None
    values: dict[str, float]


@torch.no_grad()
def attribute_readings(
    model: ConceptBottleneck, bank: ConceptBank, split: FeatureSplit, data: FeatureData
) -> list[AttributeReading]:
    """The attributes whose concepts the bank has; arguments as for ``attribute_metrics``."""
    found = []
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
        said: Tensor | None = None
        values: dict[str, float] = {}
        if spec.kind == "categorical":
            said = (read if sure else away).argmax(dim=1).float()
            values["concept_value_accuracy"] = value_accuracy(said, true).value
            values["concept_value_f1"] = value_f1_macro(said, true).value
        else:
            values["concept_concordance"] = concordance(away.sum(dim=1), true).value
        if spec.kind == "ordinal" and sure:
            said = (read > 0.5).sum(dim=1).float()
            values["concept_kappa"] = quadratic_kappa(said, true).value
            values["concept_off_by_one"] = off_by_one(said, true).value
        if spec.kind == "continuous" and (number := bank.concepts[columns[0]].provenance.get("number")):
            said = number["mean"] + number["sd"] * read[:, 0]
            values["concept_r2"] = r2(said, true, number["mean"]).value
        found.append(AttributeReading(spec, true, said, values))
    return found


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
