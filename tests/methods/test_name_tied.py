"""The name-tied head: convex, certified, the reader in the limit."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy

from cbm.methods.name_tied import solve_name_tied
from cbm.solvers import LinearScores, SparseScores
from cbm.solvers.scale import fit_scale


def problem(n: int = 120, k: int = 12, c: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    says = torch.randn(k, c, generator=g)
    y = torch.arange(n) % c
    z = torch.relu(says.T[y] + torch.randn(n, k, generator=g))
    return LinearScores(z, mean=torch.zeros(k), std=torch.ones(k)), y, says - says.mean(dim=1, keepdim=True)


def reference(scores, y, says, lam, scale):
    """Trust-region solution in float64."""
    z, a, n = scores.x.double(), says.double(), len(y)

    def loss(point):
        point = torch.tensor(point, requires_grad=True)
        gain, bias = point[: len(a)], point[len(a) :]
        value = cross_entropy(scale * (z * gain) @ a + bias, y) + lam / n * (
            (gain - 1).square().sum() + bias.square().sum()
        )
        value.backward()
        return float(value), point.grad.numpy()

    bounds = [(0, None)] * len(a) + [(None, None)] * a.shape[1]
    start = np.r_[np.ones(len(a)), np.zeros(a.shape[1])]
    return minimize(loss, start, jac=True, method="trust-constr", bounds=bounds,
                    options={"gtol": 1e-9, "xtol": 1e-12, "maxiter": 3000})  # fmt: skip


@pytest.mark.parametrize("lam", [0.03, 0.3, 3.0])
def test_the_optimum(lam: float):
    scores, y, says = problem()
    head = solve_name_tied(scores, y, says, lam=lam)
    best = reference(scores, y, says, lam, head.scale)
    assert head.loss == pytest.approx(best.fun, abs=1e-6)
    assert head.loss - best.fun <= head.gap + 1e-8  # the certificate holds
    assert head.gap <= 1e-6
    np.testing.assert_allclose(head.gain.numpy(), best.x[:12], atol=2e-3)


def test_the_reader_in_the_limit():
    scores, y, says = problem()
    head = solve_name_tied(scores, y, says, lam=1e7)
    torch.testing.assert_close(head.gain, torch.ones(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(head.bias, torch.zeros(4), atol=1e-4, rtol=0)
    logits = scores.x @ says
    assert head.scale == pytest.approx(fit_scale(logits, y, 1 / float(logits.std())), rel=1e-4)


def test_a_name_that_misleads_is_not_listened_to():
    scores, y, says = problem()
    says = says.clone()
    says[:3] = -says[:3]
    head = solve_name_tied(scores, y, says, lam=0.03)
    assert (head.gain[:3] == 0).all()
    assert (head.gain[3:] > 0).any()
    assert torch.equal(head.weight(says)[:, :3], torch.zeros(4, 3))


def test_names_that_mean_nothing_earn_nothing():
    """The labels set gains only: with exchanged names the head cannot re-label its directions."""
    scores, y, says = problem(n=400, k=40)
    true = solve_name_tied(scores, y, says)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    false = solve_name_tied(scores, y, says[order])
    right = [float(((scores.x @ head.weight(a).T + head.bias).argmax(1) == y).float().mean())
             for head, a in ((true, says), (false, says[order]))]  # fmt: skip
    assert right[0] > 0.95
    assert right[1] < right[0] - 0.2


def test_sparse_scores_give_the_same_head():
    scores, y, says = problem()
    z = scores.x
    values, columns = z.topk(12, dim=1)
    sparse = SparseScores(values, columns.where(values > 0, -1), 12, std=torch.ones(12))
    one, other = solve_name_tied(scores, y, says), solve_name_tied(sparse, y, says)
    torch.testing.assert_close(one.gain, other.gain, atol=2e-3, rtol=1e-3)  # within what the certificate allows


def test_the_order_of_names_does_not_matter():
    scores, y, says = problem()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = LinearScores(scores.x[:, order], mean=torch.zeros(12), std=torch.ones(12))
    one, other = solve_name_tied(scores, y, says), solve_name_tied(moved, y, says[order])
    torch.testing.assert_close(one.gain[order], other.gain, atol=2e-3, rtol=1e-3)


def test_what_does_not_fit_is_refused():
    scores, y, says = problem()
    with pytest.raises(ValueError, match="says has 11 rows"):
        solve_name_tied(scores, y, says[:11])
    with pytest.raises(ValueError, match="lam is 0"):
        solve_name_tied(scores, y, says, lam=0)
    with pytest.raises(ValueError, match="y has"):
        solve_name_tied(scores, y[:5], says)


def test_a_temperature_can_be_given_so_that_exchanged_names_are_compared_at_that_of_the_names():
    scores, y, says = problem()
    head = solve_name_tied(scores, y, says)
    exchanged = says[torch.randperm(len(says), generator=torch.Generator().manual_seed(1))]
    assert solve_name_tied(scores, y, exchanged).scale != pytest.approx(head.scale)
    same = solve_name_tied(scores, y, exchanged, scale=head.scale)
    assert same.scale == head.scale
    assert same.gap <= 1e-6
