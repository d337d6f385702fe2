"""ECBM: Xu et al., "Energy-Based Concept Bottleneck Models", ICLR 2024, on frozen features.

Concepts, class and image are joined by three energies (``cbm.layers.energy``), learned from concept labels. Setting a
concept then updates the other concepts and the class, and the energies say which concepts go together.

``fidelity=repaired`` (default) trains the global energy by the pseudo-likelihood of concepts and class together, and
infers the class from the concepts alone unless ``leaky=true``. ``released`` trains it by p(y | c) only, with every
concept a binary variable of its own, weights the losses and infers as the published code does: then concepts do not
depend on each other, and setting one changes none of the others. While nothing is set the class is also inferred from
the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, spaced
from cbm.kernels import feature_moments
from cbm.layers.energy import EnergyBottleneck, ReleasedEnergyBottleneck
from cbm.losses.energy import complete_states, concept_loss, conditional_loss, disturb, pseudo_likelihood
from cbm.methods.base import Built, Method, one_of, register_method, trained
from cbm.methods.concept_labels import concept_labels
from cbm.solvers.concept_blocks import ConceptBlocks, concept_blocks, exclusive_groups

JOINT_WEIGHTS = (0.1, 0.3, 0.6, 1.0)
CLASS_LEVEL_NOISE = 0.03


@dataclass
class EnergyConfig:
    """Settings of energy-based bottlenecks."""

    fidelity: str = "repaired"
    """repaired | released"""
    labels: str = "auto"
    """Concept labels: truth (the data set's columns) | pseudo (CLIP's opinion) | auto (truth if there is any)"""
    leaky: bool = False
    """Whether the class may also be inferred from the image directly, past the concepts"""
    hidden: int = 64
    """Width of the hidden layers"""
    dropout: float = 0.2
    joint_weight: float | None = None
    """Weight of the global energy at inference; null: chosen on the validation split"""
    noise: float | None = None
    """Share of the concepts that are set to another value to train the global energy; null: 0.03 if all images of a
    class have the same concepts, else 0"""
    temperature: float = 0.5
    """Temperature of pseudo-labels, in standard deviations of a concept's cosine"""
    lr: float = 0.003
    weight_decay: float = 0.01
    batch_size: int | None = 128
    patience: int = 20
    max_epochs: int = 200


