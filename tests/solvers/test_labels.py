"""Several labels an image: ``label_paths`` and ``fit_labels`` against scikit-learn and against themselves."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cbm.solvers import LinearScores, elastic_net_path, fit_labels, fit_logistic, label_paths
from cbm.solvers.elastic_net import Problem, duality_gap, full_pass, polish_bias

RHO = 0.9


def data(n=300, d=8, k=16, labels=4, missing=0.3, seed=0):
    """Correlated features, directions, and labels of different prevalence of which a part is unknown."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) @ mix / d**0.5
    concepts = torch.randn(k, d, generator=g, dtype=torch.float64)
    truth = torch.randn(d, labels, generator=g, dtype=torch.float64)
    noise = torch.randn(n, labels, generator=g, dtype=torch.float64)
    y = (x @ truth + noise > torch.linspace(0, 1.5, labels)).float()
    y[torch.rand(y.shape, generator=g) < missing] = torch.nan
    return x, concepts, y


def dense(scores: LinearScores) -> np.ndarray:
    return scores.block(slice(None)).numpy()


def sklearn_elastic_net(z: np.ndarray, y: np.ndarray, lam: float) -> tuple[np.ndarray, float]:
    """min of the objective by SAGA on the known rows: C is 1 / (n lam)."""
    model = LogisticRegression(
        solver="saga", l1_ratio=RHO, C=1 / (len(y) * lam), tol=1e-9, max_iter=100_000, penalty="elasticnet"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        model.fit(z, y)
    return model.coef_[0], float(model.intercept_[0])


@pytest.mark.parametrize("lam", [0.1, 0.02])
def test_a_path_is_that_of_scikit_learn_on_the_known_rows(lam: float):
    x, concepts, y = data()
    scores = LinearScores(x, concepts)
    paths = label_paths(scores, y, lambdas=[lam], l1_ratio=RHO, tol=1e-8)
    z, used = dense(scores), 0
    for label, path in enumerate(paths):
        known = ~y[:, label].isnan().numpy()
        weight, bias = sklearn_elastic_net(z[known], y[known, label].numpy(), lam)
        mine = path.points[-1].weight()[0].numpy()
        assert np.abs(mine - weight).max() <= 5e-3
        assert abs(float(path.points[-1].bias) - bias) <= 5e-3
        np.testing.assert_array_equal(mine != 0, weight != 0)
        used += int((weight != 0).sum())
    assert used > len(paths)  # something was compared


def test_the_default_tolerance_is_near_scikit_learn_too():
    x, concepts, y = data(n=500, k=40, labels=3)
    scores = LinearScores(x.float(), concepts.float())
    for label, path in enumerate(label_paths(scores, y, lambdas=[0.03], l1_ratio=RHO, tol=1e-4)):
        known = ~y[:, label].isnan().numpy()
        weight, _ = sklearn_elastic_net(dense(scores)[known].astype(float), y[known, label].numpy(), 0.03)
        assert np.abs(path.points[-1].weight()[0].numpy() - weight).max() <= 2e-2


def test_an_unknown_row_is_a_row_that_is_not_there():
    x, concepts, y = data(labels=1)
    rows, raw = ~y[:, 0].isnan(), x @ concepts.T
    unit = {"mean": raw.mean(dim=0), "std": raw.std(dim=0)}
    whole, dropped = LinearScores(x, concepts, **unit), LinearScores(x[rows], concepts, **unit)
    settings = {"n_lambdas": 8, "lambda_ratio": 0.02, "l1_ratio": RHO, "tol": 1e-10}
    masked, few = (label_paths(s, t, **settings)[0] for s, t in ((whole, y), (dropped, y[rows])))
    assert len(masked.points) == len(few.points) == 8
    for a, b in zip(masked.points, few.points):
        assert a.lam == pytest.approx(b.lam, rel=1e-9)
        torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=1e-6)
        torch.testing.assert_close(a.bias, b.bias, rtol=0, atol=1e-6)


