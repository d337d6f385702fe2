"""Training-free test-time editing: a few labelled pictures of a new domain say which concepts mislead there.

Inspired by He et al., "Training-free Test-time Improvement for Explainable Medical Image Classification" (MICCAI 2025):
confusing concepts are masked, weak ones amplified, nothing is trained. What is computed here was designed for this
library (the paper's formulas were not available), so it is no reimplementation.

For a picture of class y with rival r, and dW = W_r - W_y, the logits differ by

    z_r - z_y = [ b_r - b_y + sum_j dW_j mu_yj ] + sum_j delta_j,        delta_j = dW_j (a_j - mu_yj)

The bracket is what the source domain has on average; every error is paid for by positive delta's. One is positive
because evidence for the rival fires that pictures of y did not show (mask the concept), or because evidence for y is
weaker than it was (amplify it). Only concepts that moved at all (a permutation test against the source,
Benjamini-Hochberg) may be edited; how many edits are made is decided by leaving one labelled picture out at a time,
and may be none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cbm.editing.edits import Edit, EditSet
from cbm.errors import UserError, did_you_mean

GAINS = (1.0, 1.25, 1.5, 2.0, 3.0)
TEMPERATURES = (0.0, *torch.logspace(-4, 2, 16, base=2.0, dtype=torch.float64).tolist())
CANDIDATES = 6  # concepts of either kind
LONGEST = 4  # edits
FALSE_DISCOVERIES = 0.10
CARD_ROWS = 200  # per class
GUARDS = ("lenient", "default", "strict")
Pivot = Literal["target", "zero"]


@dataclass(frozen=True)
class SourceCard:
    """What must be known of the source domain, from pictures the encoder's head was not fitted on.

    Attributes:
        mean: ``[C, K]`` of the activations by class.
        std: ``[C, K]``.
        a: ``[M, K]`` activations of at most 200 pictures per class.
        y: ``[M]`` their classes.
        factor: what the logits are multiplied by to be calibrated.
    """

    mean: Tensor
    std: Tensor
    a: Tensor
    y: Tensor
    factor: float

    @property
    def reference(self) -> Tensor:
        """``[K]`` mean over the classes."""
        return self.mean.mean(dim=0)

    @property
    def scale(self) -> Tensor:
        """``[C, K]`` what a deviation is measured in: a class's standard deviation and a tenth of the pooled one."""
        return self.std + 0.1 * self.std.square().mean(dim=0).sqrt()


@dataclass(frozen=True)
class Change:
    """One edit of a plan: ``a' = gain (a - pivot) + level``.

    Attributes:
        op: mask (the gain is 0) or amplify.
        concept: its column.
        gain: what the deviation from the pivot is multiplied by.
        pivot: mean of the new domain.
        level: mean of the source domain.
    """

    op: str
    concept: int
    gain: float
    pivot: float
    level: float

    def edits(self, text: str, why: str) -> list[Edit]:
        """As edits of a model."""
        if self.op == "mask":
            return [Edit("set", text, self.level, why=why)]
        shift = self.level - self.gain * self.pivot
        return [Edit("scale", text, self.gain, why=why), Edit("shift", text, shift, why=why)]


@dataclass(frozen=True)
class Plan:
    """What to edit in the new domain.

    Attributes:
        changes: none if nothing is to be edited.
        reason: why, in words.
        moved: columns of the concepts that moved.
        n: labelled pictures.
        hits: how many of them were right when left out, before and after.
    """

    changes: tuple[Change, ...]
    reason: str
    moved: tuple[int, ...]
    n: int
    hits: tuple[int, int]

    def edits(self, texts: Sequence[str], domain: str) -> EditSet:
        """The plan as edits, to be applied to pictures of this domain only: others keep their logits bit by bit."""
        why = f"test-time editing for '{domain}': {self.reason}"
        return EditSet(tuple(edit for c in self.changes for edit in c.edits(texts[c.concept], f"{c.op}, {why}")))


