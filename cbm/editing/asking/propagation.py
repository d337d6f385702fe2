"""Update concepts that are correlated with an answer, without training.

Vandenhirtz et al., "Stochastic Concept Bottleneck Models", NeurIPS 2024, equation 3, with their "empirical" covariance:
logits of concepts are Gaussian around what the image shows, with the covariance of the source domain; once some are
known, the others move to their conditional mean,

    mu_U' = mu_U + S_UI S_II^-1 (eta_I - mu_I)

A logit is 2.94 at the level of "present" and -2.94 at that of "absent", where the probability is .95 and .05. What is
told is at least that sure: eta is the further of the level and of what the model says itself. Else a concept that the
model is surer of than .95 would be told down, and those that go with it would move away from what was told.

A model that learned which concepts go together (``method=stochastic``) answers with the conditional probabilities of
its copula instead (``follow_correlation``): no covariance of what pictures show, and no level of being told. One that
learned a covariance of the logits, as published, answers with that (``follow_covariance``).
"""

import math

import torch
from torch import Tensor

from cbm.editing.apply import levels, numbers_of
from cbm.layers import ConceptBottleneck
from cbm.layers.activations import Sigmoid, Valued
from cbm.layers.covariance import stretch
from cbm.solvers import confidence_region, told_probabilities

TOLD = math.log(19)
"""The logit of a concept that is told to be present; of one that is absent, its negative."""
NUMBERS_AT_ONCE = 2**24


def source_covariance(a: Tensor) -> Tensor:
    """Shrunk covariance ``[K, K]`` of activations ``[M, K]`` (Ledoit and Wolf, 2004), in float64."""
    from sklearn.covariance import ledoit_wolf

    return torch.from_numpy(ledoit_wolf(a.double().numpy())[0])


def beyond_labels(activation: Tensor, y: Tensor) -> Tensor:
    """What the labels of images do not tell of their activations ``[M, K]``, float64: residuals of least squares.

    As for classes, whose means are subtracted: concepts that only share labels do not go together.

    Args:
        activation: activations ``[M, K]``.
        y: labels ``[M, L]``: 1, 0, or NaN if unknown, which counts as the mean of the label.

    Example:
        >>> left = beyond_labels(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([[0.0], [0.0], [1.0]]))
        >>> [round(abs(value), 6) for value in left.flatten().tolist()]
        [1.0, 1.0, 0.0]
    """
    known = torch.where(y.isnan(), y.nanmean(dim=0), y).nan_to_num().double()
    told = torch.cat([torch.ones(len(y), 1, dtype=torch.float64), known], dim=1)
    solved = torch.linalg.lstsq(told, activation.double(), driver="gelsd")  # two labels may be the same
    return activation.double() - told @ solved.solution


def to_logits(model: ConceptBottleneck, activation: Tensor) -> Tensor:
    """Logits of concepts, float64, from activations ``[..., K]``: log-odds of probabilities, scores and numbers on that
    scale."""
    middle, half = _scale(model)
    scaled = TOLD * (activation - middle) / half
    if not isinstance(model.activation, Sigmoid):
        return scaled
    odds = torch.logit(activation.double(), eps=1e-7)
    return scaled.where(model.activation.number, odds) if isinstance(model.activation, Valued) else odds


def to_activations(model: ConceptBottleneck, logits: Tensor) -> Tensor:
    """The inverse of ``to_logits``."""
    middle, half = _scale(model)
    scaled = middle + half * logits / TOLD
    if isinstance(model.activation, Sigmoid):
        chances = torch.sigmoid(logits)
        scaled = scaled.where(model.activation.number, chances) if isinstance(model.activation, Valued) else chances
    return scaled.to(model.reference)


def _scale(model: ConceptBottleneck) -> tuple[Tensor, Tensor]:
    """Between the levels of absent and present, and half their distance (1 where a concept never varies)."""
    ends = levels(model).double()
    half = (ends[1] - ends[0]) / 2
    return ends.mean(dim=0), half.where(half > 1e-9, 1.0)


def propagate(
    logits: Tensor, told: Tensor, answers: Tensor, covariance: Tensor, numbers: Tensor | None = None
) -> Tensor:
    """Logits ``[N, K]`` of concepts after some of them are told.

    Args:
        logits: logits ``[N, K]`` from the images.
        told: which concepts ``[N, K]`` (bool) are told.
        answers: answers ``[N, K]``, 1 present and 0 absent; only those of told concepts are read.
        covariance: covariance ``[K, K]`` of the logits, positive semi-definite.
        numbers: logits ``[N, K]`` (``to_logits``) of the concepts that are told a number, NaN for the others.

    Returns:
        Told concepts at ``TOLD`` or its negative, or further out where the model is surer, or at their number; the
        others at their conditional mean.
    """
    values = torch.where(answers > 0.5, logits.clamp(min=TOLD), logits.clamp(max=-TOLD))
    values = values if numbers is None else values.where(numbers.isnan(), numbers)
    return conditional_mean(logits, told, values, covariance)


