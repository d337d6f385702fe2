"""Models side by side on the same images: all of them, and the worst group."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cbm.data import FeatureData, FeatureSplit
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.metrics.bootstrap import Units, accuracy_intervals
from cbm.metrics.groups import GroupChange, group_metrics, group_table, worst_group, worst_group_change


@dataclass(frozen=True)
class Row:
    """One model on the evaluated images.

    Attributes:
        accuracy: share of the images that it decides rightly.
        interval: its 95 % interval.
        worst: accuracy of the worst group of 10 images or more; None if the data set has no groups.
        worst_interval: its 95 % interval, which allows for the choice of the worst.
        worst_name: the worst group in words.
        change: the worst group against that of another model, with a paired interval; None without groups, and
            of that model itself.
    """

    accuracy: float
    interval: tuple[float, float]
    worst: float | None = None
    worst_interval: tuple[float, float] | None = None
    worst_name: str | None = None
    change: GroupChange | None = None


def side_by_side(
    models: Mapping[str, ConceptBottleneck], split: FeatureSplit, data: FeatureData, against: str
) -> dict[str, Row]:
    """A row for every model, on the images of a split.

    Args:
        models: the models by name.
        split: the images.
        data: what they are from: names of the classes and of the groups.
        against: the model whose worst group is compared with those of the others.
    """
    units = Units(split.y.numpy(), split.subjects)
    logits = {name: predict_logits(model, split.x) for name, model in models.items()}
    right: dict[str, np.ndarray] = {name: (each.argmax(dim=1) == split.y).numpy() for name, each in logits.items()}
    rows = {}
    for name, each in right.items():
        row = Row(float(each.mean()), accuracy_intervals(each, units)["accuracy"])
        table = group_table(logits[name], split, data.classes, data.group_names)
        if (worst := worst_group(table)) is not None:
            values = group_metrics(table)
            ends = values["worst_group_low"], values["worst_group_high"]
            change = None if name == against else worst_group_change(each, right[against], split)
            row = Row(row.accuracy, row.interval, worst.accuracy, ends, worst.name, change)
        rows[name] = row
    return rows