def source_card(a: Tensor, y: Tensor, weight: Tensor, bias: Tensor, seed: int = 0) -> SourceCard:
    """The card of activations ``[N, K]`` with classes ``[N]`` and a head ``[C, K]``, ``[C]``.

    Raises:
        UserError: a class has fewer than two pictures.
    """
    a, weight, bias = a.double(), weight.double(), bias.double()
    generator = torch.Generator().manual_seed(seed)
    means, stds, rows = [], [], []
    for c in range(len(weight)):
        own = (y == c).nonzero()[:, 0]
        if len(own) < 2:
            raise UserError(f"class {c} has {len(own)} pictures in the source domain; a source card needs two or more")
        means.append(a[own].mean(dim=0))
        stds.append(a[own].std(dim=0))
        rows.append(own[torch.randperm(len(own), generator=generator)[:CARD_ROWS]])
    z = a @ weight.T + bias
    gap = z.topk(2, dim=1).values.diff().neg().median().clamp(min=1e-12)
    grid = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64) / gap
    losses = [float(torch.nn.functional.cross_entropy(factor * z, y)) for factor in grid]
    kept = torch.cat(rows)
    return SourceCard(torch.stack(means), torch.stack(stds), a[kept], y[kept], float(grid[losses.index(min(losses))]))


def shift_attribution(
    a: Tensor, y: Tensor, weight: Tensor, bias: Tensor, card: SourceCard
) -> tuple[Tensor, Tensor, Tensor]:
    """Who is to blame for what: rivals ``[N]``, delta ``[N, K]`` and dW ``[N, K]`` (see above)."""
    z = (a @ weight.T + bias).scatter(1, y[:, None], -torch.inf)
    rival = z.argmax(dim=1)
    difference = weight[rival] - weight[y]
    return rival, difference * (a - card.mean[y]), difference


class _ShiftTest:
    """p-values of "this concept did not move", against supports of the same class counts drawn from the card."""

    def __init__(self, y: Tensor, card: SourceCard, seed: int):
        classes, concepts = card.mean.shape
        self.card, self.counts, self.seed = card, torch.bincount(y, minlength=classes), seed
        self.rounds = max(500, math.ceil(4 * concepts / FALSE_DISCOVERIES))
        self.whole = sum((self._terms(c, int(m)) for c, m in enumerate(self.counts)), torch.zeros(1))

    def _terms(self, c: int, count: int) -> Tensor:
        """The class's part of T in every round, ``[R, K]`` float32."""
        rows = self.card.a[self.card.y == c]
        if not count:
            return torch.zeros(self.rounds, rows.shape[1])
        generator = torch.Generator().manual_seed(self.seed * 7919 + 31 * c + count)
        parts = []
        for start in range(0, self.rounds, 1000):
            drawn = torch.rand(min(1000, self.rounds - start), len(rows), generator=generator)
            chosen = drawn.topk(min(count, len(rows) - 1), dim=1).indices
            means = rows[chosen].mean(dim=1)
            others = (rows.sum(dim=0) - chosen.shape[1] * means) / (
                len(rows) - chosen.shape[1]
            )  # a mean is uncertain too
            parts.append((count * ((means - others) / self.card.scale[c]).square()).float())
        return torch.cat(parts)

    def null(self, left_out: int | None = None) -> Tensor:
        """T under no shift, ``[R, K]``; with one picture of a class fewer."""
        if left_out is None:
            return self.whole
        count = int(self.counts[left_out])
        return self.whole - self._terms(left_out, count) + self._terms(left_out, count - 1)

    def statistic(self, a: Tensor, y: Tensor) -> Tensor:
        """T ``[K]`` of labelled pictures."""
        total = torch.zeros(a.shape[1], dtype=a.dtype)
        for c in y.unique().tolist():
            own = a[y == c]
            total += len(own) * ((own.mean(dim=0) - self.card.mean[c]) / self.card.scale[c]).square()
        return total

    def moved(self, a: Tensor, y: Tensor, null: Tensor) -> Tensor:
        """Which concepts ``[K]`` moved, at a false discovery rate of 0.10."""
        p = (1 + (null >= self.statistic(a, y).float()).sum(dim=0)) / (1 + len(null))
        order = p.argsort()
        bound = FALSE_DISCOVERIES * torch.arange(1, len(p) + 1) / len(p)
        passing = (p[order] <= bound).nonzero()
        moved = torch.zeros(len(p), dtype=torch.bool)
        if len(passing):
            moved[order[: int(passing[-1]) + 1]] = True
        return moved


