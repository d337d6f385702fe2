"""Training-free test-time editing: a few labelled images of a new domain show which concepts mislead in it.

Inspired by He et al., "Training-free Test-time Improvement for Explainable Medical Image Classification" (MICCAI 2025):
confusing concepts are masked, weak ones amplified, nothing is trained. What is computed here was designed for this
library (the paper's formulas were not available), so it is no reimplementation.

For an image of class y with rival r, and dW = W_r - W_y, the logits differ by

    z_r - z_y = [ b_r - b_y + sum_j dW_j mu_yj ] + sum_j delta_j,        delta_j = dW_j (a_j - mu_yj)

The bracket is the average of the source domain; every error comes from concepts with positive delta. A delta is
positive because evidence for the rival appears that images of y did not show (mask the concept), or because evidence
for y is weaker than it was (amplify it). Only concepts that moved at all (a permutation test against the source,
Benjamini-Hochberg) may be edited; how many edits are made, possibly none, is decided by leaving one labelled image out
at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cbm.editing.domains.concept_head import ConceptHead
from cbm.editing.domains.guard import TEMPERATURES, balanced_weights, folds, losses_by_temperature
from cbm.editing.domains.source_card import SourceStatistics
from cbm.editing.edits import Edit, EditSet
from cbm.errors import UserError, did_you_mean

GAINS = (1.0, 1.25, 1.5, 2.0, 3.0)
CANDIDATES = 6  # concepts of either kind
LONGEST = 4  # edits
FALSE_DISCOVERIES = 0.10
FOLDS = 40  # more labelled pictures than that are left out several at a time
ROUNDS = 500  # of the shift test, at least
ROUND_NUMBERS = 2**27  # rounds x concepts x classes; beyond, a gamma distribution is fitted to few rounds
GUARDS = ("lenient", "default", "strict")
Pivot = Literal["target", "source", "zero"]


@dataclass(frozen=True)
class Change:
    """One edit of a plan: ``a' = gain (a - pivot) + level``, of one concept or of all that exclude each other.

    Attributes:
        op: "mask" (the gain is 0) or "amplify".
        concepts: columns of the concepts.
        gain: factor on the deviation from the pivot.
        pivot: pivot of every concept, usually its mean in the new domain.
        level: new mean of every concept, its mean in the source domain.
    """

    op: str
    concepts: tuple[int, ...]
    gain: float
    pivot: tuple[float, ...]
    level: tuple[float, ...]

    def edits(self, texts: Sequence[str], domain: str | None, why: str) -> list[Edit]:
        """The change as edits of a model.

        Args:
            texts: texts of the K concepts.
            domain: name of the domain that the edits are bound to; None for all images.
            why: reason, kept with the edits.
        """
        made = []
        for column, pivot, level in zip(self.concepts, self.pivot, self.level):
            steps = {"scale": self.gain, "shift": level - self.gain * pivot} if self.op != "mask" else {"set": level}
            for op, value in steps.items():
                made.append(Edit(op, texts[column], value, domain=domain, why=f"{self.op}: {why}"))
        return made

    def values(self, a: Tensor) -> Tensor:
        """New activations ``[n, m]`` of the concepts, from activations ``[n, K]``."""
        return self.gain * (a[:, list(self.concepts)] - a.new_tensor(self.pivot)) + a.new_tensor(self.level)


@dataclass(frozen=True)
class Plan:
    """What to edit in the new domain.

    Attributes:
        changes: changes to make; empty if nothing should be edited.
        reason: reason for the plan, in words.
        moved: columns of the concepts that moved.
        n: number of labelled images.
        hits: number of these that were classified correctly when left out, before and after.
        flags: warnings for the reader: "weak" (a class has one image), "classes missing", "approximate" (shift test).
        left_out: logits ``[n, C]`` of the labelled images, each after the edits that are chosen without it; None if
            nothing is edited.
    """

    changes: tuple[Change, ...]
    reason: str
    moved: tuple[int, ...]
    n: int
    hits: tuple[int, int]
    flags: tuple[str, ...] = ()
    left_out: Tensor | None = field(default=None, compare=False, repr=False)

    def edits(self, texts: Sequence[str], domain: str | None) -> EditSet:
        """The plan as edits.

        Args:
            texts: texts of the K concepts.
            domain: name of the domain that the edits are bound to, so that other images keep exactly the same logits;
                None for all images.
        """
        return EditSet(tuple(edit for change in self.changes for edit in change.edits(texts, domain, self.reason)))


def applied(a: Tensor, changes: Sequence[Change]) -> Tensor:
    """Activations ``[n, K]`` after the changes of a plan."""
    a = a.clone()
    for change in changes:
        a[:, list(change.concepts)] = change.values(a)
    return a


def shift_attribution(a: Tensor, y: Tensor, head: ConceptHead, source: SourceStatistics) -> tuple[Tensor, Tensor]:
    """Which concepts cause the errors: rivals ``[N]`` and delta ``[N, K]`` (see above).

    Args:
        a: activations ``[N, K]``.
        y: class indices ``[N]``.
        head: head that decides from the activations.
        source: statistics of the source domain.
    """
    rival = head(a).scatter(1, y[:, None], -torch.inf).argmax(dim=1)
    return rival, head.attribution(a, y, rival, source.mean)


def interaction(a: Tensor, y: Tensor, head: ConceptHead, source: SourceStatistics) -> float:
    """Share of the gaps that the deltas do not explain; 0 for a linear head. Arguments as for ``shift_attribution``."""
    rival, delta = shift_attribution(a, y, head, source)
    gap, usual = head.gap(a, y, rival), head.gap(source.mean[y], y, rival)
    return float((gap - usual - delta.sum(dim=1)).abs().mean() / gap.abs().mean().clamp(min=1e-12))


class _ShiftTest:
    """p-values of "this concept did not move", against supports of the same class counts drawn from the source."""

    def __init__(self, y: Tensor, source: SourceStatistics, seed: int):
        classes, concepts = source.mean.shape
        self.source, self.y, self.seed = source, y, seed
        self.counts = torch.bincount(y, minlength=classes)
        self.rounds = max(ROUNDS, math.ceil(4 * concepts / FALSE_DISCOVERIES))
        self.approximate = self.rounds * concepts * classes > ROUND_NUMBERS
        if self.approximate:
            self.rounds = ROUNDS
        self._known: dict[tuple[int, int], Tensor] = {}
        self.whole = sum((self._terms(c, int(m)) for c, m in enumerate(self.counts)), torch.zeros(1))

    def _terms(self, c: int, count: int) -> Tensor:
        """The class's part of T in every round, ``[R, K]`` float32."""
        if (c, count) not in self._known:
            self._known[c, count] = self._drawn_terms(c, count)
        return self._known[c, count]

    def _drawn_terms(self, c: int, count: int) -> Tensor:
        rows = self.source.a[self.source.y == c]
        if not count:
            return torch.zeros(self.rounds, rows.shape[1])
        generator = torch.Generator().manual_seed(self.seed * 7919 + 31 * c + count)
        parts = []
        for start in range(0, self.rounds, 1000):
            drawn = torch.rand(min(1000, self.rounds - start), len(rows), generator=generator)
            chosen = drawn.topk(min(count, len(rows) - 1), dim=1).indices
            means = rows[chosen].mean(dim=1)
            left = len(rows) - chosen.shape[1]
            others = (rows.sum(dim=0) - chosen.shape[1] * means) / left  # a mean is uncertain too
            parts.append((count * ((means - others) / self.source.scale[c]).square()).float())
        return torch.cat(parts)

    def null(self, left_out: Tensor) -> Tensor:
        """T under no shift, ``[R, K]``, without the images at these rows."""
        total = self.whole
        for c, fewer in zip(*self.y[left_out].unique(return_counts=True)):
            count = int(self.counts[c])
            total = total - self._terms(int(c), count) + self._terms(int(c), count - int(fewer))
        return total

    def statistic(self, a: Tensor, y: Tensor) -> Tensor:
        """T ``[K]`` of labelled images."""
        total = torch.zeros(a.shape[1], dtype=a.dtype)
        for c in y.unique().tolist():
            own = a[y == c]
            total += len(own) * ((own.mean(dim=0) - self.source.mean[c]) / self.source.scale[c]).square()
        return total

    def moved(self, a: Tensor, y: Tensor, null: Tensor) -> Tensor:
        """Which concepts ``[K]`` moved, at a false discovery rate of 0.10."""
        found = self.statistic(a, y).float()
        if self.approximate:  # a gamma distribution with the null's mean and variance
            from scipy.stats import gamma

            mean, var = null.mean(dim=0).clamp(min=1e-12), null.var(dim=0).clamp(min=1e-12)
            p = torch.from_numpy(gamma.sf(found.numpy(), (mean.square() / var).numpy(), scale=(var / mean).numpy()))
        else:
            p = (1 + (null >= found).sum(dim=0)) / (1 + len(null))
        order = p.argsort()
        bound = FALSE_DISCOVERIES * torch.arange(1, len(p) + 1) / len(p)
        passing = (p[order] <= bound).nonzero()
        moved = torch.zeros(len(p), dtype=torch.bool)
        if len(passing):
            moved[order[: int(passing[-1]) + 1]] = True
        return moved


