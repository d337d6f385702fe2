"""Everything that is measured about a classifier on one split."""

import math

import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, FeatureSplit
from cbm.layers import ConceptBottleneck
from cbm.metrics import (
    classification_metrics,
    concept_label_metrics,
    effective_concepts,
    grounding_gap,
    match_concepts,
    nonzero_concepts,
    truncated_linear,
)


@torch.no_grad()
def predict_logits(model: nn.Module, x: Tensor, chunk: int = 65536) -> Tensor:
    """Logits ``[N, C]`` of features ``[N, D]``, in chunks; a bottleneck is collapsed into its class vectors once."""
    if isinstance(model, ConceptBottleneck):
        vectors, bias = model.linear()
        return torch.cat([torch.nn.functional.linear(part, vectors, bias) for part in x.split(chunk)])
    return torch.cat([model(part) for part in x.split(chunk)])


@torch.no_grad()
def nec5_logits(model: ConceptBottleneck, x: Tensor) -> Tensor:
    """Logits ``[N, C]`` when every class may use its five most important concepts only."""
    vectors, bias = truncated_linear(model, 5)
    return torch.nn.functional.linear(x, vectors, bias)


@torch.no_grad()
def evaluate_split(model: nn.Module, bank: ConceptBank | None, data: FeatureData, name: str) -> dict[str, float]:
    """Metrics of one split, keys as in ``metrics.json`` (``test/accuracy``, ``test/accuracy_nec5``, ...).

    Args:
        model: a ``ConceptBottleneck`` or any classifier of features.
        bank: the concepts of its columns; None without concepts.
        data: encoded splits; concept thresholds come from its validation split.
        name: which split.
    """
    split = data.splits[name]
    values = classification_metrics(predict_logits(model, split.x), split.y)
    if isinstance(model, ConceptBottleneck) and bank is not None:
        values["accuracy_nec5"] = classification_metrics(nec5_logits(model, split.x), split.y)["accuracy"]
        values["nec"] = nonzero_concepts(model.weights())
        values["nec_effective"] = effective_concepts(model.importance())
        gap, gap_std = grounding_gap(split.x, split.y, model.concepts, bank.owners(data.classes))
        values["grounding_gap"], values["grounding_gap_std"] = gap, gap_std
        values |= concept_ground_truth(model, bank, split, data)[0]
    return {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}


def concept_ground_truth(
    model: ConceptBottleneck, bank: ConceptBank, split: FeatureSplit, data: FeatureData
) -> tuple[dict[str, float], dict[int, float]]:
    """Concept accuracy and AUROC where the data set knows the truth; the AUROC of each matched concept by column."""
    matches = match_concepts(bank.texts, data.concept_names)
    val = data.splits.get("val", split)
    if not matches or split.concepts is None or val.concepts is None:
        return {}, {}
    columns, truth = ([pair[i] for pair in matches] for i in (0, 1))
    directions = model.concepts[columns]
    values, aurocs = concept_label_metrics(
        split.x @ directions.T, split.concepts[:, truth], val.x @ directions.T, val.concepts[:, truth]
    )
    return values, {column: auroc for column, auroc in zip(columns, aurocs) if not math.isnan(auroc)}
