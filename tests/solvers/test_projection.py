from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbm.solvers import projection
from cbm.solvers.projection import cos_cubed, fit_projection


def by_definition(q, p):
    """One column at a time, in float64, without any guard."""
    q, p = q.double(), p.double()
    values = []
    for k in range(q.shape[1]):
        a, b = (q[:, k] - q[:, k].mean()) ** 3, (p[:, k] - p[:, k].mean()) ** 3
        values.append(float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5)
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n=900, d=24, e=16, k=20, noise=0.0, seed=0):
    """A teacher that is a linear map of a badly conditioned backbone: (training, validation) arguments and the map."""
    spectrum = torch.arange(1, d + 1) ** -0.7
    x = normal(n, d, seed=seed) * spectrum @ torch.linalg.qr(normal(d, d, seed=seed + 1))[0] + 0.5
    mapping = normal(e, d, seed=seed + 2)
    teacher = x @ mapping.T + noise * normal(n, e, seed=seed + 3)
    concepts = normal(k, e, seed=seed + 4)
    cut = 2 * n // 3
    return (x[:cut], teacher[:cut], concepts), {"val_x": x[cut:], "val_teacher_x": teacher[cut:]}, mapping


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 60), k=st.integers(1, 5), seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_equals_its_definition_whatever_scale_and_shift(n, k, seed, scale):
    q, p = normal(n, k, seed=seed), normal(n, k, seed=seed + 100)
    expected = by_definition(q, p)
    torch.testing.assert_close(cos_cubed(q.double(), p.double()), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cos_cubed(q * scale, p), expected, rtol=0, atol=2e-5, check_dtype=False)
    moved = cos_cubed(q.double() * scale + 3 * scale, 0.2 + 1e-3 * p.double())
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-7, check_dtype=False)


def test_cubes_of_small_cosines_do_not_underflow():
    q, p = 1e-13 * normal(50, 3), 0.2 + 1e-3 * normal(50, 3, seed=1)
    expected = by_definition(normal(50, 3), normal(50, 3, seed=1)).float()
    torch.testing.assert_close(cos_cubed(q, p), expected, rtol=0, atol=1e-3)


def test_gradient():
    q, p = normal(12, 3).double().requires_grad_(), normal(12, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(cos_cubed, (q, p))


def test_a_constant_column_is_zero_with_zero_gradient():
    q, p = normal(40, 3), normal(40, 3, seed=1)
    q[:, 1], p[:, 2] = 0.2371, -1234.567
    q.requires_grad_()
    similarity = cos_cubed(q, p)
    similarity.sum().backward()
    assert similarity.detach()[1:].tolist() == [0.0, 0.0]
    assert float(similarity[0].detach()) != 0
    assert torch.isfinite(q.grad).all()
    assert (q.grad[:, 1:] == 0).all()
    assert cos_cubed(torch.ones(1, 2), torch.ones(1, 2)).tolist() == [0.0, 0.0]


def test_the_gradient_of_the_fit_is_the_gradient_of_the_definition():
    x, weight, p = normal(50, 6) - 0.3, normal(4, 6, seed=1), normal(50, 4, seed=2)
    weight.requires_grad_()
    (expected,) = torch.autograd.grad((1 - cos_cubed(x @ weight.T, p)).sum(), weight)
    with torch.no_grad():
        loss, gradient = projection._loss(weight, x, projection._cubes(p))
        torch.testing.assert_close(loss, 1 - cos_cubed(x @ weight.T, p))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("start", ["ridge", "random"])
def test_a_linear_teacher_is_repeated_and_its_directions_recovered(start):
    data, validation, mapping = planted()
    weight, similarity = fit_projection(*data, **validation, start=start, lr=1e-2, patience=3)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))
    assert float(similarity.min()) > 0.98
    truth = torch.nn.functional.normalize(data[2] @ mapping, dim=1)
    assert float((weight * truth).sum(1).min()) > (0.999 if start == "ridge" else 0.9)
    val_p = validation["val_teacher_x"] @ data[2].T
    torch.testing.assert_close(cos_cubed(validation["val_x"] @ weight.T, val_p), similarity, rtol=1e-4, atol=1e-4)


def test_directions_are_recovered_only_where_the_features_vary():
    (x, teacher, concepts), validation, mapping = planted()
    hidden = torch.nn.functional.normalize(normal(1, x.shape[1], seed=9), dim=1)
    x, val_x = (v - v @ hidden.T @ hidden for v in (x, validation["val_x"]))
    teacher, val_teacher = x @ mapping.T, val_x @ mapping.T
    weight, similarity = fit_projection(x, teacher, concepts, val_x=val_x, val_teacher_x=val_teacher)
    truth = concepts @ mapping
    truth = torch.nn.functional.normalize(truth - truth @ hidden.T @ hidden, dim=1)
    assert float((weight * truth).sum(1).min()) > 0.999
    assert float(similarity.min()) > 0.999


