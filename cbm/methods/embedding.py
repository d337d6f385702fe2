"""Concept embeddings: every concept is a vector that the picture makes.

- ``kind=mix`` (default): MixCEM, Espinosa Zarlenga et al., "Avoiding Leakage Poisoning: Concept Interventions Under
  Distribution Shifts", ICML 2025. A concept has two vectors of its own, present and absent, and the picture adds to
  them where the model is sure.
- ``kind=cem``: CEM, Espinosa Zarlenga et al., "Concept Embedding Models: Beyond the Accuracy-Explainability
  Trade-Off", NeurIPS 2022. Both vectors come from the picture.

``policy_weight`` above 0 also learns what to ask about: IntCEM, Espinosa Zarlenga et al., "Learning to Receive Help:
Intervention-Aware Concept Embedding Models", NeurIPS 2023.

What the class head reads beyond the concepts' probabilities is kept apart (``cbm.layers.embedding``): the names' part
is a bottleneck like any other, the rest its residual.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from cbm.concepts.bank import ConceptBank
from cbm.concepts.own_labels import other_concepts
from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.kernels import feature_moments
from cbm.layers import ConceptBottleneck, ConceptEmbeddings, Embedded, LearnedAsking, LinearHead, Unnamed
from cbm.layers.asking import members
from cbm.layers.embedding import mix
from cbm.losses.asking import ask_and_tell
from cbm.losses.classification import label_loss
from cbm.losses.embedding import drawn_to_tell
from cbm.methods.base import Built, Method, link_of, one_of, register_method, trained
from cbm.methods.concept_labels import concept_labels
from cbm.metrics.evaluate import known_concepts
from cbm.metrics.intervention import told_together

RIDGE = 1e-3  # of the mean variance, where the log-odds are predicted linearly
FIRST_HORIZON, GROWTH, LAST_HORIZON = 2.0, 1.005, 6  # IntCEM: questions in a row at most, and how that grows a step


@dataclass
class EmbeddingConfig:
    """Settings of concept embeddings."""

    kind: str = "mix"
    """mix (MixCEM) | cem (CEM)"""
    labels: str = "auto"
    """Concept labels: truth (the data set's columns) | pseudo (CLIP's opinion) | auto (truth if there is any)"""
    width: int = 16
    """Numbers in a concept's vector"""
    randint: float = 0.25
    """RandInt: chance of a concept to be told while the class head learns"""
    randint_per: str = "sample"
    """Whether it is drawn for every image (sample) or once for a batch (batch, as released)"""
    drop: float = 0.5
    """mix: share of the pictures' parts that are left out in training"""
    prior_weight: float | None = None
    """Factor on the class loss with every known concept told; null: 1 for mix, where only the concepts' own vectors are
    read, and 0 for cem"""
    concept_weight: float = 1.0
    """Factor on the concepts' loss"""
    policy_weight: float = 0.0
    """Factor on the loss of a network that learns what to ask about (IntCEM; .1 to 5 there); 0 is without"""
    told_factor: float = 1.1
    """policy_weight > 0: factor on the class loss after the answers, for every question"""
    shared_scorer: bool = True
    """Whether one scorer reads the vectors of all concepts"""
    temperature: float = 0.5
    """Temperature of pseudo-labels, in standard deviations of a concept's cosine"""
    lr: float = 0.003
    """Learning rate"""
    weight_decay: float = 0.01
    batch_size: int | None = 256
    """Images per step; null is the full batch"""
    patience: int = 20
    """Validations without a lower loss after which training stops"""
    max_epochs: int = 1000


