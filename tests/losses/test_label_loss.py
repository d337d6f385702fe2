"""Losses of labels of which a part is unknown, and of concepts with values."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from cbm.losses.classification import label_loss, mean_loss_by_label
from cbm.losses.concepts import ConceptLayout, concept_layout_loss, ordered_heads

NAN = math.nan


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_is_known_of_a_label_pulls_as_much_whatever_the_rest():
    """200 entries, of one label 95 % unknown: the sum of what its entries pull is that of a complete label."""
    n = 200
    logits = torch.zeros(n, 2, dtype=torch.float64, requires_grad=True)
    y = torch.ones(n, 2, dtype=torch.float64)
    y[10:, 1] = NAN
    label_loss(logits, y).backward()
    torch.testing.assert_close(logits.grad.sum(dim=0), torch.full((2,), -0.25).double())
    assert bool((logits.grad[10:, 1] == 0).all())
    alone = torch.zeros(10, 1, dtype=torch.float64, requires_grad=True)
    label_loss(alone, y[:10, 1:]).backward()  # the same entries as a label without unknown ones
    torch.testing.assert_close(logits.grad[:10, 1:], alone.grad / 2)  # half: one label of two


def test_label_loss_is_the_mean_of_the_means():
    logits, y = random(40, 5), (random(40, 5, seed=1) > 0.4).double()
    y[random(40, 5, seed=2) > 0] = NAN
    y[:, 4] = NAN  # nothing known
    expected = []
    for label in range(4):
        of_label = []
        for z, t in zip(logits[:, label].tolist(), y[:, label].tolist()):
            if not math.isnan(t):
                p = 1 / (1 + math.exp(-z))
                of_label.append(-math.log(p if t == 1 else 1 - p))
        expected.append(sum(of_label) / len(of_label))
    assert float(label_loss(logits, y)) == pytest.approx(sum(expected) / 4, rel=1e-12)
    found = mean_loss_by_label(logits, y)
    assert found[:4].tolist() == pytest.approx(expected, rel=1e-12)
    assert math.isnan(float(found[4]))
    targets = torch.rand(40, 5).double()  # probabilities are targets too
    assert float(label_loss(logits, targets)) == pytest.approx(float(binary_cross_entropy_with_logits(logits, targets)))


def test_a_batch_of_which_nothing_is_known_pulls_nowhere():
    logits = random(3, 2).requires_grad_()
    loss = label_loss(logits, torch.full((3, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_one_class_is_still_cross_entropy():
    logits, y = random(30, 4), torch.arange(30) % 4
    assert float(label_loss(logits, y)) == float(cross_entropy(logits, y))


LAYOUT = ConceptLayout(exclusive=[[0, 1, 2]], ordered=[[3, 4]], numbers=[5])


def targets(n: int) -> torch.Tensor:
    """An attribute of three values, one of three levels, a number, and one yes or no (column 6)."""
    t = torch.zeros(n, 7, dtype=torch.float64)
    t[torch.arange(n), torch.arange(n) % 3] = 1
    level = torch.arange(n) // 3 % 3
    t[:, 3], t[:, 4] = (level >= 1).double(), (level >= 2).double()
    t[:, 5] = random(n, seed=3)
    t[:, 6] = (random(n, seed=4) > 0).double()
    return t


def test_every_attribute_counts_once():
    logits, t = random(30, 7), targets(30)
    t[:7, 3:5] = NAN
    t[20:, :3] = NAN
    t[5:15, 5] = NAN
    value = cross_entropy(logits[:20, :3], t[:20, :3].argmax(dim=1))
    level = binary_cross_entropy_with_logits(logits[7:, 3:5], t[7:, 3:5])
    known = ~t[:, 5].isnan()
    number = 0.5 * (logits[known, 5] - t[known, 5]).square().mean()
    yes = binary_cross_entropy_with_logits(logits[:, 6], t[:, 6])
    expected = (value + level + number + yes) / 4
    assert float(concept_layout_loss(logits, t, LAYOUT)) == pytest.approx(float(expected), rel=1e-12)


def test_an_attribute_with_many_values_does_not_outweigh_one_with_two():
    big = ConceptLayout(exclusive=[list(range(31)), [31, 32]])
    t = torch.zeros(20, 33, dtype=torch.float64)
    t[torch.arange(20), torch.arange(20)] = 1
    t[:, 31] = 1
    logits = torch.zeros(20, 33, dtype=torch.float64, requires_grad=True)
    loss = concept_layout_loss(logits, t, big)
    assert loss.item() == pytest.approx((math.log(31) + math.log(2)) / 2)
    t[:, :31] = NAN  # of which nothing is known: the other is all there is
    assert concept_layout_loss(logits, t, big).item() == pytest.approx(math.log(2))


def test_a_plain_layout_is_the_mean_over_the_columns():
    logits, t = random(20, 3), (random(20, 3, seed=1) > 0).double()
    found = concept_layout_loss(logits, t, ConceptLayout())
    assert float(found) == pytest.approx(float(binary_cross_entropy_with_logits(logits, t)))


def test_nothing_known_is_no_loss_that_still_has_a_gradient():
    logits = random(4, 7).requires_grad_()
    concept_layout_loss(logits, torch.full((4, 7), NAN).double(), LAYOUT).backward()
    assert not logits.grad.any()


def test_steps_never_become_likelier():
    layout = ConceptLayout(ordered=[[1, 3, 4], [0, 2]])
    for seed in range(5):
        weight, bias = 3 * random(6, 4, seed=seed), 5 * random(6, seed=seed + 10)
        x = 3 * random(50, 4, seed=seed + 20)
        free = x @ weight.T + bias
        tied = torch.nn.functional.linear(x, *ordered_heads(weight, bias, layout))
        p = tied.sigmoid()
        for columns in layout.ordered:
            assert bool((p[:, columns[:-1]] >= p[:, columns[1:]]).all())
            torch.testing.assert_close(tied[:, columns[0]], free[:, columns[0]])
        torch.testing.assert_close(tied[:, 5], free[:, 5])  # a concept of its own
        assert bool((free.sigmoid()[:, 1] < free.sigmoid()[:, 3]).any())  # free heads do not keep the order


def test_ordered_heads_learn_thresholds_by_gradient():
    weight, bias = random(3, 2).requires_grad_(), random(3, seed=1).requires_grad_()
    w, b = ordered_heads(weight, bias, ConceptLayout(ordered=[[0, 1, 2]]))
    (random(8, 2, seed=2) @ w.T + b).square().sum().backward()
    assert bool((bias.grad != 0).all())
    assert bool((weight.grad[0] != 0).all())
    assert not weight.grad[1:].any()  # one direction for all steps
    plain = ordered_heads(weight, bias, ConceptLayout())
    assert plain[0] is weight
    assert plain[1] is bias
