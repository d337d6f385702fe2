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
    learned     what a network says that was trained to know it (``method=embedding method.policy_weight=1``, IntCEM)

Where concepts are probabilities (``method=supervised``) these are the papers' formulas: p_j is the activation, and the
head reads 0 or 1 for a concept that is told. Elsewhere, where the papers say nothing, it reads the level of "present"
or "absent" (``cbm.editing.apply.told_levels``), and p_j is the logistic curve that is .95 and .05 there.

Concepts with values (``Valued``) are outside the papers. One question tells all values of an attribute, of which the
one that is right becomes 1 and the others 0: its entropy is that of the values over log V, and an expectation is one
over the values. A number is believed to be a_j with the standard deviation r_j = sqrt(1 - spread_j^2), which is what a
regression leaves of a variance of 1 on the training images: its uncertainty is r_j (predictive over prior deviation),
an expectation is the mean over a_j - r_j and a_j + r_j (the quadrature of a normal variable that is exact up to cubes),
its contribution |a_j - reference_j| sum_c |w_cj|, and how wrong it is |a_j - c_j|. The steps of a level are told
together, and their scores are averaged.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.editing.apply import levels, numbers_of
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, Embedded, Unnamed
from cbm.layers.activations import Sigmoid, Valued

LOGITS_AT_ONCE = 2**24  # numbers of the tables images x concepts x classes


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
class Situation:
    """What is known before a question, of N images, K concepts and C classes, in float64.

    Divergences are differences of nearly equal numbers: in float32 the questions would come in another order.

    Attributes:
        model: the bottleneck.
        activation: activations ``[N, K]`` after the answers so far.
        logits: logits ``[N, C]`` after the answers so far.
        believed: the model's probabilities ``[N, K]`` of the concepts; of numbers a half, see ``answers_of``.
        said: what the head reads ``[2, K]`` of an absent and of a present concept.
        truth: true concepts ``[N, K]``; NaN if unknown. Only ``oracle`` looks at it.
        weights: weights of the ``coop`` policy.
        x: features ``[N, D]``: what a concept adds may depend on the picture (``ConceptBottleneck.votes``).
        told: concepts that were told ``[N, K]`` bool.
    """

    model: ConceptBottleneck
    activation: Tensor
    logits: Tensor
    believed: Tensor
    said: Tensor
    truth: Tensor
    weights: CoopWeights
    x: Tensor
    told: Tensor


def most_wrong(now: Situation) -> Tensor:
    """``oracle``."""
    said = now.activation.where(numbers_of(now.model), now.believed)
    return (said - now.truth).abs().nan_to_num(0.0)


def uncertainty(now: Situation) -> Tensor:
    """``ucp``."""
    bits = torch.special.entr(torch.stack([now.believed, 1 - now.believed])).sum(dim=0) / math.log(2)
    for columns in exclusive_columns(now.model):
        among = torch.special.entr(now.believed[:, columns]).sum(dim=1, keepdim=True) / math.log(len(columns))
        bits[:, columns] = among.expand(-1, len(columns))
    return bits.where(~numbers_of(now.model), left_open(now.model).to(bits))


def contribution(now: Situation) -> Tensor:
    """``cctp``."""
    parts = now.x.split(_rows(now)) if isinstance(now.model.residual, Unnamed) else [now.x[:1]]
    votes = torch.cat([now.model.votes(part).abs().sum(dim=2) for part in parts])  # [N or 1, K]
    away = (now.activation - now.model.reference).abs() * votes
    return (now.believed * votes * (now.said[1] - now.said[0])).where(~numbers_of(now.model), away)


def left_open(model: ConceptBottleneck) -> Tensor:
    """What the images leave open of a number, in its standard deviations ``[K]``; read for numbers only."""
    return (1 - model.spread.double().square()).clamp(min=0).sqrt()


def exclusive_columns(model: ConceptBottleneck) -> list[list[int]]:
    """The columns of every attribute whose values exclude each other and have probabilities that sum to one."""
    if not isinstance(model.activation, Valued):
        return []
    group = model.activation.group
    found = [(group == name).nonzero().flatten().tolist() for name in group.unique().tolist() if name >= 0]
    return [columns for columns in found if len(columns) > 1]


def answers_of(now: Situation, activation: Tensor) -> Tensor:
    """What the head may read after the answer ``[2, n, K]``: of absent and present, and of a number its two likely
    values."""
    ends = now.said[:, None].expand(-1, *activation.shape)
    open_ = left_open(now.model).to(activation)
    return ends.where(~numbers_of(now.model), torch.stack([activation - open_, activation + open_]))


def _moves(now: Situation, activation: Tensor, votes: Tensor) -> Tensor:
    """What either answer about a concept adds to the logits ``[2, n, K, C]``."""
    moved = (answers_of(now, activation) - activation)[..., None] * votes
    for columns in exclusive_columns(now.model):  # the answer that one value is right takes the others away
        among = votes[:, columns] if len(votes) > 1 else votes[0, columns]
        moved[1][:, columns] = votes[:, columns] - activation[:, None, columns] @ among
    return moved


def _mean_answer(now: Situation, believed: Tensor, absent: Tensor, present: Tensor) -> Tensor:
    """The mean over the answers about a concept, or about the values of its attribute, ``[n, K, ...]``."""
    likely = believed.reshape(*believed.shape, *[1] * (absent.ndim - 2))
    mean = (1 - likely) * absent + likely * present
    for columns in exclusive_columns(now.model):
        among = (likely[:, columns] * present[:, columns]).sum(dim=1, keepdim=True)
        mean[:, columns] = among.expand_as(mean[:, columns])
    return mean


