import itertools
import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from cbm.solvers import LinearScores, SparsePoint, elastic_net_path, elastic_net_paths

RHO = 0.9
ROUNDING = 1e-13  # a float64 gap may be that much below zero


def data(n=200, d=8, k=12, classes=3, seed=0):
    """Correlated features, directions and labels that depend on them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    concepts = torch.randn(k, d, generator=g, dtype=torch.float64)
    noise = torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = (F.normalize(x, dim=1) @ torch.randn(d, classes, generator=g, dtype=torch.float64) + 0.5 * noise).argmax(dim=1)
    return x, concepts, y


def wide(n=300, k=40, classes=4, seed=0):
    """Scores of their own, mildly correlated."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=g, dtype=torch.float64) + torch.randn(n, 1, generator=g, dtype=torch.float64)
    noise = torch.randn(n, classes, generator=g, dtype=torch.float64)
    return z, (z @ torch.randn(k, classes, generator=g, dtype=torch.float64) + 3 * noise).argmax(dim=1)


def solve_one(scores, y, lam, tol=1e-9, **settings) -> SparsePoint:
    (point,) = elastic_net_path(scores, y, num_classes=int(y.max()) + 1, lambdas=[lam], tol=tol, **settings).points
    return point


def lambda_max(z, y, rho=RHO):
    hot = F.one_hot(y).double()
    return float((z.T @ (hot - hot.mean(dim=0))).abs().max() / len(z) / rho)


def standardised(x, concepts=None):
    return LinearScores(x, concepts).block(slice(None))


def assert_certified(path, tol=1e-4, rounding=ROUNDING):
    for point in [*path.points, *path.at_nec.values()]:
        assert -rounding <= point.gap <= tol
        assert torch.isfinite(point.value).all()
        assert torch.isfinite(point.bias).all()


def scikit_learn(z, targets, lam, rho):
    """Coefficients and intercepts of its elastic net."""
    model = LogisticRegression(l1_ratio=rho, solver="saga", C=1 / (len(z) * lam), tol=1e-8, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older versions ask for penalty="elasticnet"
        if "penalty" in model.get_params() and model.get_params()["penalty"] == "l2":
            model.set_params(penalty="elasticnet")
        model.fit(z.numpy(), targets.numpy())
    return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_same_weights_as_scikit_learn(share, factored):
    x, concepts, y = data()
    z = standardised(x, concepts)
    lam = share * lambda_max(z, y)
    point = solve_one(LinearScores(x, concepts) if factored else LinearScores(z), y, lam, l1_ratio=RHO)
    weight, bias = scikit_learn(z, y, lam, RHO)
    torch.testing.assert_close(point.weight(), weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(point.bias - point.bias.mean(), bias - bias.mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.03])
def test_one_against_all_is_one_binary_problem_per_class(share):
    x, _, y = data()
    z = standardised(x)
    lam = share * lambda_max(z, y)
    point = solve_one(LinearScores(x), y, lam, l1_ratio=RHO, link="ova")
    for c in range(3):
        weight, bias = scikit_learn(z, (y == c).long(), lam, RHO)
        torch.testing.assert_close(point.weight()[c], weight[0], rtol=0, atol=1e-4)
        assert float(point.bias[c]) == pytest.approx(float(bias[0]), abs=1e-4)


def test_two_classes_one_against_all_mirror_each_other():
    x, _, y = data(classes=2)
    point = solve_one(LinearScores(x), y, 0.02, link="ova")
    torch.testing.assert_close(point.weight()[0], -point.weight()[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_no_weight_from_lambda_max_up_and_some_below(link):
    x, concepts, y = data()
    top = lambda_max(standardised(x, concepts), y)
    lambdas = [2 * top, 1.0001 * top, 0.999 * top]
    scores = LinearScores(x, concepts)
    path = elastic_net_path(scores, y, num_classes=3, lambdas=lambdas, l1_ratio=RHO, link=link, tol=1e-9)
    assert [len(point.index) > 0 for point in path.points] == [False, False, True]
    assert path.points[0].nec == 0
    first = elastic_net_path(scores, y, num_classes=3, l1_ratio=RHO, n_lambdas=3, link=link).points[0]
    assert first.lam == pytest.approx(top)
    assert len(first.index) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_every_point_is_certified_and_meets_its_conditions(link, dtype):
    """The certificate of a float32 solution is evaluated in float64: its gap is not negative either."""
    x, concepts, y = data()
    scores = LinearScores(x.to(dtype), concepts.to(dtype))
    path = elastic_net_path(scores, y, num_classes=3, l1_ratio=RHO, n_lambdas=20, nec=(2, 4), link=link)
    assert_certified(path)
    exact = scores.to(torch.float64).block(slice(None))
    hot = F.one_hot(y).double()
    for point in path.points:
        assert point.value.dtype == dtype
        weight = point.weight().double()
        logits = exact @ weight.T + point.bias.double()
        if link == "softmax":
            p, loss = logits.softmax(dim=1), F.cross_entropy(logits, y)
        else:
            p, loss = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, hot) * 3
        l1, l2 = point.lam * RHO, point.lam * (1 - RHO)
        objective = float(loss + l1 * weight.abs().sum() + l2 / 2 * weight.square().sum())
        assert point.objective == pytest.approx(objective, rel=1e-6)
        gradient = (p - hot).T @ exact / len(y) + l2 * weight
        off = torch.where(weight != 0, (gradient + l1 * weight.sign()).abs(), (gradient.abs() - l1).clamp(min=0))
        assert point.kkt == pytest.approx(float(off.max()) / l1, abs=1e-4)
        assert float((p.mean(dim=0) - hot.mean(dim=0)).abs().max()) < 1e-6


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-7])
def test_tol_is_kept_in_float32_too(tol):
    x, concepts, y = data()
    scores = LinearScores(x.float(), concepts.float())
    path = elastic_net_path(scores, y, num_classes=3, l1_ratio=RHO, n_lambdas=8, tol=tol)
    assert_certified(path, tol=tol)


