"""Objectives of dictionaries: against dense float64 sums, gradients against finite differences, dead units, planted
truth."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from cbm.layers.autoencoder import KINDS, Autoencoder
from cbm.losses.autoencoder import (
    AUX_WEIGHT,
    BANDWIDTH,
    PREFIXES,
    Jump,
    autoencoder_loss,
    reconstruction_error,
    replace_dead,
    validation_error,
)
from cbm.metrics.dictionaries import match_dictionaries
from cbm.solvers.dictionary_adam import DictionaryAdam

K, D, N, k = 32, 12, 50, 4
NEVER = 10**9


def made(kind: str = "topk", dtype=torch.float32) -> tuple[Autoencoder, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=g)
    model = Autoencoder(torch.randn(4 * K, D, generator=g), K, k, kind, x.mean(dim=0), 0.3)
    with torch.no_grad():
        model.offset.add_(0.05 * torch.randn(K, generator=g))
        model.bias.add_(0.05 * torch.randn(D, generator=g))
    return model.to(dtype), x.to(dtype)


def dense(model: Autoencoder, x: torch.Tensor, first: int = K) -> torch.Tensor:
    """The error of the k strongest units among which only the first count, in float64 and without sparse operations."""
    away = (x.double() - model.mean.double()) * model.scale.double()
    scores = (away - model.bias.double()) @ model.encoder.double().T + model.offset.double()
    least = scores.sort(dim=1, descending=True).values[:, k - 1 : k]
    weights = scores.where(scores >= least, 0.0).clamp(min=0)
    weights[:, first:] = 0
    return (away - weights @ model.atoms().double() - model.bias.double()).square().sum(dim=1).mean()


@pytest.mark.parametrize("kind", ["topk", "archetypal"])
def test_the_squared_rest(kind):
    model, x = made(kind)
    torch.testing.assert_close(
        autoencoder_loss(model, x, dead_after=NEVER).double(), dense(model, x), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(reconstruction_error(model, x).double(), dense(model, x), atol=1e-5, rtol=1e-5)


def test_the_first_units_of_matryoshka_reconstruct_by_themselves():
    model, x = made("matryoshka")
    lengths = sorted({max(math.ceil(K / part), k) for part in PREFIXES})
    assert lengths == [4, 8, 16, 32]
    expected = torch.stack([dense(model, x, length) for length in lengths]).mean()
    torch.testing.assert_close(autoencoder_loss(model, x, dead_after=NEVER).double(), expected, atol=1e-5, rtol=1e-5)


def test_dead_units_explain_the_rest():
    model, x = made()
    model.eval()
    model.silent[:6] = 5
    with torch.no_grad():
        away = model.away(x).double()
        values, units = model.strongest(model.away(x))
        said = (
            torch.stack([v.double() @ model.decoder[u].double() for v, u in zip(values, units)]) + model.bias.double()
        )
        scores = (away - model.bias.double()) @ model.encoder[:6].double().T
        least = scores.sort(dim=1, descending=True).values[:, 1:2]
        more = scores.where(scores >= least, 0.0)  # two of them, and not cut off at 0
        rest = (away - said - more @ model.decoder[:6].double()).square().sum(dim=1).mean()
        below = -model.offset[:6].clamp(max=0).sum().double()
    expected = dense(model, x) + AUX_WEIGHT * (rest + below)
    found = autoencoder_loss(model, x, dead_after=4, aux=2)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    found.backward()
    assert model.encoder.grad[:6].abs().amax(dim=1).min() > 0  # a unit that never fires is moved
    torch.testing.assert_close(
        autoencoder_loss(model, x, dead_after=5, aux=2).double(), dense(model, x), atol=1e-5, rtol=1e-5
    )


def test_dead_units_get_the_gradient_of_what_they_explain():
    """Against finite differences, in float64; the rest that they explain is held fixed."""
    model, x = made("topk", torch.float64)
    model.eval()
    model.silent[:3] = 5
    away = model.away(x)

    def explained() -> torch.Tensor:
        values, units = ((away - model.bias) @ model.encoder[:3].T).topk(2, dim=1)
        more = torch.einsum("nk,nkd->nd", values, model.decoder[:3][units])
        return AUX_WEIGHT * (rest - more).square().sum(dim=1).mean()

    with torch.no_grad():
        values, units = model.strongest(away)
        rest = away - torch.einsum("nk,nkd->nd", values, model.decoder[units]) - model.bias
    autoencoder_loss(model, x, dead_after=4, aux=2).backward()
    whole = model.encoder.grad.clone()
    model.zero_grad()
    dense(model, x).backward()
    of_aux = (whole - model.encoder.grad)[:3]
    for row, column in ((0, 0), (1, 5), (2, 11)):
        with torch.no_grad():
            before, step = model.encoder[row, column].clone(), 1e-6
            model.encoder[row, column] = before + step
            high = explained()
            model.encoder[row, column] = before - step
            low = explained()
            model.encoder[row, column] = before
        assert float((high - low) / (2 * step)) == pytest.approx(float(of_aux[row, column]), rel=1e-4, abs=1e-9)


def test_without_dead_units_the_gradient_is_exact():
    model, x = made("topk", torch.float64)
    model.eval()
    autoencoder_loss(model, x, dead_after=NEVER).backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    dense(model, x).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, atol=1e-10, rtol=1e-8)


def test_the_threshold_of_jumprelu_gets_the_gradient_of_the_smoothed_loss():
    """The count is the integral of the window: 0 below, 1 above, a ramp of width BANDWIDTH between."""
    g = torch.Generator().manual_seed(0)
    h = torch.rand(4000, 5, generator=g, dtype=torch.float64)
    threshold = torch.full((5,), 0.4, dtype=torch.float64, requires_grad=True)
    _, above = Jump.apply(h, threshold)
    above.sum().backward()

    def smooth(t: float) -> float:
        return float(((h - t) / BANDWIDTH + 0.5).clamp(0, 1).sum())

    step = 1e-4
    expected = (smooth(0.4 + step) - smooth(0.4 - step)) / (2 * step)
    assert float(threshold.grad.sum()) == pytest.approx(expected, rel=0.02)
    value = threshold.detach().clone().requires_grad_()
    kept, _ = Jump.apply(h, value)
    kept.sum().backward()
    near = ((h - 0.4).abs() < BANDWIDTH / 2).double().sum(dim=0) / BANDWIDTH
    torch.testing.assert_close(value.grad, -0.4 * near)


def test_more_units_fire_at_first():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=g)
    model = Autoencoder(torch.randn(K, D, generator=g), K, 4, "topk", x.mean(dim=0), 0.3, 20, 10).train()
    seen = []
    for _ in range(12):
        seen.append(model.now)
        autoencoder_loss(model, x, dead_after=NEVER)
    assert seen == [20, 18, 17, 15, 14, 12, 10, 9, 7, 6, 4, 4]
    model.step.zero_()
    assert model.eval().now == 4
    assert Autoencoder(torch.randn(K, D), K, 4, "topk", x.mean(dim=0), 0.3, 400, 10).train().now == K


def test_silence_is_counted_in_pictures():
    model, x = made()
    model.train()
    with torch.no_grad():
        model.offset[5] = -100.0
    for part in x.split(10):
        autoencoder_loss(model, part, dead_after=NEVER)
    assert int(model.silent[5]) == N
    fired = model.code().code(x[-10:], model.encoder).columns
    assert (model.silent[fired[fired >= 0]] == 0).all()
    model.eval()
    autoencoder_loss(model, x, dead_after=NEVER)
    assert int(model.silent[5]) == N  # evaluation counts nothing


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_the_penalty_follows_the_number_of_units(kind):
    model, x = made(kind)
    model.train()
    with torch.no_grad():
        model.offset.add_(10.0)  # all fire
    before = float(model.penalty)
    autoencoder_loss(model, x, dead_after=NEVER)
    assert float(model.penalty) > before
    model.fix_penalty(0.5)
    autoencoder_loss(model, x, dead_after=NEVER)
    assert float(model.penalty) == 0.5


def test_new_units_begin_from_badly_explained_pictures():
    model, x = made()
    model.train()
    optimizer = DictionaryAdam([model], list(model.parameters()), lr=1e-3, total=100, warmup=1)
    autoencoder_loss(model, x, dead_after=NEVER).backward()
    optimizer.step()
    model.silent[[2, 7]] = 100
    away = model.away(x) - model.bias
    replace_dead(model, x, dead_after=50)
    optimizer.zero_grad()
    autoencoder_loss(model, x, dead_after=NEVER).backward()
    optimizer.step()
    cosine = normalize(model.decoder[[2, 7]], dim=1) @ normalize(away, dim=1).T
    assert (cosine.max(dim=1).values > 1 - 1e-5).all()
    others = model.encoder.norm(dim=1)[[i for i in range(K) if i not in (2, 7)]].mean()
    torch.testing.assert_close(model.encoder.norm(dim=1)[[2, 7]], 0.2 * others.expand(2), rtol=1e-4, atol=1e-5)
    assert model.offset[[2, 7]].tolist() == [0.0, 0.0]
    assert model.silent[[2, 7]].tolist() == [0, 0]
    assert optimizer.state[model.encoder]["exp_avg"][[2, 7]].abs().max() == 0
    assert model.replacement is None


def planted(n: int = 20_000, count: int = 64, dim: int = 32, few: int = 3):
    """Rows that are sums of a few of ``count`` atoms, with weights of .5 to 1.5."""
    g = torch.Generator().manual_seed(0)
    atoms = normalize(torch.randn(count, dim, generator=g), dim=1)
    columns = torch.rand(n, count, generator=g).topk(few, dim=1).indices
    weights = 0.5 + torch.rand(n, few, generator=g)
    return atoms, torch.einsum("nk,nkd->nd", weights, atoms[columns])


def descend(kind: str, x: torch.Tensor, *, steps: int, dead: str = "aux", start=None, lr: float = 0.03) -> Autoencoder:
    g = torch.Generator().manual_seed(1)
    mean = x.mean(dim=0)
    scale = 1 / float((x - mean).square().sum(dim=1).mean().sqrt())
    rows = torch.randperm(len(x), generator=g)[:64]
    first = 0.8 * normalize(x[rows] - mean, dim=1) + 0.2 * normalize(torch.randn(64, x.shape[1], generator=g), dim=1)
    model = Autoencoder(first, 64, 3, kind, mean, scale, 12, steps // 2).train()
    if start is not None:
        start(model)
    optimizer = DictionaryAdam([model], list(model.parameters()), lr=lr, total=steps, warmup=steps // 10)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (512,), generator=g)]
        loss = autoencoder_loss(model, batch, dead_after=3 * len(x), aux=64 if dead == "aux" else 0)
        if dead == "resample":
            replace_dead(model, batch, dead_after=3 * len(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_planted_atoms_are_found(kind):
    """An encoder that knows the atoms and learns only to read them explains .957 of these rows."""
    atoms, x = planted()
    model = descend(kind, x, steps=2000)
    found = match_dictionaries(atoms, model.atoms().detach())
    assert float((found.cosine > 0.95).double().mean()) >= 0.85
    with torch.no_grad():
        error = float(reconstruction_error(model, x))
    spread = ((x - x.mean(dim=0)) * model.scale).square().sum(dim=1).mean()
    assert 1 - error / float(spread) >= 0.91


@pytest.mark.parametrize("dead", ["aux", "resample", "none"])
def test_dead_units_come_back(dead):
    """Half of the units start far below the others; only where something is done about it do they come back."""
    _, x = planted(2000)

    def half_dead(model: Autoencoder) -> None:
        with torch.no_grad():
            model.offset[::2] = -1.0

    model = descend("topk", x, steps=800, dead=dead, start=half_dead)
    fires = torch.bincount(model.code().code(x, model.encoder).columns.clamp(min=0).flatten(), minlength=64) > 0
    alive = float(fires[::2].double().mean())
    assert alive >= 0.9 if dead != "none" else alive < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_dictionary_that_is_kept_has_as_many_units_as_asked(kind):
    model, x = made(kind)
    error = reconstruction_error(model, x)
    assert validation_error(model, x) >= error
    with torch.no_grad():
        model.offset.add_(10.0)  # all fire
        more = validation_error(model, x) - reconstruction_error(model, x)
    assert float(more) == pytest.approx(K / k - 1.1, rel=1e-4) if kind in ("relu", "jumprelu") else float(more) == 0
