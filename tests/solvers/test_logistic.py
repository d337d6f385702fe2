import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cbm.solvers import fit_logistic, logistic


def clip_like(n, d, c, dtype=torch.float64, seed=0):
    """Unit features with a common offset and a power-law spectrum: as badly conditioned as the real ones."""
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1).double() ** -0.7
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g).double())[0]
    centres = 0.5 * torch.randn(c, d, generator=g).double() * spectrum
    y = torch.arange(n) % c
    x = (torch.randn(n, d, generator=g).double() * spectrum + centres[y]) @ rotation + 0.5
    return torch.nn.functional.normalize(x, dim=1).to(dtype), y


def objective(x, y, weight, bias, l2):
    logits = x.double() @ weight.double().T + bias.double()
    return float(torch.nn.functional.cross_entropy(logits, y) + l2 / 2 * weight.double().square().sum())


def scikit_learn(x, y, l2):
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-9, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x.numpy(), y.numpy())
    return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_same_objective_as_scikit_learn(l2, dtype):
    x, y = clip_like(1000, 32, 5)
    ((weight, bias),) = fit_logistic(x.to(dtype), y, l2=l2, num_classes=5)
    assert weight.dtype == bias.dtype == dtype
    assert weight.shape == (5, 32)
    assert bias.shape == (5,)
    expected = objective(x, y, *scikit_learn(x, y, l2), l2)
    assert objective(x, y, weight, bias, l2) == pytest.approx(expected, rel=1e-6)


def test_gradient_is_zero_at_the_solution():
    x, y = clip_like(500, 16, 3)
    ((weight, bias),) = fit_logistic(x, y, l2=1e-3, num_classes=3, tol=1e-9)
    weight.requires_grad_()
    bias.requires_grad_()
    (torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + 5e-4 * weight.square().sum()).backward()
    assert float(weight.grad.norm()) < 1e-8
    assert float(bias.grad.norm()) < 1e-8


def test_path_keeps_the_order_given_and_equals_single_fits():
    x, y = clip_like(600, 16, 4)
    penalties = [1e-4, 1e-1, 1e-2, 1e-4]
    for l2, (weight, bias) in zip(penalties, fit_logistic(x, y, l2=penalties, num_classes=4), strict=True):
        ((alone, alone_bias),) = fit_logistic(x, y, l2=l2, num_classes=4)
        assert objective(x, y, weight, bias, l2) == pytest.approx(objective(x, y, alone, alone_bias, l2), rel=1e-8)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    x, y = clip_like(5000, 8, 3)
    ((whole, _),) = fit_logistic(x, y, l2=1e-3, num_classes=3, tol=1e-10)
    monkeypatch.setattr(logistic, "_LOGITS", 3 * 1100)
    ((blocks, _),) = fit_logistic(x, y, l2=1e-3, num_classes=3, tol=1e-10)
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=1e-8)


def test_half_precision_features_and_more_dimensions_than_rows():
    x, y = clip_like(20, 64, 2)
    ((weight, bias),) = fit_logistic(x.half(), y, l2=1e-4, num_classes=2)
    assert weight.dtype == torch.float32
    assert ((x.float() @ weight.T + bias).argmax(1) == y).all()


def test_an_absent_class_and_separable_data_stay_finite():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    y = torch.tensor([0, 1]).repeat(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ((weight, bias),) = fit_logistic(x, y, l2=1e-6, num_classes=3)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    assert ((x @ weight.T + bias).argmax(1) == y).all()


def test_constant_features_give_the_class_frequencies():
    y = torch.tensor([0, 0, 0, 1])
    ((weight, bias),) = fit_logistic(torch.ones(4, 2).double(), y, l2=0.1, num_classes=2)
    torch.testing.assert_close((weight.sum(1) + bias).softmax(0), torch.tensor([0.75, 0.25]).double())


def test_too_few_iterations_warn():
    x, y = clip_like(300, 16, 4)
    with pytest.warns(RuntimeWarning, match="stopped after 2 iterations"):
        fit_logistic(x, y, l2=1e-6, num_classes=4, max_iter=2)


def test_errors():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"classes from 0 to 2; expected 0 to num_classes - 1 = 1"):
        fit_logistic(x, y, l2=1.0, num_classes=2)
    with pytest.raises(ValueError, match=r"y has shape \[3\]"):
        fit_logistic(x, y[:3], l2=1.0, num_classes=3)
    with pytest.raises(ValueError, match="l2 is 0"):
        fit_logistic(x, y, l2=0.0, num_classes=3)
    with pytest.raises(ValueError, match=r"x has shape \[4\]"):
        fit_logistic(x[:, 0], y, l2=1.0, num_classes=3)


def test_a_covariance_that_float32_cannot_take_apart_is_taken_apart_in_float64(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(200, generator=generator) > 0).long()
    expected, eigh = fit_logistic(x, y, l2=0.01, num_classes=2), torch.linalg.eigh

    def single_fails(matrix: torch.Tensor):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("not converged")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", single_fails)
    for weight, other in zip(fit_logistic(x, y, l2=0.01, num_classes=2)[0], expected[0]):
        assert torch.allclose(weight, other, atol=1e-3)