def slow_gap(z: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: float, lam: float) -> float:
    """F(w, b) minus the best dual value of ``(1 - s) y + s p``, row by row in float64 (s of a grid)."""
    sign = 2 * y - 1
    margin = sign * (z @ weight + bias)
    primal = torch.nn.functional.softplus(-margin).mean() + lam * (
        RHO * weight.abs().sum() + (1 - RHO) / 2 * weight.square().sum()
    )
    best = -np.inf
    for s in torch.linspace(0, 1, 2001).double():
        a = s * torch.sigmoid(-margin)  # dual variable of every row, in [0, 1]
        entropy = -(torch.special.xlogy(a, a) + torch.special.xlogy(1 - a, 1 - a)).mean()
        steep = ((a * sign)[:, None] * z).mean(dim=0).abs()
        excess = (steep - lam * RHO).clamp(min=0)
        best = max(best, float(entropy - excess.square().sum() / (2 * lam * (1 - RHO))))
    return float(primal) - best


def test_every_label_is_certified_in_float64():
    x, concepts, y = data()
    scores = LinearScores(x.float(), concepts.float())
    z = LinearScores(x.float(), concepts.float()).to(torch.float64).block(slice(None))
    for label, path in enumerate(label_paths(scores, y, n_lambdas=6, lambda_ratio=0.02, l1_ratio=RHO, tol=1e-3)):
        assert len(path.points) == 6
        known = ~y[:, label].isnan()
        for point in path.points[1:]:
            assert -1e-9 <= point.gap <= 1e-3
            gap = slow_gap(z[known], y[known, label].double(), point.weight()[0].double(), float(point.bias), point.lam)
            assert gap / point.objective <= 2e-3  # no bound of the slow one is better than what was promised
            assert gap >= -1e-6


def test_the_gap_of_a_point_that_is_not_solved_bounds_its_distance():
    x, concepts, y = data(labels=2)
    scores = LinearScores(x, concepts)
    known = (~y.isnan()).double().T
    problem = Problem(scores, y.nan_to_num().T.long(), 1, RHO, "binary", known / known.sum(dim=1, keepdim=True))
    best = [path.points[-1].objective for path in label_paths(scores, y, lambdas=[0.05], l1_ratio=RHO, tol=1e-10)]
    lam = torch.full((2,), 0.05).double()
    for seed in range(4):
        weight = 0.3 * torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(seed)).double()
        state = polish_bias(problem, full_pass(problem, weight, torch.zeros(2, 1).double()))
        z = dense(scores) @ weight[:, 0].T.numpy() + state.bias[:, 0].numpy()
        sign = 1 - 2 * y.double().numpy()
        losses = np.log1p(np.exp(sign * z))  # NaN where the label is unknown
        losses = np.nanmean(losses, axis=0)
        size = RHO * weight.abs().sum(dim=(1, 2)) + (1 - RHO) / 2 * weight.square().sum(dim=(1, 2))
        value = torch.from_numpy(losses) + 0.05 * size
        torch.testing.assert_close(state.loss, torch.from_numpy(losses), rtol=1e-10, atol=0)
        assert bool((duality_gap(problem, state, lam) >= value - torch.tensor(best) - 1e-12).all())


@pytest.mark.parametrize("labels", [4, 23])  # more than are solved together
def test_every_label_has_exactly_five_concepts(labels: int):
    x, concepts, y = data(n=200, k=24, labels=labels)
    paths = label_paths(LinearScores(x.float(), concepts.float()), y, n_lambdas=12, nec=(5,), tol=1e-3)
    assert len(paths) == labels
    for path in paths:
        assert int((path.at_nec[5].weight() != 0).sum()) == 5
        assert path.at_nec[5].shape == (1, 24)


def test_the_opposite_of_a_label_has_the_opposite_weights():
    x, concepts, y = data(labels=1)
    both = torch.cat([y, 1 - y], dim=1)
    one, other = label_paths(LinearScores(x, concepts), both, n_lambdas=10, lambda_ratio=0.01, tol=1e-8)
    for a, b in zip(one.points, other.points, strict=True):
        torch.testing.assert_close(a.weight(), -b.weight(), rtol=0, atol=1e-6)
        torch.testing.assert_close(a.bias, -b.bias, rtol=0, atol=1e-6)
    assert int((one.points[-1].weight() != 0).sum()) > 3


def test_labels_solved_together_are_those_solved_alone():
    x, concepts, y = data(n=250, k=24, labels=14)
    scores = LinearScores(x, concepts)
    settings = {"n_lambdas": 8, "lambda_ratio": 0.02, "l1_ratio": RHO, "nec": (5,), "max_nec": 10, "tol": 1e-7}
    together = label_paths(scores, y, **settings)
    for label, path in enumerate(together):
        alone = label_paths(scores, y[:, label, None], **settings)[0]
        assert [p.lam for p in path.points] == pytest.approx([p.lam for p in alone.points], rel=1e-9)
        for a, b in zip([*path.points, path.at_nec[5]], [*alone.points, alone.at_nec[5]]):
            assert a.objective == pytest.approx(b.objective, rel=1e-6)
            torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=2e-3)


