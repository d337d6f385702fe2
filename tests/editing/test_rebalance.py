"""Rebalancing: planted concepts that go with the class, ratios whose truth is known, and every refusal."""

import dataclasses

import numpy as np
import pytest
import torch

from cbm.data.features import FeatureSplit
from cbm.editing import prune
from cbm.editing.rebalance import (
    capped,
    class_balanced,
    count_ratio,
    density_ratio,
    effective_rows,
    rebalance,
    refit_without,
)
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead, LinearProbe

CORE, NAMED, ALIKE, COUNT = slice(0, 5), slice(5, 7), slice(7, 10), 30
REMOVED = torch.tensor([NAMED.start <= k < NAMED.stop for k in range(COUNT)])


def drawn(n: int, agree: float, generator: torch.Generator) -> FeatureSplit:
    """Two classes and a background v that agrees with the class in a share of the images: 5 concepts of the class, 2 of
    v that have a name, 3 of v that nobody named, 20 of nothing."""
    y = (torch.rand(n, generator=generator) < 0.5).long()
    v = torch.where(torch.rand(n, generator=generator) < agree, y, 1 - y)
    x = torch.randn(n, COUNT, generator=generator)
    x[:, CORE] += 1.35 * (y[:, None] - 0.5)
    x[:, NAMED] += 3.0 * (v[:, None] - 0.5)
    x[:, ALIKE] += 1.5 * (v[:, None] - 0.5)
    return FeatureSplit(x, y, [str(row) for row in range(n)], groups={"v": v.numpy()})


def bottleneck(x: torch.Tensor, classes: int = 2) -> ConceptBottleneck:
    count = x.shape[1]
    return ConceptBottleneck(torch.eye(count), LinearHead(torch.zeros(classes, count), torch.zeros(classes))).calibrate(
        x
    )


def worst(model: ConceptBottleneck, split: FeatureSplit) -> float:
    right, v = model.logits(split.x).argmax(dim=1) == split.y, torch.from_numpy(split.groups["v"])
    return min(float(right[(split.y == a) & (v == b)].double().mean()) for a in (0, 1) for b in (0, 1))


@pytest.mark.parametrize(("n", "seeds"), [(500, 2), (2000, 1)])
def test_rebalancing_helps_the_worst_group_where_a_background_is_planted(n: int, seeds: int):
    found, alike = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        train, val, test = drawn(n, 0.95, generator), drawn(n // 2, 0.95, generator), drawn(4000, 0.5, generator)
        model = refit_without(bottleneck(train.x), torch.zeros(COUNT, dtype=torch.bool), train, val).model
        made = rebalance(model, REMOVED, train, val)
        for fit in (made.refit, made.rebalanced):
            assert fit.point.gap <= 1e-4
            assert (fit.model.weights()[:, REMOVED] == 0).all()
        assert made.rebalanced.rows >= 0.04 * n  # .05 N before the classes are balanced
        found.append([worst(each, test) for each in (model, made.refit.model, made.rebalanced.model)])
        true, own = count_ratio(train.groups["v"], train.y, 2), density_ratio(train.x[:, REMOVED], train.y, 2)
        alike.append(float(np.corrcoef(true.u.log(), own.u.log())[0, 1]))
    as_trained, refit, balanced = np.mean(found, axis=0)
    assert balanced >= refit + 0.05
    assert balanced >= as_trained + 0.15
    assert np.mean(alike) >= 0.85


def test_what_is_removed_is_held_where_edits_hold_it():
    train = drawn(300, 0.9, torch.Generator().manual_seed(0))
    model = refit_without(bottleneck(train.x), torch.zeros(COUNT, dtype=torch.bool), train, train).model
    held = train.x.clone()
    held[:, REMOVED] = model.reference[REMOVED]
    torch.testing.assert_close(prune(model, REMOVED.expand(2, -1)).logits(train.x), model.logits(held))


def test_where_class_and_concepts_are_independent_all_images_count_the_same():
    generator = torch.Generator().manual_seed(3)
    train, val, test = (drawn(2000, 0.5, generator) for _ in range(3))
    ratio = density_ratio(train.x[:, REMOVED], train.y, 2)
    assert ((ratio.u - 1).abs() <= 0.15).double().mean() >= 0.9
    assert abs(ratio.auroc - 0.5) < 0.05
    model = bottleneck(train.x)
    equal, weighted = (refit_without(model, REMOVED, train, val, u).model for u in (None, capped(ratio.u)[0]))
    right = [float((each.logits(test.x).argmax(dim=1) == test.y).double().mean()) for each in (equal, weighted)]
    assert abs(right[0] - right[1]) <= 0.01
    with pytest.raises(UserError, match="does not go with the class, so there is nothing to rebalance"):
        rebalance(model, REMOVED, train, val)


def test_the_ratio_is_near_the_one_of_the_densities_that_images_are_drawn_from():
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(3, (6000,), generator=generator)
    means = torch.tensor([[-1.0, 0.0], [0.0, 1.5], [1.0, 0.0]])
    v = means[y] + torch.randn(len(y), 2, generator=generator)
    likely = torch.distributions.Normal(means.double(), 1.0).log_prob(v.double()[:, None]).sum(dim=2)  # p(v | y) [N, 3]
    true = likely.logsumexp(dim=1) - likely.gather(1, y[:, None]).squeeze(1) - np.log(3)
    found = density_ratio(v, y, 3).u.log()
    assert float((found - true).abs().quantile(0.9)) < 0.15


def test_the_order_of_classes_says_nothing():
    generator = torch.Generator().manual_seed(6)
    y = torch.randint(3, (600,), generator=generator)
    v = torch.randn(600, 2, generator=generator)
    v[:, 0] += 3.0 * (y == 1)  # the middle one: no line along the numbers 0, 1, 2 tells it
    order = torch.tensor([1, 2, 0])
    one, other = density_ratio(v, y, 3), density_ratio(v, order[y], 3)
    assert one.auroc == pytest.approx(other.auroc, abs=0.02)
    assert np.corrcoef(one.u.log(), other.u.log())[0, 1] > 0.98
    assert one.u[(y != 1) & (v[:, 0] > 3)].mean() > 5 * one.u[(y == 1) & (v[:, 0] > 3)].mean()


def test_a_class_that_one_fold_alone_shows_has_no_ratio():
    y = torch.tensor([0] * 30 + [1] * 30 + [2])
    u = density_ratio(torch.randn(61, 2, generator=torch.Generator().manual_seed(0)), y, 3).u
    assert u[-1] == 1
    assert u.isfinite().all()


def test_counts_give_the_ratio_pair_by_pair():
    generator = np.random.default_rng(0)
    groups, y = generator.integers(-1, 3, 200), generator.integers(0, 2, 200)
    found = count_ratio(groups, torch.from_numpy(y), 2)
    known = groups >= 0
    total = known.sum() + 6
    for row in range(200):
        if not known[row]:
            assert found.u[row] == 1
            continue
        g, c = groups[row], y[row]
        own = ((y == c) & known).sum() + 3
        there = (groups == g).sum() + 2
        both = ((y == c) & (groups == g)).sum() + 1
        assert float(found.u[row]) == pytest.approx(own * there / total / both)
    with pytest.raises(UserError, match="1 value"):
        count_ratio(np.zeros(5, dtype=np.int64), torch.tensor([0, 1, 0, 1, 0]), 2)


def test_the_cap_is_the_largest_that_leaves_enough_rows():
    u = torch.from_numpy(np.random.default_rng(0).pareto(0.6, 400) + 0.01)
    assert effective_rows(u) < 20
    weights, cap = capped(u)
    assert float(weights.max()) == pytest.approx(cap)
    values = np.minimum(u.numpy(), cap)
    assert values.sum() ** 2 / (values**2).sum() == pytest.approx(20)
    assert effective_rows(u.clamp(max=1.01 * cap)) < 20
    assert capped(torch.ones(5, dtype=torch.float64))[1] == float("inf")


def test_classes_count_the_same_after_weighting():
    y = torch.tensor([0, 0, 0, 3, 3, 1])
    rows = class_balanced(torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 9.0]), y)
    assert [float(rows[y == c].sum()) for c in (0, 1, 3)] == pytest.approx([2, 2, 2])
    assert float(rows[1] / rows[0]) == pytest.approx(2)


