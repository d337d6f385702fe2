"""Does a model use a concept? Decisions that change when it is held, against random directions of the same spread.

A concept is held at its mean: logits lose ``w_k (a_k - mean a_k)``, exactly, since a head is linear in it. A phrase
that is in no bank is a direction t of the features, and is held through the class vectors ``Z = W T`` of a bottleneck
without activation: logits lose ``Z t  t . (x - mean x)`` for unit t. Some decisions change whatever is held, so the
share is compared with that of random directions r, of length one in the activations per standard deviation, whose
spread is that of a concept on average: ``W r  r . a``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cbm.layers import ConceptBottleneck

FLIPS = 0.005
"""Share of decisions that must change before a concept is in use."""
LEVEL = 0.95
"""Share of the random directions that must change fewer."""
DRAWS = 100
ENDS = (0.05, 0.95)
"""Points of the training activations to which a concept is set."""


@dataclass(frozen=True)
class Use:
    """How much decisions depend on a concept.

    Attributes:
        flips: share of the decisions that change when it is held at its mean.
        alike: the same when the concepts that the encoder cannot tell from it are held too; of a phrase that is in no
            bank, ``flips``.
        ends: share that changes when it is set to the 5 % and to the 95 % point of its activations.
        chance: share that ``LEVEL`` of the random directions stay below.
        changed: whether each decision changes, ``[N]`` bool, with what is alike.
    """

    flips: float
    alike: float
    ends: tuple[float, float]
    chance: float
    changed: np.ndarray

    @property
    def in_use(self) -> bool:
        """Whether more decisions change than ``FLIPS`` and than by chance."""
        return self.alike > max(FLIPS, self.chance)


@torch.no_grad()
def concept_use(
    model: ConceptBottleneck, x: Tensor, columns: Sequence[int], classes: Sequence[int], chance: float
) -> Use:
    """How much decisions depend on a concept of the bank.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        columns: the concept first, then those that are like it.
        classes: classes that it is about; it is held in their logits alone. Empty: all.
        chance: ``chance_flips`` of the model on these pictures.
    """
    logits, weights = model.logits(x), model.weights()[:, list(columns)]
    if classes:
        kept = torch.zeros(len(weights), dtype=torch.bool)
        kept[list(classes)] = True
        weights = torch.where(kept[:, None], weights, 0.0)
    a, reference = model.activations(x)[:, list(columns)], model.reference[list(columns)]
    own, both = (_changed(logits, (a - reference)[:, :n] @ weights[:, :n].T) for n in (1, len(columns)))
    ends = [float(_changed(logits, (a[:, :1] - end) @ weights[:, :1].T).mean()) for end in _ends(a[:, 0])]
    return Use(float(own.mean()), float(both.mean()), (ends[0], ends[1]), chance, both)


@torch.no_grad()
def phrase_use(model: ConceptBottleneck, x: Tensor, direction: Tensor, classes: Sequence[int], chance: float) -> Use:
    """How much decisions depend on a phrase that is in no bank, through the class vectors.

    Args:
        model: a bottleneck without activation.
        x: unit-norm features ``[N, D]``.
        direction: direction ``[D]`` of the phrase.
        classes: classes that it is about, as for ``concept_use``.
        chance: ``chance_flips`` of the model on these pictures.

    Raises:
        ValueError: the model has an activation, so that it has no class vectors.
    """
    if model.activation is not None:
        raise ValueError("the model has an activation: expected a linear bottleneck")
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    pull = model.weights() @ (model.concepts @ unit)
    if classes:
        kept = torch.zeros(len(pull), dtype=torch.bool)
        kept[list(classes)] = True
        pull = torch.where(kept, pull, 0.0)
    score, logits = x @ unit, model.logits(x)
    changed = _changed(logits, (score - score.mean())[:, None] * pull)
    ends = [float(_changed(logits, (score - end)[:, None] * pull).mean()) for end in _ends(score)]
    return Use(float(changed.mean()), float(changed.mean()), (ends[0], ends[1]), chance, changed)


@torch.no_grad()
def chance_flips(model: ConceptBottleneck, x: Tensor, *, seed: int = 0, draws: int = DRAWS) -> float:
    """Share of decisions that ``LEVEL`` of the random directions do not change when they are held.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        seed: random seed for the directions.
        draws: number of directions.
    """
    shares = [float(each.mean()) for each in random_changes(model, x, seed=seed, draws=draws)]
    return float(np.quantile(shares, LEVEL))


@torch.no_grad()
def random_changes(model: ConceptBottleneck, x: Tensor, *, seed: int, draws: int) -> list[np.ndarray]:
    """Which decisions ``[N]`` bool change when a random direction is held, for several."""
    logits, importance = model.logits(x), model.importance()
    spread = torch.where(model.spread > 0, model.spread, 1.0)
    levels = (model.activations(x) - model.reference) / spread
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.nn.functional.normalize(torch.randn(draws, len(spread), generator=generator), dim=1)
    return [_changed(logits, (levels @ r)[:, None] * (importance @ r)) for r in drawn]


def _changed(logits: Tensor, lost: Tensor) -> np.ndarray:
    """Whether each decision changes, ``[N]`` bool, when the logits ``[N, C]`` lose something."""
    return ((logits - lost).argmax(dim=1) != logits.argmax(dim=1)).numpy()


def _ends(values: Tensor) -> list[float]:
    return torch.quantile(values.double(), torch.tensor(ENDS, dtype=torch.float64)).tolist()
