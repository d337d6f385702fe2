"""Pruning concepts from a bottleneck's classes."""

import pytest
import torch
from small_bottleneck import C, D, K, bottleneck

from cbm.editing import prune
from cbm.layers import AssociationHead, ConceptBottleneck, LinearProbe


@pytest.fixture
def model() -> ConceptBottleneck:
    return bottleneck()[0]


@pytest.fixture
def x() -> torch.Tensor:
    return bottleneck()[1]


def removal(*pairs: tuple[int, int]) -> torch.Tensor:
    removed = torch.zeros(C, K, dtype=torch.bool)
    for c, k in pairs:
        removed[c, k] = True
    return removed


def test_pruned_logits_are_those_with_the_concept_at_its_mean(model, x):
    edited = prune(model, removal((1, 2), (1, 5)))
    scores = model.scores(x)
    scores[:, [2, 5]] = model.reference[[2, 5]]
    by_hand = 3.0 * scores @ model.head.matrix.T + model.head.bias
    torch.testing.assert_close(edited(x)[:, 1], by_hand[:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edited(x)[:, 0], model(x)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
def test_other_classes_keep_every_bit(model, normalise):
    edited = prune(model, removal((1, 2)), normalise=normalise)
    for c in (0, 2, 3):
        assert torch.equal(edited.weights()[c], model.weights()[c])
        assert torch.equal(edited.head.bias[c], model.head.bias[c])


def test_normalising_restores_the_sum_of_importances(model):
    removed = removal((0, 0), (0, 1), (3, 8))
    edited = prune(model, removed, normalise=True)
    before, after = model.importance().abs().sum(1), edited.importance().abs().sum(1)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
    assert (edited.weights()[removed] == 0).all()
    ratio = edited.weights()[0, 2:] / model.weights()[0, 2:]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert ratio[0] > 1


def test_pruning_twice_is_pruning_once_and_nothing_is_nothing(model, x):
    removed = removal((2, 3), (0, 7))
    once = prune(model, removed)
    assert torch.equal(prune(once, removed).weights(), once.weights())
    torch.testing.assert_close(prune(once, removed)(x), once(x))
    nothing = prune(model, removal(), normalise=True)
    assert torch.equal(nothing.weights(), model.weights())
    torch.testing.assert_close(nothing(x), model(x))


def test_a_class_with_nothing_left_stays_empty(model, x):
    removed = torch.zeros(C, K, dtype=torch.bool)
    removed[2] = True
    edited = prune(model, removed, normalise=True)
    assert (edited.weights()[2] == 0).all()
    assert edited(x)[:, 2].isfinite().all()


def test_the_residual_is_not_touched(model, x):
    plain = model(x)
    model.residual = LinearProbe(torch.randn(C, D), torch.randn(C))
    edited = prune(model, removal((1, 2)))
    torch.testing.assert_close(edited(x) - edited.concept_path()(x), model(x) - plain)


def test_an_association_head_can_be_pruned(x):
    g = torch.Generator().manual_seed(3)
    concepts = torch.nn.functional.normalize(torch.randn(K, D, generator=g), dim=1)
    labo = ConceptBottleneck(concepts, AssociationHead(torch.randn(C, K, generator=g)), scale=20.0)
    edited = prune(labo, removal((0, 1)))
    assert edited.weights()[0, 1] == 0
    torch.testing.assert_close(edited(x)[:, 1:], labo(x)[:, 1:], rtol=1e-4, atol=1e-5)
