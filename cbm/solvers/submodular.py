"""Greedy choice of k discriminative and diverse concepts for every class.

For a class with candidates V the utility of a set S is modular plus coverage,

    F(S) = modular_weight * sum_{c in S} modular_c  +  coverage_weight * sum_j max(0, max_{c in S} r_cj)

monotone submodular in its coverage part, so that greedy is within 1 - 1/e of the best set. What is covered:

    facility_cosine   r_cj = cos(t_c, t_j) for j in V          facility location: LaBo (CVPR 2023), as the paper has it
    facility_cos2     r_cj = cos(t_c, t_j)^2                   what the apricot package calls "cosine"
    maxpool           r_c  = [modular_weight * modular_c, t_c]  what LaBo's published code computes: its library takes
                                                               the features themselves for similarities
    none                                                       top-k by modular_weight * modular

Gains only shrink as S grows, so an old gain bounds the new one. On a CPU every class is solved by itself (its rewards
stay in cache) and a step refreshes only the candidates whose bound is still in the race; on a GPU the classes run as
one padded batch and a step refreshes everything. Both work in float32 and settle near-ties in float64, so both return
the picks of a float64 greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.kernels.shapes import check_matrix, check_vector

Coverage = Literal["facility_cosine", "facility_cos2", "maxpool", "none"]

_NEAR = 1e-6  # float32 gains this close, relative to the largest first gain, are compared again in float64
_TIE = 1e-11  # float64 gains this close are equal, and the earlier candidate wins
_BATCH_BYTES = 2**31  # float32 rewards of the classes solved together on a GPU


def greedy_select(
    modular: Tensor,
    features: Tensor,
    candidates: Sequence[Tensor],
    k: int,
    *,
    coverage: Coverage = "facility_cosine",
    coverage_weight: float = 1.0,
    modular_weight: float = 1.0,
) -> list[Tensor]:
    """Pick k concepts for every class by greedy maximisation of the utility above.

    Args:
        modular: Score of every concept on its own [M], such as `cbm.solvers.mutual_information`.
        features: Concept embeddings [M, D]. The facility coverages normalise them, "maxpool" takes them as they are.
        candidates: For every class the indices of its candidates (int64 vectors, no index twice, any length).
        k: Concepts per class, >= 1.
        coverage: What the coverage term covers, see the module.
        coverage_weight: Weight of the coverage term, >= 0.
        modular_weight: Weight of the modular term, >= 0.

    Returns:
        For every class its picks (int64, indices into ``features``) in the order they were picked. Of equal gains the
        earlier candidate wins. A class with k candidates or fewer gets all of them, in the order given.

    Raises:
        ValueError: If a shape does not fit, an index is out of range or repeated, an option is out of range, or a value
            is not finite.
    """
    check_matrix("features", features)
    if check_vector("modular", modular, len(features)) is None:
        raise ValueError(f"modular is None; expected a floating-point [{len(features)}] vector")
    if coverage not in ("facility_cosine", "facility_cos2", "maxpool", "none"):
        raise ValueError(f"coverage is {coverage!r}; expected 'facility_cosine', 'facility_cos2', 'maxpool' or 'none'")
    if k < 1:
        raise ValueError(f"k is {k}; expected >= 1")
    if not (coverage_weight >= 0 and modular_weight >= 0):
        raise ValueError(
            f"coverage_weight is {coverage_weight} and modular_weight is {modular_weight}; expected both >= 0"
        )
    for i, indices in enumerate(candidates):
        _check_candidates(i, indices, len(features))

    modular = modular_weight * modular.double()
    for name, values in (("modular", modular), ("features", features)):
        if not values.sum(dtype=torch.float64).isfinite():
            raise ValueError(
                f"{name} has shape {list(values.shape)} and a NaN or infinite value; expected finite values"
            )
    with torch.no_grad():
        open_choices = (c.to(features.device) for c in candidates if len(c) > k)
        problems = (_Problem(modular[c], features[c], coverage, coverage_weight) for c in open_choices)
        if coverage == "none" or coverage_weight == 0:
            positions = [p.modular.sort(descending=True, stable=True).indices[:k] for p in problems]
        elif features.is_cuda:
            positions = _select_together(list(problems), k)
        else:
            positions = [_select_one(p, p.rewards(), k) for p in problems]
    solved = iter(positions)
    return [c if len(c) <= k else c[next(solved).to(c.device)] for c in candidates]


class _Problem:
    """One class: modular gains [n] (float64) and the rewards [n, m] that its candidates give to what is covered."""

    def __init__(self, modular: Tensor, features: Tensor, coverage: Coverage, weight: float):
        self.modular = modular
        self.features = features
        self.coverage = coverage
        self.weight = weight
        self._exact: Tensor | None = None  # rows in float64, made when the first near-tie turns up

    def rows(self, dtype: torch.dtype) -> Tensor:
        """What a candidate is compared by [n, d]: its unit feature, or for "maxpool" its modular gain and feature."""
        if self.coverage == "maxpool":
            return torch.cat([self.modular.to(dtype)[:, None], self.features.to(dtype)], 1)
        return normalize(self.features.to(dtype), dim=1)

    def rewards(self, rows: Tensor | None = None, some: Tensor | None = None) -> Tensor:
        """Weighted, non-negative rewards [n, m] of all candidates (by default in float32), or [s, m] of ``some``."""
        rows = self.rows(torch.float32) if rows is None else rows
        some = rows if some is None else rows[some]
        if self.coverage == "maxpool":
            return some.clamp(min=0).mul_(self.weight)
        cosines = some @ rows.T
        return (cosines.clamp_(min=0) if self.coverage == "facility_cosine" else cosines.square_()).mul_(self.weight)

    def first_of_best(self, rivals: Tensor, picks: Tensor, magnitude: float) -> int:
        """The rival with the largest float64 gain on top of ``picks``; the first one if several are equal."""
        rivals = rivals.sort().values
        same = (self.modular[rivals] == self.modular[rivals[0]]).all()
        if same and (self.features[rivals] == self.features[rivals[0]]).all():  # one phrase, several times
            return int(rivals[0])
        if self._exact is None:
            self._exact = self.rows(torch.float64)
        rewards = self.rewards(self._exact, torch.cat([rivals, picks]))
        mine, chosen = rewards[: len(rivals)], rewards[len(rivals) :]
        if len(picks):
            mine = mine - chosen.max(0).values
        gains = mine.clamp(min=0).sum(1) + self.modular[rivals]
        return int(rivals[int((gains >= gains.max() - _TIE * magnitude).nonzero()[0])])


def _select_one(problem: _Problem, table: Tensor, k: int) -> Tensor:
    """Lazy greedy over one class with rewards ``table`` [n, m]: positions of the picks [k].

    In NumPy, for its low overhead on arrays this small.
    """
    rewards, modular = table.numpy(), problem.modular.float().numpy()
    bounds = rewards.sum(1) + modular  # upper bounds on the gains; exact for the first pick
    magnitude = float(np.abs(bounds).max())
    near = _NEAR * magnitude
    covered = np.zeros_like(rewards, shape=rewards.shape[1])
    picks: list[int] = []
    while len(picks) < k:
        left = len(bounds) - len(picks)
        width = left if not picks else min(8, left)
        while True:  # refresh the candidates with the largest bounds until the best gain beats every other bound
            top = np.argpartition(bounds, -width)[-width:]
            lowest = bounds[top].min()
            if picks:
                bounds[top] = np.maximum(rewards[top] - covered, 0).sum(1) + modular[top]
            best = bounds[top].max()
            if width == left or lowest < best - near:
                break
            width = min(4 * width, left)
        rivals = top[bounds[top] >= best - near]
        if len(rivals) == 1:
            pick = int(rivals[0])
        else:
            pick = problem.first_of_best(torch.from_numpy(rivals), torch.tensor(picks, dtype=torch.long), magnitude)
        picks.append(pick)
        bounds[pick] = -np.inf
        np.maximum(covered, rewards[pick], out=covered)
    return torch.tensor(picks)


def _select_together(problems: list[_Problem], k: int) -> list[Tensor]:
    """Full-regain greedy over classes in padded batches of bounded memory: positions of the picks [k] of each."""
    picks: list[Tensor] = []
    while len(picks) < len(problems):
        batch: list[_Problem] = []
        longest = 0
        for problem in problems[len(picks) :]:
            longest = max(longest, len(problem.modular))
            wide = longest if problem.coverage != "maxpool" else 1 + problem.features.shape[1]
            if batch and (len(batch) + 1) * longest * wide * 4 > _BATCH_BYTES:
                break
            batch.append(problem)
        picks += _select_batch(batch, k)
    return picks


def _select_batch(problems: list[_Problem], k: int) -> list[Tensor]:
    """One padded batch: positions of the picks [k] of each class."""
    device = problems[0].features.device
    sizes = [len(p.modular) for p in problems]
    wide = max(sizes) if problems[0].coverage != "maxpool" else 1 + problems[0].features.shape[1]
    rewards = torch.zeros(len(problems), max(sizes), wide, device=device)
    modular = torch.full((len(problems), max(sizes)), -torch.inf, device=device)
    for i, problem in enumerate(problems):
        own = problem.rewards()
        rewards[i, : own.shape[0], : own.shape[1]] = own
        modular[i, : sizes[i]] = problem.modular
    first = (rewards.sum(2) + modular).masked_fill(modular == -torch.inf, 0)
    magnitude = first.abs().amax(1)

    covered = torch.zeros(len(problems), 1, wide, device=device)
    picks = torch.empty(len(problems), k, dtype=torch.long, device=device)
    each = torch.arange(len(problems), device=device)
    for step in range(k):
        gains = (rewards - covered).clamp_(min=0).sum(2) + modular
        best, chosen = gains.max(1)
        rivals = gains >= (best - _NEAR * magnitude)[:, None]
        for i in (rivals.sum(1) > 1).nonzero()[:, 0].tolist():
            chosen[i] = problems[i].first_of_best(rivals[i].nonzero()[:, 0], picks[i, :step], float(magnitude[i]))
        picks[:, step] = chosen
        modular[each, chosen] = -torch.inf
        covered = torch.maximum(covered, rewards[each, chosen][:, None])
    return list(picks)


def _check_candidates(position: int, indices: Tensor, count: int) -> None:
    name = f"candidates[{position}]"
    if indices.ndim != 1 or indices.dtype != torch.int64:
        raise ValueError(f"{name} has shape {list(indices.shape)} and dtype {indices.dtype}; expected an int64 vector")
    if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < count):
        raise ValueError(f"{name} reaches from {int(indices.min())} to {int(indices.max())}; expected 0 to {count - 1}")
    if len(indices.unique()) != len(indices):
        raise ValueError(
            f"{name} has {len(indices)} entries, {len(indices.unique())} of them distinct; expected each once"
        )
