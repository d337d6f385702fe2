"""What a model decides about every image of a split: the intervals of its headline metrics, and what is kept of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit
from cbm.files.label_predictions import LabelPredictions, write_label_predictions
from cbm.files.predictions import MOST, TOP, Predictions, write_predictions
from cbm.layers import ConceptBottleneck, EnergyBottleneck, is_many, predict_logits, thresholds_of
from cbm.metrics.bootstrap import (
    Statistic,
    Units,
    auroc_interval,
    bootstrap,
    calibration_error,
    mean_of,
    mean_of_classes,
    noise_of_calibrated,
    reflected_interval,
    share_interval,
)
from cbm.metrics.evaluate import truncated_logits
from cbm.metrics.groups import Group, group_metrics, group_table
from cbm.metrics.multilabel import auroc_macro_interval
from cbm.metrics.nec import SparseHead, head_logits

ROWS = 4096
"""Images of which probabilities are in memory at once."""


@dataclass(frozen=True)
class Decisions:
    """The decisions of a model about N images.

    Attributes:
        logits: class logits ``[N, C]``.
        split: the images.
        others: decisions ``[N]`` of further heads on the same concepts, by the key of their accuracy.
        scores: scores ``[N, M]`` of concepts with labels, or None.
        truth: labels ``[N, M]`` of these concepts: 1, 0, or NaN if unknown; None without scores.
        thresholds: logits ``[L]`` above which a label is said to be there; None where an image has one class. Then
            ``others`` are logits ``[N, L]``, by the key of their mean AUROC.
    """

    logits: Tensor
    split: FeatureSplit
    others: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    truth: Tensor | None = None
    thresholds: Tensor | None = None


@torch.no_grad()
def decide(
    model: nn.Module, bank: ConceptBank | None, data: FeatureData, name: str, heads: Sequence[SparseHead] = ()
) -> Decisions:
    """The decisions of a model about a split, and of its heads that use five concepts per class.

    Args:
        model: a bottleneck or any classifier of features.
        bank: the concepts of the model's columns; None without concepts.
        data: encoded splits.
        name: name of the split.
        heads: re-solved heads on the model's concepts.
    """
    split = data.splits[name]
    logits = predict_logits(model, split.x)
    many = is_many(model)
    cut = thresholds_of(model, split.y.shape[1]) if many else None
    if bank is None:
        return Decisions(logits, split, thresholds=cut)
    others: dict[str, Tensor] = {}
    scores = truth = None
    matches = match_concepts(bank.phrases, data.concept_names) if split.concepts is not None else []
    columns = [column for column, _ in matches]
    if matches and split.concepts is not None:
        truth = split.concepts[:, [number for _, number in matches]]
    if isinstance(model, ConceptBottleneck):
        if many:
            five = [head_logits(model, split.x, head) for head in heads if head.target == 5]
            others = dict(zip(["auroc_macro_nec5_resolved"], five))
        else:
            others["accuracy_nec5"] = truncated_logits(model, split.x).argmax(dim=1)
            for head in heads:
                if head.target == 5:
                    others["accuracy_nec5_resolved"] = head_logits(model, split.x, head).argmax(dim=1)
        scores = model.scores(split.x, columns) if matches else None
    elif isinstance(model, EnergyBottleneck) and matches:
        leaky = bool(model.class_weight)
        found = [model.infer(part, leaky=leaky).concept_probability[:, columns] for part in split.x.split(16384)]
        scores = torch.cat(found)
    return Decisions(logits, split, others, scores, None if scores is None else truth, cut)


@torch.no_grad()
def headline_intervals(found: Decisions, name: str) -> dict[str, float]:
    """The 95 % intervals of the headline metrics over images, or over subjects where they are known.

    Args:
        found: the decisions.
        name: name of the split, with which the keys begin.

    Returns:
        ``NAME/KEY_low`` and ``NAME/KEY_high`` for the accuracy, its mean over classes, the accuracies of the heads with
        five concepts per class, the calibration error and the concept AUROC, as far as there are such; and
        ``NAME/ece_debiased``, the calibration error without what the noise of few images adds to it.
    """
    if found.thresholds is not None:
        return _label_intervals(found, name)
    labels, subjects = found.split.y.numpy(), found.split.subjects
    units = Units(labels, subjects)
    decisions = {"accuracy": found.logits.argmax(dim=1), **found.others}
    right = {key: (each == found.split.y).numpy() for key, each in decisions.items()}
    confidence = torch.cat([part.softmax(dim=1).amax(dim=1) for part in found.logits.split(ROWS)]).numpy()
    statistics: dict[str, Statistic] = {
        "accuracy_macro": mean_of_classes(right["accuracy"], labels),
        "ece": calibration_error(confidence, right["accuracy"]),
    }
    if subjects is not None:  # without, Wilson's interval needs no draws
        statistics |= {key: mean_of(each) for key, each in right.items()}
    drawn = bootstrap(units, statistics)
    once = np.ones((1, len(labels)), dtype=np.float32)
    spans = {key: share_interval(float(each.mean()), drawn.get(key), units.count) for key, each in right.items()}
    macro, error = (float(statistics[key](once)[0]) for key in ("accuracy_macro", "ece"))
    spans["accuracy_macro"] = share_interval(macro, drawn["accuracy_macro"], units.count)
    low, high = reflected_interval(error, drawn["ece"])
    spans["ece"] = (0.0 if error <= noise_of_calibrated(confidence) else low, high)
    if found.scores is not None and found.truth is not None:
        spans["concept_auroc"] = auroc_interval(found.scores.numpy(), found.truth.numpy(), subjects)
    values = {"ece_debiased": max(0.0, 2 * error - float(drawn["ece"].mean()))}
    for key, (low, high) in spans.items():
        values |= {} if math.isnan(low) else {f"{key}_low": low, f"{key}_high": high}
    return {f"{name}/{key}": value for key, value in values.items()}


def decided_groups(found: Decisions, data: FeatureData) -> list[Group]:
    """The groups of the images, the worst first; none where the data set has no groups.

    Args:
        found: the decisions.
        data: encoded splits, for the names of classes and groups.
    """
    return group_table(found.logits, found.split, data.classes, data.group_names, found.thresholds)


def group_headline(found: Decisions, data: FeatureData, name: str) -> dict[str, float]:
    """``NAME/worst_group`` with its interval, and the other keys of ``group_metrics``; nothing without groups."""
    return {f"{name}/{key}": value for key, value in group_metrics(decided_groups(found, data)).items()}


def _label_intervals(found: Decisions, name: str) -> dict[str, float]:
    """``headline_intervals`` of labels: of their mean AUROC, also of the heads, and of that of the concepts."""
    subjects = found.split.subjects
    ranked = {"auroc_macro": found.logits, **found.others}
    spans = {key: auroc_macro_interval(logits, found.split.y, subjects) for key, logits in ranked.items()}
    if found.scores is not None and found.truth is not None:
        spans["concept_auroc"] = auroc_interval(found.scores.numpy(), found.truth.numpy(), subjects)
    ends = {f"{key}_{end}": value for key, span in spans.items() for end, value in zip(("low", "high"), span)}
    return {f"{name}/{key}": value for key, value in ends.items() if not math.isnan(value)}


def keep_decisions(path: Path, found: Decisions, classes: list[str], dataset: str, name: str) -> None:
    """Write what is kept of the decisions into one Parquet file.

    Args:
        path: the file.
        found: the decisions.
        classes: names of the C classes, or of the L labels.
        dataset: name of the data set.
        name: name of the split.
    """
    if found.thresholds is None:
        write_predictions(path, to_keep(found, classes, dataset, name))
        return
    chances, cuts = found.logits.sigmoid().numpy(), found.thresholds.double().sigmoid().numpy()
    split = found.split
    write_label_predictions(
        path,
        LabelPredictions(dataset, name, classes, list(split.names), split.y.numpy(), chances, cuts, split.subjects),
    )


@torch.no_grad()
def to_keep(found: Decisions, classes: list[str], dataset: str, name: str) -> Predictions:
    """What is kept of the decisions with the run.

    Args:
        found: the decisions.
        classes: C class names.
        dataset: name of the data set.
        name: name of the split.
    """
    labels = found.split.y
    whole = found.logits.numel() <= MOST
    confidence, of_label, chances, places = [], [], [], []
    for logits, y in zip(found.logits.split(ROWS), labels.split(ROWS)):
        part = logits.softmax(dim=1)
        confidence.append(part.amax(dim=1))
        of_label.append(part.gather(1, y[:, None]).squeeze(1))
        top = (part, None) if whole else part.topk(min(TOP, part.shape[1]), dim=1)
        chances.append(top[0].half())
        places.append(top[1])
    return Predictions(
        dataset,
        name,
        classes,
        list(found.split.names),
        labels.numpy(),
        found.logits.argmax(dim=1).numpy(),
        torch.cat(confidence).float().numpy(),
        torch.cat(of_label).half().numpy(),
        torch.cat(chances).numpy(),
        None if whole else torch.cat([each for each in places if each is not None]).numpy(),
        found.split.subjects,
        {key: each.numpy() for key, each in found.others.items()},
    )
