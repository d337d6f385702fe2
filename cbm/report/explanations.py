"""Why a picture was called what it was called: logits, and differences of logits, as sums over concepts."""

import math
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from cbm.layers import Coded, ConceptBottleneck
from cbm.metrics.codes import said_share


@dataclass(frozen=True)
class Contribution:
    """What one concept adds.

    Attributes:
        text: the concept.
        value: what it adds to the logit, or to the difference of two logits.
        level: what the head reads of it on this picture, in standard deviations above its reference value: the mean of
            the training pictures, or zero behind a gate that leaves most concepts out. Infinite where the concept
            does not vary over the training pictures (none of them uses it) but does on this one.
    """

    text: str
    value: float
    level: float

    @property
    def seen(self) -> bool:
        """It is above its reference value: higher than on the average training picture, or let through by the gate."""
        return self.level >= 0

    @property
    def comparable(self) -> bool:
        """The training pictures vary in it, so that its level is a number."""
        return math.isfinite(self.level)


@dataclass(frozen=True)
class Breakdown:
    """A logit (or a difference of two) as a sum: ``total = base + sum of shown + others + outside``.

    Attributes:
        base: the value for a picture on which every concept has its reference value: its training mean, or zero behind
            a gate.
        shown: the largest contributions: positive ones by size, then negative ones by size.
        others: sum of the contributions that are not shown.
        others_count: how many concepts that are (those that add nothing are not counted).
        outside: what does not pass through the concepts; nothing but rounding without a residual.
        total: the logit the model computes.
    """

    base: float
    shown: list[Contribution]
    others: float
    others_count: int
    outside: float
    total: float

    @property
    def passes_by(self) -> bool:
        """Whether ``outside`` is more than rounding."""
        return abs(self.outside) > 1e-3 * max(1.0, abs(self.total))

    @property
    def only_positive(self) -> bool:
        """No bar points to the left."""
        return min([c.value for c in self.shown] + [self.others, self.outside if self.passes_by else 0.0]) >= 0

    @property
    def largest(self) -> float:
        """Length of the longest bar."""
        outside = abs(self.outside) if self.passes_by else 0.0
        return max([abs(c.value) for c in self.shown] + [abs(self.others), outside, 1e-12])


@dataclass(frozen=True)
class SumOfWords:
    """A picture as a sum of a few words, and the rest that no word explains.

    Attributes:
        words: words with their weights, the largest first.
        others: sum of the weights that are not shown.
        others_count: how many words that are.
        rest: length of what no word explains, in the unit of the weights.
        said: share of the picture's squared distance from the mean picture that the words say.
        part: what a word is called: word, or unit.
    """

    words: list[tuple[str, float]]
    others: float
    others_count: int
    rest: float
    said: float
    part: str = "word"

    @property
    def largest(self) -> float:
        """Length of the longest bar."""
        return max([abs(weight) for _, weight in self.words] + [abs(self.others), self.rest, 1e-12])

    @property
    def only_positive(self) -> bool:
        """No bar points to the left."""
        return min([weight for _, weight in self.words] + [self.others]) >= 0


@torch.no_grad()
def sums_of_words(
    model: ConceptBottleneck, texts: list[str], x: Tensor, shown: int = 8, part: str = "word"
) -> list[SumOfWords] | None:
    """Every picture as a sum of words, or of the units of a dictionary; None for a model without a code.

    Args:
        model: the bottleneck.
        texts: K words.
        x: unit-norm features ``[N, D]``.
        shown: how many words are named.
        part: what a word is called.
    """
    if not isinstance(layer := model.activation, Coded):
        return None
    codes = layer.code(x, model.concepts)
    rest = ((x.float() - layer.mean) - codes.reconstruct(layer.parts(model.concepts))).norm(dim=1).tolist()
    found = []
    for columns, values, length, said in zip(codes.columns, codes.values, rest, said_share(model, x).tolist()):
        used = [(texts[k], v) for k, v in zip(columns.tolist(), values.tolist()) if k >= 0]
        used.sort(key=lambda pair: -abs(pair[1]))
        others = sum(weight for _, weight in used[shown:])
        found.append(SumOfWords(used[:shown], others, max(0, len(used) - shown), length, said, part))
    return found


