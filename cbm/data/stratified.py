"""Splits and few images for sets whose images have any number of labels."""

import heapq

import numpy as np

from cbm.errors import UserError

KEPT = 2
"""Training images with a label, from which on other splits are given one."""
MOVES = 500
"""Images that are moved once they are divided, at most, to make shares more alike."""
ALIKE = 0.002
"""Differences of shares that are not made smaller."""


def strata(labels: np.ndarray) -> np.ndarray:
    """What splits should share alike, ``[N, M]`` bool: who has each label, and who lacks it if some are unknown.

    Args:
        labels: labels ``[N, L]``: 1, 0, NaN.

    Example:
        >>> strata(np.array([[1, 0], [0, np.nan]])).astype(int).tolist()
        [[1, 0, 1], [0, 0, 0]]
    """
    unsure = np.isnan(labels).any(axis=0)
    return np.concatenate([labels == 1, labels[:, unsure] == 0], axis=1)


def stratify(shown: np.ndarray, kin: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Number of the split of every image ``[N]``, by iterative stratification (Sechidis et al., ECML PKDD 2011).

    The rarest label is divided first: each of its images goes where most of them are still wanted. Images of one kin
    are divided as one, large kins first. A label that has enough images is in every split.

    Args:
        shown: what splits should share alike ``[N, M]`` bool.
        kin: a number for every image ``[N]``, the same for those that stay together.
        shares: share of every split ``[S]``, which add up to 1; the first is for training.
        generator: random numbers, which break ties.
    """
    _, unit = np.unique(kin, return_inverse=True)
    count = int(unit.max(initial=-1)) + 1
    sizes = np.bincount(unit, minlength=count)
    has = np.zeros((count, shown.shape[1]), dtype=np.int64)  # images of each unit with each label
    np.add.at(has, unit, shown)
    order = np.lexsort((generator.random(count), -sizes))
    members = [order[has[order, label] > 0] for label in range(has.shape[1])]
    wanted = shares[:, None] * has.sum(axis=0)
    for label, units in enumerate(members):
        if len(units) >= KEPT + len(shares) - 1:
            more = np.maximum(1 - wanted[1:, label], 0)
            wanted[1:, label] += more
            wanted[0, label] -= more.sum()
    room = shares * sizes.sum()
    found = np.full(count, -1, dtype=np.int64)

    def assign(number: int, want: np.ndarray) -> None:
        best = np.flatnonzero(want >= want.max() - 1e-9)
        best = best[room[best] >= room[best].max() - 1e-9]
        split = int(best[generator.integers(len(best))] if len(best) > 1 else best[0])
        found[number] = split
        wanted[split] -= has[number]
        room[split] -= sizes[number]

    left = (has > 0).sum(axis=0)
    queue = [(int(number), label) for label, number in enumerate(left) if number]
    heapq.heapify(queue)
    while queue:
        number, label = heapq.heappop(queue)
        units = members[label][found[members[label]] < 0]
        if len(units) != number:  # others have taken some: it is rarer than it stood in line for
            if len(units):
                heapq.heappush(queue, (len(units), label))
            continue
        for each in units:
            assign(int(each), wanted[:, label])
    for each in order[found[order] < 0]:
        assign(int(each), room)
    _balance(found, np.concatenate([has, sizes[:, None]], axis=1), np.concatenate([wanted, room[:, None]], axis=1))
    return found[unit]


def _balance(found: np.ndarray, has: np.ndarray, wanted: np.ndarray) -> None:
    """Move units to other splits as long as the shares come nearer to what is wanted, one at a time, the best first.

    A split keeps its last image with a label, training its last ``KEPT``.

    Args:
        found: split of every unit ``[U]``; it is changed.
        has: images of each unit with each label ``[U, M]``, all of them in the last column.
        wanted: how many more of these each split should have ``[S, M]``.
    """
    units, splits = np.arange(len(found)), np.arange(len(wanted))
    total = np.stack([has[found == split].sum(axis=0) for split in splits])
    size = np.maximum(total[:, -1] + wanted[:, -1], 1) ** 2
    square = (has**2).sum(axis=1)
    least = np.minimum(total, np.where(splits == 0, KEPT, 1)[:, None])
    for _ in range(MOVES):
        if (np.abs(wanted) < ALIKE * np.sqrt(size)[:, None]).all():
            return
        dot = has @ wanted.T
        change = (square[:, None] - 2 * dot) / size  # of the split that a unit would come into
        change += ((square + 2 * dot[units, found]) / size[found])[:, None]  # and of the one that it leaves
        change[units, found] = 0
        needed = ((has > 0) & (total[found] - has < least[found])).any(axis=1)
        change[needed] = 0
        unit, split = np.unravel_index(change.argmin(), change.shape)
        if change[unit, split] > -1e-12:
            return
        for which, sign in ((found[unit], 1), (split, -1)):
            wanted[which] += sign * has[unit]
            total[which] -= sign * has[unit]
        found[unit] = split


def few_of_labels(
    labels: np.ndarray,
    shots: int,
    seed: int,
    names: list[str],
    setting: str,
    subjects: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of ``shots`` images with every label and as many without it, drawn by ``seed``; one may serve several.

    Args:
        labels: labels ``[N, L]``: 1, 0, NaN.
        shots: images with each label, and without it. Subsets of one seed are nested.
        seed: random seed for the draw.
        names: names of the L labels, for the error message.
        setting: name of the setting, for the error message.
        subjects: subject ``[N]`` of each image, if it is known: no two images with a label show the same one, as long
            as it has others.

    Raises:
        UserError: too few images have a label, or lack it.

    Example:
        >>> few_of_labels(np.array([[1, 0], [0, 1], [1, 1], [0, 0]]), 1, 0, ["red", "big"], "shots").tolist()
        [0, 1, 3]
    """
    kinds = [np.asarray(labels == value).sum(axis=0) for value in (1, 0)]
    most = int(min(count.min(initial=len(labels)) for count in kinds))
    if most < shots:
        value = 0 if kinds[0].min() == most else 1
        name = names[int(kinds[value].argmin())]
        raise UserError(
            f"{setting}={shots} is more than there is: label '{name}' has {most} image(s) with{'out' * value} it; the "
            f"largest possible value is {most} (dataset.args.drop=['{name}'] leaves the label out)"
        )
    generator = np.random.default_rng(seed)
    drawn = [np.empty(0, dtype=np.int64)]
    for column in labels.T:
        for value in (1, 0):
            rows = generator.permutation(np.flatnonzero(column == value))
            drawn.append((rows if subjects is None else rows[turns(subjects[rows]).argsort(kind="stable")])[:shots])
    return np.unique(np.concatenate(drawn))


def turns(subjects: np.ndarray) -> np.ndarray:
    """How many images of the same subject stand before each, ``[N]``."""
    _, member = np.unique(subjects, return_inverse=True)
    order = member.argsort(kind="stable")
    starts = np.concatenate([[0], np.bincount(member).cumsum()[:-1]])
    found = np.empty(len(subjects), dtype=np.int64)
    found[order] = np.arange(len(subjects)) - starts[member[order]]
    return found
