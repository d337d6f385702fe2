"""Stochastic bottlenecks: a supervised bottleneck that also learns which concepts go together, for corrections.

Vandenhirtz, Laguna, Marcinkevics, Vogt, "Stochastic Concept Bottleneck Models", NeurIPS 2024, model the concepts'
logits as Gaussian with a learned covariance, so that a concept that is told moves the others. Yes-or-no labels hold
little about such a covariance, and learning it changes the probabilities. Here (``covariance=copula``) the
bottleneck is that of ``method=supervised``, unchanged, and a Gaussian copula is put on its probabilities
(``cbm.solvers.copula``):

    c_k = 1[e_k < Phi^-1(p_k)],   e ~ N(0, R),   R from the labels and out-of-fold probabilities of training pictures

Nothing is different until somebody answers; then ``cbm intervene --propagate`` gives the head P(c_j = 1 | answers).

``covariance=global`` and ``covariance=amortised`` are the published models (``fidelity=paper``): eta ~ N(mu(x), L L^T)
with one L or one for every picture, trained through samples (``cbm.losses.stochastic``). ``mu = m(x) sqrt(1 + pi
Sigma_kk / 8)`` with a linear m, so that P(c_k = 1) is sigmoid(m_k) and the saved model a bottleneck like any other.
``frozen`` learns the covariance for the probabilities of the supervised bottleneck as they are (PSCBM, 2510.08219).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, spaced
from cbm.editing.asking.propagation import follow_covariance
from cbm.errors import UserError
from cbm.files.names import quoted
from cbm.layers import ConceptCovariance
from cbm.layers.covariance import stretch
from cbm.losses.stochastic import (
    precision_penalty,
    relaxed_bernoulli,
    sampled_concept_loss,
    sampled_label_loss,
    sampled_logits,
)
from cbm.methods.base import Built, one_of, register_method
from cbm.methods.concept_layer import out_of_fold
from cbm.methods.supervised import Supervised, SupervisedConfig
from cbm.solvers import fit_correlation, told_probabilities

log = logging.getLogger(__name__)

Follow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ROWS = 20_000
"""Training pictures, at most, that the correlation is estimated from: K (K - 1) / 2 problems each pass over them."""
FIRST = 0.01
"""Standard deviation, over pictures, of the first entries of an amortised covariance."""
STRONG = 0.1
"""Size of a correlation from which on it is counted."""
TOLD = 50
"""Concepts that are told to measure what that is worth."""


@dataclass
class StochasticConfig(SupervisedConfig):
    """Settings of stochastic bottlenecks."""

    labels: str = "truth"
    """Concept labels: truth (the data set's columns)"""
    covariance: str = "copula"
    """copula (ours, on probabilities) | global (a learned covariance of logits) | amortised (one for every picture)"""
    frozen: bool = False
    """global, amortised: whether the covariance is learned for given probabilities, those of method=supervised"""
    samples: int = 100
    """global, amortised: samples of the logits per picture in training"""
    precision_weight: float = 0.0
    """global, amortised: factor on the off-diagonal of the inverse covariance (1 as released)"""
    folds: int = 5
    """Folds of the training pictures: whose concepts are predicted by the others"""


@register_method("stochastic")
class Stochastic(Supervised):
    """Concepts from labels, classes from concepts, and what one concept says about the others."""

    Config = StochasticConfig

    def __init__(self, config: StochasticConfig):
        super().__init__(config)
        if config.labels == "pseudo":
            raise UserError(
                "method.labels=pseudo: CLIP's opinion is a function of the picture, so that one concept says nothing "
                "more about another: method=stochastic needs labels of the data set (method.labels=truth)"
            )
        one_of("method.labels", config.labels, ("truth",))
        one_of("method.covariance", config.covariance, ("copula", "global", "amortised"))
        if config.samples < 1:
            raise UserError(f"method.samples={config.samples}: expected 1 or more")
        if not config.precision_weight >= 0:
            raise UserError(f"method.precision_weight={config.precision_weight:g}: expected 0 or more")
        if config.folds < 2:
            raise UserError(f"method.folds={config.folds}: expected 2 or more")

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make two untrained heads; arguments as for ``Method.build``."""
        if data.train.concepts is None:
            raise UserError(
                "method=stochastic learns from concept labels of the data set, and it has none: method=supervised with "
                "method.labels=pseudo asks CLIP"
            )
        built, config = super().build(data, bank, logit_scale), self.config
        if config.covariance == "copula":
            return built
        if not built.model.layout.plain:
            raise UserError(
                f"method.covariance={config.covariance}: expected concepts that are a yes or no of their own; "
                "method.covariance=copula takes numbers and values that exclude each other"
            )
        count, dim = built.model.concept.weight.shape
        entries = count * (count + 1) // 2
        weight = torch.randn(entries, dim) * FIRST / dim**0.5 if config.covariance == "amortised" else None
        built.model.covariance = ConceptCovariance(torch.zeros(entries), weight)
        steps = config.max_epochs * math.ceil(len(data.train) / (config.batch_size or len(data.train)))
        built.model.register_buffer("cooling", torch.tensor([0.0, float(steps)]))  # steps done, of so many
        return built

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """The losses on samples of the logits, and the penalty; arguments as for ``Method.loss``."""
        config = self.config
        if config.covariance == "copula":
            return super().loss(model, x, y, concepts)
        concepts = self.required(concepts, "concept labels [B, K]")
        logits = model.concept_logits(x)
        factor = model.covariance.factor((x - model.mean) / model.std)
        wide = stretch(factor.square().sum(dim=2))
        eta = sampled_logits((logits.detach() if config.frozen else logits) * wide, factor, config.samples)
        loss = config.concept_weight * sampled_concept_loss(eta, concepts)
        if config.precision_weight:
            loss = loss + config.precision_weight * precision_penalty(factor)
        if config.frozen:
            return loss + super().loss(model, x, y, concepts)
        if model.training:
            model.cooling[0] += 1
        temperature = 0.5 ** float(model.cooling[0] / model.cooling[1])
        drawn = relaxed_bernoulli(eta, temperature)
        if config.training != "joint":
            drawn = drawn.detach()
        if config.training == "independent":
            drawn = concepts.where(~concepts.isnan(), drawn)
        return loss + sampled_label_loss(model.classify(drawn), y)

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same loss with fixed random numbers, and the class logits from probabilities.

        Arguments as for ``Method.loss``.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.loss(model, x, y, concepts), model(x)

    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """The supervised bottleneck with the correlation or the covariance of its concepts."""
        model: Any = super().finish(built, data)
        if self.config.covariance != "copula":
            model.covariance = _on_features(built.model)
            x = data.val.x
            self._say_gain(
                model.activations(x),
                built.targets["val"],
                lambda rows, p, told, answers: follow_covariance(p, told, answers, model, x[rows]),
                data.seed,
            )
            return model
        layout, bank = built.model.layout, built.bank
        assert isinstance(bank, ConceptBank)
        numbers = set(layout.numbers)
        binary = torch.tensor([k for k in range(len(bank)) if k not in numbers], dtype=torch.long)
        correlation = torch.eye(len(bank), dtype=torch.float64)
        if len(binary) > 1:
            labels = {name: c[:, binary] for name, c in built.targets.items()}
            p = out_of_fold(data, labels, self.config.folds)
            apart = torch.zeros(len(bank), len(bank), dtype=torch.bool)
            for columns in (*layout.exclusive, *layout.ordered):
                apart[torch.tensor(columns)[:, None], torch.tensor(columns)] = True
            apart = apart[binary][:, binary]
            found, few = fit_correlation(spaced(p, ROWS), spaced(labels["train"], ROWS), apart)
            correlation[binary[:, None], binary] = found
            self._say(found, few & ~apart, [bank.texts[k] for k in binary.tolist()])
        model.register_buffer("correlation", correlation.float())
        within = correlation[binary][:, binary]
        self._say_gain(
            model.activations(data.val.x)[:, binary],
            built.targets["val"][:, binary],
            lambda rows, p, told, answers: told_probabilities(p, told, answers, within),
            data.seed,
        )
        return model

    def _say_gain(self, p: Tensor, truth: Tensor, follow: Follow, seed: int) -> None:
        """What being told is worth on validation pictures; arguments as for ``told_gain``."""
        self.facts["told_gain"] = told_gain(p, truth, follow, seed)
        log.info("telling one concept lowers the log loss of the others by %.4f nats on validation pictures",
                 self.facts["told_gain"])  # fmt: skip

    def _say(self, correlation: Tensor, few: Tensor, texts: list[str]) -> None:
        """Which concepts go together, and of which pairs nothing can be said."""
        above = torch.triu(torch.ones_like(few), diagonal=1)
        size = correlation.abs() * above
        first = size.flatten().topk(min(3, int(above.sum()))).indices.tolist()
        pairs = [(place // len(texts), place % len(texts)) for place in first]
        said = ", ".join(f"'{texts[i]}' and '{texts[j]}' {float(correlation[i, j]):+.2f}" for i, j in pairs)
        self.facts |= {
            "correlated_pairs": float((size > STRONG).sum()) / float(above.sum()),
            "pairs_too_few": float((few & above).sum()) / float(above.sum()),
        }
        log.info("correlation: %.1f %% of the pairs beyond %.1f; strongest: %s",
                 100 * self.facts["correlated_pairs"], STRONG, said)  # fmt: skip
        if bool(few.any()):
            lone = [f"{texts[i]} / {texts[j]}" for i, j in (few & above).nonzero().tolist()]
            log.info("correlation: %d pairs are left at 0, for some pair of answers is expected on fewer than five "
                     "pictures: %s", len(lone), quoted(lone))  # fmt: skip


def _on_features(model: Any) -> ConceptCovariance:
    """The covariance of a model in training, read from features that are not standardised."""
    bias, weight = model.covariance.bias.detach(), model.covariance.weight
    if weight is None:
        return ConceptCovariance(bias).requires_grad_(False)
    weight = weight.detach() / model.std
    return ConceptCovariance(bias - weight @ model.mean, weight).requires_grad_(False)


def told_gain(p: Tensor, truth: Tensor, follow: Follow, seed: int) -> float:
    """By how much the mean log loss of concepts falls, in nats, when one of the others is told: each in turn, or 50
    drawn at random; 0 if no picture has two known concepts.

    Args:
        p: probabilities ``[N, K]``.
        truth: labels ``[N, K]``: 1, 0, or NaN if unknown.
        follow: function from some rows ``[N]`` bool, their probabilities, what is told of them (bool) and the answers
            to the probabilities after that, ``[n, K]`` each.
        seed: random seed for the draw.
    """
    p, known = p.double(), ~truth.isnan()
    count = p.shape[1]
    total, number = 0.0, 0
    for k in torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:TOLD].tolist():
        rows = known[:, k]
        asked = known[rows] & (torch.arange(count) != k)
        if not bool(asked.any()):
            continue
        told = torch.zeros_like(asked)
        told[:, k] = True
        after = follow(rows, p[rows], told, truth[rows]).double()
        before, then = (
            binary_cross_entropy(q.clamp(1e-6, 1 - 1e-6)[asked], truth[rows][asked].double(), reduction="sum")
            for q in (p[rows], after)
        )
        total, number = total + float(before - then), number + int(asked.sum())
    return total / number if number else 0.0
