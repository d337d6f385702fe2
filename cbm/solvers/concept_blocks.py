"""The possible concept vectors: single concepts, and groups of which one is present."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NEVER = -1e4  # a logit whose probability is exactly 0 in float32 and float64, and whose multiples stay finite


@dataclass(frozen=True)
class ConceptBlocks:
    """A partition of K binary concepts into B variables with up to V values each.

    A concept by itself is a variable with the values absent and present. The concepts of an exclusive group (colours of
    a belly) are the values of one variable: a sampler that could only switch one concept at a time would have to go
    through birds with two bellies, or none, to change the colour.

    Attributes:
        count: number of concepts K.
        values: column ``[B, V]`` of the concept that a value switches on, or K for none.
        allowed: which of the values exist, ``[B, V]`` bool.
    """

    count: int
    values: Tensor
    allowed: Tensor

    @cached_property
    def size(self) -> int:
        """Number of possible concept vectors."""
        sizes: list[int] = self.allowed.sum(dim=1).tolist()
        product = 1
        for size in sizes:
            product *= size
        return product

    def excluded_by(self, concept: int) -> list[int]:
        """The other concepts of the variable that ``concept`` is a value of."""
        variable = ((self.values == concept) & self.allowed).any(dim=1)
        values = self.values[variable][self.allowed[variable]].tolist()
        return sorted(k for k in values if k not in (concept, self.count))

    def of_values(self, per_concept: Tensor) -> Tensor:
        """Numbers per concept ``[..., K]`` as numbers per value ``[..., B, V]``; the value "none" gets zero."""
        return torch.cat([per_concept, torch.zeros_like(per_concept[..., :1])], dim=-1)[..., self.values]

    def of_concepts(self, per_value: Tensor) -> Tensor:
        """Numbers per value ``[..., B, V]`` as numbers per concept ``[..., K]``."""
        shape = (*per_value.shape[:-2], self.count + 1)
        index = self.values.flatten().expand(*shape[:-1], -1)
        return per_value.new_zeros(shape).scatter_add(-1, index, (per_value * self.allowed).flatten(-2))[..., :-1]

    def consistent(self, concepts: Tensor) -> Tensor:
        """Which values agree with the known concepts, ``[..., B, V]`` bool.

        Args:
            concepts: known concepts ``[..., K]``: 1 present, 0 absent, NaN unknown.
        """
        present, absent = (concepts == 1).float(), (concepts == 0).float()
        wrong = self.of_values(absent)  # switches on what is known to be absent
        missed = (self.of_values(present) * self.allowed).sum(-1, keepdim=True) - self.of_values(present)
        return (wrong + missed < 0.5) & self.allowed

    def without_contradictions(self, concepts: Tensor) -> Tensor:
        """Labels ``[..., K]`` with NaN for all concepts of a variable of which no value agrees with them."""
        contradicted = ~self.consistent(concepts).any(-1, keepdim=True) & self.allowed
        return concepts.masked_fill(self.of_concepts(contradicted.float()) > 0, float("nan"))

    def states(self, concepts: Tensor) -> Tensor:
        """Complete 0/1 vectors ``[..., K]`` as value numbers ``[..., B]``.

        Raises:
            ValueError: these blocks do not allow one of the vectors.
        """
        fits = self.consistent(concepts)
        if not bool(fits.any(-1).all()):
            block = int((~fits.any(-1)).nonzero()[0, -1])
            raise ValueError(f"a concept vector fits none of the values of {self.describe(block)}")
        return fits.int().argmax(-1)

    def concepts(self, states: Tensor) -> Tensor:
        """Value numbers ``[..., B]`` as 0/1 vectors ``[..., K]`` float32."""
        index = self.values[torch.arange(len(self.values), device=states.device), states]  # [..., B]
        shape = (*index.shape[:-1], self.count + 1)
        return torch.zeros(shape, device=states.device).scatter_(-1, index, 1.0)[..., :-1]

    def describe(self, block: int) -> str:
        """The concepts of a block, for an error message."""
        return "concepts " + ", ".join(
            str(k) for k in self.values[block][self.allowed[block]].tolist() if k < self.count
        )

    def all_vectors(self) -> Tensor:
        """All possible concept vectors, ``[size, K]`` float32."""
        choices = [row[allowed] for row, allowed in zip(self.values, self.allowed)]
        index = torch.cartesian_prod(*choices).reshape(self.size, -1)
        return torch.zeros(self.size, self.count + 1, device=index.device).scatter_(1, index, 1.0)[:, :-1]


def concept_blocks(count: int, groups: Sequence[Sequence[int]] = (), optional: Sequence[bool] = ()) -> ConceptBlocks:
    """Blocks of ``count`` concepts: one for each exclusive group, one for every concept in no group.

    Args:
        count: number of concepts K.
        groups: lists of concepts of which at most one is present.
        optional: whether all concepts of a group may be absent, for every group; by default one must be present.

    Raises:
        ValueError: a concept is in two groups, or does not exist.
    """
    grouped = [k for group in groups for k in group]
    if len(set(grouped)) < len(grouped) or any(not 0 <= k < count for k in grouped):
        raise ValueError(f"groups {groups} do not divide concepts 0 to {count - 1}")
    optional = list(optional) or [False] * len(groups)
    rows = [[count] * may_lack + list(group) for group, may_lack in zip(groups, optional, strict=True)]
    rows += [[count, k] for k in sorted(set(range(count)) - set(grouped))]
    width = max(map(len, rows))
    values = torch.tensor([row + [count] * (width - len(row)) for row in rows])
    allowed = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ConceptBlocks(count, values, allowed)


def exclusive_groups(concepts: Tensor, groups: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[bool]]:
    """The groups whose concepts exclude each other in the labels, and whether an image may show none of a group.

    Groups of one concept are left out. Groups are also left out if some image shows two of their concepts (the colours
    of a wing, in most data sets): these concepts become variables of their own.

    Args:
        concepts: concept labels ``[N, K]``: 1, 0, or NaN if unknown.
        groups: lists of columns that may exclude each other.
    """
    kept, optional = [], []
    for group in groups:
        shown = (concepts[:, list(group)] == 1).sum(dim=1)
        if len(group) > 1 and int(shown.max()) == 1:
            known = ~concepts[:, list(group)].isnan().any(dim=1)
            kept.append(list(group))
            optional.append(bool((shown[known] == 0).any()))
    return kept, optional
