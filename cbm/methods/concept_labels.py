"""Concept labels for methods that learn concepts: the data set's own columns, or CLIP's opinion."""

import logging
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.dataset import ConceptSpec
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.kernels import concept_scores
from cbm.losses.concepts import ConceptLayout
from cbm.methods.base import one_of

log = logging.getLogger(__name__)

LABELS = ("auto", "truth", "pseudo")


@dataclass(frozen=True)
class ConceptLabels:
    """Labels of K concepts.

    Attributes:
        bank: the K concepts.
        targets: labels ``[N, K]`` by name of the split: 1, 0, or NaN if unknown; pseudo-labels are probabilities.
        groups: lists of columns whose concepts may exclude each other.
        pseudo: whether the labels are CLIP's opinion: a model that learns them repeats CLIP, not the truth.
        layout: which columns are the values, levels or number of one attribute. Only ``with_numbers`` adds numbers.
    """

    bank: ConceptBank
    targets: dict[str, Tensor]
    groups: list[list[int]]
    pseudo: bool
    layout: ConceptLayout = field(default_factory=ConceptLayout)


def concept_labels(data: FeatureData, bank: ConceptBank, labels: str, temperature: float) -> ConceptLabels:
    """Concept labels of the training and validation images, as a run's settings ask for them.

    Args:
        data: encoded splits.
        bank: candidate concepts; those that the data set does not label are left out, unless CLIP labels them.
        labels: ``truth`` (the data set's columns of the same name), ``pseudo`` (CLIP's opinion), or ``auto`` (truth if
            there is any).
        temperature: temperature of pseudo-labels, in standard deviations of a concept's cosine.

    Raises:
        UserError: no concept has a label, or CLIP should label the concepts and the bank has no embeddings in its
            space.
    """
    one_of("method.labels", labels, LABELS)
    matches = match_concepts(bank.phrases, data.concept_names) if data.train.concepts is not None else []
    if labels == "truth" and not matches:
        known = f"its columns are {', '.join(data.concept_names[:5])}, ..." if data.concept_names else "it has none"
        raise UserError(
            f"method.labels=truth: the data set labels no concept of bank '{bank.source}' ({known}); "
            "say concepts=auto for the data set's own concepts, or method.labels=pseudo to ask CLIP"
        )
    if matches and labels != "pseudo":
        if len(matches) < len(bank):
            log.info(
                "concepts: %d of %d left out, the data set has no labels for them", len(bank) - len(matches), len(bank)
            )
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
        exclusive, ordered = (_columns(data.specs, kind, position) for kind in ("categorical", "ordinal"))
        layout = ConceptLayout(exclusive, ordered)
        return ConceptLabels(bank.take(k for k, _ in matches), targets, groups, False, layout)
    directions = asked_of_clip(bank, data, f"the data set labels no concept of bank '{bank.source}'")
    targets = pseudo_labels({name: data.splits[name].x for name in ("train", "val")}, directions, temperature)
    return ConceptLabels(bank, targets, [], pseudo=True)


def asked_of_clip(bank: ConceptBank, data: FeatureData, why: str) -> Tensor:
    """Embeddings ``[K, D]`` of the concepts that CLIP labels; it is said that the labels are its opinion.

    Args:
        bank: the K concepts.
        data: encoded splits.
        why: why CLIP is asked, for the message.

    Raises:
        UserError: the bank has no embeddings in the space of the features.
    """
    if bank.embeddings is None or bank.embeddings.shape[1] != data.dim:
        raise UserError(
            f"{why}, and without an encoder that reads text CLIP cannot be asked either: choose a data set with "
            "concept columns, or another encoder"
        )
    log.warning("concept labels are CLIP's own opinion: whatever is said about concepts below is fidelity to CLIP")
    return bank.embeddings


def _columns(specs: list[ConceptSpec], kind: str, position: dict[str, int]) -> list[list[int]]:
    """The columns of every attribute of a kind of which all concepts are there."""
    chosen = [spec.columns for spec in specs if spec.kind == kind and all(name in position for name in spec.columns)]
    return [[position[name] for name in columns] for columns in chosen]


def valued_labels(data: FeatureData, bank: ConceptBank, labels: str, temperature: float) -> ConceptLabels:
    """``concept_labels`` and the continuous attributes (``with_numbers``), which may be all that is labelled.

    Arguments and errors as for ``concept_labels``.
    """
    one_of("method.labels", labels, LABELS)
    bank = _with_steps(bank, data)
    if labels != "pseudo" and _only_numbers(data, bank):
        none = {name: torch.empty(len(data.splits[name]), 0) for name in ("train", "val")}
        return with_numbers(ConceptLabels(bank.take([]), none, [], pseudo=False), bank, data)
    return with_numbers(concept_labels(data, bank, labels, temperature), bank, data)