def follow_correlation(
    activation: Tensor, told: Tensor, answers: Tensor, model: ConceptBottleneck, seed: int = 0
) -> Tensor:
    """Probabilities ``[N, K]`` of concepts after some of them are told, by the model's own correlation.

    Values that exclude each other are scaled to sum to one again; numbers stay as they are.

    Args:
        activation: probabilities ``[N, K]`` from the images.
        told: which concepts ``[N, K]`` (bool) are told.
        answers: answers ``[N, K]``, 1 present and 0 absent; only those of told concepts are read.
        model: the bottleneck, with a ``correlation``.
        seed: random seed for what has no formula (``cbm.solvers.copula.told_probabilities``).
    """
    assert model.correlation is not None
    told = told & ~numbers_of(model)
    found = told_probabilities(activation, told, answers, model.correlation, seed=seed)
    if isinstance(model.activation, Valued):
        for group in model.activation.group.unique().tolist():
            if group >= 0:
                columns = (model.activation.group == group).nonzero().flatten()
                own, known = found[:, columns], told[:, columns].any(dim=1, keepdim=True)
                found[:, columns] = own.where(known, own / own.sum(dim=1, keepdim=True).clamp(min=1e-12))
    return found


def follow_covariance(activation: Tensor, told: Tensor, answers: Tensor, model: ConceptBottleneck, x: Tensor) -> Tensor:
    """Probabilities ``[N, K]`` of concepts after some of them are told, by the model's own covariance of logits.

    Told logits go as far as the confidence region lets them (``cbm.solvers.region``). The others keep their variance: a
    smaller one would make a concept surer of what the picture says, whatever was told.

    Args:
        activation: probabilities ``[N, K]`` from the images.
        told: which concepts ``[N, K]`` (bool) are told.
        answers: answers ``[N, K]``, 1 present and 0 absent; only those of told concepts are read.
        model: the bottleneck, with a ``covariance``.
        x: features ``[N, D]`` of the images.
    """
    assert model.covariance is not None
    parts = []
    rows = max(1, NUMBERS_AT_ONCE // activation.shape[1] ** 2)
    for p, known, given, features in zip(activation.split(rows), told.split(rows), answers.split(rows), x.split(rows)):
        covariance = model.covariance.matrix(features).double()
        wide = stretch(covariance.diagonal(dim1=1, dim2=2))
        mean = torch.logit(p.double(), eps=1e-7) * wide
        values = confidence_region(mean, known, given, covariance.expand(len(p), -1, -1))
        moved = (conditional_mean(mean, known, values, covariance) / wide).sigmoid().to(p)
        parts.append(torch.where(known, given.to(p), torch.where(known.any(dim=1, keepdim=True), moved, p)))
    return torch.cat(parts)


def conditional_mean(activation: Tensor, told: Tensor, values: Tensor, covariance: Tensor) -> Tensor:
    """Gaussian variables ``[N, K]`` after some of them are known.

    Args:
        activation: means ``[N, K]``.
        told: which variables ``[N, K]`` (bool) are known.
        values: values ``[N, K]`` of the known ones; the others are not read.
        covariance: covariance ``[K, K]``, positive semi-definite; or one for every row ``[N or 1, K, K]``.

    Returns:
        Exactly the new values for the activations that are set, the conditional mean for the others.
    """
    covariance = covariance.to(activation.device, torch.float64)
    covariance = covariance.expand(len(told), *covariance.shape[-2:])
    jitter = 1e-9 * covariance.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-30) if len(told) else 0.0
    most = int(told.sum(dim=1).max()) if len(told) else 0
    if not most:
        return activation.clone()
    parts = []
    rows = max(1, NUMBERS_AT_ONCE // (most * most + most * activation.shape[1]))
    for a, known, value, own in zip(
        activation.split(rows), told.split(rows), values.split(rows), covariance.split(rows)
    ):
        row = torch.arange(len(a), device=own.device)[:, None]
        index = known.float().topk(most, dim=1).indices  # told first, then fillers
        real = known.gather(1, index)
        inner = own[row[:, :, None], index[:, :, None], index[:, None, :]]
        inner = inner * (real[:, :, None] & real[:, None, :])
        inner = inner + torch.diag_embed(torch.where(real, jitter, 1.0))
        surprise = torch.where(real, (value - a).double().gather(1, index), 0.0)
        weight = torch.linalg.solve(inner, surprise[..., None])[..., 0]
        moved = (own[row, index] * weight[..., None]).sum(dim=1)
        parts.append(torch.where(known, value, (a + moved).to(a)))
    return torch.cat(parts)
