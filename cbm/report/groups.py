"""The table of groups on a report: how well a class is decided where its pictures differ in site, sex, background."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cbm.layers import is_many, predict_logits, thresholds_of
from cbm.metrics.groups import ENOUGH, Group, group_metrics, group_table, worst_group
from cbm.report.result import RunResult
from cbm.report.wording import clip

FIRST = 12
"""Groups that are shown before anything is unfolded."""
MOST = 400
"""Groups on the page, at most: the worst."""


@dataclass(frozen=True)
class GroupSection:
    """What the page says about groups.

    Attributes:
        first: the groups that are shown at once, the worst first.
        rest: the others, in the same order; those with too few pictures come last.
        omitted: number of groups that are on neither list.
        worst: the worst group with enough pictures; None if there is none.
        values: ``cbm.metrics.groups.group_metrics``.
        columns: names of the columns.
        enough: pictures from which on a group can be the worst.
        few: number of groups with fewer.
        many: whether the groups are of labels.
        by_subject: whether intervals count subjects.
    """

    first: Sequence[Group]
    rest: Sequence[Group]
    omitted: int
    worst: Group | None
    values: dict[str, float]
    columns: Sequence[str]
    enough: int
    few: int
    many: bool
    by_subject: bool


@torch.no_grad()
def describe_groups(result: RunResult) -> GroupSection | None:
    """The groups of the test pictures of a run; None if its data set has none."""
    test, data = result.data.test, result.data
    many = is_many(result.model)
    thresholds = thresholds_of(result.model, len(data.classes)) if many else None
    table = group_table(predict_logits(result.model, test.x), test, data.classes, data.group_names, thresholds)
    if not table:
        return None
    shown = [
        replace(group, label=clip(group.label), column=clip(group.column), value=clip(group.value))
        for group in table[:MOST]
    ]
    return GroupSection(
        shown[:FIRST],
        shown[FIRST:],
        len(table) - len(shown),
        worst_group(shown),
        group_metrics(table),
        [clip(column) for column in test.groups],
        ENOUGH,
        sum(not group.enough for group in table),
        many,
        test.subjects is not None,
    )
