"""A planted model whose bank is permuted, doubled, turned, or exchanged for directions that see nothing."""

import logging
from dataclasses import replace

import pytest
import torch
from small_bottleneck import D, K, bank, bottleneck

from cbm.editing import refit_head, swap_bank
from cbm.errors import UserError
from cbm.layers import LinearProbe, Sigmoid

MODEL, X = bottleneck(n=400)


def with_directions(directions: torch.Tensor):
    return replace(bank(len(directions)), embeddings=directions)


def test_the_head_of_a_permuted_bank_is_the_permuted_head():
    order = torch.randperm(K, generator=torch.Generator().manual_seed(1))
    made = refit_head(MODEL, MODEL.concepts[order], X, ridge=1e-9)
    torch.testing.assert_close(made.weights(), MODEL.weights()[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.biases(), MODEL.biases(), atol=1e-4, rtol=1e-4)


def test_two_of_each_share_the_weight():
    made = refit_head(MODEL, MODEL.concepts.repeat(2, 1), X, ridge=1e-9)
    torch.testing.assert_close(made.weights(), (MODEL.weights() / 2).repeat(1, 2), atol=1e-4, rtol=1e-4)


def test_a_bank_of_the_same_span_decides_the_same_everywhere():
    turn = torch.linalg.qr(torch.randn(K, K, generator=torch.Generator().manual_seed(2)))[0]
    made = refit_head(MODEL, turn @ MODEL.concepts, X[:200], ridge=1e-9)
    torch.testing.assert_close(made.logits(X[200:]), MODEL.logits(X[200:]), atol=1e-4, rtol=1e-4)


def test_it_is_the_least_squares_solution():
    directions = torch.randn(5, D, generator=torch.Generator().manual_seed(3))
    made = refit_head(MODEL, directions, X, ridge=1e-12)
    scores = torch.cat([X @ directions.T, torch.ones(len(X), 1)], dim=1).double()
    slow = torch.linalg.lstsq(scores, MODEL.logits(X).double()).solution
    torch.testing.assert_close(made.weights().double(), slow[:-1].T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.biases().double(), slow[-1], atol=1e-5, rtol=1e-4)


def test_a_residual_stays():
    model, x = bottleneck(n=200)
    model.residual = LinearProbe(torch.randn(4, D), torch.randn(4)).requires_grad_(False)
    made, swap = swap_bank(model, with_directions(model.concepts.flip(0)), x, ridge=1e-9)
    assert made.residual is model.residual
    torch.testing.assert_close(made.logits(x), model.logits(x), atol=1e-4, rtol=1e-4)
    assert swap.kept.agreement == 1


def test_what_is_kept_is_measured_on_other_pictures():
    """With more concepts than pictures a fit on all of them would look perfect."""
    few = X[:20]
    noise = torch.randn(60, D, generator=torch.Generator().manual_seed(4))
    short = noise - noise @ MODEL.concepts.T @ torch.linalg.pinv(MODEL.concepts).T  # sees nothing of the model
    _, swap = swap_bank(MODEL, with_directions(short), few, ridge=1e-9, least=0)
    assert swap.kept.r2 < 0.5


def test_a_useless_bank_is_refused_with_what_it_keeps():
    short = torch.linalg.svd(MODEL.concepts)[2][K:]  # what no concept of the model sees
    assert len(short) == D - K
    with pytest.raises(UserError, match=r"kept \d+\.\d% of decisions.*less than least=0.8"):
        swap_bank(MODEL, with_directions(short), X, least=0.8)
    _, swap = swap_bank(MODEL, with_directions(short), X, least=0)
    assert swap.kept.r2 < 0.1
    assert float(swap.kept.class_r2.max()) < 0.2


def test_as_many_random_directions_as_dimensions_keep_everything_and_that_is_said(caplog: pytest.LogCaptureFixture):
    many = torch.randn(3 * D, D, generator=torch.Generator().manual_seed(5))
    with caplog.at_level(logging.WARNING):
        _, swap = swap_bank(MODEL, with_directions(many), X)
    assert swap.random.agreement > 0.95
    assert swap.kept.agreement > 0.95
    if swap.kept.r2 <= swap.random.r2:
        assert "says nothing for its phrases" in caplog.text


def test_a_translation_keeps_the_weights_of_each_concept():
    g = torch.Generator().manual_seed(6)
    said = torch.nn.functional.normalize(MODEL.concepts + 0.05 * torch.randn(K, D, generator=g), dim=1)
    near, swap = swap_bank(MODEL, with_directions(said), X, translation=True, ridge=1.0)
    plain, _ = swap_bank(MODEL, with_directions(said), X, ridge=1.0)
    distance = [float((model.weights() - MODEL.weights()).norm()) for model in (near, plain)]
    assert distance[0] < 0.5 * distance[1]
    assert swap.unfitted is not None
    assert swap.unfitted.agreement > 0.8
    assert "under the old weights" in str(swap)


def test_other_concepts_in_their_place_are_no_translation():
    with pytest.raises(UserError, match="this is no translation"):
        swap_bank(MODEL, with_directions(-MODEL.concepts), X, translation=True)


def test_what_cannot_be_exchanged():
    with pytest.raises(UserError, match=r"activation \(Sigmoid\)"):
        swap_bank(bottleneck(Sigmoid(torch.zeros(K)))[0], with_directions(MODEL.concepts), X)
    with pytest.raises(UserError, match="3 dimensions, the model 12"):
        swap_bank(MODEL, with_directions(torch.randn(5, 3)), X)
    with pytest.raises(UserError, match="a translation has as many"):
        swap_bank(MODEL, with_directions(torch.randn(5, D)), X, translation=True)