class EmbeddingModel(nn.Module):
    """Concept embeddings and a linear head on all their vectors, in training.

    Args:
        embeddings: K concepts.
        num_classes: number of classes C.
        allowed: which concepts each of several labels may read ``[L, K]`` bool (``other_concepts``); all by default.
        asks: what to ask about next, if that is learned.
    """

    allowed: Tensor | None
    horizon: Tensor

    def __init__(
        self,
        embeddings: ConceptEmbeddings,
        num_classes: int,
        allowed: Tensor | None = None,
        asks: LearnedAsking | None = None,
    ):
        super().__init__()
        self.embeddings = embeddings
        self.asks = asks
        self.register_buffer("horizon", torch.tensor(FIRST_HORIZON))  # questions at most; grows with the steps
        self.head = nn.Linear(embeddings.count * embeddings.width, num_classes)
        self.register_buffer("allowed", allowed)

    def head_weight(self) -> Tensor:
        """Weights ``[C, K, m]`` of the class head."""
        weight = self.head.weight.view(-1, self.embeddings.count, self.embeddings.width)
        return weight if self.allowed is None else weight * self.allowed[..., None]

    def decide(self, vectors: Tensor, p: Tensor) -> Tensor:
        """Logits ``[B, C]`` of vectors ``[B or 1, K, 2, m]`` mixed by probabilities ``[B, K]``."""
        return linear(mix(vectors, p).flatten(1), self.head_weight().flatten(1), self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, D]`` to logits ``[N, C]``, with nothing told."""
        return self.decide(*self.embeddings.read(x))


@register_method("embedding")
class Embedding(Method):
    """Concepts as vectors, from labels; classes from all vectors."""

    Config = EmbeddingConfig
    concepts_from = "labels"
    many_labels = True

    def __init__(self, config: EmbeddingConfig):
        super().__init__(config)
        one_of("method.kind", config.kind, ("mix", "cem"))
        one_of("method.randint_per", config.randint_per, ("sample", "batch"))
        if config.width < 1:
            raise UserError(f"method.width={config.width}: expected 1 or more")
        for name, most in (
            ("randint", 1.0),
            ("drop", 1.0),
            ("prior_weight", None),
            ("concept_weight", None),
            ("policy_weight", None),
        ):
            value = getattr(config, name)
            if value is not None and not 0 <= value <= (math.inf if most is None else most):
                raise UserError(
                    f"method.{name}={value:g}: expected 0 or more" + ("" if most is None else ", 1 at most")
                )

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make untrained embeddings; arguments as for ``Method.build``."""
        bank, config = self.required(bank, "a concept bank"), self.config
        labels = concept_labels(data, bank, config.labels, config.temperature)
        mean, std = feature_moments(data.train.x)
        embeddings = ConceptEmbeddings(
            mean, std.clamp(min=1e-6), len(labels.bank), config.width,
            mixed=config.kind == "mix", shared_scorer=config.shared_scorer, drop=config.drop,
        )  # fmt: skip
        asks = None
        if config.policy_weight:
            _, groups = known_concepts(labels.bank, data.train, data)
            units = told_together(labels.targets["train"], list(groups.values()))
            asks = LearnedAsking(members(units, len(labels.bank)), config.width)
        model = EmbeddingModel(embeddings, len(data.classes), other_concepts(labels.bank, data), asks)
        return Built(model, labels.bank, config.batch_size, labels.targets)

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Cross-entropy of the class with some concepts told, and with all told, plus that of the known concepts.

        Arguments as for ``Method.loss``.
        """
        concepts, config, embeddings = self.required(concepts, "concept labels [B, K]"), self.config, model.embeddings
        made, log_odds = embeddings(x)
        p = log_odds.sigmoid()
        told = drawn_to_tell(concepts, config.randint, per_batch=config.randint_per == "batch")
        kept = (torch.rand_like(p) >= config.drop).to(p) if config.kind == "mix" else None
        vectors = embeddings.vectors(made, p, kept)
        loss = label_loss(model.decide(vectors, torch.where(told, concepts.to(p), p)), y)
        if model.asks is not None:
            loss = self._asked(model, vectors, p, y, concepts, told.to(p), loss)
        loss = loss + self._of_concepts(log_odds, concepts)
        prior = config.prior_weight if config.prior_weight is not None else float(config.kind == "mix")
        if prior:
            vectors = made if embeddings.common is None else embeddings.common[None]
            told = concepts.where(~concepts.isnan(), p.detach())
            loss = loss + prior * label_loss(model.decide(vectors, told.to(p)), y)
        return loss

    def _asked(
        self, model: Any, vectors: Tensor, p: Tensor, y: Tensor, concepts: Tensor, told: Tensor, before: Tensor
    ) -> Tensor:
        """IntCEM: the class loss before and after some questions, and that of the network that asks them.

        (before + delta^T after) / (1 + delta^T) + policy_weight * missed,        T questions, 1 to ``horizon``
        """
        config, weight = self.config, model.head_weight()
        most = min(int(model.horizon), LAST_HORIZON, len(model.asks.member))
        steps = int(torch.randint(1, most + 1, ()))
        model.horizon.mul_(GROWTH).clamp_(max=LAST_HORIZON)
        towards = weight[y] if y.ndim == 1 else torch.einsum("bl,lkm->bkm", (2 * y - 1).nan_to_num(0.0), weight)
        slope = ((vectors[:, :, 0] - vectors[:, :, 1]) * towards).sum(dim=2)
        told, missed = ask_and_tell(
            lambda q, known: model.asks(mix(vectors, q), known), p, concepts, slope, told, model.asks.member, steps
        )
        label = concepts.where(~concepts.isnan(), p)
        after = label_loss(model.decide(vectors, told * label + (1 - told) * p), y)
        more = config.told_factor**steps
        return (before + more * after) / (1 + more) + config.policy_weight * missed

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the class with nothing told plus that of the known concepts, and the class logits.

        Arguments as for ``Method.loss``.
        """
        concepts = self.required(concepts, "concept labels [B, K]")
        made, log_odds = model.embeddings(x)
        p = log_odds.sigmoid()
        logits = model.decide(model.embeddings.vectors(made, p), p)
        return label_loss(logits, y) + self._of_concepts(log_odds, concepts), logits

    def _of_concepts(self, log_odds: Tensor, concepts: Tensor) -> Tensor:
        """Mean cross-entropy of the known concepts, weighted; 0 where a batch knows none."""
        known = ~concepts.isnan()
        if not bool(known.any()):
            return log_odds.sum() * 0.0
        return self.config.concept_weight * binary_cross_entropy_with_logits(log_odds[known], concepts[known])

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(trained(model), lr=self.config.lr, weight_decay=self.config.weight_decay)

    @torch.no_grad()
    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """The names' part as a bottleneck of probabilities, the rest as its residual."""
        embeddings, head = built.model.embeddings, built.model.head
        weight = built.model.head_weight()
        x = data.train.x
        means = torch.zeros(embeddings.count, 2, embeddings.width, dtype=torch.float64)
        mean_mixed, mean_p, odds = torch.zeros_like(means[:, 0]), torch.zeros(embeddings.count, dtype=torch.float64), []
        for part in x.split(embeddings.rows):
            made, log_odds = embeddings(part)
            p = log_odds.sigmoid()
            vectors = embeddings.vectors(made, p)
            mixed = mix(vectors, p)
            means, mean_p = means + vectors.double().sum(dim=0), mean_p + p.double().sum(dim=0)
            mean_mixed = mean_mixed + mixed.double().sum(dim=0)
            odds.append(log_odds)
        means, mean_mixed, mean_p = means / len(x), mean_mixed / len(x), mean_p / len(x)
        wide = weight.double()
        named = torch.einsum("ckm,km->ck", wide, means[:, 0] - means[:, 1])
        absent = torch.einsum("ckm,km->ck", wide, means[:, 1])
        centre = torch.einsum("ckm,km->ck", wide, mean_mixed) - named * mean_p - absent
        bias = head.bias.double() + (absent + centre).sum(dim=1)
        made_of = ConceptBottleneck(
            nearest_directions(x, torch.cat(odds)),
            LinearHead(named.float(), bias.float()),
            activation=Embedded(embeddings, built.model.asks),
            link=link_of(data),
        )
        made_of.residual = Unnamed(embeddings, weight, means.float(), centre.float())
        return made_of.requires_grad_(False).calibrate(x)


def nearest_directions(x: Tensor, odds: Tensor) -> Tensor:
    """Directions ``[K, D]`` whose scores predict log-odds ``[N, K]`` from features ``[N, D]`` best, up to a constant
    (ridge regression in float64)."""
    away, goal = x.double() - x.double().mean(dim=0), odds.double() - odds.double().mean(dim=0)
    outer = away.T @ away
    ridge = RIDGE * outer.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.solve(outer + ridge * torch.eye(len(outer), dtype=torch.float64), away.T @ goal).T.float()