@dataclass
class _Planner:
    """Settings of one fit, and the greedy path of edits."""

    head: ConceptHead
    source: SourceStatistics
    units: list[list[int]]  # columns that are edited together
    protect: Tensor  # [U] bool
    pivot: Pivot

    def logits(self, a: Tensor, rows: Tensor) -> Tensor:
        """Calibrated logits of the labelled images at these rows."""
        return self.source.factor * self.head.take(rows)(a)

    def objective(self, z: Tensor, y: Tensor, share: Tensor) -> tuple[float, float]:
        """Smallest weighted loss over the temperatures, and the best of them, of logits ``[n, C]``."""
        best = (losses_by_temperature(z, y) @ share).min(dim=0)
        return float(best.values), TEMPERATURES[int(best.indices)]

    def blame(self, a: Tensor, y: Tensor, rows: Tensor, z: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Confusion scores ``[U]`` of masking and of amplifying."""
        _, delta = shift_attribution(a, y, self.head.take(rows), self.source)
        fragile = share * (1 - z.softmax(dim=1).gather(1, y[:, None])[:, 0])
        paid = self.source.factor * fragile[:, None] * delta * (delta > 0)
        above = a > self.source.mean[y]
        over, under = (paid * above).sum(dim=0), (paid * ~above).sum(dim=0)
        return tuple(torch.stack([kind[unit].sum() for unit in self.units]) for kind in (over, under))  # type: ignore

    def options(self, a: Tensor, y: Tensor, moved: Tensor, over: Tensor, under: Tensor) -> list[Change]:
        """The edits that may be tried."""
        able = torch.stack([moved[unit].any() for unit in self.units])
        over, under = over * (able & ~self.protect), under * able
        present = y.unique()
        here = torch.stack([a[y == c].mean(dim=0) for c in present]).mean(dim=0)
        there = self.source.mean[present].mean(dim=0)
        made = []
        for u in over.topk(min(CANDIDATES, len(over))).indices.tolist():
            unit = tuple(self.units[u])
            if over[u] > 0:
                nought = (0.0,) * len(unit)
                made.append(Change("mask", unit, 0.0, nought, tuple(self.source.reference[list(unit)].tolist())))
        for u in under.topk(min(CANDIDATES, len(under))).indices.tolist():
            unit = tuple(self.units[u])
            pivot = "target" if len(unit) > 1 else self.pivot  # the sum of probabilities stays one
            for gain in GAINS if under[u] > 0 else ():
                if gain == 1 and pivot != "target":
                    continue
                from_, to = {"target": (here, there), "source": (there, there)}.get(pivot, (0 * here, 0 * here))
                made.append(
                    Change("amplify", unit, gain, tuple(from_[list(unit)].tolist()), tuple(to[list(unit)].tolist()))
                )
        return made

    def path(self, a: Tensor, y: Tensor, rows: Tensor, moved: Tensor) -> list[tuple[tuple[Change, ...], float]]:
        """Greedy edits, one more at a time, each with its temperature; the first entry has none."""
        share, head = balanced_weights(y), self.head.take(rows)
        z = self.logits(a, rows)
        loss, temperature = self.objective(z, y, share)
        path: list[tuple[tuple[Change, ...], float]] = [((), temperature)]
        options = self.options(a, y, moved, *self.blame(a, y, rows, z, share))
        chosen: tuple[Change, ...] = ()
        while options and len(chosen) < LONGEST:
            plain = z / self.source.factor
            tried = [self.source.factor * head.changed(a, plain, o.concepts, o.values(a)) for o in options]
            found = [self.objective(each, y, share) for each in tried]
            best = min(range(len(options)), key=lambda i: found[i][0])
            if found[best][0] >= loss - 1e-12:
                break
            (loss, temperature), z, chosen = found[best], tried[best], (*chosen, options[best])
            a = applied(a, [options[best]])
            path.append((chosen, temperature))
            options = [o for o in options if o.concepts != chosen[-1].concepts]
        return path


@torch.no_grad()
def plan_edits(
    a: Tensor,
    y: Tensor,
    head: ConceptHead,
    source: SourceStatistics,
    *,
    guard: str = "default",
    per_class: bool = False,
    protect: Sequence[int] = (),
    pivot: Pivot = "target",
    groups: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> Plan:
    """Decide which concepts to mask and to amplify in the domain of a few labelled images.

    Args:
        a: activations ``[n, K]`` of the images.
        y: class indices ``[n]``; some classes may be absent, some may have a single image.
        head: head that decides from the activations.
        source: statistics of the source domain.
        guard: condition that edits must meet when one image is left out: "default" for more hits and less loss,
            "lenient" for as many hits, "strict" for less loss by a standard error.
        per_class: whether, in addition, no class may lose a hit.
        protect: columns that may not be masked.
        pivot: point that amplification does not move: "target" puts the new domain's mean where the source has it,
            "source" keeps the source's mean, "zero" multiplies (for probabilities).
        groups: lists of columns whose concepts exclude each other: they are edited together, with pivot "target".
        seed: random seed for the shift test.

    Returns:
        The plan; it has no changes if no concept moved, no edit helps, or the edits do not help images left out.

    Raises:
        UserError: an unknown guard.
    """
    if guard not in GUARDS:
        raise UserError(f"unknown guard '{guard}': {did_you_mean(guard, GUARDS)}")
    a, y = a.double(), y.long()
    units = _units(groups, a.shape[1])
    protected = torch.tensor([bool(set(unit) & set(protect)) for unit in units])
    planner = _Planner(head, source, units, protected, pivot)
    everything = torch.arange(len(a))
    test = _ShiftTest(y, source, seed)
    moved = test.moved(a, y, test.whole)
    hits_before = int((planner.logits(a, everything).argmax(dim=1) == y).sum())
    found = tuple(moved.nonzero()[:, 0].tolist())
    flags = tuple(
        text
        for text, holds in (
            ("weak", bool((test.counts == 1).any())),
            ("classes missing", bool((test.counts == 0).any())),
            ("approximate", test.approximate),
        )
        if holds
    )

    def nothing(reason: str, hits: int = hits_before) -> Plan:
        return Plan((), reason, found, len(a), (hits_before, hits), flags)

    if not found:
        return nothing("no concept moved")
    if interaction(a, y, head, source) > 0.5:
        return nothing("concepts cannot be blamed one by one: the head mixes them")
    path = planner.path(a, y, everything, moved)
    if len(path) == 1:
        return nothing("no edit lowers the loss")
    if len(a) == 1:
        return nothing("one picture cannot be left out")
    losses, hits = torch.zeros(2, len(a), LONGEST + 1, dtype=torch.float64)
    logits = torch.zeros(len(a), LONGEST + 1, len(source.mean), dtype=torch.float64)
    for out, rest in folds(y, FOLDS):
        shifted = test.moved(a[rest], y[rest], test.null(out))
        tried = planner.path(a[rest], y[rest], rest, shifted)
        for t in range(LONGEST + 1):
            changes, temperature = tried[min(t, len(tried) - 1)]
            logits[out, t] = z = planner.logits(applied(a[out], changes), out)
            losses[out, t] = torch.nn.functional.cross_entropy(temperature * z, y[out], reduction="none")
            hits[out, t] = (z.argmax(dim=1) == y[out]).double()
    steps = _steps(losses, hits, y, guard, per_class)
    if not steps:
        return nothing("what helps does not hold for pictures left out", int(hits[:, -1].sum()))
    right = (int(hits[:, 0].sum()), int(hits[:, steps].sum()))
    reason = (
        f"{len(found)} concepts moved; left out, {right[0]} of {len(a)} pictures are right before, {right[1]} after"
    )
    left_out = torch.stack(
        [
            logits[i, _steps(losses[others], hits[others], y[others], guard, per_class)]
            for i in range(len(a))
            for others in [everything != i]
        ]
    )
    return Plan(path[min(steps, len(path) - 1)][0], reason, found, len(a), right, flags, left_out)


def _steps(losses: Tensor, hits: Tensor, y: Tensor, guard: str, per_class: bool) -> int:
    """How many edits to make, by the losses and hits ``[n, T]`` of images left out; 0 if none passes the guard."""
    share = balanced_weights(y)
    drop = (losses - losses[:, :1]) * share[:, None]
    gain, hit = drop.sum(dim=0), (hits * share[:, None]).sum(dim=0)
    fits = gain < 0
    fits &= hit > hit[0] + 1e-12 if guard == "default" else hit >= hit[0] - 1e-12
    if guard == "strict":
        fits &= gain + (len(y) * drop.var(dim=0)).sqrt() < 0
    if per_class:
        by_class = torch.stack([hits[y == c].sum(dim=0) for c in y.unique()])
        fits &= (by_class >= by_class[:, :1]).all(dim=0)
    fits[0] = False
    return int(gain.masked_fill(~fits, torch.inf).argmin()) if bool(fits.any()) else 0


def blamed_concepts(a: Tensor, y: Tensor, head: ConceptHead, source: SourceStatistics) -> list[int]:
    """Columns of the concepts that favour rivals more than they should, the most harmful first; no test is made.

    Arguments as for ``shift_attribution``.
    """
    a, rows = a.double(), torch.arange(len(a))
    planner = _Planner(head, source, _units((), a.shape[1]), torch.zeros(a.shape[1], dtype=torch.bool), "target")
    over, _ = planner.blame(a, y, rows, planner.logits(a, rows), balanced_weights(y))
    return [k for k in over.argsort(descending=True).tolist() if over[k] > 0]


def _units(groups: Sequence[Sequence[int]], concepts: int) -> list[list[int]]:
    """The groups, and every other column alone, in the order of the columns."""
    grouped = {k: sorted(group) for group in groups for k in group}
    units = [grouped.get(k, [k]) for k in range(concepts)]
    return [unit for k, unit in enumerate(units) if unit[0] == k]


@torch.no_grad()
def blamed_edits(
    a: Tensor, y: Tensor, head: ConceptHead, source: SourceStatistics, groups: Sequence[Sequence[int]] = ()
) -> tuple[Change, ...]:
    """The masks and amplifications that lower the loss of labelled images most, up to four, without any test.

    Arguments as for ``plan_edits``.
    """
    a, y = a.double(), y.long()
    units = _units(groups, a.shape[1])
    planner = _Planner(head, source, units, torch.zeros(len(units), dtype=torch.bool), "target")
    everything = torch.ones(a.shape[1], dtype=torch.bool)
    return planner.path(a, y, torch.arange(len(a)), everything)[-1][0]
