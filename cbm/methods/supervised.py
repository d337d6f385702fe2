"""CBM: Koh et al., "Concept Bottleneck Models", ICML 2020, on frozen features: a logistic head for every concept and a
linear head on their probabilities, both learned from labels. Energy-based bottlenecks are compared with it.

- ``independent``: the class head learns from the true concepts.
- ``sequential``: the class head learns from the predicted probabilities, and does not change the concept heads.
- ``joint``: both heads are trained for the class and for the concepts together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cbm.concepts.bank import ConceptBank
from cbm.concepts.own_labels import other_concepts
from cbm.data.features import FeatureData
from cbm.kernels import feature_moments
from cbm.layers import ConceptBottleneck, LinearHead, Sigmoid, Valued
from cbm.losses.classification import label_loss
from cbm.losses.concepts import ConceptLayout, concept_layout_loss, ordered_heads
from cbm.methods.base import Built, Method, link_of, one_of, register_method, trained
from cbm.methods.concept_labels import valued_labels


@dataclass
class SupervisedConfig:
    """Settings of supervised bottlenecks."""

    training: str = "sequential"
    """How the two heads are trained: independent | sequential | joint"""
    labels: str = "auto"
    """Concept labels: truth (the data set's columns) | pseudo (CLIP's opinion) | auto (truth if there is any)"""
    concept_weight: float = 1.0
    """Factor on the concepts' loss (it matters for joint only: otherwise the two losses are independent)"""
    temperature: float = 0.5
    """Temperature of pseudo-labels, in standard deviations of a concept's cosine"""
    lr: float = 0.003
    """Learning rate"""
    weight_decay: float = 0.01
    batch_size: int | None = 512
    """Images per step; null is the full batch"""
    patience: int = 20
    """Validations without a lower loss after which training stops"""
    max_epochs: int = 1000


class TwoHeads(nn.Module):
    """Features ``[N, D]`` to concept logits ``[N, K]``, and their probabilities to class logits ``[N, C]``."""

    mean: Tensor
    std: Tensor
    allowed: Tensor | None

    def __init__(
        self,
        x: Tensor,
        num_concepts: int,
        num_classes: int,
        layout: ConceptLayout | None = None,
        allowed: Tensor | None = None,
    ):
        super().__init__()
        self.register_buffer("allowed", allowed)
        self.layout = layout or ConceptLayout()
        mean, std = feature_moments(x)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1e-6))
        self.concept, self.head = nn.Linear(x.shape[1], num_concepts), nn.Linear(num_concepts, num_classes)

    def concept_logits(self, x: Tensor) -> Tensor:
        """Concept logits ``[N, K]``; of numbers the predictions."""
        if self.layout.ordered:
            return nn.functional.linear((x - self.mean) / self.std, *self.concept_heads())
        return self.concept((x - self.mean) / self.std)

    def concept_heads(self) -> tuple[Tensor, Tensor]:
        """Weights ``[K, D]`` and biases ``[K]`` of the concepts, on standardised features."""
        return ordered_heads(self.concept.weight, self.concept.bias, self.layout)

    def activation(self, offset: Tensor) -> Sigmoid:
        """From logits plus ``offset`` ``[K]`` to what the class head reads."""
        if self.layout.plain:
            return Sigmoid(offset)
        number, group = torch.zeros(len(offset), dtype=torch.bool), torch.full((len(offset),), -1)
        number[self.layout.numbers] = True
        for name, columns in enumerate(self.layout.exclusive):
            group[columns] = name
        return Valued(offset, number, group)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the class head reads ``[N, K]``, of concept logits."""
        return logits.sigmoid() if self.layout.plain else self.activation(torch.zeros_like(logits[0]))(logits)

    def head_weight(self) -> Tensor:
        """Weights ``[C, K]`` of the class head: 0 where a label's own column is a concept (``other_concepts``)."""
        return self.head.weight if self.allowed is None else self.head.weight * self.allowed

    def classify(self, probabilities: Tensor) -> Tensor:
        """Class logits ``[N, C]`` from what the class head reads ``[N, K]``."""
        return nn.functional.linear(probabilities, self.head_weight(), self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits ``[N, C]``."""
        return self.classify(self.probabilities(self.concept_logits(x)))


@register_method("supervised")
class Supervised(Method):
    """Concepts from labels, classes from concepts."""

    Config = SupervisedConfig
    concepts_from = "labels"
    many_labels = True

    def __init__(self, config: SupervisedConfig):
        super().__init__(config)
        one_of("method.training", config.training, ("independent", "sequential", "joint"))

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make two untrained heads; arguments as for ``Method.build``."""
        bank = self.required(bank, "a concept bank")
        labels = valued_labels(data, bank, self.config.labels, self.config.temperature)
        allowed = other_concepts(labels.bank, data)
        model = TwoHeads(data.train.x, len(labels.bank), len(data.classes), labels.layout, allowed)
        return Built(model, labels.bank, self.config.batch_size, labels.targets)

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Cross-entropy of the class plus the mean cross-entropy of the known concepts.

        Arguments as for ``Method.loss``.
        """
        concepts = self.required(concepts, "concept labels [B, K]")
        logits = model.concept_logits(x)
        probability = model.probabilities(logits)
        if self.config.training != "joint":
            probability = probability.detach()
        if self.config.training == "independent":
            probability = concepts.where(~concepts.isnan(), probability)
        if model.layout.plain:
            known = ~concepts.isnan()
            of_concepts = nn.functional.binary_cross_entropy_with_logits(logits[known], concepts[known])
        else:
            of_concepts = concept_layout_loss(logits, concepts, model.layout)
        return label_loss(model.classify(probability), y) + self.config.concept_weight * of_concepts

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same loss, and the class logits from predicted concepts; arguments as for ``Method.loss``."""
        return self.loss(model, x, y, concepts), model(x)

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(trained(model), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """The two heads as a bottleneck whose activations are probabilities."""
        model = built.model
        weight, bias = model.concept_heads()
        directions = weight / model.std
        offset = directions @ model.mean - bias
        head = LinearHead(model.head_weight().detach(), model.head.bias)
        made = ConceptBottleneck(directions, head, activation=model.activation(offset), link=link_of(data))
        return made.calibrate(data.train.x)