def test_along_the_path_f_falls_and_the_weights_grow():
    z, y = wide()
    points = elastic_net_path(LinearScores(z), y, num_classes=4, l1_ratio=RHO, n_lambdas=30, tol=1e-9).points
    for before, after in itertools.pairwise(points):
        assert after.lam < before.lam
        assert after.objective <= before.objective * (1 + 1e-9)
        norms = [RHO * p.value.abs().sum() + (1 - RHO) / 2 * p.value.square().sum() for p in (before, after)]
        assert float(norms[1]) >= float(norms[0]) - 1e-4
        assert float(after.value.abs().sum()) >= float(before.value.abs().sum()) - 1e-4


def test_lambdas_are_solved_in_falling_order():
    x, _, y = data()
    path = elastic_net_path(LinearScores(x), y, num_classes=3, lambdas=[0.01, 0.1, 0.03])
    assert [point.lam for point in path.points] == [0.1, 0.03, 0.01]
    alone = solve_one(LinearScores(x), y, 0.03, tol=1e-4)
    assert abs(alone.objective - path.points[1].objective) <= 1e-4 * alone.objective


def test_permuted_classes_permute_the_weights():
    x, concepts, y = data()
    order = torch.tensor([2, 0, 1])
    scores = LinearScores(x, concepts)
    point, permuted = solve_one(scores, y, 0.02), solve_one(scores, order[y], 0.02)
    torch.testing.assert_close(permuted.weight()[order], point.weight(), rtol=0, atol=1e-4)
    torch.testing.assert_close(permuted.bias[order], point.bias, rtol=0, atol=1e-4)
    assert permuted.objective == pytest.approx(point.objective, rel=1e-9)


def test_a_scaled_and_shifted_feature_makes_no_difference():
    x, _, y = data()
    other = x.clone()
    other[:, 3] = 1000 * x[:, 3] - 7
    a, b = solve_one(LinearScores(x), y, 0.02), solve_one(LinearScores(other), y, 0.02)
    torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=1e-5)


def test_a_row_twice_is_a_row_of_weight_two():
    x, concepts, y = data()
    twice = torch.arange(0, len(x), 3)
    weights = torch.ones(len(x)).double()
    weights[twice] = 2
    x2, y2 = torch.cat([x, x[twice]]), torch.cat([y, y[twice]])
    scores = LinearScores(x2, concepts)
    moments = {"mean": scores.mean, "std": 1 / scores.inverse_std}
    a = solve_one(scores, y2, 0.02)
    b = solve_one(LinearScores(x, concepts, **moments), y, 0.02, row_weights=weights)
    torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=1e-5)
    assert a.objective == pytest.approx(b.objective, rel=1e-9)


def test_a_dead_feature_has_weight_zero():
    x, _, y = data()
    x[:, 5] = 3.0
    path = elastic_net_path(LinearScores(x), y, num_classes=3, n_lambdas=10, lambda_ratio=1e-4, nec=(7,))
    assert_certified(path)
    for point in [*path.points, *path.at_nec.values()]:
        assert (point.weight()[:, 5] == 0).all()
    assert path.points[-1].nec > 4


