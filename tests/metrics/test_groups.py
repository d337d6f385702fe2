"""Groups: every count by hand, the worst one among those with enough images, and an interval that covers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from cbm.data.features import FeatureSplit
from cbm.metrics.groups import ENOUGH, group_metrics, group_table, worst_group, worst_group_change
from cbm.metrics.intervals import wilson_interval

NAMES = {"site": ["A", "B"]}


def split_of(y: torch.Tensor, **groups: np.ndarray) -> FeatureSplit:
    return FeatureSplit(torch.zeros(len(y), 1), y, [f"{n}.png" for n in range(len(y))], groups=groups)


def drawn(n: int = 300, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, FeatureSplit]:
    g = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(n, classes, generator=g), torch.randint(classes, (n,), generator=g)
    site = torch.randint(-1, 2, (n,), generator=g).numpy()
    return logits + 1.5 * torch.nn.functional.one_hot(y, classes), split_of(y, site=site)


def test_every_number_is_counted_image_by_image():
    logits, split = drawn()
    table = group_table(logits, split, ["x", "y", "z"], NAMES)
    assert {(group.label, group.value) for group in table} == {(c, v) for c in "xyz" for v in "AB"}
    for group in table:
        label, value = "xyz".index(group.label), "AB".index(group.value)
        right, margins = [], []
        for row in range(len(split)):
            if split.y[row] == label and split.groups["site"][row] == value:
                said = logits[row].double().tolist()
                right.append(said.index(max(said)) == label)
                margins.append(said[label] - max(said[c] for c in range(3) if c != label))
        assert group.count == len(right)
        assert group.accuracy == pytest.approx(sum(right) / len(right))
        assert group.margin == pytest.approx(sum(margins) / len(margins))
        ends = binomtest(sum(right), len(right)).proportion_ci(0.95, "wilson")
        assert (group.low, group.high) == pytest.approx((ends.low, ends.high))
        all_together = binomtest(sum(right), len(right)).proportion_ci(1 - 0.05 / 6, "wilson")
        assert group.ends == pytest.approx((all_together.low, all_together.high))
    assert [group.accuracy for group in table] == sorted(group.accuracy for group in table)


def test_the_summary_of_a_table():
    logits, split = drawn()
    table = group_table(logits, split, ["x", "y", "z"], NAMES)
    values = group_metrics(table)
    accuracies = {(group.label, group.value): group.accuracy for group in table}
    assert values["worst_group"] == min(accuracies.values())
    assert values["group_mean"] == pytest.approx(sum(accuracies.values()) / 6)
    assert values["group_gap"] == pytest.approx(max(abs(accuracies[c, "A"] - accuracies[c, "B"]) for c in "xyz"))
    assert values["worst_group_low"] == min(group.ends[0] for group in table)
    assert values["worst_group_high"] == min(group.ends[1] for group in table)
    assert values["groups"] == 6


def test_a_small_group_is_shown_and_never_the_worst():
    y = torch.zeros(ENOUGH * 2 - 1, dtype=torch.long)
    site = np.array([0] * ENOUGH + [1] * (ENOUGH - 1))
    logits = torch.tensor([[1.0, 0.0]] * ENOUGH + [[0.0, 1.0]] * (ENOUGH - 1))  # all of the small group is wrong
    table = group_table(logits, split_of(y, site=site), ["x", "y"], NAMES)
    assert [(group.value, group.enough, group.accuracy) for group in table] == [("A", True, 1.0), ("B", False, 0.0)]
    assert worst_group(table).value == "A"
    assert group_metrics(table)["groups"] == 1
    assert "group_gap" not in group_metrics(table)
    one_more = split_of(torch.zeros(2 * ENOUGH, dtype=torch.long), site=np.array([*site, 1]))
    with_it = group_table(torch.cat([logits, logits[-1:]]), one_more, ["x", "y"], NAMES)
    assert worst_group(with_it).value == "B"


def test_nothing_is_said_without_groups_or_of_unknown_values():
    logits, split = drawn()
    assert group_table(logits, split_of(split.y), ["x", "y", "z"], {}) == []
    unknown = split_of(split.y, site=np.full(len(split), -1))
    assert group_table(logits, unknown, ["x", "y", "z"], NAMES) == []
    assert group_metrics([]) == {}
    assert worst_group([]) is None
    assert worst_group_change(np.ones(300, bool), np.ones(300, bool), unknown) is None


def test_images_of_one_subject_are_no_independent_images():
    logits, split = drawn()
    alone = group_table(logits, split, ["x", "y", "z"], NAMES)
    split.subjects = np.arange(len(split)) // 10
    by_subject = group_table(logits, split, ["x", "y", "z"], NAMES)
    for wide, narrow in zip(by_subject, alone):
        rows = (split.y == "xyz".index(wide.label)).numpy() & (split.groups["site"] == "AB".index(wide.value))
        count = len(set(split.subjects[rows].tolist()))
        assert (wide.low, wide.high) == wilson_interval(wide.accuracy, count)
        assert wide.low < narrow.low or wide.name != narrow.name


def test_labels_have_balanced_accuracy_by_value():
    g = torch.Generator().manual_seed(1)
    y = (torch.rand(400, 2, generator=g) < 0.3).float()
    y[torch.rand(400, 2, generator=g) < 0.1] = float("nan")
    logits = torch.randn(400, 2, generator=g) + y.nan_to_num(0.5)
    site = torch.randint(0, 2, (400,), generator=g).numpy()
    cut = torch.tensor([0.3, 0.8])
    table = group_table(logits, split_of(y, site=site), ["wet", "cold"], NAMES, cut)
    assert len(table) == 4
    for group in table:
        label, value = ["wet", "cold"].index(group.label), "AB".index(group.value)
        z, truth = logits[site == value, label], y[site == value, label]
        found, left = (z > cut[label])[truth == 1].double(), (z <= cut[label])[truth == 0].double()
        assert group.accuracy == pytest.approx(float(found.mean() + left.mean()) / 2)
        assert group.count == int((~truth.isnan()).sum())
        ends = [wilson_interval(float(part.mean()), len(part)) for part in (found, left)]
        below = math.hypot(float(found.mean()) - ends[0][0], float(left.mean()) - ends[1][0]) / 2
        assert group.low == pytest.approx(group.accuracy - below)


def test_a_label_needs_images_with_it_and_without_it():
    y = torch.tensor([[1.0]] * 5 + [[0.0]] * 30)
    table = group_table(torch.zeros(35, 1), split_of(y, site=np.zeros(35, int)), ["wet"], NAMES, torch.zeros(1))
    assert [group.enough for group in table] == [False]
    assert group_table(torch.zeros(5, 1), split_of(y[:5], site=np.zeros(5, int)), ["wet"], NAMES, torch.zeros(1)) == []


@pytest.mark.parametrize("truth", [(0.8, 0.8, 0.8, 0.8), (0.95, 0.9, 0.85, 0.6)], ids=["alike", "distinct"])
@pytest.mark.parametrize("n", [25, 100, 400])
def test_the_interval_of_the_worst_group_covers_it(truth: tuple[float, ...], n: int):
    """500 draws: the true smallest accuracy lies in it in 92 % of them or more."""
    y = torch.arange(4).repeat_interleave(n)
    split = split_of(y, site=np.zeros(4 * n, int))
    generator, covered = torch.Generator().manual_seed(n), 0
    for _ in range(500):
        right = torch.rand(4 * n, generator=generator) < torch.tensor(truth).repeat_interleave(n)
        said = torch.nn.functional.one_hot(torch.where(right, y, (y + 1) % 4), 4).float()
        values = group_metrics(group_table(said, split, list("wxyz"), NAMES))
        covered += values["worst_group_low"] <= min(truth) <= values["worst_group_high"]
    assert covered >= 0.92 * 500


@pytest.mark.parametrize("n", [25, 100, 400])
def test_a_bootstrap_of_the_smallest_misses_the_truth(n: int):
    """Why it is not used: 300 draws of four groups that are all right in 80 %."""
    generator = np.random.default_rng(n)
    measured = generator.binomial(n, 0.8, (300, 4)) / n
    drawn = generator.binomial(n, measured[:, None], (300, 400, 4)).min(axis=2) / n
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert ((low <= 0.8) & (high >= 0.8)).mean() < 0.8
    if n == 25:
        assert measured.min(axis=1).mean() == pytest.approx(0.715, abs=0.02)


def test_two_models_are_compared_on_the_same_images():
    generator = np.random.default_rng(0)
    y, site = torch.arange(2).repeat_interleave(200), np.tile([0, 1], 200)
    weak = (y.numpy() == 1) & (site == 1)
    other = generator.random(400) < np.where(weak, 0.5, 0.9)
    one = other | (weak & (generator.random(400) < 0.7))  # right on more of the weak group, and the same elsewhere
    split = split_of(y, site=site)
    change = worst_group_change(one, other, split)
    by_group = [
        [right[(y.numpy() == c) & (site == v)].mean() for c in (0, 1) for v in (0, 1)] for right in (one, other)
    ]
    assert change.value == pytest.approx(min(by_group[0]) - min(by_group[1]))
    assert 0 < change.low < change.value < change.high
    significant = [key for key, p in change.tests.items() if p < 0.05]
    assert significant == [("site", 1, 1)]
    back = worst_group_change(other, one, split)
    assert (back.value, back.low) == pytest.approx((-change.value, -change.high))
    same = worst_group_change(other, other, split)
    assert (same.value, same.low, same.high) == (0, 0, 0)
