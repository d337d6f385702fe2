"""Which concept to ask a person about next: acquisition policies for interventions.

Shin et al., "A Closer Look at the Intervention Procedure of Concept Bottleneck Models" (ICML 2023), and Chauhan et al.,
"Interactive Concept Bottleneck Models" (AAAI 2023). One question is about a group of concepts; of all groups that were
not asked about yet the one with the highest score comes next, and all are scored again after each answer.

    random      a random order for each image
    ucp         most uncertain: entropy of the concept, in bits
    cctp        largest contribution: p_j sum_c |w_cj|, times the distance between absent and present
    ectp        expected change of the prediction: sum_v P(c_j = v) KL(y | c_j = v  ||  y)
    eudtp       expected decrease of its uncertainty: H(y) - sum_v P(c_j = v) H(y | c_j = v)
    coop        w_u entropy + w_i |E_v P(yhat | c_j = v) - P(yhat)| - w_c cost
    oracle      the concept that is most wrong: |p_j - c_j|; it needs the answer, so it is only an upper bound

Where concepts are probabilities, the head reads 0 or 1 for a concept that is told; elsewhere it reads the level of
"present" or "absent" (``cbm.editing.apply.told_levels``). The model's probability of a concept is the logistic curve
that is .95 and .05 at the levels of an edit (``levels``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cbm.editing.apply import levels, told_levels
from cbm.editing.asking.propagation import propagate, to_activations, to_logits
from cbm.errors import UserError, did_you_mean
from cbm.kernels import override_logits
from cbm.layers import ConceptBottleneck

Policy = Literal["random", "ucp", "cctp", "ectp", "eudtp", "coop", "oracle"]
POLICIES: tuple[str, ...] = get_args(Policy)
Answers = Callable[[Tensor], Tensor]
LOGITS_AT_ONCE = 2**24  # numbers of the tables pictures x concepts x classes


@dataclass(frozen=True)
class CoopWeights:
    """Weights of the ``coop`` policy.

    Attributes:
        uncertainty: weight of the concept's entropy.
        influence: weight of the expected change of the prediction.
        cost: weight of the cost of the question.
    """

    uncertainty: float = 1.0
    influence: float = 1.0
    cost: float = 1.0


@dataclass(frozen=True)
class QuestionCurve:
    """Accuracy and cost after each question.

    Attributes:
        accuracy: class accuracy ``[Q + 1]`` after 0, 1, ..., Q questions per image.
        cost: mean cost ``[Q + 1]`` of the questions so far.
        asked: number ``[N, Q]`` of the group that each question was about; -1 if no group was left.
    """

    accuracy: Tensor
    cost: Tensor
    asked: Tensor

    @property
    def area(self) -> float:
        """Mean accuracy over the questions (trapezoid rule)."""
        return float(torch.trapezoid(self.accuracy) / max(len(self.accuracy) - 1, 1))


@torch.no_grad()
def ask_in_turn(
    model: ConceptBottleneck,
    x: Tensor,
    y: Tensor,
    answers: Tensor | Answers,
    units: Sequence[Sequence[int]],
    policy: Policy | str,
    *,
    covariance: Tensor | None = None,
    truth: Tensor | None = None,
    questions: int | None = None,
    costs: Tensor | None = None,
    weights: CoopWeights = CoopWeights(),
    seed: int = 0,
) -> QuestionCurve:
    """Ask about one group of concepts after the other, in an order of its own for every image.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        y: class indices ``[N]``.
        answers: answers ``[N, K]``: 1, 0, or NaN if nobody knows (then the activation stays); or a function from the
            questions ``[N, K]`` (bool) to answers of that shape.
        units: groups of columns that one question is about.
        policy: name of the policy, see above.
        covariance: covariance ``[K, K]`` of the logits (``to_logits``), with which concepts that were not asked about
            move to their conditional mean (``cbm.editing.asking.propagation``); None leaves them as they are.
        truth: true concepts ``[N, K]`` for ``oracle``; the answers by default.
        questions: number of questions per image; all groups by default.
        costs: cost ``[U]`` of a question about every group; 1 by default.
        weights: weights of the ``coop`` policy.
        seed: random seed for the ``random`` policy.

    Raises:
        UserError: an unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"unknown policy '{policy}': {did_you_mean(policy, POLICIES)}")
    questions = len(units) if questions is None else min(questions, len(units))
    costs = torch.ones(len(units)) if costs is None else costs.float()
    count = len(model.concepts)
    member = torch.zeros(len(units), count)
    for number, unit in enumerate(units):
        member[number, list(unit)] = 1.0
    ends, said = levels(model), told_levels(model)
    chance = torch.rand(len(x), len(units), generator=torch.Generator().manual_seed(seed))
    activation = seen = model.activations(x)
    own = None if covariance is None else to_logits(model, seen)
    columns = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(list(unit)) for unit in units], batch_first=True, padding_value=-1
    )
    right, spent, asked = [], [torch.zeros(len(x))], torch.full((len(x), questions), -1)
    votes, logits = model.weights().T.contiguous(), model(x)
    passed = logits - torch.nn.functional.linear(activation, model.weights())  # bias, residual
    given = torch.full((len(x), count), math.nan) if callable(answers) else answers
    open_units = (
        torch.full(given.shape, True) if callable(answers) else ~given.isnan()
    ).float() @ member.T > 0  # [N, U]
    told = torch.full(given.shape, False)
    for step in range(questions + 1):
        right.append((logits.argmax(dim=1) == y).double().mean())
        if step == questions:
            break
        if policy == "random":
            score = chance
        else:
            believed = _believed(activation, ends)
            per_concept = _scores(policy, model, activation, believed, logits, said, truth, given, weights)
            score = per_concept @ member.T / member.sum(dim=1)
            score = score - weights.cost * costs if policy == "coop" else score
        best = score.masked_fill(~open_units, -torch.inf).argmax(dim=1)
        asking = open_units.any(dim=1)
        asked[:, step] = best.where(asking, -1)
        now = (member[best] > 0) & asking[:, None]
        given = torch.where(now, answers(now), given) if callable(answers) else given
        told = told | (now & ~given.isnan())
        values = torch.where(given > 0.5, said[1], said[0])
        if covariance is None or own is None:
            asked_now = columns[best].where(now.gather(1, columns[best].clamp(min=0)), -1)
            moved = torch.where(told, values, seen)
            change = (moved - activation).gather(1, asked_now.clamp(min=0))
            activation, logits = moved, override_logits(logits, asked_now, change, votes)
        else:
            followed = to_activations(model, propagate(own, told, given, covariance))
            activation = torch.where(told, values, followed)
            logits = torch.nn.functional.linear(activation, model.weights()) + passed
        open_units[torch.arange(len(x)), best] = False
        spent.append(spent[-1] + costs[best] * asking)
    return QuestionCurve(torch.stack(right), torch.stack(spent).mean(dim=1), asked)