@torch.no_grad()
def explain(
    model: ConceptBottleneck,
    texts: list[str],
    x: Tensor,
    classes: Tensor,
    against: Tensor | None = None,
    *,
    positive: int = 5,
    negative: int = 3,
) -> list[Breakdown]:
    """The logit of one class per picture as a sum over concepts, or its lead over another class.

    Args:
        model: whose logits.
        texts: K concepts.
        x: ``[N, D]`` unit-norm features.
        classes: ``[N]`` the class explained, for each picture.
        against: ``[N]`` the class it is compared with; None explains the logit itself.
        positive: how many positive contributions are shown.
        negative: how many negative ones.
    """
    rows = torch.arange(len(x))
    logits, base = model(x).double(), model.base().double()
    total, start = logits[rows, classes], base[classes]
    values = model.contributions(x, classes).double()
    if against is not None:
        total, start = total - logits[rows, against], start - base[against]
        values = values - model.contributions(x, against).double()
    above = model.activations(x) - model.reference
    levels = torch.where(above == 0, 0.0, above / model.spread)  # infinite where the training pictures do not vary
    pictures = zip(start.tolist(), values, levels, total.tolist())
    return [break_down(texts, b, v, z, t, positive, negative) for b, v, z, t in pictures]


def break_down(
    texts: list[str], base: float, values: Tensor, levels: Tensor, total: float, positive: int, negative: int
) -> Breakdown:
    """Sort the contributions ``[K]`` of one picture into those that are shown and the rest.

    Args:
        texts: K concepts.
        base: where the sum starts.
        values: ``[K]`` contributions.
        levels: ``[K]`` what the head reads, in standard deviations above the reference value.
        total: what the sum should come to.
        positive: how many positive contributions are shown.
        negative: how many negative ones.
    """
    order = values.argsort(descending=True, stable=True).tolist()
    visible = float(values.abs().max()) / 30  # bars shorter than 1/30 of the longest are not shown
    top = [k for k in order[:positive] if values[k] > visible]
    bottom = [k for k in order[::-1][:negative] if values[k] < -visible]
    shown = [Contribution(texts[k], float(values[k]), float(levels[k])) for k in top + bottom]
    rest = values.clone()
    rest[top + bottom] = 0.0
    outside = total - base - float(values.sum())
    return Breakdown(base, shown, float(rest.sum()), int((rest != 0).sum()), outside, total)


def blame(breakdown: Breakdown, called: str, true: str, count: int = 3) -> str:
    """One sentence on a mistake, from the breakdown of the lead of the class ``called`` over the ``true`` one."""
    causes = [c for c in breakdown.shown if c.value > 0][:count]
    causes = [c for c in causes if c.value > causes[0].value / 3]
    seen = [f"“{c.text}”" for c in causes if c.seen]
    missed = [f"“{c.text}”" for c in causes if not c.seen]
    scores = [f"{how} on {_list(texts)}" for how, texts in (("high", seen), ("low", missed)) if texts]
    parts = [f"the picture scores {' and '.join(scores)}"] if scores else []
    if breakdown.base > max([c.value for c in causes], default=0.0):
        parts.insert(0, f"“{called}” has a head start before any concept is looked at")
    if not parts:
        return f"Called “{called}” rather than “{true}”; no single concept is to blame."
    return f"Called “{called}” rather than “{true}” because {_list(parts)}."


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def typical_rows(probabilities: Tensor, labels: Tensor, limit: int = 12) -> list[int]:
    """About one correctly classified picture per class, at even steps of confidence (one: the median).

    The first pictures are of different classes.

    Args:
        probabilities: ``[N, C]``.
        labels: ``[N]``.
        limit: pictures at most; of more classes than that, some are picked at even distances.
    """
    confidence, predicted = probabilities.max(dim=1)
    correct = predicted == labels
    present = labels[correct].unique().tolist()
    if len(present) > limit:
        present = [present[i * len(present) // limit] for i in range(limit)]
    each = max(1, min(3, limit // 2 // max(len(present), 1)))
    found: list[list[int]] = []
    for label in present:
        candidates = (correct & (labels == label)).nonzero().flatten()
        ordered = candidates[confidence[candidates].argsort(stable=True)].tolist()
        found.append([ordered[p] for p in sorted({(2 * i + 1) * len(ordered) // (2 * each) for i in range(each)})])
    return [row for place in zip_longest(*found) for row in place if row is not None]


def confident_mistakes(probabilities: Tensor, labels: Tensor, limit: int = 12, per_pair: int = 2) -> list[int]:
    """The mistakes the model is surest of, at most ``per_pair`` for one pair of true and predicted class.

    Args:
        probabilities: ``[N, C]``.
        labels: ``[N]``.
        limit: how many.
        per_pair: how many of the same kind.
    """
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    taken: dict[tuple[int, int], int] = {}
    rows: list[int] = []
    for row in wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist():
        pair = (int(labels[row]), int(predicted[row]))
        if taken.get(pair, 0) < per_pair:
            taken[pair] = taken.get(pair, 0) + 1
            rows.append(row)
        if len(rows) == limit:
            break
    return rows
