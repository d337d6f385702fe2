"""All metrics of a classifier on one split."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit, spaced
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, EnergyBottleneck, Sigmoid, predict_logits, thresholds_of
from cbm.losses.concepts import ConceptLayout
from cbm.metrics import (
    classification_metrics,
    concept_probability_metrics,
    effective_concepts,
    grounding_gap,
    intervention_curve,
    nonzero_concepts,
    truncated_weights,
)
from cbm.metrics.answers import noisy_answers
from cbm.metrics.attributes import attribute_metrics
from cbm.metrics.codes import code_metrics
from cbm.metrics.concept_labels import best_threshold, cut_metrics
from cbm.metrics.faithfulness import faithfulness, rows_for
from cbm.metrics.multilabel import auroc, multilabel_metrics
from cbm.metrics.nec import SparseHead, head_logits


def truncated_logits(model: ConceptBottleneck, x: Tensor, count: int = 5) -> Tensor:
    """Logits ``[N, C]`` if every class uses only its most important concepts, without the residual.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        count: number of concepts per class.
    """
    path = model.concept_path()
    return path.logits(x, truncated_weights(path, count))


@torch.no_grad()
def evaluate_split(
    model: nn.Module, bank: ConceptBank | None, data: FeatureData, name: str, heads: Sequence[SparseHead] = (),
    cuts: Mapping[str, float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Metrics of one split, keys as in ``metrics.json`` (``test/accuracy``, ``test/accuracy_nec5``, ...).

    Args:
        model: a ``ConceptBottleneck`` or any classifier of features.
        bank: the concepts of the model's columns; None without concepts.
        data: encoded splits.
        name: name of the split to evaluate.
        heads: re-solved heads on the model's concepts (``cbm.metrics.nec``).
        cuts: score above which a concept counts as shown, by its text (``cut_points``); by default chosen on the
            validation split of ``data``. What is evaluated never chooses them: a concept without a cut point has no
            accuracy.
    """
    split = data.splits[name]
    if split.y.ndim == 2:
        values = label_metrics(model, bank, data, name, heads, cuts)
        return {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}
    values = classification_metrics(predict_logits(model, split.x), split.y)
    if isinstance(model, ConceptBottleneck) and bank is not None:
        values |= nec_metrics(model, split, heads)
        if model.residual is not None:
            values |= residual_metrics(model, split)
        values["nec"] = nonzero_concepts(model.weights())
        values["nec_effective"] = effective_concepts(model.importance())
        values |= {f"image_{key}": value for key, value in image_sparsity(model, split.x).items()}
        values |= alignment(model, bank, split.x) | code_metrics(model, spaced(split.x, 4096))
        gap, gap_std = grounding_gap(split.x, split.y, model.concepts, bank.owners(data.classes))
        values["grounding_gap"], values["grounding_gap_std"] = gap, gap_std
        values |= concept_ground_truth(model, bank, split, data, cuts)[0] | attribute_metrics(model, bank, split, data)
        if isinstance(model.activation, Sigmoid):
            values |= told_concepts(model, bank, split, data)
        if len(split):
            values |= faithfulness(model, spaced(split.x, rows_for(model))).metrics()
    if isinstance(model, EnergyBottleneck) and bank is not None:
        values |= energy_metrics(model, bank, split, data)
        values |= told_concepts(model, bank, split, data)
    return {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}


