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
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck

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
    """What is known before a question, of N images, K concepts and C classes.

    Attributes:
        model: the bottleneck.
        activation: activations ``[N, K]`` after the answers so far.
        logits: logits ``[N, C]`` after the answers so far.
        believed: the model's probabilities ``[N, K]`` of the concepts.
        said: what the head reads ``[2, K]`` of an absent and of a present concept.
        truth: true concepts ``[N, K]``; NaN if unknown. Only ``oracle`` looks at it.
        weights: weights of the ``coop`` policy.
    """

    model: ConceptBottleneck
    activation: Tensor
    logits: Tensor
    believed: Tensor
    said: Tensor
    truth: Tensor
    weights: CoopWeights


def most_wrong(now: Situation) -> Tensor:
    """``oracle``."""
    return (now.believed - now.truth).abs().nan_to_num(0.0)


def uncertainty(now: Situation) -> Tensor:
    """``ucp``."""
    return torch.special.entr(torch.stack([now.believed, 1 - now.believed])).sum(dim=0) / math.log(2)


def contribution(now: Situation) -> Tensor:
    """``cctp``."""
    return now.believed * now.model.weights().abs().sum(dim=0) * (now.said[1] - now.said[0])


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

    def measure(before: Tensor, after: Tensor) -> Tensor:
        decided = before.argmax(dim=-1, keepdim=True).expand(*after.shape[:-1], 1)
        return after.gather(-1, decided)[..., 0].exp()

    likely = now.logits.softmax(dim=1).amax(dim=1, keepdim=True)
    influence = (expected(now, measure) - likely).abs()
    return now.weights.uncertainty * uncertainty(now) + now.weights.influence * influence


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


def expected(now: Situation, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean over both answers of something about the prediction after the answer, ``[N, K]``.

    Args:
        now: what is known before the question.
        measure: from log-probabilities before ``[n, 1, C]`` and after ``[2, n, K, C]`` to numbers ``[2, n, K]``.
    """
    matrix = now.model.weights()
    rows = max(1, LOGITS_AT_ONCE // (2 * matrix.numel()))
    parts = []
    for a, p, z in zip(now.activation.split(rows), now.believed.split(rows), now.logits.split(rows)):
        moved = (now.said[:, None] - a)[..., None] * matrix.T  # [2, n, K, C]
        absent, present = measure(z.log_softmax(dim=-1)[:, None], (z[:, None] + moved).log_softmax(dim=-1))
        parts.append((1 - p) * absent + p * present)
    return torch.cat(parts)


def beliefs(activation: Tensor, ends: Tensor) -> Tensor:
    """Probability of every concept ``[N, K]``: .05 at the level of absent, .95 at that of present."""
    middle, half = ends.mean(dim=0), ((ends[1] - ends[0]) / 2).clamp(min=1e-12)
    return torch.sigmoid(math.log(19) * (activation - middle) / half)