@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_folds_together_equal_folds_alone(link):
    z, y = wide()
    folds = torch.arange(len(z)) % 4
    weights = torch.stack([folds != fold for fold in range(4)]).float()
    scores = LinearScores(z)
    settings = {"num_classes": 4, "l1_ratio": RHO, "link": link, "n_lambdas": 12, "tol": 1e-8, "nec": (3,)}
    together = elastic_net_paths(scores, y, row_weights=weights, **settings)
    assert len(together) == 4
    for fold, path in enumerate(together):
        assert_certified(path, tol=1e-5)
        alone = elastic_net_path(scores, y, row_weights=weights[fold], **settings)
        for a, b in zip(path.points, alone.points):
            assert a.lam == pytest.approx(b.lam, rel=1e-12)
            assert a.objective == pytest.approx(b.objective, rel=2e-8)
            torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=2e-3)
        assert len(path.at_nec[3].index) == 12
        held_out = LinearScores(z[folds != fold], mean=scores.mean, std=1 / scores.inverse_std)
        point = solve_one(held_out, y[folds != fold], path.points[-1].lam, l1_ratio=RHO, link=link)
        assert path.points[-1].objective == pytest.approx(point.objective, rel=2e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_exact_numbers_of_concepts(link, dtype):
    z, y = wide()
    scores = LinearScores(z.to(dtype))
    path = elastic_net_path(scores, y, num_classes=4, link=link, nec=(2, 5), n_lambdas=15)
    assert list(path.at_nec) == [2, 5]
    assert_certified(path)
    for count, point in path.at_nec.items():
        assert point.nec == count
        assert len(point.index) == 4 * count
        assert (point.value != 0).all()
        assert point.gap <= 1e-5
        assert point.kkt < 0.1
    assert path.at_nec[2].lam > path.at_nec[5].lam
    assert path.points[-1].nec > 5


def test_what_is_left_over_is_cut_and_the_rest_solved_again():
    """Two copies of a concept enter together at rho < 1: an odd number is not on the path."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=g, dtype=torch.float64)
    y = (z[:, 0] + 0.3 * torch.randn(200, generator=g).double() > 0).long()
    path = elastic_net_path(LinearScores(torch.cat([z, z], dim=1)), y, num_classes=2, nec=(1,), l1_ratio=0.5)
    point = path.at_nec[1]
    assert len(point.index) == 2
    assert point.cut > 0
    assert set((point.index % 6).tolist()) == {0}
    assert -ROUNDING <= point.gap <= 1e-5


def test_a_path_that_ends_early_returns_its_last_point():
    x, _, y = data(d=3)
    path = elastic_net_path(LinearScores(x), y, num_classes=3, nec=(1, 5), n_lambdas=10)
    assert len(path.points) == 10
    assert path.at_nec[5] == path.points[-1]
    assert path.at_nec[5].nec <= 3
    assert path.at_nec[1].nec == 1


def test_max_nec_stops_the_path():
    z, y = wide()
    path = elastic_net_path(LinearScores(z), y, num_classes=4, max_nec=3)
    assert path.points[-1].nec > 3 >= path.points[-2].nec
    assert len(path.points) < 50


def test_planted_concepts_are_found_first():
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(3000, 64, generator=g) + 0.3, dim=1)
    concepts = F.normalize(torch.randn(40, 64, generator=g), dim=1)
    scores = LinearScores(x, concepts)
    planted = torch.zeros(4, 40)
    for c in range(4):
        planted[c, [3 * c, 3 * c + 1, 3 * c + 2]] = 3.0
    z = scores.block(slice(None))
    y = torch.distributions.Categorical(logits=z @ planted.T).sample()
    point = elastic_net_path(scores, y, num_classes=4, nec=(3,)).at_nec[3]
    assert set(point.index.tolist()) == set(planted.flatten().nonzero().flatten().tolist())
    assert (point.value > 0).all()


@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_factored_and_dense_scores_agree(link):
    x, concepts, y = data()
    dense = LinearScores(x @ concepts.T)
    for lam in (0.1, 0.02):
        a = solve_one(LinearScores(x, concepts), y, lam, link=link)
        b = solve_one(dense, y, lam, link=link)
        assert a.objective == pytest.approx(b.objective, rel=2e-9)
        torch.testing.assert_close(a.weight(), b.weight(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_lasso(link):
    z, y = wide()
    scores = LinearScores(z)
    path = elastic_net_path(scores, y, num_classes=4, l1_ratio=1.0, n_lambdas=10, nec=(3,), link=link)
    assert_certified(path)
    assert len(path.at_nec[3].index) == 12
    nearly = solve_one(scores, y, path.points[-1].lam, l1_ratio=1 - 1e-6, link=link)
    assert path.points[-1].objective == pytest.approx(nearly.objective, rel=2e-4)


@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_a_class_without_a_row(link):
    x, _, y = data()
    path = elastic_net_path(LinearScores(x), y, num_classes=5, n_lambdas=10, nec=(1,), link=link)
    assert_certified(path, tol=1e-3)
    for point in path.points:
        logits = standardised(x) @ point.weight().T + point.bias
        assert int(logits.argmax(dim=1).max()) < 3


def test_a_class_whose_rows_all_count_zero():
    x, _, y = data()
    point = solve_one(LinearScores(x), y, 0.02, row_weights=(y != 2).double(), tol=1e-4)
    assert torch.isfinite(point.value).all()
    assert torch.isfinite(point.bias).all()
    assert ((standardised(x) @ point.weight().T + point.bias).argmax(dim=1) != 2).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_separable_data(link, dtype):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = 10 * F.one_hot(y, 6).double() + 0.1 * torch.randn(90, 6, generator=g, dtype=torch.float64)
    scores = LinearScores(x.to(dtype))
    path = elastic_net_path(scores, y, num_classes=3, link=link, n_lambdas=12, lambda_ratio=1e-4)
    assert_certified(path)
    weight, bias = path.points[-1].weight().double(), path.points[-1].bias.double()
    assert torch.equal((standardised(x) @ weight.T + bias).argmax(dim=1), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("link", ["softmax", "ova"])
def test_collinear_and_repeated_columns(link, dtype):
    z, y = wide(k=8)
    g = torch.Generator().manual_seed(1)
    nearly = z + 1e-4 * torch.randn(z.shape, generator=g, dtype=torch.float64)
    columns = torch.cat([z, z, -z, nearly, z[:, :1] + z[:, 1:2]], dim=1).to(dtype)
    path = elastic_net_path(LinearScores(columns), y, num_classes=4, link=link, n_lambdas=15, nec=(2, 6))
    assert_certified(path)


def test_more_concepts_than_rows():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, 200, generator=g)
    y = torch.arange(30) % 3
    path = elastic_net_path(LinearScores(z), y, num_classes=3, n_lambdas=20, nec=(5,))
    assert_certified(path)
    assert path.at_nec[5].nec == 5


def test_proximal_steps_down_a_whole_path(monkeypatch):
    z, y = wide()
    paths = []
    for limit in (10**9, -1):
        monkeypatch.setattr("cbm.solvers.working_set._NEWTON", {"cpu": limit})
        paths.append(elastic_net_path(LinearScores(z.float()), y, num_classes=4, n_lambdas=8))
        assert_certified(paths[-1])
    for a, b in zip(paths[0].points, paths[1].points):
        assert a.objective == pytest.approx(b.objective, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"y": torch.zeros(3, dtype=torch.int64)}, r"y has shape \[3\]"),
        ({"y": torch.zeros(4)}, r"y has shape \[4\] and dtype torch.float32; expected an int64"),
        ({"y": torch.tensor([0, 1, 2, 3])}, r"y has classes from 0 to 3; expected 0 to num_classes - 1 = 2"),
        ({"y": torch.tensor([0, 1, -1, 2])}, r"y has classes from -1 to 2"),
        ({"num_classes": 1, "y": torch.zeros(4, dtype=torch.int64)}, "at least two classes"),
        ({"l1_ratio": 0.0}, "l1_ratio is 0.0"),
        ({"l1_ratio": 1.1}, "l1_ratio is 1.1"),
        ({"link": "probit"}, "link is 'probit'"),
        ({"lambdas": []}, r"lambdas is \[\]"),
        ({"lambdas": [0.1, 0.0]}, r"lambdas is \[0.1, 0.0\]"),
        ({"row_weights": torch.ones(5)}, r"row_weights has shape \[1, 5\]; expected \[S, 4\]"),
        ({"row_weights": -torch.ones(4)}, "row_weights .* no negative weight"),
        ({"row_weights": torch.zeros(4)}, "row_weights has a problem in which every row counts zero"),
    ],
)
def test_errors_name_the_argument(settings, message):
    arguments = {"y": torch.tensor([0, 1, 2, 0]), "num_classes": 3} | settings
    with pytest.raises(ValueError, match=message):
        elastic_net_path(LinearScores(torch.eye(4)), **arguments)
