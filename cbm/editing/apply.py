"""Apply edits: m edited concepts change the logits by a matrix of rank m. Nothing is encoded or trained again.

Energy-based bottlenecks have no weights to change; their edits are in ``cbm.editing.energies``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from cbm.concepts import ConceptBank
from cbm.concepts.units import former_names
from cbm.editing.edits import LEVELS, EditSet
from cbm.editing.energies import EditedEnergies
from cbm.errors import UserError
from cbm.kernels import concept_scores
from cbm.layers import Coded, ConceptBottleneck, EnergyBottleneck, SparseCode, Unnamed, predict_logits
from cbm.layers.activations import Sigmoid, Valued

Editable = ConceptBottleneck | EnergyBottleneck


@dataclass(frozen=True)
class LogitChange:
    """The change of the logits by edits: ``a_J M^T + o``, with the activations a_J of m concepts.

    Attributes:
        columns: columns J ``[m]`` of the bank.
        weights: changes M ``[C, m]`` of the classes' weights on these concepts.
        offset: changes o ``[C]`` of the classes' biases.
        alpha: factors ``[C, m]`` that classes put on the activations.
        beta: numbers ``[C, m]`` that they add to them.
        kept: whether what pictures say under the concept's name beyond it stays ``[C, m]`` (1 or 0); only a model of
            concept embeddings says such things.
    """

    columns: Tensor
    weights: Tensor
    offset: Tensor
    alpha: Tensor
    beta: Tensor
    kept: Tensor


@torch.no_grad()
def logit_change(model: ConceptBottleneck, edits: EditSet, texts: Sequence[str], classes: Sequence[str]) -> LogitChange:
    """Compute the change of the logits by edits that all act on the same images, one after the other, in float64.

    A concept with activation a adds ``w (alpha a + beta) + b`` to a class's logit; set, mask, scale and shift change
    alpha and beta, remove and reweight change w and b.

    Args:
        model: the bottleneck.
        edits: the edits, in their order.
        texts: texts of the K concepts.
        classes: C class names.

    Raises:
        UserError: an unknown concept or class.
    """
    edits.check(texts, classes)
    column = {text: k for k, text in enumerate(texts)}
    used = list(dict.fromkeys(column[edit.concept] for edit in edits.edits))
    place = {k: i for i, k in enumerate(used)}
    columns = torch.tensor(used, dtype=torch.long, device=model.concepts.device)
    before = model.weights()[:, columns].double()
    weight, alpha = before.clone(), torch.ones_like(before)
    beta, constant = torch.zeros_like(before), torch.zeros_like(before)
    kept, removed = torch.ones_like(before), torch.zeros_like(before, dtype=torch.bool)
    for edit in edits.edits:
        k = column[edit.concept]
        i, reference, spread = place[k], float(model.reference[k]), float(model.spread[k])
        rows = slice(None) if edit.classes is None else [classes.index(name) for name in edit.classes]
        if edit.op in ("set", "mask"):
            alpha[rows, i] = 0.0
            beta[rows, i] = reference if edit.value is None else level(model, k, edit.value)
            kept[rows, i] = 0.0 if edit.op == "mask" else (~removed[rows, i]).to(kept)
        elif edit.op == "scale":
            alpha[rows, i], beta[rows, i] = alpha[rows, i] * edit.number, beta[rows, i] * edit.number
        elif edit.op == "shift":
            beta[rows, i] = beta[rows, i] + edit.number
        else:
            new = 0.0 if edit.op == "remove" else edit.number / max(spread, 1e-12)
            now = alpha[rows, i] * reference + beta[rows, i]  # what the class takes the average concept to be
            constant[rows, i] = constant[rows, i] + (weight[rows, i] - new) * now
            weight[rows, i] = new
            if edit.op == "remove":
                kept[rows, i], removed[rows, i] = 0.0, True
    offset = (weight * beta + constant).sum(dim=1)
    found = (weight * alpha - before, offset, alpha, beta, kept)
    return LogitChange(columns, *(tensor.to(model.reference) for tensor in found))


def level(model: ConceptBottleneck, column: int, value: float | str) -> float:
    """The activation that a value of ``set`` stands for.

    "present" and "absent" are the 95 % and 5 % points of the training images; .95 and .05 if activations are
    probabilities; the typical weight of a word or unit in use and 0 if they are a sparse code.

    Args:
        model: the bottleneck.
        column: column of the concept.
        value: a number, "present" or "absent".
    """
    return float(levels(model)[list(LEVELS).index(value), column]) if isinstance(value, str) else float(value)


def levels(model: ConceptBottleneck) -> Tensor:
    """Activations ``[2, K]`` that stand for absent and for present concepts."""
    if isinstance(model.activation, Sigmoid):
        ends = torch.tensor([[0.05], [0.95]]).expand(-1, len(model.concepts)).to(model.reference)
        return _of_numbers(model, ends)
    if isinstance(model.activation, Coded):
        return torch.stack([torch.zeros_like(model.reference), model.activation.typical.to(model.reference)])
    return torch.stack([model.reference + deviations * model.spread for deviations in LEVELS.values()])


def told_levels(model: ConceptBottleneck) -> Tensor:
    """Activations ``[2, K]`` that the head reads of concepts told to be absent and present in an intervention.

    0 and 1 of concepts that are probabilities, else those of ``levels``.
    """
    if isinstance(model.activation, Sigmoid):
        ends = torch.tensor([[0.0], [1.0]]).expand(-1, len(model.concepts)).to(model.reference)
        return _of_numbers(model, ends)
    return levels(model)


def numbers_of(model: ConceptBottleneck) -> Tensor:
    """Which concepts are numbers ``[K]`` bool: their activation is in standard deviations of the training images."""
    if isinstance(model.activation, Valued):
        return model.activation.number
    return torch.zeros(len(model.concepts), dtype=torch.bool, device=model.concepts.device)


def _of_numbers(model: ConceptBottleneck, ends: Tensor) -> Tensor:
    """Ends ``[2, K]`` with those of numbers where training images have them: 5 % are beyond either."""
    if not isinstance(model.activation, Valued):
        return ends
    own = torch.stack([model.reference + deviations * model.spread for deviations in LEVELS.values()])
    return torch.where(model.activation.number, own, ends)


@overload
def edited_model(
    model: ConceptBottleneck, edits: EditSet, texts: Sequence[str], classes: Sequence[str], domain: str | None = None
) -> ConceptBottleneck: ...


@overload
def edited_model(
    model: EnergyBottleneck, edits: EditSet, texts: Sequence[str], classes: Sequence[str], domain: str | None = None
) -> EditedEnergies: ...


@torch.no_grad()
def edited_model(
    model: Editable, edits: EditSet, texts: Sequence[str], classes: Sequence[str], domain: str | None = None
) -> Editable | EditedEnergies:
    """A copy of the model with the edits applied; the model itself is not changed.

    Edits of single images and of other domains are left out; if there are no others, the model itself is returned. A
    residual is not changed, but that of concept embeddings: what pictures say under a concept's name goes with a mask
    and a removal, and follows a value that is set.

    Args:
        model: a bottleneck, or energies.
        edits: the edits, in their order.
        texts: texts of the K concepts.
        classes: C class names.
        domain: name of the domain that the images come from.

    Raises:
        UserError: an unknown concept or class, or an edit that energies do not support.
    """
    acting = edits.for_picture(None, domain)
    if isinstance(model, ConceptBottleneck) and not len(acting):
        edits.check(texts, classes)
        return model
    if isinstance(model, EnergyBottleneck):
        acting.check(texts, classes)
        return EditedEnergies(model, acting, texts)
    change = logit_change(model, acting, texts, classes)
    weights = model.weights().clone()
    weights[:, change.columns] += change.weights
    made = without_words(model, acting, texts).with_weights(weights, model.biases() + change.offset)
    if isinstance(model.residual, Unnamed):
        alpha, beta, kept = torch.ones_like(weights), torch.zeros_like(weights), torch.ones_like(weights)
        for whole, part in ((alpha, change.alpha), (beta, change.beta), (kept, change.kept)):
            whole[:, change.columns] = part
        made.residual = model.residual.edited(alpha, beta, kept)
    return made


def without_words(model: ConceptBottleneck, edits: EditSet, texts: Sequence[str]) -> ConceptBottleneck:
    """The model in which pictures are written without the words of edits that say ``resolve``; itself without any.

    Args:
        model: the bottleneck.
        edits: the edits.
        texts: texts of the K concepts.

    Raises:
        UserError: the model has no sparse code.
    """
    columns = [list(texts).index(edit.concept) for edit in edits.edits if edit.resolve]
    if not columns:
        return model
    if not isinstance(model.activation, SparseCode):
        raise UserError(
            "resolve: only a model of sparse codes (method=splice) can write pictures anew without a word; elsewhere "
            "other concepts do not change when one is removed"
        )
    return model.with_activation(model.activation.without(columns))


@torch.no_grad()
def returned_share(model: ConceptBottleneck, x: Tensor, column: int) -> Tensor:
    """Which part of what a word adds to the predicted class comes back by other words if pictures are written anew
    without it, ``[N]``: 0 if nothing takes its place, 1 if other words say the same; NaN where the word adds nothing.

    Args:
        model: a bottleneck with a sparse code.
        x: unit-norm features ``[N, D]``.
        column: column of the word.

    Raises:
        UserError: the model has no sparse code.
    """
    if not isinstance(model.activation, SparseCode):
        raise UserError("nothing comes back in a model without a sparse code (method=splice)")
    votes = model.weights()[model(x).argmax(dim=1)]
    before = model.activations(x)
    change = (model.with_activation(model.activation.without([column])).activations(x) - before) * votes
    removed = votes[:, column] * before[:, column]
    change[:, column] = 0.0
    return torch.where(removed.abs() > 1e-9, change.sum(dim=1) / removed, torch.nan)


@torch.no_grad()
def edited_logits(
    model: Editable,
    edits: EditSet,
    bank: ConceptBank,
    classes: Sequence[str],
    x: Tensor,
    names: Sequence[str] | None = None,
    logits: Tensor | None = None,
    domain: str | None = None,
    inside: Tensor | None = None,
) -> Tensor:
    """Logits ``[N, C]`` of images after the edits; images that no edit applies to keep exactly the same logits.

    Args:
        model: a bottleneck, or energies (``cbm.editing.energies``).
        edits: the edits, in their order.
        bank: the model's K concepts.
        classes: C class names.
        x: unit-norm features ``[N, D]``.
        names: names of the N images, for edits of single images.
        logits: logits ``[N, C]`` before the edits, if they are known already.
        domain: name of the domain that the images come from.
        inside: which images ``[N]`` (bool) belong to the domain (``cbm.editing.domains.gate``); all by default.

    Raises:
        UserError: an unknown concept or class, or an edit that energies do not support.
    """
    found = (predict_logits(model, x) if logits is None else logits).clone()
    edits = edits.renamed(former_names(bank))
    edits.check(bank.texts, classes)
    alone = edits.samples if names is not None else set()
    there = torch.full((len(x),), True) if inside is None else inside.cpu()
    single = torch.tensor([name in alone for name in names or ()], dtype=torch.bool) if alone else ~there & there
    groups: dict[EditSet, list[int]] = {}
    for which, place in ((there, domain), (~there, None)):
        groups.setdefault(edits.for_picture(None, place), []).extend((which & ~single).nonzero()[:, 0].tolist())
    for row in single.nonzero()[:, 0].tolist():
        assert names is not None
        acting = edits.for_picture(names[row], domain if there[row] else None)
        groups.setdefault(acting, []).append(row)
    for acting, rows in groups.items():
        if not acting.edits or not rows:
            continue
        index = torch.tensor(rows, device=x.device)
        if isinstance(model, EnergyBottleneck):
            found[index] = predict_logits(EditedEnergies(model, acting, bank.texts), x[index])
            continue
        if isinstance(model.residual, Unnamed):  # what an edit does there depends on the picture
            everywhere = EditSet(tuple(replace(edit, samples=None, domain=None) for edit in acting.edits))
            found[index] = predict_logits(edited_model(model, everywhere, bank.texts, classes), x[index])
            continue
        change = logit_change(model, acting, bank.texts, classes)
        if (anew := without_words(model, acting, bank.texts)) is not model:
            found[index] = predict_logits(anew, x[index])
        found[index] += _activations(anew, x[index], change.columns) @ change.weights.T + change.offset
    return found


def _activations(model: ConceptBottleneck, x: Tensor, columns: Tensor) -> Tensor:
    """Activations of some concepts, ``[N, m]``; a linear bottleneck computes no others."""
    if model.activation is None:
        return concept_scores(x, model.concepts[columns])
    rows = max(1, 2**25 // len(model.concepts))
    return torch.cat([model.activations(part)[:, columns] for part in x.split(rows)])
