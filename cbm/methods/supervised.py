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
from cbm.data.features import FeatureData
from cbm.kernels import feature_moments
from cbm.layers import ConceptBottleneck, LinearHead, Sigmoid
from cbm.losses.classification import label_loss
from cbm.methods.base import Built, Method, link_of, one_of, register_method, trained
from cbm.methods.concept_labels import concept_labels


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

    def __init__(self, x: Tensor, num_concepts: int, num_classes: int):
        super().__init__()
        mean, std = feature_moments(x)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1e-6))
        self.concept, self.head = nn.Linear(x.shape[1], num_concepts), nn.Linear(num_concepts, num_classes)

    def concept_logits(self, x: Tensor) -> Tensor:
        """Concept logits ``[N, K]``."""
        return self.concept((x - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits ``[N, C]``."""
        return self.head(self.concept_logits(x).sigmoid())


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
        labels = concept_labels(data, bank, self.config.labels, self.config.temperature)
        model = TwoHeads(data.train.x, len(labels.bank), len(data.classes))
        return Built(model, labels.bank, self.config.batch_size, labels.targets)

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Cross-entropy of the class plus the mean cross-entropy of the known concepts.

        Arguments as for ``Method.loss``.
        """
        concepts = self.required(concepts, "concept labels [B, K]")
        logits = model.concept_logits(x)
        probability = logits.sigmoid()
        if self.config.training != "joint":
            probability = probability.detach()
        if self.config.training == "independent":
            probability = concepts.where(~concepts.isnan(), probability)
        known = ~concepts.isnan()
        of_concepts = nn.functional.binary_cross_entropy_with_logits(logits[known], concepts[known])
        return label_loss(model.head(probability), y) + self.config.concept_weight * of_concepts

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same loss, and the class logits from predicted concepts; arguments as for ``Method.loss``."""
        return self.loss(model, x, y, concepts), model(x)

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(trained(model), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """The two heads as a bottleneck whose activations are probabilities."""
        model = built.model
        directions = model.concept.weight / model.std
        offset = directions @ model.mean - model.concept.bias
        head = LinearHead(model.head.weight, model.head.bias)
        made = ConceptBottleneck(directions, head, activation=Sigmoid(offset), link=link_of(data))
        return made.calibrate(data.train.x)
