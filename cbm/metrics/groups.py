"""How well the worst group is decided: accuracy within a class at every value of a group (site, sex, background).

A group is a class together with one value of one column of ``Split.groups``: waterbirds on land. A mean over all
images hides a group that is always decided wrongly if it is small; its minimum over the groups does not (Sagawa et al.,
"Distributionally Robust Neural Networks for Group Shifts", ICLR 2020).

The minimum of several measured accuracies lies below the smallest true one, by noise alone, and a bootstrap repeats
that noise: where all groups are alike its 95 % interval misses the truth in a fifth of the draws and more. So the
interval is simultaneous: Wilson's for every group at level 1 - .05 / G, and of these the smallest lower and the
smallest upper end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from cbm.data.features import FeatureSplit
from cbm.metrics.bootstrap import Statistic, Units, bootstrap, percentile_interval
from cbm.metrics.classification import mcnemar_p
from cbm.metrics.intervals import Z95, wilson_interval
from cbm.metrics.paired import holm

ENOUGH = 10
"""Images from which on a group can be the worst; of a label, images with it and images without it."""


@dataclass(frozen=True)
class Group:
    """The images of one class (or label) with one value of a column.

    Attributes:
        label: name of the class, or of the label.
        column: name of the column.
        value: what these images have there.
        count: number of images; of a label, of those of which it is known.
        accuracy: share that is decided rightly; of a label, the mean of the share of the images with it that are found
            and the share of those without it that are left alone (balanced accuracy).
        low: lower end of its 95 % interval.
        high: upper end.
        margin: mean of the logit of the true class above the highest other one; of a label, of the distance of the
            logit from its threshold, to the right side.
        enough: whether there are ``ENOUGH`` images.
        ends: the same interval at the level that counts all groups together.
    """

    label: str
    column: str
    value: str
    count: int
    accuracy: float
    low: float
    high: float
    margin: float
    enough: bool
    ends: tuple[float, float]

    @property
    def name(self) -> str:
        """The group in words: ``waterbird, background: land``."""
        return f"{self.label}, {self.column}: {self.value}"


def group_table(
    logits: Tensor,
    split: FeatureSplit,
    classes: Sequence[str],
    group_names: Mapping[str, Sequence[str]],
    thresholds: Tensor | None = None,
) -> list[Group]:
    """Every group that has images, the worst first; those with too few images to be the worst come last.

    Args:
        logits: logits ``[N, C]`` of the images of a split, or ``[N, L]`` of labels.
        split: the images. Where their subjects are known, intervals count subjects instead of images: the images of one
            subject may all be decided alike.
        classes: names of the C classes, or of the L labels.
        group_names: values of every column.
        thresholds: logits ``[L]`` above which a label is said; None where an image has one class.

    Example:
        >>> split = FeatureSplit(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), ["a", "b", "c", "d"])
        >>> split.groups = {"site": np.array([0, 1, 1, 1])}
        >>> said = torch.tensor([[2.0, 0], [0, 1], [0, 1], [0, 3]])
        >>> [(each.name, each.count, each.accuracy) for each in group_table(said, split, ["x", "y"], {"site": "AB"})]
        [('x, site: B', 1, 0.0), ('x, site: A', 1, 1.0), ('y, site: B', 2, 1.0)]
    """
    cells = _cells(logits, split, thresholds)
    counted = sum(cell.enough for cell in cells)
    z = NormalDist().inv_cdf(1 - 0.025 / max(counted, 1))
    found = []
    for cell in cells:
        accuracy = float(np.mean([part.share for part in cell.parts]))
        value = group_names[cell.column][cell.value]
        interval, ends = _interval(cell.parts, Z95), _interval(cell.parts, z)
        label = classes[cell.label]
        found.append(Group(label, cell.column, value, cell.count, accuracy, *interval, cell.margin, cell.enough, ends))
    return sorted(found, key=lambda group: (not group.enough, group.accuracy, group.ends[0], -group.count))


def worst_group(table: Sequence[Group]) -> Group | None:
    """The first group of a table that has enough images; None if none has."""
    return table[0] if table and table[0].enough else None


def group_metrics(table: Sequence[Group]) -> dict[str, float]:
    """The numbers of a table of groups; none if no group has enough images.

    Returns:
        ``worst_group``, the smallest accuracy of a group, with ``worst_group_low`` and ``worst_group_high``;
        ``worst_group_n``, its images; ``group_mean``, the mean of the groups, each counting the same; ``group_gap``,
        the largest difference between two groups of one class in one column (if a class has two); ``groups``, their
        number. Groups with fewer than ``ENOUGH`` images count nowhere.
    """
    counted = [group for group in table if group.enough]
    if not counted:
        return {}
    worst = counted[0]
    values = {
        "worst_group": worst.accuracy,
        "worst_group_low": min(group.ends[0] for group in counted),
        "worst_group_high": min(group.ends[1] for group in counted),
        "worst_group_n": float(worst.count),
        "group_mean": float(np.mean([group.accuracy for group in counted])),
        "groups": float(len(counted)),
    }
    alike: dict[tuple[str, str], list[float]] = {}
    for group in counted:
        alike.setdefault((group.label, group.column), []).append(group.accuracy)
    gaps = [max(each) - min(each) for each in alike.values() if len(each) > 1]
    return values | ({"group_gap": max(gaps)} if gaps else {})


@dataclass(frozen=True)
class GroupChange:
    """The worst groups of two models, which need not be the same group.

    Attributes:
        value: accuracy of the worst group of the one, minus that of the other.
        low: lower end of its 95 % interval.
        high: upper end.
        tests: p value (exact McNemar, Holm over the groups) of every group with enough images, by its place in
            ``group_index``: do the two decide it differently well?
    """

    value: float
    low: float
    high: float
    tests: dict[tuple[str, int, int], float]


def group_index(split: FeatureSplit) -> dict[tuple[str, int, int], np.ndarray]:
    """Rows of every group of classes with enough images, by column, class and value."""
    y, found = split.y.numpy(), {}
    for column, values in split.groups.items():
        for value in np.unique(values[values >= 0]).tolist():
            here = np.flatnonzero(values == value)
            for label in np.unique(y[here]).tolist():
                rows = here[y[here] == label]
                if len(rows) >= ENOUGH:
                    found[column, label, value] = rows
    return found


def worst_group_change(one: np.ndarray, other: np.ndarray, split: FeatureSplit) -> GroupChange | None:
    """Is the worst group of the one model better than the worst group of the other?

    A paired bootstrap: images are drawn within their class and their values of all columns (subjects, where these are
    known), and both models are judged on the same draw. As a difference of minima it is noisy where groups are alike.

    Args:
        one: whether the one model decides every image rightly, ``[N]`` bool.
        other: the same for the other.
        split: the images.

    Returns:
        The change; None if no group has enough images.
    """
    if not (index := group_index(split)):
        return None
    strata = np.stack([split.y.numpy(), *split.groups.values()], axis=1)
    units = Units(np.unique(strata, axis=0, return_inverse=True)[1].ravel(), split.subjects)
    member = np.zeros((len(one), len(index)), dtype=np.float32)
    for number, rows in enumerate(index.values()):
        member[rows, number] = 1
    statistics = {name: _minimum(member, right) for name, right in (("one", one), ("other", other))}
    drawn = bootstrap(units, statistics)
    once = np.ones((1, len(one)), dtype=np.float32)
    value = float(statistics["one"](once)[0] - statistics["other"](once)[0])
    p = [mcnemar_p(int((one & ~other)[rows].sum()), int((other & ~one)[rows].sum())) for rows in index.values()]
    return GroupChange(value, *percentile_interval(drawn["one"] - drawn["other"]), dict(zip(index, holm(p))))


def _minimum(member: np.ndarray, right: np.ndarray) -> Statistic:
    """The smallest weighted accuracy of groups, ``member [N, G]`` of 0 and 1; groups that a draw leaves empty are
    not among them."""
    hit = member * right[:, None]

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = (weights @ member).astype(np.float64)
        share = np.divide(weights @ hit, total, out=np.full(total.shape, np.inf), where=total > 0)
        return share.min(axis=1)

    return statistic


# ------------------------------------------------------------------------------------------------------------ counting


@dataclass(frozen=True)
class _Part:
    """Images that are counted together: their number (of subjects, where these are known), and the share right."""

    count: int
    share: float


@dataclass(frozen=True)
class _Cell:
    """A group by numbers; ``parts`` is one of a class, and those with and without a label."""

    column: str
    label: int
    value: int
    count: int
    parts: tuple[_Part, ...]
    margin: float
    enough: bool


def _cells(logits: Tensor, split: FeatureSplit, thresholds: Tensor | None) -> list[_Cell]:
    """All groups that have images; of a label, images with it and without it."""
    z, y = logits.detach().double().cpu(), split.y.cpu()
    if thresholds is None:
        right, margin = z.argmax(dim=1) == y, _class_margin(z, y)
        kinds = [(label, y == label) for label in range(z.shape[1])]
        columns = {label: (rows.numpy(), right.numpy(), margin.numpy()) for label, rows in kinds if bool(rows.any())}
        sides = None
    else:
        above = z - thresholds.double().cpu()
        right, sides = (above > 0) == (y == 1), (y == 1).numpy()
        margin = torch.where(y == 1, above, -above)
        columns = {
            label: ((~y[:, label].isnan()).numpy(), right[:, label].numpy(), margin[:, label].numpy())
            for label in range(z.shape[1])
        }
    cells = []
    for column, values in split.groups.items():
        for value in np.unique(values[values >= 0]).tolist():
            here = values == value
            for label, (known, good, away) in columns.items():
                rows = np.flatnonzero(here & known)
                if not len(rows):
                    continue
                if sides is None:
                    divided = [rows]
                else:
                    divided = [rows[sides[rows, label]], rows[~sides[rows, label]]]
                    if not all(map(len, divided)):
                        continue  # of a label that all have, or none, nothing is known here
                parts = tuple(_Part(_units(part, split.subjects), float(good[part].mean())) for part in divided)
                enough = all(len(part) >= ENOUGH for part in divided)
                cells.append(_Cell(column, label, int(value), len(rows), parts, float(away[rows].mean()), enough))
    return cells


def _class_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit ``[N]`` of the true class above the highest other one."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -math.inf)
    return own - others.amax(dim=1)


def _units(rows: np.ndarray, subjects: np.ndarray | None) -> int:
    return len(rows) if subjects is None else len(np.unique(subjects[rows]))


def _interval(parts: Sequence[_Part], z: float) -> tuple[float, float]:
    """Wilson's interval of a share; of the mean of two, from their own (Zou and Donner, Stat. Med. 2008)."""
    ends = [wilson_interval(part.share, part.count, z) for part in parts]
    if len(parts) == 1:
        return ends[0]
    mean = sum(part.share for part in parts) / len(parts)
    below = math.hypot(*(part.share - low for part, (low, _) in zip(parts, ends))) / len(parts)
    above = math.hypot(*(high - part.share for part, (_, high) in zip(parts, ends))) / len(parts)
    return max(0.0, mean - below), min(1.0, mean + above)