def test_noise_has_no_validation_similarity():
    (x, teacher, concepts), validation, _ = planted(n=3000)
    noise = normal(3000, 16, seed=50)
    weight, similarity = fit_projection(
        x, noise[:2000], concepts, val_x=validation["val_x"], val_teacher_x=noise[2000:], start="ridge"
    )
    assert float(similarity.abs().mean()) < 0.1
    assert float(similarity.max()) < 0.3


@pytest.mark.parametrize("start", ["ridge", "random"])
def test_every_concept_keeps_its_own_best_weights(start):
    """More steps never lower a concept's similarity, and one that overfits stays with what it had."""
    data, validation, _ = planted(n=150, noise=3.0)
    options = dict(start=start, patience=1000, validate_every=1, lr=1e-2, **validation)
    results = [fit_projection(*data, steps=steps, **options) for steps in (0, 3, 10, 80)]
    for (_, fewer), (_, more) in pairwise(results):
        assert (more >= fewer - 1e-6).all()
    early = (results[3][1] - results[2][1]).abs() < 1e-6
    assert early.any(), "some concept should overfit early"
    torch.testing.assert_close(results[3][0][early], results[2][0][early], rtol=0, atol=1e-6)


def test_a_concept_stops_where_it_would_stop_alone():
    (x, teacher, concepts), validation, _ = planted(n=150, noise=3.0)
    together, _ = fit_projection(x, teacher, concepts, **validation)
    for k in range(0, 20, 5):
        alone, _ = fit_projection(x, teacher, concepts[k : k + 1], **validation)
        torch.testing.assert_close(together[k], alone[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("start", ["ridge", "random"])
@pytest.mark.parametrize("batch", [50_000, 300])
def test_blocks_do_not_change_the_result(start, batch, monkeypatch):
    monkeypatch.setattr(projection, "BATCH", batch)
    data, validation, _ = planted(noise=0.3)
    whole, similarity = fit_projection(*data, **validation, start=start, steps=20, validate_every=5, lr=1e-2)
    blocks, again = fit_projection(*data, **validation, start=start, steps=20, validate_every=5, lr=1e-2, block=3)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-3)
    torch.testing.assert_close(again, similarity, rtol=0, atol=1e-4)


def test_drawn_batches_come_close_to_all_rows(monkeypatch):
    data, validation, _ = planted(noise=0.3)
    whole = fit_projection(*data, **validation, patience=5)[1]
    monkeypatch.setattr(projection, "BATCH", 400)
    drawn = fit_projection(*data, **validation, patience=5)
    assert float((whole - drawn[1]).mean()) < 0.02
    assert torch.equal(fit_projection(*data, **validation, patience=5)[0], drawn[0])


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_ridge_start_is_at_least_as_good_in_fewer_steps(noise):
    data, validation, _ = planted(noise=noise)
    published = fit_projection(*data, **validation, start="random", patience=0)[1]
    ridge = fit_projection(*data, **validation, start="ridge", steps=20)[1]
    assert float(ridge.mean()) > float(published.mean()) - 1e-3


def test_constant_concepts_and_features_stay_finite():
    (x, teacher, concepts), validation, _ = planted(k=3)
    concepts[1] = 0
    for start in ("ridge", "random"):
        weight, similarity = fit_projection(x, teacher, concepts, **validation, start=start, steps=60)
        assert torch.isfinite(weight).all()
        assert float(similarity[1]) == 0
        assert float(similarity[[0, 2]].min()) > 0.5
        flat = {**validation, "val_x": torch.ones_like(validation["val_x"])}
        weight, similarity = fit_projection(torch.ones_like(x), teacher, concepts, **flat, start=start, steps=60)
        assert torch.isfinite(weight).all()
        assert (similarity == 0).all()


def test_half_precision_features():
    data, validation, _ = planted()
    half = {name: value.half() for name, value in validation.items()}
    weight, similarity = fit_projection(*(value.half() for value in data), **half)
    assert weight.dtype == similarity.dtype == torch.float32
    assert float(similarity.min()) > 0.99


def test_errors():
    data, validation, _ = planted()
    with pytest.raises(ValueError, match="start is 'zero'"):
        fit_projection(*data, **validation, start="zero")
    with pytest.raises(ValueError, match="patience=-1"):
        fit_projection(*data, **validation, patience=-1)
    with pytest.raises(ValueError, match=r"teacher_x has shape \[600, 16\]"):
        fit_projection(data[0][:5], *data[1:], **validation)
    with pytest.raises(ValueError, match=r"p has shape \[3, 2\]"):
        cos_cubed(torch.zeros(4, 2), torch.zeros(3, 2))