def _balanced(y: Tensor, classes: int) -> Tensor:
    """Weights ``[n]`` that sum to 1, the same for every class that is there."""
    share = 1 / torch.bincount(y, minlength=classes).clamp(min=1)[y].double()
    return share / share.sum()


def _objective(z: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest weighted loss over the temperatures and the best of them, of logits ``[..., n, C]``."""
    temperatures = torch.tensor(TEMPERATURES, dtype=z.dtype)
    scaled = temperatures[(...,) + (None,) * z.dim()] * z
    loss = scaled.logsumexp(-1) - scaled.gather(-1, y[:, None].expand(*scaled.shape[:-1], 1))[..., 0]
    best = (loss * share).sum(-1).min(dim=0)
    return best.values, temperatures[best.indices]


def _path(
    a: Tensor, y: Tensor, weight: Tensor, bias: Tensor, card: SourceCard, moved: Tensor, protect: Tensor, pivot: Pivot
) -> list[tuple[tuple[Change, ...], float]]:
    """Greedy edits, one more at a time, each with its temperature; the first entry has none."""
    share = _balanced(y, len(weight))
    z = a @ weight.T + bias
    loss, temperature = _objective(z, y, share)
    path: list[tuple[tuple[Change, ...], float]] = [((), float(temperature))]
    _, delta, difference = shift_attribution(a, y, weight, bias, card)
    blame = share * (1 - z.softmax(dim=1).gather(1, y[:, None])[:, 0])
    above = a > card.mean[y]
    over = (blame[:, None] * delta * ((difference > 0) & above)).sum(dim=0) * (moved & ~protect)
    under = (blame[:, None] * delta * ((difference < 0) & ~above)).sum(dim=0) * moved
    present = y.unique()
    here, there = torch.stack([a[y == c].mean(dim=0) for c in present]).mean(dim=0), card.mean[present].mean(dim=0)
    options = []
    for j in over.topk(min(CANDIDATES, len(over))).indices.tolist():
        options += [Change("mask", j, 0.0, 0.0, float(card.reference[j]))] if over[j] > 0 else []
    for j in under.topk(min(CANDIDATES, len(under))).indices.tolist():
        for gain in GAINS if under[j] > 0 else ():
            if pivot == "target":
                options.append(Change("amplify", j, gain, float(here[j]), float(there[j])))
            elif gain > 1:
                options.append(Change("amplify", j, gain, 0.0, 0.0))
    chosen: tuple[Change, ...] = ()
    while options and len(chosen) < LONGEST:
        moves = torch.stack([o.gain * (a[:, o.concept] - o.pivot) + o.level - a[:, o.concept] for o in options])
        columns = torch.tensor([o.concept for o in options])
        tried = z + moves[:, :, None] * weight[:, columns].T[:, None]
        losses, temperatures = _objective(tried, y, share)
        best = int(losses.argmin())
        if losses[best] >= loss - 1e-12:
            break
        loss, z, chosen = losses[best], tried[best], (*chosen, options[best])
        path.append((chosen, float(temperatures[best])))
        options = [o for o in options if o.concept != chosen[-1].concept]
    return path


def _applied(a: Tensor, changes: Sequence[Change]) -> Tensor:
    a = a.clone()
    for change in changes:
        a[..., change.concept] = change.gain * (a[..., change.concept] - change.pivot) + change.level
    return a


@torch.no_grad()
def plan_edits(
    a: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    card: SourceCard,
    *,
    guard: str = "default",
    protect: Sequence[int] = (),
    pivot: Pivot = "target",
    seed: int = 0,
) -> Plan:
    """Which concepts to mask and to amplify in the domain of a few labelled pictures.

    Args:
        a: ``[n, K]`` activations of the pictures.
        y: ``[n]`` their classes; some classes may be absent, some have a single picture.
        weight: ``[C, K]`` of the head.
        bias: ``[C]``.
        card: of the source domain.
        guard: what leaving one out must show: "default" more hits and less loss; "lenient" as many hits; "strict" less
            loss by a standard error.
        protect: columns that may not be masked.
        pivot: what amplification leaves where it is: "target" puts the new domain's mean where the source has it,
            "zero" multiplies (for probabilities).
        seed: of the shift test.

    Returns:
        A plan without changes where nothing moved, nothing helps, or what helps does not hold for pictures left out.

    Raises:
        UserError: an unknown guard.
    """
    if guard not in GUARDS:
        raise UserError(f"unknown guard '{guard}': {did_you_mean(guard, GUARDS)}")
    a, y = a.double(), y.long()
    weight, bias = card.factor * weight.double(), card.factor * bias.double()
    protected = torch.zeros(a.shape[1], dtype=torch.bool)
    protected[list(protect)] = True
    test = _ShiftTest(y, card, seed)
    moved = test.moved(a, y, test.null())
    hits_before = int(((a @ weight.T + bias).argmax(dim=1) == y).sum())
    found = tuple(moved.nonzero()[:, 0].tolist())

    def nothing(reason: str, hits: int = hits_before) -> Plan:
        return Plan((), reason, found, len(a), (hits_before, hits))

    if not found:
        return nothing("no concept moved")
    path = _path(a, y, weight, bias, card, moved, protected, pivot)
    if len(path) == 1:
        return nothing("no edit lowers the loss")
    losses, hits = torch.zeros(len(a), LONGEST + 1).double(), torch.zeros(len(a), LONGEST + 1).double()
    for c in y.unique().tolist():
        null = test.null(c)
        for i in (y == c).nonzero()[:, 0].tolist():
            rest = torch.arange(len(a)) != i
            if not bool(rest.any()):
                return nothing("one picture cannot be left out")
            shifted = test.moved(a[rest], y[rest], null)
            tried = _path(a[rest], y[rest], weight, bias, card, shifted, protected, pivot)
            for t in range(LONGEST + 1):
                changes, temperature = tried[min(t, len(tried) - 1)]
                z = _applied(a[i], changes) @ weight.T + bias
                losses[i, t] = (temperature * z).logsumexp(0) - temperature * z[c]
                hits[i, t] = float(z.argmax() == c)
    share = _balanced(y, len(weight))
    drop = (losses - losses[:, :1]) * share[:, None]
    gain, hit = drop.sum(dim=0), (hits * share[:, None]).sum(dim=0)
    error = (len(a) * drop.var(dim=0)).sqrt()
    fits = gain < 0
    if guard == "default":
        fits &= hit > hit[0] + 1e-12
    else:
        fits &= hit >= hit[0] - 1e-12
    if guard == "strict":
        fits &= gain + error < 0
    fits[0] = False
    if not bool(fits.any()):
        return nothing("what helps does not hold for pictures left out", int(hits[:, -1].sum()))
    steps = int(gain.masked_fill(~fits, torch.inf).argmin())
    changes = path[min(steps, len(path) - 1)][0]
    right = (int(hits[:, 0].sum()), int(hits[:, steps].sum()))
    reason = (
        f"{len(found)} concepts moved; left out, {right[0]} of {len(a)} pictures are right before, {right[1]} after"
    )
    return Plan(changes, reason, found, len(a), right)


def recentre(a: Tensor, y: Tensor, card: SourceCard) -> Tensor:
    """The baseline: what is added to every activation ``[K]`` so that the classes' means are those of the source."""
    present = y.unique()
    means = torch.stack([a[y == c].double().mean(dim=0) for c in present]).mean(dim=0)
    return card.mean[present].mean(dim=0) - means
