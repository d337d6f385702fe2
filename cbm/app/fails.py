"""Where a model fails: what is taken for what, the worst groups, slices that concepts name, the worst classes.

Every line leads to its pictures: it has the address of a filter (``cbm.app.filters``).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.app.filters import INVENTED, MISSED, MISTAKES, Filter
from cbm.files.run_directory import seed_of
from cbm.layers import thresholds_of
from cbm.metrics.groups import Group, group_table
from cbm.metrics.intervals import wilson_interval
from cbm.metrics.slices import Slice, error_slices
from cbm.report.slices import decided, labelled_concepts, used_concepts

CELLS = 30
"""Classes up to which what is taken for what is a table."""
PAIRS, GROUPS, CLASSES = 40, 40, 40
"""Lines of a list, at most."""


@dataclass(frozen=True)
class Cell:
    """Pictures of one class that are said to be of one class.

    Attributes:
        true: name of the class that they are of.
        said: name of the class that they are said to be of.
        count: their number.
        share: their share of the pictures of the true class.
        address: the filter that shows them.
    """

    true: str
    said: str
    count: int
    share: float
    address: str


@dataclass(frozen=True)
class ClassLine:
    """How well a class, or a label, is decided.

    Attributes:
        name: its name.
        count: its pictures.
        accuracy: share that is right; of a label, of the pictures that have it.
        low: lower end of the 95 % interval.
        high: upper end.
        wrong: number of mistakes; of a label, also of those that are said to have it and do not.
        address: the filter that shows the mistakes.
    """

    name: str
    count: int
    accuracy: float
    low: float
    high: float
    wrong: int
    address: str


@dataclass(frozen=True)
class GroupLine:
    """A group with the filters that show it.

    Attributes:
        group: the group.
        address: the filter of all its pictures.
        wrong: that of its mistakes.
    """

    group: Group
    address: str
    wrong: str


@dataclass(frozen=True)
class SliceLine:
    """A slice of mistakes with the filters that show it.

    Attributes:
        said: its name in words.
        slice: what was found.
        address: the filter of all its pictures.
        wrong: that of its mistakes.
    """

    said: str
    slice: Slice
    address: str
    wrong: str


@dataclass(frozen=True)
class Failures:
    """Where a model fails on the split, without edits.

    Attributes:
        count: number of pictures.
        wrong: number of pictures that are decided wrongly; of labels, with any wrong label.
        table: rows of what is taken for what, true class by said class; empty if there are too many classes.
        pairs: the most frequent confusions.
        classes: the worst classes.
        groups: the worst groups.
        slices: slices that concepts name; None where none can be looked for.
        no_slices: why not.
    """

    count: int
    wrong: int
    table: list[list[Cell]]
    pairs: list[Cell]
    classes: list[ClassLine]
    groups: list[GroupLine]
    slices: list[SliceLine] | None
    no_slices: str = ""


@lru_cache(maxsize=1)
@torch.no_grad()
def where_it_fails(explorer: Explorer) -> Failures:
    """Everything about the mistakes of a run on its split; the same for all tabs."""
    y, said = explorer.split.y, explorer.predicted
    slices, why = find_slices(explorer)
    groups = worst_groups(explorer)
    if explorer.many:
        wrong = ((y == 1) & ~said) | ((y == 0) & said)
        return Failures(len(y), int(wrong.any(dim=1).sum()), [], [], _labels(explorer), groups, slices, why)
    counts = confusion(y, said, len(explorer.classes))
    names = explorer.classes
    sizes = counts.sum(dim=1)

    def cell(c: int, d: int) -> Cell:
        count = int(counts[c, d])
        address = Filter(of=names[c], said=names[d]).address
        return Cell(names[c], names[d], count, count / max(int(sizes[c]), 1), address)

    many = range(len(names)) if len(names) <= CELLS else ()
    table = [[cell(c, d) for d in many] for c in many]
    off = counts.clone().fill_diagonal_(0)
    first = off.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
    pairs = [cell(*divmod(place, len(names))) for place in first if int(off.flatten()[place]) > 0]
    return Failures(len(y), int(off.sum()), table, pairs, _classes(explorer, counts), groups, slices, why)


def confusion(y: Tensor, said: Tensor, count: int) -> Tensor:
    """How many pictures of every class are said to be of every class ``[C, C]``.

    >>> confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(y * count + said, minlength=count * count).view(count, count)