def _believed(activation: Tensor, ends: Tensor) -> Tensor:
    """Probability of every concept ``[N, K]``: .05 at the level of absent, .95 at that of present."""
    middle, half = ends.mean(dim=0), ((ends[1] - ends[0]) / 2).clamp(min=1e-12)
    return torch.sigmoid(math.log(19) * (activation - middle) / half)


def _scores(
    policy: str, model: ConceptBottleneck, activation: Tensor, believed: Tensor, logits: Tensor, said: Tensor,
    truth: Tensor | None, answers: Tensor, weights: CoopWeights,
) -> Tensor:  # fmt: skip
    """How much every concept ``[N, K]`` is worth asking about."""
    if policy == "oracle":
        return (believed - (answers if truth is None else truth)).abs().nan_to_num(0.0)
    entropy = torch.special.entr(torch.stack([believed, 1 - believed])).sum(dim=0) / math.log(2)
    if policy == "ucp":
        return entropy
    matrix = model.weights()
    if policy == "cctp":
        return believed * matrix.abs().sum(dim=0) * (said[1] - said[0])
    rows = max(1, LOGITS_AT_ONCE // (2 * matrix.numel()))
    parts = []
    for a, p, z in zip(activation.split(rows), believed.split(rows), logits.split(rows)):
        moved = (said[:, None] - a)[..., None] * matrix.T  # [2, n, K, C]
        log_after = (z[:, None] + moved).log_softmax(dim=-1)
        after, log_now = log_after.exp(), z.log_softmax(dim=-1)[:, None]
        if policy == "ectp":
            by_answer = (after * (log_after - log_now)).sum(dim=-1)
        elif policy == "eudtp":
            now = -(log_now.exp() * log_now).sum(dim=-1)
            by_answer = now + (after * log_after).sum(dim=-1)
        else:
            chosen = z.argmax(dim=1)[None, :, None, None].expand(2, -1, a.shape[1], 1)
            by_answer = after.gather(-1, chosen)[..., 0]
        expected = (1 - p) * by_answer[0] + p * by_answer[1]
        if policy == "coop":
            expected = (expected - z.softmax(dim=-1).amax(dim=1, keepdim=True)).abs()
        parts.append(expected)
    found = torch.cat(parts)
    return weights.uncertainty * entropy + weights.influence * found if policy == "coop" else found
