"""Answers that say something about other concepts."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from small_bottleneck import bottleneck

from cbm.editing import conditional_mean, propagate, source_covariance, to_activations, to_logits
from cbm.editing.apply import levels
from cbm.editing.asking.propagation import beyond_labels
from cbm.editing.asking.questions import ask_in_turn
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.layers.activations import Sigmoid


def test_two_correlated_concepts():
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    told, values = torch.tensor([[True, False]]), torch.tensor([[2.0, 9.0]])
    after = conditional_mean(torch.zeros(1, 2), told, values, covariance)
    torch.testing.assert_close(after, torch.tensor([[2.0, 1.6]]))


def test_conditional_means_one_picture_at_a_time():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(7, 7, generator=g, dtype=torch.float64)
    covariance = root @ root.T
    a, values = torch.randn(2, 40, 7, generator=g, dtype=torch.float64)
    told = torch.rand(40, 7, generator=g) < 0.4
    told[0] = False
    told[1] = True
    after = conditional_mean(a, told, values, covariance)
    for row in range(40):
        inside, outside = told[row].nonzero()[:, 0], (~told[row]).nonzero()[:, 0]
        expected = a[row].clone()
        expected[inside] = values[row, inside]
        if len(inside):
            inner = torch.linalg.inv(covariance[inside][:, inside])
            expected[outside] += covariance[outside][:, inside] @ inner @ (values[row, inside] - a[row, inside])
        torch.testing.assert_close(after[row], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(after[told], values[told])


def test_without_correlation_only_the_told_change():
    g = torch.Generator().manual_seed(1)
    a, values = torch.randn(2, 20, 5, generator=g)
    told = torch.rand(20, 5, generator=g) < 0.5
    after = conditional_mean(a, told, values, torch.diag(torch.rand(5, generator=g) + 0.1))
    torch.testing.assert_close(after, torch.where(told, values, a))
    assert torch.equal(conditional_mean(a, told & False, values, torch.eye(5)), a)
    assert conditional_mean(a[:0], told[:0], values[:0], torch.eye(5)).shape == (0, 5)


def test_concepts_that_were_not_asked_about_are_known_better():
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(3000, 2, generator=g)
    truth = hidden[:, [0, 0, 0, 1, 1, 1]] + 0.3 * torch.randn(3000, 6, generator=g)
    shade = torch.randn(3000, 2, generator=g)  # what makes one concept look wrong does so to its relatives
    seen = truth + shade[:, [0, 0, 0, 1, 1, 1]] + 0.3 * torch.randn(3000, 6, generator=g)
    told = torch.zeros(3000, 6, dtype=torch.bool)
    told[:, [0, 3]] = True
    after = conditional_mean(seen, told, truth, source_covariance(seen))
    rest = [1, 2, 4, 5]
    error = [(each[:, rest] - truth[:, rest]).square().mean() for each in (seen, after)]
    assert error[1] < 0.5 * error[0]


@pytest.mark.parametrize("mu", [-5.0, -1.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("answer", [0.0, 1.0])
@pytest.mark.parametrize("together", [0.8, -0.8])
def test_what_is_told_moves_nothing_the_wrong_way(mu: float, answer: float, together: float):
    """Also where the model is surer than .95 (mu=5): the partner stays or follows, never turns round."""
    covariance = torch.tensor([[1.0, together], [together, 1.0]])
    answers, told = torch.tensor([[answer, math.nan]]), torch.tensor([[True, False]])
    after = propagate(torch.tensor([[mu, 0.0]]), told, answers, covariance)[0]
    way = (1 if answer else -1) * (1 if together > 0 else -1)
    assert float(after[1]) * way >= 0
    expected = max(mu, math.log(19)) if answer else min(mu, -math.log(19))
    torch.testing.assert_close(after, torch.tensor([expected, together * (expected - mu)]))


@pytest.mark.parametrize("activation", [None, Sigmoid(torch.zeros(9))])
def test_logits_of_concepts(activation):
    """The levels of absent and present are -2.94 and 2.94, and the way back is the way there."""
    model, x = bottleneck(activation)
    expected = torch.tensor([-math.log(19), math.log(19)])[:, None].expand(2, len(model.concepts)).double()
    torch.testing.assert_close(to_logits(model, levels(model)), expected, rtol=1e-5, atol=1e-5)
    seen = model.activations(x)
    torch.testing.assert_close(to_activations(model, to_logits(model, seen)), seen, rtol=1e-4, atol=1e-5)


def planted() -> tuple[ConceptBottleneck, torch.Tensor]:
    """Two probabilities of which the second decides the class; a picture whose logits are 5 and .1."""
    head = LinearHead(torch.tensor([[0.0, -9.0], [0.0, 9.0]]), torch.tensor([4.6, -4.6]))
    model = ConceptBottleneck(torch.eye(2), head, activation=Sigmoid(torch.zeros(2)))
    return model, torch.tensor([[5.0, 0.1]])


def test_a_sure_concept_that_is_told_does_not_turn_the_decision():
    model, x = planted()
    assert float(model.activations(x)[0, 0]) > 0.95
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    curve = ask_in_turn(
        model, x, torch.tensor([1]), torch.tensor([[1.0, math.nan]]), [[0], [1]], "random", covariance=covariance
    )
    assert curve.accuracy.tolist() == [1.0, 1.0, 1.0]


def test_the_head_reads_0_or_1_of_probabilities_that_are_told():
    model, x = planted()
    model = model.with_weights(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([0.0, -3.9]))  # .95 is not enough
    for answer, right in ((1.0, [1.0, 1.0]), (0.0, [1.0, 0.0])):
        told = torch.tensor([[answer, math.nan]])
        for covariance in (None, torch.eye(2)):
            curve = ask_in_turn(model, x, torch.tensor([1]), told, [[0]], "random", covariance=covariance)
            assert curve.accuracy.tolist() == right


def test_what_labels_do_not_tell_is_what_a_regression_leaves():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (60, 3), generator=g).float()
    y = torch.cat([y, y[:, :1]], dim=1)  # the last label is the first one once more
    a = y[:, :3] @ torch.randn(3, 5, generator=g) + torch.randn(60, 5, generator=g)
    left = beyond_labels(a, y).numpy()
    slow = LinearRegression().fit(y[:, :3].numpy(), a.numpy())
    np.testing.assert_allclose(left, a.numpy() - slow.predict(y[:, :3].numpy()), atol=1e-5)
    one_hot = torch.eye(3)[torch.randint(3, (60,), generator=g)]
    means = torch.stack([a[one_hot[:, c] == 1].mean(dim=0) for c in range(3)])
    np.testing.assert_allclose(beyond_labels(a, one_hot).numpy(), (a - one_hot @ means).numpy(), atol=1e-5)
    y[:6, 1] = torch.nan
    filled = torch.where(y.isnan(), y.nanmean(dim=0), y)
    np.testing.assert_allclose(beyond_labels(a, y).numpy(), beyond_labels(a, filled).numpy(), atol=1e-9)
    assert bool(beyond_labels(a, torch.full_like(y, torch.nan)).isfinite().all())