def test_labels_y_and_not_y_are_the_two_classes_of_a_softmax():
    """A difference w of two classes is split into w/2 and -w/2: the same l1 norm, half the squared l2 norm."""
    x, concepts, y = data(labels=1, missing=0.0)
    scores = LinearScores(x, concepts)
    lam, rho = 0.03, 0.9
    binary = label_paths(scores, y, lambdas=[lam], l1_ratio=rho, tol=1e-10)[0].points[-1]
    # lam' rho' = lam rho and lam' (1 - rho') / 2 = lam (1 - rho): that the two are one problem
    share = lam * rho + 2 * lam * (1 - rho)
    softmax = elastic_net_path(
        scores, y[:, 0].long(), num_classes=2, lambdas=[share], l1_ratio=lam * rho / share, tol=1e-10
    ).points[-1]
    torch.testing.assert_close(binary.weight()[0], softmax.weight()[1] - softmax.weight()[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(binary.bias[0], softmax.bias[1] - softmax.bias[0], rtol=0, atol=1e-5)


def test_a_label_that_never_differs_has_no_concept_and_does_not_disturb_the_others():
    x, concepts, y = data(labels=2)
    y[:, 1] = torch.where(y[:, 1].isnan(), torch.nan, 0.0)
    scores = LinearScores(x, concepts)
    first, constant = label_paths(scores, y, lambdas=[0.05], tol=1e-6)
    assert not constant.points[-1].weight().any()
    assert float(constant.points[-1].bias) < -3
    alone = label_paths(scores, y[:, :1], lambdas=[0.05], tol=1e-6)[0]
    torch.testing.assert_close(first.points[-1].weight(), alone.points[-1].weight(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(2.0)), "other than 1, 0 and NaN"),
        (lambda y: y.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(0.7)), "other than 1, 0 and NaN"),
        (lambda y: torch.cat([y, torch.full_like(y[:, :1], torch.nan)], dim=1), "every row counts zero"),
        (lambda y: y[:-1], r"y has shape|expected"),
    ],
)
def test_labels_that_cannot_be_solved(change, message: str):
    x, concepts, y = data(labels=2)
    with pytest.raises(ValueError, match=message):
        label_paths(LinearScores(x, concepts), change(y), lambdas=[0.1])


def test_one_column_is_no_list():
    x, concepts, y = data(labels=1)
    with pytest.raises(ValueError, match=r"\[N, L\]|shape"):
        label_paths(LinearScores(x, concepts), y[:, 0], lambdas=[0.1])


# ------------------------------------------------------------------------------------------------------- fit_labels


def test_fit_labels_is_scikit_learn_on_the_known_rows():
    x, _, y = data(labels=5)
    penalties = [1.0, 1e-2, 1e-4]
    fits = fit_labels(x, y, l2=penalties, tol=1e-10)
    for l2, (weight, bias) in zip(penalties, fits, strict=True):
        assert weight.shape == (5, x.shape[1])
        for label in range(5):
            known = ~y[:, label].isnan().numpy()
            model = LogisticRegression(C=1 / (known.sum() * l2), tol=1e-10, max_iter=10_000)
            model.fit(x.numpy()[known], y[known, label].numpy())
            np.testing.assert_allclose(weight[label].numpy(), model.coef_[0], rtol=2e-4, atol=2e-4)
            assert float(bias[label]) == pytest.approx(float(model.intercept_[0]), rel=2e-3, abs=2e-3)