def divergence(now: Situation) -> Tensor:
    """``ectp``."""

    def measure(before: Tensor, after: Tensor) -> Tensor:
        return (after.exp() * (after - before)).sum(dim=-1)

    return expected(now, measure)


def entropy_decrease(now: Situation) -> Tensor:
    """``eudtp``."""

    def measure(before: Tensor, after: Tensor) -> Tensor:
        return (after.exp() * after).sum(dim=-1) - (before.exp() * before).sum(dim=-1)

    return expected(now, measure)


def cooperative(now: Situation) -> Tensor:
    """``coop``, but for the cost of the question, which belongs to a group and not to a concept."""

    if now.model.many:
        return now.weights.uncertainty * uncertainty(now) + now.weights.influence * _moved_labels(now)

    def measure(before: Tensor, after: Tensor) -> Tensor:
        decided = before.argmax(dim=-1, keepdim=True).expand(*after.shape[:-1], 1)
        return after.gather(-1, decided)[..., 0].exp()

    likely = now.logits.softmax(dim=1).amax(dim=1, keepdim=True)
    influence = (expected(now, measure) - likely).abs()
    return now.weights.uncertainty * uncertainty(now) + now.weights.influence * influence


def learned(now: Situation) -> Tensor:
    """``learned``: every concept has the score of the question that is about it.

    Raises:
        UserError: the model has not learned to ask.
    """
    activation = now.model.activation
    if not isinstance(activation, Embedded) or activation.asks is None:
        raise UserError(
            "policy 'learned': this model has not learned what to ask about; expected one trained with "
            "method=embedding method.policy_weight=1"
        )
    member = activation.asks.member.double()
    score = activation.questions(now.x, now.activation.float(), now.told).double()
    return score @ member / member.sum(dim=0).clamp(min=1)


def policies_for(model: ConceptBottleneck) -> tuple[str, ...]:
    """Names of the policies that a model can be asked by."""
    knows = isinstance(model.activation, Embedded) and model.activation.asks is not None
    return (*POLICIES, LEARNED) if knows else POLICIES


SCORES: dict[str, Callable[[Situation], Tensor]] = {
    "ucp": uncertainty,
    "cctp": contribution,
    "ectp": divergence,
    "eudtp": entropy_decrease,
    "coop": cooperative,
    "oracle": most_wrong,
}
"""Policy to the score ``[N, K]`` of asking about each concept."""
POLICIES = ("random", *SCORES)
"""Policies for every bottleneck."""
LEARNED = "learned"
"""The policy of models that have learned what to ask about."""


def expected(now: Situation, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean over both answers of something about the prediction after the answer, ``[N, K]``.

    Args:
        now: what is known before the question.
        measure: from log-probabilities before ``[n, 1, C]`` and after ``[2, n, K, C]`` to numbers ``[2, n, K]``.
    """
    parts = []
    for p, z, moved in _in_parts(now):
        absent, present = measure(log_chances(now.model, z)[:, None], log_chances(now.model, z[:, None] + moved))
        parts.append(_mean_answer(now, p, absent, present))
    return torch.cat(parts)


def _rows(now: Situation) -> int:
    """Images at a time of tables images x concepts x classes."""
    return max(1, LOGITS_AT_ONCE // (2 * now.activation.shape[1] * now.logits.shape[1]))


def _in_parts(now: Situation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Beliefs, logits, and what either answer adds to the logits, of some images at a time."""
    for x, a, p, z in zip(*(each.split(_rows(now)) for each in (now.x, now.activation, now.believed, now.logits))):
        yield p, z, _moves(now, a, now.model.votes(x).to(a))


def log_chances(model: ConceptBottleneck, logits: Tensor) -> Tensor:
    """Log-probabilities of classes ``[..., C]``; of labels those of there and of not there ``[..., 2L]``, so that a sum
    over them is the sum over the labels of what is said of each."""
    if not model.many:
        return logits.log_softmax(dim=-1)
    return torch.cat([torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)], dim=-1)


def _moved_labels(now: Situation) -> Tensor:
    """How far the answer is expected to move the labels' probabilities, summed over them, ``[N, K]``."""
    parts = []
    for p, z, moved in _in_parts(now):
        absent, present = (z[:, None] + moved).sigmoid()  # [n, K, L] each
        mean = _mean_answer(now, p, absent, present)
        parts.append((mean - z.sigmoid()[:, None]).abs().sum(dim=-1))
    return torch.cat(parts)


def beliefs(model: ConceptBottleneck, activation: Tensor) -> Tensor:
    """The model's probability of every concept ``[N, K]``.

    The activation itself where it is a probability; elsewhere .05 at the level of absent and .95 at that of present.

    Args:
        model: the bottleneck.
        activation: activations ``[N, K]``.
    """
    if isinstance(model.activation, Valued):  # a number is neither there nor not there
        return activation.where(~model.activation.number, 0.5)
    if isinstance(model.activation, Sigmoid):
        return activation
    ends = levels(model)
    middle, half = ends.mean(dim=0), ((ends[1] - ends[0]) / 2).clamp(min=1e-12)
    return torch.sigmoid(math.log(19) * (activation - middle) / half)