def _with_steps(bank: ConceptBank, data: FeatureData) -> ConceptBank:
    """The bank in which a concept that is a step of a level has all steps, the lowest first, in its provenance: an edit
    of one is one of the others."""
    steps = {name: spec.columns for spec in data.specs if spec.kind == "ordinal" for name in spec.columns}
    if not steps:
        return bank
    concepts = [
        replace(c, provenance={**c.provenance, "steps": steps[c.text]}) if c.text in steps else c for c in bank.concepts
    ]
    return replace(bank, concepts=tuple(concepts))


def _only_numbers(data: FeatureData, bank: ConceptBank) -> bool:
    """Whether the data set knows numbers of the bank's concepts, and nothing else of them."""
    numbers = [spec.name for spec in data.value_specs] if data.train.values is not None else []
    others = data.concept_names if data.train.concepts is not None else []
    return bool(match_concepts(bank.phrases, numbers)) and not match_concepts(bank.phrases, others)


def with_numbers(labels: ConceptLabels, bank: ConceptBank, data: FeatureData) -> ConceptLabels:
    """The labels and the continuous attributes of the same names as concepts of the bank, in standard deviations of the
    training images; mean, deviation, unit and range stand in the concept's provenance under ``number``.

    Args:
        labels: labels of the other concepts.
        bank: candidate concepts.
        data: encoded splits.

    Raises:
        UserError: nothing is known of an attribute in training, or it never differs.
    """
    specs, train = data.value_specs, data.train.values
    if labels.pseudo or train is None:
        return labels
    matches = match_concepts(bank.phrases, [spec.name for spec in specs])
    added, columns = [], []
    for k, number in matches:
        known = train[:, number][~train[:, number].isnan()].double()
        if len(known) < 2 or float(known.std()) == 0:
            raise UserError(f"concept '{specs[number].name}' has no two different numbers on training pictures")
        mean, sd = float(known.mean()), float(known.std())
        about = {
            "mean": mean, "sd": sd, "unit": specs[number].unit, "low": float(known.min()), "high": float(known.max()),
        }  # fmt: skip
        concept = bank.concepts[k]
        added.append((k, replace(concept, provenance={**concept.provenance, "number": about})))
        columns.append((number, mean, sd))
    if not added:
        return labels
    count = len(labels.bank)
    order = {text: k for k, text in enumerate(bank.texts)}
    both = bank.take([*(order[text] for text in labels.bank.texts), *(k for k, _ in added)])
    both = replace(both, concepts=(*labels.bank.concepts, *(concept for _, concept in added)))
    targets = {}
    for name, known_ones in labels.targets.items():
        values = data.splits[name].values
        assert values is not None
        more = torch.stack([(values[:, number] - mean) / sd for number, mean, sd in columns], dim=1)
        targets[name] = torch.cat([known_ones, more.to(known_ones)], dim=1)
    layout = replace(labels.layout, numbers=list(range(count, count + len(added))))
    return ConceptLabels(both, targets, labels.groups, False, layout)


def pseudo_labels(features: dict[str, Tensor], directions: Tensor, temperature: float) -> dict[str, Tensor]:
    """Probability that an image shows a concept, from its cosine with the concept's text (``pseudo_logits``).

    Returns:
        Probabilities ``[N, K]`` by name of the split.
    """
    return {name: s.sigmoid() for name, s in pseudo_logits(features, directions, temperature).items()}


def pseudo_logits(features: dict[str, Tensor], directions: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """How far the cosines of images with a concept's text lie above their median, in standard deviations.

    Raw cosines of CLIP share a large part per image and per concept. So the mean over the concepts of an image and
    then the mean over the training images are subtracted, and the rest is divided by its standard deviation; the
    threshold is the median of the training images.

    Args:
        features: features ``[N, D]`` by name of the split, including ``train``.
        directions: embeddings ``[K, D]`` of the concepts.
        temperature: factor on the standard deviation.

    Returns:
        Numbers ``[N, K]`` by name of the split.
    """
    centred = directions - directions.mean(dim=0)
    scores = {name: concept_scores(x, centred) for name, x in features.items()}
    scale = scores["train"].std(dim=0).clamp(min=1e-12)
    cut = scores["train"].median(dim=0).values
    return {name: (s - cut) / (scale * temperature) for name, s in scores.items()}
