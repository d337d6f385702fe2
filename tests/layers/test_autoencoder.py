"""Dictionaries in training: what they start from, and that their code is the same after they are given away."""

import pytest
import torch
from torch.nn.functional import normalize

from cbm.layers.autoencoder import FIXED, KINDS, NEIGHBOURS, Autoencoder, Dictionaries
from cbm.losses.autoencoder import CODES, autoencoder_loss

K, D, N, k = 24, 16, 60, 4


def made(kind: str, seed: int = 0) -> tuple[Autoencoder, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = normalize(torch.randn(N, D, generator=g) + 0.5, dim=1)
    rows = 4 * K if kind == "archetypal" else K
    model = Autoencoder(torch.randn(rows, D, generator=g), K, k, kind, x.mean(dim=0), 1.7)
    with torch.no_grad():  # somewhere on its way
        for parameter in (model.encoder, model.offset, model.bias):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return model, x


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'top'; expected one of topk, batch_topk"):
        Autoencoder(torch.eye(3), 3, 1, "top", torch.zeros(3), 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_atoms_have_length_1_and_share_nothing_with_the_encoder(kind):
    model, _ = made(kind)
    torch.testing.assert_close(model.atoms().norm(dim=1), torch.ones(K), atol=1e-6, rtol=0)
    fresh = Autoencoder(torch.randn(4 * K, D), K, k, kind, torch.zeros(D), 1.0)
    torch.testing.assert_close(fresh.encoder, fresh.atoms())  # a copy
    before = fresh.atoms().detach().clone()
    with torch.no_grad():
        fresh.encoder.mul_(3)
    assert fresh.atoms().equal(before)


def test_archetypal_atoms_lie_in_the_hull_of_the_centres():
    model, _ = made("archetypal")
    shares = model.shares.softmax(dim=1)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(K))
    assert model.nearest.shape == (K, min(NEIGHBOURS, 4 * K))
    assert model.nearest[:, 0].equal(torch.arange(K))
    expected = torch.stack([s @ model.centres[i] for s, i in zip(shares, model.nearest)])
    torch.testing.assert_close(model.mixtures(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_that_is_given_away_is_the_one_that_was_trained(kind):
    """In units of the features: the pictures' mean, their scale and the bias are part of it."""
    model, x = made(kind)
    model.train()
    if kind == "batch_topk":
        autoencoder_loss(model, x, dead_after=10**9)  # sets the threshold
    model.eval()
    with torch.no_grad():
        away = model.away(x)
        scores = model.scores(away)
        if kind in FIXED:
            values, units = scores.topk(k, dim=1)
            weights = torch.zeros_like(scores).scatter(1, units, values.clamp(min=0))
        else:
            least = {"relu": torch.zeros(K), "batch_topk": model.threshold}.get(kind)
            least = model.fixed() if least is None else least
            weights = scores.where(scores > least, 0.0).clamp(min=0)
        said = model.mean + (weights @ model.atoms() + model.bias) / model.scale
        layer = model.code()
        codes = layer.code(x, model.encoder)
        torch.testing.assert_close(codes.dense(K), weights / model.scale, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.mean + codes.reconstruct(layer.atoms), said, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_says_what_its_units_add_up_to(kind):
    model, x = made(kind)
    model.eval()
    said, fired, extra = CODES[kind](model, model.away(x))
    assert said.shape == (N, D)
    assert fired.shape == (K,)
    assert fired.dtype == torch.bool
    assert float(torch.as_tensor(extra).detach()) >= 0
    assert (float(torch.as_tensor(extra).detach()) > 0) == (kind in ("relu", "jumprelu"))


def test_side_by_side():
    first, x = made("topk")
    both = Dictionaries([first, made("topk", 1)[0]])
    values, units = first.strongest(first.away(x))
    with torch.no_grad():
        expected = torch.stack([v @ first.decoder[u] for v, u in zip(values, units)]) + first.bias
        torch.testing.assert_close(both(x), first.mean + expected / first.scale, atol=1e-5, rtol=1e-4)
    assert [name for name, _ in both.named_parameters()][:2] == ["each.0.decoder", "each.0.encoder"]
