"""Corrections in closed form, against slow references in float64."""

import pytest
import torch
from torch.nn.functional import normalize

from cbm.editing.domains.closed_forms import mean_shift, recentred_concepts, recentred_features, shrunk_refit
from cbm.editing.domains.concept_head import LinearConceptHead
from cbm.editing.domains.guard import balanced_weights
from cbm.editing.domains.source_card import source_statistics
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.layers.activations import Cube, Sigmoid, TopK
from cbm.layers.probe import LinearProbe

C, K, D, N = 4, 7, 12, 60


@pytest.fixture
def x() -> torch.Tensor:
    return normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(0)), dim=1)


def model(activation=None, residual: bool = False) -> ConceptBottleneck:
    g = torch.Generator().manual_seed(1)
    head = LinearHead(torch.randn(C, K, generator=g), torch.randn(C, generator=g))
    made = ConceptBottleneck(torch.randn(K, D, generator=g), head, activation=activation)
    if residual:
        made.residual = LinearProbe(torch.randn(C, D, generator=g), torch.randn(C, generator=g))
    return made.requires_grad_(False)


@pytest.mark.parametrize("kind", [None, Sigmoid, Cube, "topk"])
@pytest.mark.parametrize("residual", [False, True])
def test_features_are_read_as_if_they_were_moved(x: torch.Tensor, kind, residual: bool):
    offset = torch.linspace(-0.2, 0.2, K)
    activation = None if kind is None else TopK(offset, 3) if kind == "topk" else kind(offset)
    original = model(activation, residual)
    before = {key: value.clone() for key, value in original.state_dict().items()}
    by = 0.3 * torch.randn(D, generator=torch.Generator().manual_seed(2))
    moved = recentred_features(original, by)
    torch.testing.assert_close(moved.logits(x), original.logits(x + by), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())


def test_concepts_are_read_as_if_they_were_moved(x: torch.Tensor):
    original = model(Sigmoid(torch.zeros(K)))
    by = torch.linspace(-1, 1, K)
    wanted = torch.nn.functional.linear(original.activations(x) + by, original.weights(), original.biases())
    torch.testing.assert_close(recentred_concepts(original, by).logits(x), wanted, atol=1e-5, rtol=1e-5)


def test_the_mean_of_the_classes_that_are_there_is_put_back():
    values, y = torch.randn(9, 3).double(), torch.tensor([0, 0, 0, 0, 0, 2, 2, 2, 2])
    home = torch.randn(3, 3).double()
    moved = values + mean_shift(values, y, home)
    means = torch.stack([moved[y == c].mean(0) for c in (0, 2)]).mean(0)
    torch.testing.assert_close(means, home[[0, 2]].mean(0))


def statistics(original: ConceptBottleneck, x: torch.Tensor):
    head = LinearConceptHead(original.weights(), original.biases())
    return source_statistics(original.activations(x), torch.arange(len(x)) % C, head)


@pytest.mark.parametrize("n", [5, 20])  # fewer images than concepts, and more
def test_a_refit_near_the_old_head_is_the_solution_of_its_equations(x: torch.Tensor, n: int):
    original, y, penalty = model(), torch.arange(n) % C, 0.3
    source = statistics(original, x)
    found = shrunk_refit(original, x[:n], y, source, penalty)
    a = original.activations(x[:n]).double()
    u = torch.cat([(a - source.reference) / source.a.std(dim=0), torch.ones(n, 1).double()], dim=1)
    z = source.factor * original.logits(x[:n]).double()
    wrong = torch.nn.functional.one_hot(y, C) - z.softmax(dim=1)
    share = balanced_weights(y)
    ridge = penalty * torch.tensor([1.0] * K + [0.1]).double()
    theta = torch.zeros(K + 1, C).double()
    for _ in range(20_000):  # gradient descent on the quadratic bound
        theta -= 0.3 * (
            0.5 * u.T @ (share[:, None] * (u @ theta)) + ridge[:, None] * theta - u.T @ (share[:, None] * wrong)
        )
    wanted = original.logits(x[:n]).double() + u @ theta / source.factor
    torch.testing.assert_close(found.logits(x[:n]).double(), wanted, atol=1e-3, rtol=1e-3)


def test_a_large_penalty_leaves_the_head_and_a_small_one_fits_the_labels(x: torch.Tensor):
    original, y = model(), torch.arange(20) % C
    source = statistics(original, x)
    still = shrunk_refit(original, x[:20], y, source, 1e9)
    torch.testing.assert_close(still.logits(x), original.logits(x), atol=1e-4, rtol=1e-4)
    losses = [
        float(torch.nn.functional.cross_entropy(source.factor * m.logits(x[:20]), y))
        for m in (
            original,
            shrunk_refit(original, x[:20], y, source, 0.3),
            shrunk_refit(original, x[:20], y, source, 0.01),
        )
    ]
    assert losses[0] > losses[1] > losses[2]


def test_a_concept_that_never_varied_is_left_alone(x: torch.Tensor):
    original = model()
    original.concepts[2] = 0.0
    source = statistics(original, x)
    found = shrunk_refit(original, x[:20], torch.arange(20) % C, source, 0.1)
    assert found.logits(x).isfinite().all()