def label_metrics(
    model: nn.Module,
    bank: ConceptBank | None,
    data: FeatureData,
    name: str,
    heads: Sequence[SparseHead] = (),
    cuts: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """``evaluate_split`` of a model that says any number of labels: ranking, decisions and calibration of the labels,
    their mean AUROC with few concepts each, and the concepts with labels. Keys without the split.
    """
    split = data.splits[name]
    logits = predict_logits(model, split.x)
    values = multilabel_metrics(logits, split.y, thresholds_of(model, split.y.shape[1]), split.subjects)
    if isinstance(model, ConceptBottleneck) and bank is not None:
        for count in dict.fromkeys([5, *(head.target for head in heads)]):
            values[f"auroc_macro_nec{count}"] = macro(truncated_logits(model, split.x, count), split.y)
        for head in heads:
            values[f"auroc_macro_nec{head.target}_resolved"] = macro(head_logits(model, split.x, head), split.y)
        if model.residual is not None:
            concepts = predict_logits(model.concept_path(), split.x)
            residual = predict_logits(model.residual, split.x)
            values["residual_share"] = residual_share(concepts, residual, compete=False)
            values["auroc_macro_concepts_only"] = macro(concepts, split.y)
            values["auroc_macro_residual_only"] = macro(residual, split.y)
        values["nec"] = nonzero_concepts(model.weights())
        values["nec_effective"] = effective_concepts(model.importance())
        values |= alignment(model, bank, split.x) | code_metrics(model, spaced(split.x, 4096))
        values |= concept_ground_truth(model, bank, split, data, cuts)[0] | attribute_metrics(model, bank, split, data)
    return values


def macro(logits: Tensor, y: Tensor) -> float:
    """Mean AUROC of the labels."""
    return float(auroc(logits, y).nanmean())


def nec_metrics(model: ConceptBottleneck, split: FeatureSplit, heads: Sequence[SparseHead]) -> dict[str, float]:
    """Accuracy at equal sparsity, with averages.

    Args:
        model: the bottleneck, whose own head is truncated (``accuracy_nec5``).
        split: the images.
        heads: re-solved heads on the model's concepts; may be empty.
    """
    counts = dict.fromkeys([5, *(head.target for head in heads)])
    truncated = {count: accuracy(truncated_logits(model, split.x, count), split.y) for count in counts}
    values = {"accuracy_nec5": truncated[5]}
    if heads:
        solved = {}
        for head in heads:
            solved[head.target] = accuracy(head_logits(model, split.x, head), split.y)
        values["accuracy_nec_avg"] = sum(truncated[head.target] for head in heads) / len(heads)
        values |= {f"accuracy_nec{count}_resolved": value for count, value in solved.items()}
        values["accuracy_nec_avg_resolved"] = sum(solved.values()) / len(solved)
    return values


@torch.no_grad()
def image_sparsity(model: ConceptBottleneck, x: Tensor) -> dict[str, float]:
    """How many concepts affect one image's decision: sparsity of the contributions to the logit of the predicted class.

    The means are taken over at most 4,096 images at even distances.
    """
    from cbm.metrics.image_sparsity import ImageSparsity

    sparsity = ImageSparsity()
    for part in spaced(x, 4096).split(256):
        sparsity.update(model.contributions(part, model(part).argmax(dim=1)))
    return {key: float(value) for key, value in sparsity.compute().items()}


@torch.no_grad()
def alignment(model: ConceptBottleneck, bank: ConceptBank, x: Tensor) -> dict[str, float]:
    """Whether learned concepts still mean their names, and how many concepts of the bank each of them mixes.

    Without a learned layer every concept has the score of its own direction, and all three metrics are 1. No metric is
    returned if the bank does not hold its texts' directions in the space of the features (``label_free`` with another
    text-image model as teacher), or its directions are named after they were found.

    Args:
        model: the bottleneck.
        bank: the concepts of its columns.
        x: unit-norm features ``[N, D]``.
    """
    if any("projection" in concept.provenance or "unit" in concept.provenance for concept in bank.concepts):
        return {}
    if model.mixing is None:
        return {"alignment": 1.0, "self_rank": 1.0, "mixed_concepts": 1.0}
    from cbm.metrics.alignment import ConceptAlignment

    measured = ConceptAlignment(model.concepts, bank.directions())
    measured.update(x)
    values = {key: float(value) for key, value in measured.compute().items()}
    return values | {"mixed_concepts": nonzero_concepts(model.mixing)}


def residual_metrics(model: ConceptBottleneck, split: FeatureSplit) -> dict[str, float]:
    """How much of PCBM-h's decision bypasses the concepts: metrics of either path alone, and the residual's share.

    Raises:
        UserError: the model has no residual.
    """
    if model.residual is None:
        raise UserError("this model has no residual: train with method=posthoc method.residual=true")
    concepts, residual = predict_logits(model.concept_path(), split.x), predict_logits(model.residual, split.x)
    values = {"residual_share": residual_share(concepts, residual)}
    for name, logits in (("concepts_only", concepts), ("residual_only", residual), ("both", concepts + residual)):
        values[f"loss_{name}"] = float(torch.nn.functional.cross_entropy(logits, split.y))
        if name != "both":
            values[f"accuracy_{name}"] = accuracy(logits, split.y)
    return values


def deleted_logits(model: ConceptBottleneck, x: Tensor) -> Tensor:
    """Logits ``[N, C]`` with every concept held at its reference value."""
    return model.logits(x, torch.zeros_like(model.weights()))


@torch.no_grad()
def outside_share(model: ConceptBottleneck, x: Tensor) -> float:
    """Share of the decision that bypasses the concepts; 0 without a residual."""
    if model.residual is None:
        return 0.0
    concepts, residual = predict_logits(model.concept_path(), x), predict_logits(model.residual, x)
    return residual_share(concepts, residual, compete=not model.many)


def residual_share(concepts: Tensor, residual: Tensor, compete: bool = True) -> float:
    """Share of the residual in the differences between images and classes, from the two paths' logits ``[N, C]``.

    The size of a path is the mean absolute value of its logits after subtracting the mean of every class, and of every
    image where classes ``compete`` (not between labels): what does not affect decisions.
    """

    def size(logits: Tensor) -> float:
        centred = logits - logits.mean(dim=1, keepdim=True) if compete else logits
        return float((centred - centred.mean(dim=0)).abs().mean())

    return size(residual) / max(size(concepts) + size(residual), 1e-30)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of the rows whose largest logit is the label's."""
    return float((logits.argmax(dim=1) == y).double().mean())


@torch.no_grad()
def used_concept_truth(model: ConceptBottleneck, x: Tensor, columns: list[int], truth: Tensor) -> dict[str, float]:
    """Share of the concepts used for an image that the image really shows, among those with labels.

    Args:
        model: bottleneck most of whose activations are zero.
        x: unit-norm features ``[N, D]``.
        columns: columns of M concepts with labels.
        truth: concept labels ``[N, M]``: 1, 0, or NaN if unknown.
    """
    right = total = 0
    for part, target in zip(x.split(1024), truth.split(1024)):
        used = (model.activations(part)[:, columns] > 0) & ~target.isnan()
        right, total = right + int((used & (target == 1)).sum()), total + int(used.sum())
    return {"used_concept_precision": right / total if total else float("nan")}


@torch.no_grad()
def cut_points(model: nn.Module, bank: ConceptBank | None, data: FeatureData) -> dict[str, float]:
    """Score above which a concept counts as shown, by its text: the most accurate one on the validation images.

    Args:
        model: the trained classifier; without linear concepts there are no cut points.
        bank: the concepts of its columns, or None.
        data: encoded splits of the run that trained the model.
    """
    if not isinstance(model, ConceptBottleneck) or bank is None or "val" not in data.splits:
        return {}
    val, matches = data.splits["val"], match_concepts(bank.phrases, data.concept_names)
    if not matches or val.concepts is None:
        return {}
    columns = [column for column, _ in matches]
    scores = model.scores(val.x, columns)
    found = {
        bank.texts[k]: best_threshold(scores[:, i], val.concepts[:, truth]) for i, (k, truth) in enumerate(matches)
    }
    return {text: cut for text, cut in found.items() if not math.isnan(cut)}


def concept_ground_truth(
    model: ConceptBottleneck,
    bank: ConceptBank,
    split: FeatureSplit,
    data: FeatureData,
    cuts: Mapping[str, float] | None = None,
) -> tuple[dict[str, float], dict[int, float]]:
    """Concept accuracy and AUROC for concepts that the data set labels, and the AUROC of each of these by column.

    Args:
        model: the bottleneck.
        bank: the concepts of its columns.
        split: the evaluated images.
        data: encoded splits, for the names of labelled concepts.
        cuts: score above which a concept counts as shown, by its text; by default ``cut_points`` of ``data``.
    """
    matches = match_concepts(bank.phrases, data.concept_names)
    if not matches or split.concepts is None:
        return {}, {}
    columns, truth = ([pair[i] for pair in matches] for i in (0, 1))
    cuts = cut_points(model, bank, data) if cuts is None else cuts
    scores = model.scores(split.x, columns)
    chosen = [cuts.get(bank.texts[column], math.nan) for column in columns]
    values, aurocs = cut_metrics(scores, split.concepts[:, truth], chosen)
    if model.activation is not None and model.activation.rests_at_zero:
        values |= used_concept_truth(model, split.x, columns, split.concepts[:, truth])
    return values, {column: auroc for column, auroc in zip(columns, aurocs) if not math.isnan(auroc)}


@torch.no_grad()
def energy_metrics(
    model: EnergyBottleneck, bank: ConceptBank, split: FeatureSplit, data: FeatureData
) -> dict[str, float]:
    """Metrics of an energy-based model.

    The class is inferred from the concepts alone, and also from the image; concepts are measured if they have labels.
    ``..._direct`` uses each concept's own evidence only; ``ess`` is the median of the images' effective samples.

    Args:
        model: the energies.
        bank: the concepts of its columns.
        split: the evaluated images.
        data: encoded splits, for the names of labelled concepts.
    """
    matches = match_concepts(bank.phrases, data.concept_names) if split.concepts is not None else []
    columns, truth = ([pair[i] for pair in matches] for i in (0, 1))
    values: dict[str, float] = {}
    for key, leaky in (("strict", False), ("leaky", True)):
        found = [model.infer(part, leaky=leaky) for part in split.x.split(16384)]
        values[f"accuracy_{key}"] = accuracy(torch.cat([f.class_probability for f in found]), split.y)
        if leaky != bool(model.class_weight):
            continue
        ess = torch.cat([f.ess for f in found])
        values["ess"] = float(ess.median()) if bool(ess.isfinite().all()) else float("nan")
        if matches and split.concepts is not None:
            known = split.concepts[:, truth]
            probability = torch.cat([f.concept_probability[:, columns] for f in found])
            values |= concept_probability_metrics(probability, known)
            alone = [
                model.infer(part, method="direct").concept_probability[:, columns] for part in split.x.split(16384)
            ]
            for name, value in concept_probability_metrics(torch.cat(alone), known).items():
                values |= {} if name == "concepts_matched" else {f"{name}_direct": value}
    return values


def known_concepts(bank: ConceptBank, split: FeatureSplit, data: FeatureData) -> tuple[Tensor, dict[str, list[int]]]:
    """The labels of a bank's concepts, as far as the data set has them.

    Args:
        bank: the K concepts.
        split: the images.
        data: encoded splits, for the names of labelled concepts.

    Returns:
        Concept labels ``[N, K]``: 1, 0, or NaN if unknown, and of numbers that the model was trained on the number as
        its head reads it, in standard deviations of the training images; and what is one question, as columns of the
        bank: the data set's exclusive groups, and the steps of each ordinal attribute.
    """
    concepts = torch.full((len(split), len(bank)), float("nan"))
    if split.values is not None:
        for place, spec in enumerate(data.value_specs):
            for column, _ in match_concepts(bank.phrases, [spec.name]):
                if about := bank.concepts[column].provenance.get("number"):
                    concepts[:, column] = ((split.values[:, place] - about["mean"]) / about["sd"]).float()
    if split.concepts is None:
        return concepts, {}
    columns = {truth: column for column, truth in reversed(match_concepts(bank.phrases, data.concept_names))}
    concepts[:, list(columns.values())] = split.concepts[:, list(columns)]
    number = {name: columns[i] for i, name in enumerate(data.concept_names) if i in columns}
    together = data.concept_groups | {spec.name: spec.columns for spec in data.specs if spec.kind == "ordinal"}
    groups = {group: [number[name] for name in names if name in number] for group, names in together.items()}
    return concepts, groups


def value_layout(bank: ConceptBank, data: FeatureData) -> ConceptLayout:
    """Which columns of a bank are the steps of an ordinal attribute, and which a number that the model was trained on.

    Args:
        bank: the K concepts.
        data: encoded splits, for the attributes.
    """
    ordered = []
    for spec in data.specs:
        place = {spec.columns[step]: column for column, step in match_concepts(bank.phrases, spec.columns)}
        if spec.kind == "ordinal" and place:
            ordered.append([place[name] for name in spec.columns if name in place])
    numbers = [k for k, concept in enumerate(bank.concepts) if "number" in concept.provenance]
    return ConceptLayout(ordered=ordered, numbers=numbers)


@torch.no_grad()
def told_concepts(
    model: EnergyBottleneck | ConceptBottleneck, bank: ConceptBank, split: FeatureSplit, data: FeatureData
) -> dict[str, float]:
    """Accuracy as more concepts are set (``cbm.metrics.intervention``), on at most 2,048 images at even distances.

    Only concepts with labels are set; without any, no metric is returned.

    Args:
        model: energies, or a bottleneck.
        bank: the concepts of its columns.
        split: the evaluated images.
        data: encoded splits, for the names of labelled concepts.
    """
    concepts, groups = known_concepts(bank, split, data)
    if bool(concepts.isnan().all()):
        return {}
    x, y, concepts = (spaced(tensor, 2048) for tensor in (split.x, split.y, concepts))
    if isinstance(model, EnergyBottleneck):  # a test picture may show two of a group that training pictures never do
        concepts = model.blocks.without_contradictions(concepts)

    def answer(told: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(model, EnergyBottleneck):
            found = model.infer(x, clamp=told)
            return found.class_probability, found.concept_probability
        probability = told.where(~told.isnan(), model.activations(x))
        return model.told(x, probability), probability

    layout = value_layout(bank, data)
    numbers, exclusive = layout.numbers, list(groups.values())
    values = intervention_curve(answer, concepts, y, exclusive, numbers=numbers).metrics()
    if bool((~concepts.isnan()).any(dim=1).all()):
        wrong = noisy_answers(concepts, 1.0, 0, exclusive, layout.ordered, numbers)
        values["intervention_wrong_100"] = accuracy(answer(wrong)[0], y)
        if isinstance(model, ConceptBottleneck) and model.residual is not None:
            names = torch.where(concepts.isnan(), model.activations(x), concepts)
            values["intervention_names_only_100"] = accuracy(model.concept_path().told(x, names), y)
    return values