def test_the_head_is_optimal_by_conditions_that_are_computed_anew():
    train = drawn(400, 0.9, torch.Generator().manual_seed(1))
    u = torch.rand(400, generator=torch.Generator().manual_seed(2)).double() + 0.1
    fit = refit_without(bottleneck(train.x), REMOVED, train, train, u, tol=1e-7)
    x = train.x[:, ~REMOVED].double()
    z = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    weight = fit.point.weight().double()
    rows = class_balanced(u, train.y) / 400
    errors = (z @ weight.T + fit.point.bias.double()).softmax(dim=1) - torch.nn.functional.one_hot(train.y, 2)
    gradient = (rows[:, None] * errors).T @ z + fit.point.lam * 0.01 * weight  # smooth part: loss and ridge
    l1 = 0.99 * fit.point.lam
    assert (weight != 0).any()
    assert (gradient[weight == 0].abs() <= 1.01 * l1).all()
    torch.testing.assert_close(gradient[weight != 0], -l1 * weight[weight != 0].sign(), rtol=0.01, atol=0.01 * l1)
    logits = z @ weight.T + fit.point.bias.double()
    torch.testing.assert_close(fit.model.logits(train.x).double(), logits, rtol=1e-4, atol=1e-4)


def test_refusals_are_one_line():
    train = drawn(200, 0.95, torch.Generator().manual_seed(0))
    model = bottleneck(train.x)
    most = torch.ones(COUNT, dtype=torch.bool)
    most[0] = False
    with pytest.raises(UserError, match=r"removing 29 of 30 concepts leaves 1: expected 2 or more for every class"):
        rebalance(model, most, train, train)
    with pytest.raises(UserError, match="no concept is removed"):
        rebalance(model, ~torch.ones(COUNT, dtype=torch.bool), train, train)
    model.residual = LinearProbe(torch.zeros(2, COUNT), torch.zeros(2))
    with pytest.raises(UserError, match="a residual"):
        rebalance(model, REMOVED, train, train)


def test_a_column_takes_the_place_of_scores():
    generator = torch.Generator().manual_seed(0)
    train, val, test = drawn(500, 0.95, generator), drawn(250, 0.95, generator), drawn(4000, 0.5, generator)
    none = torch.zeros(COUNT, dtype=torch.bool)
    made = rebalance(bottleneck(train.x), none, train, val, column="v")
    assert worst(made.rebalanced.model, test) > worst(made.refit.model, test) + 0.05
    again = rebalance(bottleneck(train.x), none, train, val, column="v")
    assert dataclasses.astuple(again.rebalanced.point)[0] == made.rebalanced.point.lam
