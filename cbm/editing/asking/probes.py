"""Interventions on black boxes: change the features until a probe finds the concepts that a person sets.

Laguna et al., "Beyond Concept Bottleneck Models: How to Make Black Boxes Intervenable?", NeurIPS 2024. They descend by
gradient; for linear probes q(z) = sigmoid(Q z + b) the nearest such features have a closed form,

    z' = z + Q_I^T (Q_I Q_I^T + rho 1)^-1 (t - Q_I z - b_I),        t = logit(.95) or logit(.05) of the known concepts I

If the probe is more certain than that already, t is the probe's own log-odds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cbm.editing.asking.questions import QuestionCurve, accuracy

CERTAIN = math.log(0.95 / 0.05)
NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class ConceptProbe:
    """Log-odds ``x Q^T + b`` of K concepts.

    Attributes:
        directions: directions Q ``[K, D]``.
        bias: biases b ``[K]``.
        auroc: AUROC ``[K]`` on images that the probe was not fitted to; NaN if they show only one state.
    """

    directions: Tensor
    bias: Tensor
    auroc: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Log-odds ``[N, K]`` of features ``[N, D]``."""
        return x @ self.directions.T + self.bias


def fit_concept_probe(
    x: Tensor, concepts: Tensor, held_x: Tensor, held_concepts: Tensor, *, c: float = 10.0
) -> ConceptProbe:
    """Fit a logistic regression for every concept; for a concept that never varies, the probe is constant.

    Args:
        x: unit-norm features ``[N, D]``.
        concepts: concept labels ``[N, K]``: 1, 0, or NaN if unknown.
        held_x: features ``[M, D]`` of other images, to measure the AUROC.
        held_concepts: concept labels ``[M, K]`` of these images.
        c: inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    directions, biases, scores = [], [], []
    for k in range(concepts.shape[1]):
        known = ~concepts[:, k].isnan()
        target = concepts[known, k].numpy()
        if len(np.unique(target)) < 2:
            directions.append(torch.zeros(x.shape[1]))
            biases.append(CERTAIN if len(target) and target[0] > 0.5 else -CERTAIN)
        else:
            fitted = LogisticRegression(C=c, max_iter=1000).fit(x[known].numpy(), target > 0.5)
            directions.append(torch.from_numpy(fitted.coef_[0]).float())
            biases.append(float(fitted.intercept_[0]))
        seen = ~held_concepts[:, k].isnan()
        truth = held_concepts[seen, k].numpy()
        both = len(np.unique(truth)) == 2
        scores.append(roc_auc_score(truth > 0.5, (held_x[seen] @ directions[-1]).numpy()) if both else math.nan)
    return ConceptProbe(torch.stack(directions), torch.tensor(biases), torch.tensor(scores))


def edit_representation(x: Tensor, probe: ConceptProbe, told: Tensor, *, rho: float = 1e-3) -> Tensor:
    """The nearest features on which the probe is certain of the known concepts.

    Args:
        x: features ``[N, D]``.
        probe: probe of the K concepts.
        told: known concepts ``[N, K]``: 1, 0, or NaN if unknown.
        rho: weight of staying near the features against satisfying the probe: 0 satisfies it exactly, infinity leaves
            the features as they are.
    """
    known = ~told.isnan()
    outer = probe.directions.double() @ probe.directions.double().T
    ridge = rho * outer.diagonal().mean().clamp(min=1e-30)
    wanted = torch.where(told > 0.5, CERTAIN, -CERTAIN)
    parts = []
    for part, mask, goal in zip(*(each.split(max(1, NUMBERS_AT_ONCE // outer.numel())) for each in (x, known, wanted))):
        inner = outer * (mask[:, :, None] & mask[:, None, :]) + torch.diag_embed(torch.where(mask, ridge, 1.0))
        lacking = (goal - probe(part)).double()
        lacking = torch.where(mask & (lacking * goal > 0), lacking, 0.0)
        step = torch.linalg.solve(inner, lacking[..., None])[..., 0] @ probe.directions.double()
        parts.append(torch.where(mask.any(dim=1, keepdim=True), part + step.to(part), part))
    return torch.cat(parts) if parts else x


@torch.no_grad()
def tell_in_turn(
    model: nn.Module,
    probe: ConceptProbe,
    x: Tensor,
    y: Tensor,
    answers: Tensor,
    units: Sequence[Sequence[int]],
    *,
    questions: int | None = None,
    costs: Tensor | None = None,
    seed: int = 0,
    quality: Callable[[Tensor, Tensor], Tensor] = accuracy,
) -> QuestionCurve:
    """Accuracy of a classifier of features as more concepts are set, in a random order for every image.

    Args:
        model: the classifier, from features ``[N, D]`` to logits.
        probe: probe of the K concepts.
        x: features ``[N, D]``.
        y: class indices ``[N]``, or labels ``[N, L]``.
        answers: answers ``[N, K]``: 1, 0, or NaN if nobody knows.
        units: groups of columns that one question is about.
        questions: number of questions per image; all groups by default.
        costs: cost ``[U]`` of a question about every group; 1 by default.
        seed: random seed for the order of the questions.
        quality: what is measured after each question, from logits and ``y`` to a number.
    """
    questions = len(units) if questions is None else min(questions, len(units))
    costs = torch.ones(len(units)) if costs is None else costs.float()
    member = torch.zeros(len(units), answers.shape[1])
    for number, unit in enumerate(units):
        member[number, list(unit)] = 1.0
    order = torch.rand(len(x), len(units), generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :questions]
    right = []
    for step in range(questions + 1):
        told = torch.zeros_like(answers, dtype=torch.bool)
        for column in order[:, :step].T:
            told |= member[column] > 0
        edited = edit_representation(x, probe, torch.where(told, answers, torch.nan))
        right.append(quality(model(edited), y))
    spent = torch.cat([torch.zeros(len(x), 1), costs[order].cumsum(dim=1)], dim=1).mean(dim=0)
    return QuestionCurve(torch.stack(right), spent, order)


@torch.no_grad()
def intervenability(model: nn.Module, x: Tensor, y: Tensor, edited: Tensor) -> float:
    """Mean decrease of the cross-entropy when features are edited (their equation 2).

    Args:
        model: the classifier, from features ``[N, D]`` to logits.
        x: features ``[N, D]`` before the edit.
        y: class indices ``[N]``.
        edited: features ``[N, D]`` after the edit.
    """
    before, after = (nn.functional.cross_entropy(model(each), y) for each in (x, edited))
    return float(before - after)
