"""What methods that learn concepts from labels learn them from: the data set's own columns, or CLIP's opinion."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.kernels import concept_scores
from cbm.methods.base import one_of

log = logging.getLogger(__name__)

LABELS = ("auto", "truth", "pseudo")


@dataclass(frozen=True)
class ConceptLabels:
    """Labels of K concepts.

    Attributes:
        bank: the K concepts.
        targets: split to ``[N, K]``: 1, 0, NaN unknown; of pseudo-labels, a probability.
        groups: columns that may exclude each other.
        pseudo: CLIP's opinion; what is learned from it is fidelity to CLIP, not truth.
    """

    bank: ConceptBank
    targets: dict[str, Tensor]
    groups: list[list[int]]
    pseudo: bool


def concept_labels(data: FeatureData, bank: ConceptBank, labels: str, temperature: float) -> ConceptLabels:
    """The labels a run's settings ask for, of the training and validation images.

    Args:
        data: encoded splits.
        bank: candidates; concepts the data set says nothing about are left out, unless CLIP is asked.
        labels: ``truth`` (the data set's columns of the same name), ``pseudo``, or ``auto``: truth where there is any.
        temperature: of pseudo-labels.

    Raises:
        UserError: no concept has a label, or CLIP is to be asked and the bank has no embeddings in its space.
    """
    one_of("method.labels", labels, LABELS)
    matches = match_concepts(bank.texts, data.concept_names) if data.train.concepts is not None else []
    if labels == "truth" and not matches:
        known = f"its columns are {', '.join(data.concept_names[:5])}, ..." if data.concept_names else "it has none"
        raise UserError(
            f"method.labels=truth: the data set labels no concept of bank '{bank.source}' ({known}); "
            "say concepts=auto for the data set's own concepts, or method.labels=pseudo to ask CLIP"
        )
    if matches and labels != "pseudo":
        if len(matches) < len(bank):
            log.info("concepts: %d of %d left out, the data set has no labels for them", len(bank) - len(matches),
                     len(bank))  # fmt: skip
        columns = [column for _, column in matches]
        position = {data.concept_names[column]: k for k, column in enumerate(columns)}
        groups = [[position[name] for name in group if name in position] for group in data.concept_groups.values()]
        splits = {name: data.splits[name].concepts for name in ("train", "val")}
        targets = {
            name: torch.full((len(data.splits[name]), len(columns)), float("nan")) if c is None else c[:, columns]
            for name, c in splits.items()
        }
        if empty := [bank.texts[k] for k, c in matches if not bool((targets["train"][:, columns.index(c)] >= 0).any())]:
            raise UserError(f"concept '{empty[0]}' has no label on any training picture (a column of unknowns)")
        return ConceptLabels(bank.take(k for k, _ in matches), targets, groups, pseudo=False)
    if bank.embeddings is None or bank.embeddings.shape[1] != data.dim:
        raise UserError(
            f"the data set labels no concept of bank '{bank.source}', and without an encoder that reads text "
            "CLIP cannot be asked either: choose a data set with concept columns, or another encoder"
        )
    log.warning("concept labels are CLIP's own opinion: whatever is said about concepts below is fidelity to CLIP")
    targets = pseudo_labels({name: data.splits[name].x for name in ("train", "val")}, bank.embeddings, temperature)
    return ConceptLabels(bank, targets, [], pseudo=True)


def pseudo_labels(features: dict[str, Tensor], directions: Tensor, temperature: float) -> dict[str, Tensor]:
    """How surely an image shows a concept, by its cosine with the concept's text.

    Raw cosines of CLIP share a large part per image and per concept. So the mean over the concepts of an image and
    then the mean over the training images are taken off, and what is left is divided by its standard deviation; the
    cut is the median of the training images.

    Args:
        features: split to ``[N, D]``, ``train`` among them.
        directions: ``[K, D]``.
        temperature: of the logistic function, in standard deviations.

    Returns:
        Split to ``[N, K]`` in [0, 1].
    """
    centred = directions - directions.mean(dim=0)
    scores = {name: concept_scores(x, centred) for name, x in features.items()}
    scale = scores["train"].std(dim=0).clamp(min=1e-12)
    cut = scores["train"].median(dim=0).values
    return {name: ((s - cut) / (scale * temperature)).sigmoid() for name, s in scores.items()}