def test_a_label_is_fitted_as_if_it_were_alone():
    x, _, y = data(labels=4, missing=0.6)
    for (weight, bias), label in ((fit_labels(x, y, l2=[1e-2], tol=1e-9)[0], label) for label in range(4)):
        alone, alone_bias = fit_labels(x, y[:, label, None], l2=[1e-2], tol=1e-9)[0]
        torch.testing.assert_close(weight[label], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(bias[label], alone_bias[0], rtol=0, atol=1e-5)


def test_a_label_and_two_classes_with_half_the_penalty_decide_alike():
    x, _, y = data(labels=1, missing=0.0)
    weight, bias = fit_labels(x, y, l2=[1e-2], tol=1e-10)[0]
    two, two_bias = fit_logistic(x, y[:, 0].long(), l2=2e-2, num_classes=2, tol=1e-10)[0]
    torch.testing.assert_close(weight[0], two[1] - two[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(bias[0], two_bias[1] - two_bias[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("y", "l2", "message"),
    [
        (torch.zeros(5), [1.0], r"expected \[6, L\]"),
        (torch.zeros(6), [1.0], r"expected \[6, L\]"),
        (torch.zeros(5, 2), [1.0], r"expected \[6, L\]"),
        (torch.full((6, 2), torch.nan), [1.0], "nothing is known"),
        (torch.zeros(6, 2), [0.0], "expected numbers > 0"),
        (torch.zeros(6, 2), [], "expected numbers > 0"),
    ],
)
def test_fit_labels_says_what_is_wrong(y, l2, message: str):
    with pytest.raises(ValueError, match=message):
        fit_labels(torch.randn(6, 3), y, l2=l2)


# ---------------------------------------------------------------------------------------------------- columns left out


def without(scores: LinearScores, column: int) -> LinearScores:
    """The scores in which one column is not there."""
    return scores.take(torch.tensor([k for k in range(scores.count) if k != column]))


@pytest.mark.parametrize("exact", [True, False], ids=["float64", "float32"])
def test_a_column_that_is_not_allowed_is_a_column_that_is_not_there(exact: bool):
    """For one label alone: its coefficients, gap and path are those without the column, the others' are untouched."""
    x, concepts, y = data(missing=0.2)
    x, concepts = (x, concepts) if exact else (x.float(), concepts.float())
    scores = LinearScores(x, concepts)
    settings = {"n_lambdas": 6, "lambda_ratio": 0.02, "l1_ratio": RHO, "tol": 1e-12 if exact else 1e-4, "nec": [3]}
    whole = label_paths(scores, y, **settings)
    best = int(whole[1].points[2].weight()[0].abs().argmax())
    allowed = torch.ones(4, scores.count, dtype=torch.bool)
    allowed[1, best] = False
    masked = label_paths(scores, y, allowed=allowed, **settings)
    dropped = label_paths(without(scores, best), y[:, [1]], **settings)[0]
    near = 1e-6 if exact else 2e-3
    assert len(masked[1].points) == len(dropped.points)
    for mine, slow in zip((*masked[1].points, masked[1].at_nec[3]), (*dropped.points, dropped.at_nec[3]), strict=True):
        assert mine.lam == pytest.approx(slow.lam, rel=1e-5)
        weight = mine.weight()[0]
        assert float(weight[best]) == 0
        kept = torch.cat([weight[:best], weight[best + 1 :]])
        torch.testing.assert_close(kept, slow.weight()[0], rtol=0, atol=near)
        torch.testing.assert_close(mine.bias, slow.bias, rtol=0, atol=near)
        assert mine.gap == pytest.approx(slow.gap, abs=settings["tol"])
        assert mine.gap <= max(settings["tol"], 1e-5)  # its large gradient is not in the certificate
    assert masked[1].at_nec[3].nec == 3
    for label in (0, 2, 3):
        for a, b in zip(masked[label].points, whole[label].points, strict=True):
            torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=near)


def test_everything_allowed_is_what_it_was_to_the_last_bit():
    x, concepts, y = data()
    scores = LinearScores(x.float(), concepts.float())
    settings = {"n_lambdas": 6, "lambda_ratio": 0.02, "tol": 1e-3, "nec": [3]}
    plain = label_paths(scores, y, **settings)
    told = label_paths(scores, y, allowed=torch.ones(4, scores.count, dtype=torch.bool), **settings)
    for a, b in zip(plain, told, strict=True):
        for p, q in zip((*a.points, a.at_nec[3]), (*b.points, b.at_nec[3]), strict=True):
            assert torch.equal(p.weight(), q.weight())
            assert (p.gap, p.kkt, p.lam) == (q.gap, q.kkt, q.lam)


def test_columns_that_are_left_out_fit_the_labels():
    x, concepts, y = data()
    with pytest.raises(ValueError, match=r"allowed has shape \[3, 16\]; expected \[4, 16\]"):
        label_paths(LinearScores(x, concepts), y, lambdas=[0.1], allowed=torch.ones(3, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"allowed is torch.float32 .*; expected bool \[4, 16\]"):
        label_paths(LinearScores(x, concepts), y, lambdas=[0.1], allowed=torch.ones(4, 16))