@register_method("energy")
class Energy(Method):
    """E(x, c, y) = E_class(x, y) + E_concept(x, c) + E_global(c, y)."""

    Config = EnergyConfig
    concepts_from = "labels"

    def __init__(self, config: EnergyConfig):
        super().__init__(config)
        one_of("method.fidelity", config.fidelity, ("repaired", "released"))
        self.noise = config.noise or 0.0

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make untrained energies; the training labels tell which concepts exclude each other (not to ``released``).

        Arguments as for ``Method.build``.
        """
        bank = self.required(bank, "a concept bank")
        labels = concept_labels(data, bank, self.config.labels, self.config.temperature)
        train = labels.targets["train"]
        released = self.config.fidelity == "released"
        blocks = concept_blocks(len(labels.bank), *exclusive_groups(train, [] if released else labels.groups))
        vectors = None if labels.pseudo else class_vectors(train, data.train.y, len(data.classes), blocks)
        if vectors is not None and self.config.noise is None:
            self.noise = CLASS_LEVEL_NOISE
        mean, std = feature_moments(data.train.x)
        kind = ReleasedEnergyBottleneck if released else EnergyBottleneck
        model = kind(
            data.dim,
            len(data.classes),
            blocks,
            hidden=self.config.hidden,
            dropout=self.config.dropout,
            mean=mean,
            std=std.clamp(min=1e-6),
            vectors=vectors,
        )
        model.class_weight.fill_(float(self.config.leaky))
        return Built(model, labels.bank, self.config.batch_size, labels.targets)

    def loss(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """Losses of the class, of the concepts and of both together; pseudo-labels are drawn anew in every step.

        Arguments as for ``Method.loss``.
        """
        concepts = self.required(concepts, "concept labels [B, K]")
        labels = torch.bernoulli(concepts.nan_to_num(0.0)).where(~concepts.isnan(), concepts)
        logits, blocks = model.concept_logits(x), model.blocks
        of_class = cross_entropy(model.class_scores(x), y)
        of_concepts = concept_loss(logits, labels, blocks) * len(blocks.values)
        states = complete_states(labels, logits, blocks)
        if self.config.fidelity == "released":
            joint = conditional_loss(model.joint(), blocks.concepts(states), y)
            return 3 * of_class + of_concepts + joint
        states = disturb(states, blocks, self.noise) if self.noise else states
        return of_class + of_concepts + pseudo_likelihood(model.joint(), states, y)

    def validate(self, model: Any, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss of 512 images, without dropout and with fixed random numbers, and the directly read logits.

        Arguments as for ``Method.loss``.
        """
        concepts = self.required(concepts, "concept labels [B, K]")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = self.loss(model, *(spaced(tensor, 512) for tensor in (x, y, concepts)))
        return loss, model.infer(x, method="direct").class_probability.log()

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(trained(model), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def finish(self, built: Built, data: FeatureData) -> nn.Module:
        """Choose the weights of the concepts' own evidence and of the global energy on the validation split."""
        model = built.model
        if self.config.fidelity == "released":
            return model
        concepts, fixed = built.targets["val"].round(), self.config.joint_weight
        concepts = model.blocks.without_contradictions(concepts)
        x, y, concepts = (spaced(tensor, 1024) for tensor in (data.val.x, data.val.y, concepts))
        weigh(model, x, y, concepts, JOINT_WEIGHTS if fixed is None else (fixed,))
        self.facts = {name: float(getattr(model, name)) for name in ("concept_weight", "joint_weight")}
        return model


def class_vectors(concepts: Tensor, y: Tensor, num_classes: int, blocks: ConceptBlocks) -> Tensor | None:
    """The concept vectors ``[U, K]`` of the classes, if all images of a class have the same; otherwise None.

    Args:
        concepts: concept labels ``[N, K]``.
        y: class indices ``[N]``.
        num_classes: number of classes.
        blocks: the possible concept vectors.
    """
    first = torch.zeros(num_classes, dtype=torch.long).scatter_(0, y.flip(0), torch.arange(len(y)).flip(0))
    rows = concepts[first]
    if bool(concepts.isnan().any()) or not torch.equal(rows[y], concepts):
        return None
    return blocks.concepts(blocks.states(rows)).unique(dim=0)


def weigh(model: EnergyBottleneck, x: Tensor, y: Tensor, concepts: Tensor, joint_weights: Sequence[float]) -> None:
    """Set the weights that make class and concepts most likely, with none and with a random half of the concepts known.

    The frequency of a concept enters its own evidence and the global energy: together they are too certain unless they
    are weighted. The best weight of the concepts' own evidence alone is found first.

    Args:
        model: the energies, whose ``concept_weight`` and ``joint_weight`` are set.
        x: validation features ``[N, D]``.
        y: class indices ``[N]``.
        concepts: concept labels ``[N, K]``: 1, 0, or NaN if unknown.
        joint_weights: weights of the global energy to choose from.
    """
    logits, blocks = model.concept_logits(x), model.blocks
    factors = torch.logspace(-0.5, 0.5, 21).tolist()
    alone = min(factors, key=lambda factor: float(concept_loss(factor * logits, concepts, blocks)))
    half = torch.rand(concepts.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    nothing = torch.full_like(concepts, float("nan"))

    def likelihood(weights: tuple[float, float]) -> float:
        model.concept_weight.fill_(weights[0])
        model.joint_weight.fill_(weights[1])
        total = 0.0
        for clamp in (nothing, concepts.where(half, nothing)):
            found = model.infer(x, clamp=clamp)
            asked = clamp.isnan() & ~concepts.isnan()
            right = torch.where(concepts == 1, found.concept_probability, 1 - found.concept_probability)
            total += float(right[asked].clamp(min=1e-6).log().sum()) / len(x)
            total += float(found.class_probability.gather(1, y[:, None]).clamp(min=1e-6).log().mean())
        return total

    best = max(product([alone, 0.7 * alone, 0.5 * alone], joint_weights), key=likelihood)
    model.concept_weight.fill_(best[0])
    model.joint_weight.fill_(best[1])
