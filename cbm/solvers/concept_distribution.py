"""Which concepts go together, and with which class: conditional probabilities of concept vectors and classes.

Xu et al., "Energy-Based Concept Bottleneck Models", ICLR 2024, propositions 3.2 to 3.5. Every question is a weighted
mean over concept vectors; the functions differ in where the vectors and weights come from:

- ``from_joint``: h(c, y) ~ exp(-E(c, y)), what the global energy has learned. Means something only if the energy was
  trained on concepts and class together.
- ``from_pictures``: J(c, y) = w(y | c) mean_x r(c | x), the paper's mixture over images.
- ``from_labels``: the counts in labelled images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.solvers.concept_blocks import NEVER
from cbm.solvers.energy import ENUMERABLE, JointEnergy, draw_states, gibbs_sweeps


@dataclass(frozen=True)
class ConceptDistribution:
    """Concept vectors with a weight for every class.

    Attributes:
        vectors: concept vectors of 0 and 1: ``[U, K]``, shared by the classes, or ``[M, U, K]``, separate for each.
        weights: joint weights ``[M, U]`` of class and vector, which sum to one.
    """

    vectors: Tensor
    weights: Tensor

    def class_probability(self) -> Tensor:
        """p(y), ``[M]``."""
        return self.weights.sum(1)

    def concept_given_class(self) -> Tensor:
        """p(c_k = 1 | y), ``[M, K]``; proposition 3.2, the marginal importance. NaN for a class without weight."""
        weights = self.weights / self.weights.sum(1, keepdim=True)
        if self.vectors.ndim == 2:
            return weights @ self.vectors
        return torch.einsum("mu,muk->mk", weights, self.vectors)

    def concept_probability(self) -> Tensor:
        """p(c_k = 1), ``[K]``."""
        return self.class_probability() @ self.concept_given_class().nan_to_num(0.0)

    def lift(self) -> Tensor:
        """log p(c_k | y) / p(c_k), ``[M, K]``: 0 if a concept is as frequent in the class as elsewhere."""
        return self.concept_given_class().log() - self.concept_probability().log()

    def pairs_given_class(self, label: int) -> Tensor:
        """p(c_j = 1 | c_i = 1, y), ``[K, K]`` with i the row; proposition 3.4. A row is NaN where c_i never occurs."""
        return self._conditional(self.vectors if self.vectors.ndim == 2 else self.vectors[label], self.weights[label])

    def pairs(self) -> Tensor:
        """p(c_j = 1 | c_i = 1), ``[K, K]`` with i the row; proposition 3.5."""
        if self.vectors.ndim == 2:
            return self._conditional(self.vectors, self.weights.sum(0))
        return self._conditional(self.vectors.flatten(0, 1), self.weights.flatten())

    def pair_lift(self) -> Tensor:
        """log p(c_j | c_i) / p(c_j), ``[K, K]``."""
        return self.pairs().log() - self.concept_probability().log()

    def vectors_given_class(self, label: int, top: int = 5) -> tuple[Tensor, Tensor]:
        """The most probable concept vectors of a class ``[top, K]`` and p(c | y) ``[top]``; proposition 3.3."""
        vectors = self.vectors if self.vectors.ndim == 2 else self.vectors[label]
        distinct, index = vectors.unique(dim=0, return_inverse=True)
        share = self.weights[label] / self.weights[label].sum()
        total = torch.zeros(len(distinct), dtype=share.dtype).index_add_(0, index, share)
        best = total.topk(min(top, len(total)))
        return distinct[best.indices], best.values

    @staticmethod
    def _conditional(vectors: Tensor, weights: Tensor) -> Tensor:
        both = vectors.T @ (weights[:, None] * vectors)
        return both / both.diagonal()[:, None]


@torch.no_grad()
def from_joint(
    joint: JointEnergy, *, samples: int = 2000, generator: torch.Generator | None = None, enumerable: int = ENUMERABLE
) -> ConceptDistribution:
    """h(c, y): exact if there are at most ``enumerable`` concept vectors, else by Gibbs sampling within each class.

    With sampling, every class has the weight 1/M, because the samples do not show how probable a class is.

    Args:
        joint: global energy E, trained on concepts and class together.
        samples: number of samples per class, from 40 chains.
        generator: random number generator; by default one with seed 0.
        enumerable: largest number of concept vectors that are enumerated.
    """
    blocks, count = joint.blocks, len(joint.classes)
    if blocks.size <= enumerable:
        vectors = blocks.all_vectors()
        score = -joint(vectors).T  # [M, U]
        return ConceptDistribution(vectors, score.flatten().softmax(0).view_as(score))
    chains, skipped = 40, 20
    only = torch.full((count, count), NEVER).fill_diagonal_(0.0)
    free = torch.zeros(count, *blocks.values.shape).masked_fill(~blocks.allowed, NEVER)
    sweeps = gibbs_sweeps(
        only,
        free,
        joint,
        chains=chains,
        sweeps=skipped + -(-samples // chains),
        generator=generator or torch.Generator().manual_seed(0),
    )
    kept = [blocks.concepts(states.clone()) for number, (states, _, _) in enumerate(sweeps) if number >= skipped]
    vectors = torch.cat(kept, dim=1)  # [M, U, K]
    return ConceptDistribution(vectors, torch.full(vectors.shape[:2], 1 / vectors.shape[:2].numel()))


@torch.no_grad()
def from_pictures(
    concept_logit: Tensor, joint: JointEnergy, *, samples: int = 16, generator: torch.Generator | None = None
) -> ConceptDistribution:
    """J(c, y): concept vectors drawn for every image by its own evidence, classes by the energy.

    Args:
        concept_logit: log-odds l ``[N, K]`` of the concepts.
        joint: global energy E.
        samples: number of samples per image.
        generator: random number generator; by default one with seed 0.
    """
    blocks = joint.blocks
    logits = blocks.of_values(concept_logit).masked_fill(~blocks.allowed, NEVER)
    uniform = torch.rand(
        len(logits), samples, len(blocks.values), generator=generator or torch.Generator().manual_seed(0)
    )
    states = draw_states(logits.softmax(-1)[:, None], uniform)
    vectors = blocks.concepts(states).flatten(0, 1)
    weights = torch.cat([(-joint(part)).softmax(1) for part in vectors.split(65536)]) / len(vectors)
    return ConceptDistribution(vectors, weights.T)


def from_labels(concepts: Tensor, labels: Tensor, num_classes: int) -> ConceptDistribution:
    """Frequencies in labelled images.

    Args:
        concepts: concept labels ``[N, K]``, 0 or 1, all known.
        labels: class indices ``[N]``.
        num_classes: number of classes M.
    """
    weights = torch.nn.functional.one_hot(labels, num_classes).T.float() / len(labels)
    return ConceptDistribution(concepts.float(), weights)