def _classes(explorer: Explorer, counts: Tensor) -> list[ClassLine]:
    """The worst classes, by the upper end of the interval: a class of two pictures may be bad by chance."""
    lines = []
    for c, name in enumerate(explorer.classes):
        count, right = int(counts[c].sum()), int(counts[c, c])
        if count:
            low, high = wilson_interval(right / count, count)
            address = Filter(of=name, kind=MISTAKES).address
            lines.append(ClassLine(name, count, right / count, low, high, count - right, address))
    return sorted(lines, key=lambda line: (line.high, line.accuracy))[:CLASSES]


def _labels(explorer: Explorer) -> list[ClassLine]:
    lines = []
    for label, name in enumerate(explorer.classes):
        y, said = explorer.split.y[:, label], explorer.predicted[:, label]
        there, found, invented = int((y == 1).sum()), int(((y == 1) & said).sum()), int(((y == 0) & said).sum())
        if there:
            low, high = wilson_interval(found / there, there)
            kind = MISSED if found < there else INVENTED
            address = Filter(of=name, kind=kind).address
            lines.append(ClassLine(name, there, found / there, low, high, there - found + invented, address))
    return sorted(lines, key=lambda line: (line.high, line.accuracy))[:CLASSES]


def worst_groups(explorer: Explorer) -> list[GroupLine]:
    """The worst groups of the split; none where it knows no groups."""
    if not explorer.split.groups:
        return []
    thresholds = thresholds_of(explorer.model.model, len(explorer.classes)) if explorer.many else None
    table = group_table(explorer.logits, explorer.split, explorer.classes, explorer.data.group_names, thresholds)
    kind = MISSED if explorer.many else MISTAKES
    lines = []
    for group in table[:GROUPS]:
        here = Filter(of=None if explorer.many else group.label, group=f"{group.column}: {group.value}")
        lines.append(GroupLine(group, here.address, replace(here, of=group.label, kind=kind).address))
    return lines


def find_slices(explorer: Explorer) -> tuple[list[SliceLine] | None, str]:
    """Slices that were found on the validation pictures and tried on those of the split; or why there are none."""
    model, data = explorer.bottleneck, explorer.data
    if model is None or explorer.many:
        return None, "slices are named by the concepts of a model that says one class per picture"
    if explorer.val is None:
        return None, "slices are found on the validation pictures of the run and tried on others of the same set"
    if not (columns := used_concepts(model)):
        return None, "no class uses a concept"
    labels = labelled_concepts(explorer.bank, columns, data)
    (val, _), (test, _) = (decided(model, part, columns, labels) for part in (explorer.val, explorer.split))
    texts = [explorer.bank.texts[k] for k in columns]
    lines = []
    for each in error_slices(val, test, seed=seed_of(explorer.model.config.seed)):
        parts: dict[str, list[str]] = {"high": [], "low": [], "shows": [], "lacks": []}
        for literal in each.literals:
            how = ("low", "high") if literal.cut is not None else ("lacks", "shows")
            parts[how[literal.shown]].append(texts[literal.concept])
        here = Filter()
        for way, named in parts.items():
            here = here.about(way, tuple(named))
        lines.append(SliceLine(each.said(texts), each, here.address, replace(here, kind=MISTAKES).address))
    return lines, "" if lines else f"no slice of the {int(np.sum(val.wrong))} validation mistakes stands out"
