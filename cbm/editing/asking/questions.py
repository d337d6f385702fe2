"""``ask_in_turn``: accuracy after each question about concepts, by a policy (``cbm.editing.asking.policies``)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.editing.apply import numbers_of, told_levels
from cbm.editing.asking.policies import LEARNED, POLICIES, SCORES, CoopWeights, Situation, beliefs, learned
from cbm.editing.asking.propagation import follow_correlation, follow_covariance, propagate, to_activations, to_logits
from cbm.errors import UserError, did_you_mean
from cbm.kernels import override_logits
from cbm.layers import ConceptBottleneck, Unnamed

Answers = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class QuestionCurve:
    """Accuracy and cost after each question.

    Attributes:
        accuracy: class accuracy ``[Q + 1]`` after 0, 1, ..., Q questions per image; or another ``quality``.
        cost: mean cost ``[Q + 1]`` of the questions so far.
        asked: number ``[N, Q]`` of the group that each question was about; -1 if no group was left.
        measure: what ``accuracy`` holds, where it is another quality (``auroc_macro`` of labels).
    """

    accuracy: Tensor
    cost: Tensor
    asked: Tensor
    measure: str = "accuracy"

    @property
    def area(self) -> float:
        """Mean accuracy over the questions (trapezoid rule)."""
        return float(torch.trapezoid(self.accuracy) / max(len(self.accuracy) - 1, 1))


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the images ``[N]`` whose largest logit is that of their class, 0-d."""
    return (logits.argmax(dim=1) == y).double().mean()


def check_policy(name: str) -> None:
    """Check the name of a policy.

    Raises:
        UserError: there is none of this name.
    """
    if name not in (*POLICIES, LEARNED):
        raise UserError(f"unknown policy '{name}': {did_you_mean(name, (*POLICIES, LEARNED))}")


@torch.no_grad()
def ask_in_turn(
    model: ConceptBottleneck,
    x: Tensor,
    y: Tensor,
    answers: Tensor | Answers,
    units: Sequence[Sequence[int]],
    policy: str,
    *,
    covariance: Tensor | None = None,
    correlated: bool = False,
    truth: Tensor | None = None,
    questions: int | None = None,
    costs: Tensor | None = None,
    weights: CoopWeights | None = None,
    seed: int = 0,
    quality: Callable[[Tensor, Tensor], Tensor] = accuracy,
) -> QuestionCurve:
    """Ask about one group of concepts after the other, in an order of its own for every image.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``, or labels ``[N, L]``.
        answers: answers ``[N, K]``: 1, 0, or NaN if nobody knows (then the activation stays); of a number (``Valued``)
            the number as the head reads it, in standard deviations of the training images; or a function from the
            questions ``[N, K]`` (bool) to answers of that shape.
        units: groups of columns that one question is about.
        policy: name of the policy, see ``cbm.editing.asking.policies``.
        covariance: covariance ``[K, K]`` of the logits (``to_logits``), with which concepts that were not asked about
            move to their conditional mean (``cbm.editing.asking.propagation``); None leaves them as they are.
        correlated: whether they move to their conditional probability by the correlation or covariance that
            the model learned.
        truth: true concepts ``[N, K]`` for ``oracle``; the answers by default.
        questions: number of questions per image; all groups by default.
        costs: cost ``[U]`` of a question about every group; 1 by default.
        weights: weights of the ``coop`` policy; 1 each by default.
        seed: random seed for the ``random`` policy.
        quality: what is measured after each question, from logits and ``y`` to a number.

    Raises:
        UserError: an unknown policy.
    """
    check_policy(policy)
    weights = weights or CoopWeights()
    questions = len(units) if questions is None else min(questions, len(units))
    costs = torch.ones(len(units)) if costs is None else costs.float()
    count = len(model.concepts)
    member = torch.zeros(len(units), count)
    for number, unit in enumerate(units):
        member[number, list(unit)] = 1.0
    said, is_number = told_levels(model), numbers_of(model)
    chance = torch.rand(len(x), len(units), generator=torch.Generator().manual_seed(seed))
    activation = seen = model.activations(x)
    own = None if covariance is None else to_logits(model, seen)
    columns = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(list(unit)) for unit in units], batch_first=True, padding_value=-1
    )
    right, spent, asked = [], [torch.zeros(len(x))], torch.full((len(x), questions), -1)
    votes, logits = model.weights().T.contiguous(), model(x)
    passed = logits - torch.nn.functional.linear(activation, model.weights())  # bias, residual
    by_picture = isinstance(model.residual, Unnamed)  # then what a concept adds depends on the picture

    def decided(activation: Tensor) -> Tensor:
        if by_picture:
            return model.told(x, activation)
        return torch.nn.functional.linear(activation, model.weights()) + passed

    given = torch.full((len(x), count), math.nan) if callable(answers) else answers
    open_units = (
        torch.full(given.shape, True) if callable(answers) else ~given.isnan()
    ).float() @ member.T > 0  # [N, U]
    told = torch.full(given.shape, False)
    for step in range(questions + 1):
        right.append(quality(logits, y))
        if step == questions:
            break
        if policy == "random":
            score = chance
        else:
            exact, known = activation.double(), given if truth is None else truth
            now_known = Situation(
                model, exact, logits.double(), beliefs(model, exact), said.double(), known.double(), weights, x, told
            )
            score = (
                (learned if policy == LEARNED else SCORES[policy])(now_known) @ member.T.double() / member.sum(dim=1)
            )
            score = score - weights.cost * costs if policy == "coop" else score
        best = score.masked_fill(~open_units, -torch.inf).argmax(dim=1)
        asking = open_units.any(dim=1)
        asked[:, step] = best.where(asking, -1)
        now = (member[best] > 0) & asking[:, None]
        given = torch.where(now, answers(now), given) if callable(answers) else given
        told = told | (now & ~given.isnan())
        values = torch.where(given > 0.5, said[1], said[0]).where(~is_number, given)
        if correlated:
            if model.covariance is None:
                followed = follow_correlation(seen, told, given, model, seed)
            else:
                followed = follow_covariance(seen, told, given, model, x)
            activation = torch.where(told, values, followed)
            logits = decided(activation)
        elif covariance is None or own is None:
            asked_now = columns[best].where(now.gather(1, columns[best].clamp(min=0)), -1)
            moved = torch.where(told, values, seen)
            change = (moved - activation).gather(1, asked_now.clamp(min=0))
            logits = decided(moved) if by_picture else override_logits(logits, asked_now, change, votes)
            activation = moved
        else:
            scaled = to_logits(model, given).masked_fill(~is_number, math.nan)
            followed = to_activations(model, propagate(own, told, given, covariance, scaled))
            activation = torch.where(told, values, followed)
            logits = decided(activation)
        open_units[torch.arange(len(x)), best] = False
        spent.append(spent[-1] + costs[best] * asking)
    return QuestionCurve(torch.stack(right), torch.stack(spent).mean(dim=1), asked)
