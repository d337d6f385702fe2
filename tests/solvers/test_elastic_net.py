import pytest
import torch
from torch.nn import functional as F

from cbm.solvers import LinearScores, working_set
from cbm.solvers.elastic_net import (
    Problem,
    duality_gap,
    full_pass,
    kkt_residual,
    kkt_violation,
    lambda_max,
    objective,
    polish_bias,
    start,
)
from cbm.solvers.working_set import solve

LINKS = ["softmax", "ova"]
RHO = 0.9


def data(n=120, d=6, k=10, classes=3, seed=0):
    """Correlated features, directions and labels that depend on them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    concepts = torch.randn(k, d, generator=g, dtype=torch.float64)
    noise = torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = (F.normalize(x, dim=1) @ torch.randn(d, classes, generator=g, dtype=torch.float64) + 0.5 * noise).argmax(dim=1)
    return x, concepts, y


def row_weights(n=120, problems=2, seed=5):
    rows = torch.rand(problems, n, generator=torch.Generator().manual_seed(seed)).double()
    rows[0, :20] = 0
    return rows / rows.sum(dim=1, keepdim=True)


def make(link="softmax", weighted=False, rho=RHO, **sizes):
    x, concepts, y = data(**sizes)
    classes = int(y.max()) + 1
    return Problem(LinearScores(x, concepts), y, classes, rho, link, row_weights(len(x)) if weighted else None)


def point(problem, seed=1, scale=0.3):
    """Any weights, half of them zero, and any bias."""
    g = torch.Generator().manual_seed(seed)
    shape = problem.size, problem.num_classes, problem.scores.count
    weight = scale * torch.randn(shape, generator=g, dtype=torch.float64) * (torch.rand(shape, generator=g) < 0.5)
    return weight, torch.randn(shape[:2], generator=g, dtype=torch.float64)


def slow_loss(problem, weight, bias):
    """Mean loss of every problem, one row and one class at a time as the formula has it."""
    logits = torch.einsum("nk,sck->snc", problem.scores.block(slice(None)), weight) + bias[:, None]
    hot = F.one_hot(problem.y, problem.num_classes).double().expand_as(logits)
    if problem.link == "softmax":
        losses = -(logits.log_softmax(dim=2) * hot).sum(dim=2)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(dim=2)
    return losses.mean(dim=1) if problem.rows is None else (losses * problem.rows).sum(dim=1)


def slow_penalty(weight, lam, rho):
    return lam * (rho * weight.abs().sum(dim=(1, 2)) + (1 - rho) / 2 * weight.square().sum(dim=(1, 2)))


def slow_optimum(problem, lam, steps=20000):
    """min F by plain proximal gradients with momentum, dense, in float64: [S]."""
    z = F.pad(problem.scores.block(slice(None)), (0, 1), value=1.0)
    rows = torch.full((1, len(z)), 1 / len(z)).double() if problem.rows is None else problem.rows
    curvature = 0.5 if problem.link == "softmax" else 0.25
    largest = torch.stack([torch.linalg.eigvalsh((z * r[:, None]).T @ z)[-1] for r in rows])
    step = 1 / (curvature * largest)[:, None, None]
    l1, l2 = (lam * RHO)[:, None, None] * step, (lam * (1 - RHO))[:, None, None] * step
    theta = ahead = torch.zeros(problem.size, problem.num_classes, z.shape[1], dtype=torch.float64)
    hot = F.one_hot(problem.y, problem.num_classes).double()
    before, momentum = theta, 1.0
    for _ in range(steps):
        logits = torch.einsum("nk,sck->snc", z, ahead)
        p = logits.softmax(dim=2) if problem.link == "softmax" else logits.sigmoid()
        moved = ahead - step * torch.einsum("snc,nk,sn->sck", p - hot, z, rows)
        shrunk = (moved.abs() - l1).clamp(min=0) * moved.sign() / (1 + l2)
        theta = torch.cat([shrunk[:, :, :-1], moved[:, :, -1:]], dim=2)
        if float(((ahead - theta) * (theta - before)).sum()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = theta + (momentum - 1) / following * (theta - before)
        if float((theta - before).abs().max()) < 1e-13:
            break
        before, momentum = theta, following
    return slow_loss(problem, theta[:, :, :-1], theta[:, :, -1]) + slow_penalty(theta[:, :, :-1], lam, RHO)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_loss_and_gradients_equal_autograd(link, weighted):
    problem = make(link, weighted)
    weight, bias = point(problem)
    state = full_pass(problem, weight, bias)
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    loss = slow_loss(problem, w, b)
    loss.sum().backward()
    torch.testing.assert_close(state.loss, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(state.gradient, w.grad, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(state.bias_gradient, b.grad, rtol=1e-9, atol=1e-13)
    lam = torch.full((problem.size,), 0.05).double()
    expected = loss.detach() + slow_penalty(weight, lam, RHO)
    torch.testing.assert_close(objective(problem, state, lam), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("link", LINKS)
def test_chunks_of_rows_do_not_change_a_pass(link, monkeypatch):
    problem = make(link, weighted=True, n=700)
    whole = full_pass(problem, *point(problem))
    monkeypatch.setattr("cbm.solvers.scores._CACHED", {"cpu": 1})
    blocks = full_pass(problem, *point(problem))
    for name in ("loss", "gradient", "bias_gradient", "dual_entropy"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("link", LINKS)
def test_kkt_is_the_distance_to_the_subdifferential(link):
    problem = make(link, weighted=True)
    state = full_pass(problem, *point(problem))
    lam = torch.tensor([0.05, 0.01]).double()
    violation = kkt_violation(problem, state, lam)
    for s in range(2):
        l1, l2 = float(lam[s]) * RHO, float(lam[s]) * (1 - RHO)
        for c in range(problem.num_classes):
            for k in range(problem.scores.count):
                w, g = float(state.weight[s, c, k]), float(state.gradient[s, c, k])
                off = max(0.0, abs(g) - l1) if w == 0 else abs(g + l2 * w + l1 * (1 if w > 0 else -1))
                assert float(violation[s, c, k]) == pytest.approx(off / l1, rel=1e-9, abs=1e-12)
    bias = state.bias_gradient.abs().amax(dim=1) / (lam * RHO)
    expected = torch.maximum(violation.amax(dim=(1, 2)), bias)
    torch.testing.assert_close(kkt_residual(problem, state, lam), expected)
    nothing = torch.zeros_like(state.weight, dtype=torch.bool)
    torch.testing.assert_close(kkt_residual(problem, state, lam, nothing), bias)


@pytest.mark.parametrize("link", LINKS)
def test_polish_bias_makes_mean_predictions_the_class_shares(link):
    problem = make(link, weighted=True)
    state = polish_bias(problem, full_pass(problem, *point(problem, scale=2.0)))
    logits = torch.einsum("nk,sck->snc", problem.scores.block(slice(None)), state.weight) + state.bias[:, None]
    p = logits.softmax(dim=2) if link == "softmax" else logits.sigmoid()
    hot = F.one_hot(problem.y, problem.num_classes).double()
    shares = torch.einsum("sn,nc->sc", problem.rows, hot)
    torch.testing.assert_close(problem.shares(), shares)
    torch.testing.assert_close(torch.einsum("sn,snc->sc", problem.rows, p), shares, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_duality_gap_bounds_the_distance_to_the_optimum(link, weighted):
    problem = make(link, weighted)
    top = lambda_max(problem, start(problem))
    lam = 0.1 * top
    best = slow_optimum(problem, lam)
    solved, _ = solve(problem, lam, start(problem), tol=1e-3)
    exact, _ = solve(problem, lam, start(problem), tol=1e-10)
    states = [full_pass(problem, *point(problem, seed, scale)) for seed in range(3) for scale in (0.01, 0.1, 1.0)]
    for state in [*states, start(problem), solved, exact]:
        state = polish_bias(problem, state)
        above = objective(problem, state, lam) - best
        gap = duality_gap(problem, state, lam)
        assert (gap >= -1e-14).all()
        assert (above >= -1e-11).all()
        assert (gap >= above - 1e-11).all()
    assert (gap <= 1e-9 * best).all()
    torch.testing.assert_close(objective(problem, exact, lam), best, rtol=1e-9, atol=0)


def test_duality_gap_of_the_lasso():
    """With rho = 1 only feasible dual points count; far from the optimum none of those tried is one."""
    problem = make(rho=1.0)
    lam = 0.2 * lambda_max(problem, start(problem))
    solved, _ = solve(problem, lam, start(problem), tol=1e-5)
    solved = polish_bias(problem, solved)
    best = float(objective(problem, solved, lam))
    assert 0 <= float(duality_gap(problem, solved, lam)) <= 1e-5 * best
    rough, _ = solve(problem, lam, start(problem), tol=0.1)
    rough = polish_bias(problem, rough)
    assert float(objective(problem, rough, lam)) - best <= float(duality_gap(problem, rough, lam)) < torch.inf
    far = polish_bias(problem, full_pass(problem, *point(problem)))
    assert float(duality_gap(problem, far, lam)) == torch.inf


@pytest.mark.parametrize("link", LINKS)
def test_the_gap_with_a_bias_that_is_not_best_is_not_too_low(link):
    """A solve stops on it. It then bounds the distance to the minimum over the weights, with this bias."""
    problem = make(link, weighted=True)
    lam = 0.1 * lambda_max(problem, start(problem))
    solved, _ = solve(problem, lam, start(problem), tol=1e-9)
    for size in (1e-6, 1e-3, 1.0):
        g = torch.Generator().manual_seed(4)
        shift = size * torch.randn(solved.bias.shape, generator=g, dtype=torch.float64)
        off = full_pass(problem, solved.weight, solved.bias + shift)
        assert (duality_gap(problem, off, lam) >= -1e-14).all()


def test_gap_and_kkt_among_allowed_weights_only():
    problem = make()
    lam = 0.1 * lambda_max(problem, start(problem))
    allowed = torch.zeros(1, problem.num_classes, problem.scores.count, dtype=torch.bool)
    allowed[:, :, :4] = True
    solved, _ = solve(problem, lam, start(problem), tol=1e-9, allowed=allowed)
    assert not solved.weight[~allowed].any()
    solved = polish_bias(problem, solved)
    assert 0 <= float(duality_gap(problem, solved, lam, allowed)) <= 1e-9
    assert float(kkt_residual(problem, solved, lam, allowed)) < 1e-3
    narrow = Problem(problem.scores.take(torch.arange(4)), problem.y, problem.num_classes, RHO, "softmax")
    torch.testing.assert_close(objective(problem, solved, lam), slow_optimum(narrow, lam), rtol=1e-8, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_newton_and_proximal_steps_reach_the_same_optimum(link, weighted, monkeypatch):
    problem = make(link, weighted, n=300, k=12)
    lam = 0.05 * lambda_max(problem, start(problem))
    found = {}
    for name, limit in (("newton", 10**9), ("proximal", -1)):
        monkeypatch.setattr(working_set, "_NEWTON", {"cpu": limit})
        monkeypatch.setattr(working_set, "newton" if limit < 0 else "proximal", None)  # is not called
        found[name], passes = solve(problem, lam, start(problem), tol=1e-9)
        assert passes > 0
        monkeypatch.undo()
    a, b = found["newton"], found["proximal"]
    torch.testing.assert_close(objective(problem, a, lam), objective(problem, b, lam), rtol=1e-8, atol=0)
    torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("link", LINKS)
def test_start_is_the_solution_at_lambda_max(link):
    problem = make(link, weighted=True)
    origin = start(problem)
    assert not origin.weight.any()
    assert float(origin.bias_gradient.abs().max()) < 1e-12
    top = lambda_max(problem, origin)
    assert (duality_gap(problem, origin, top).abs() < 1e-12).all()
    assert (kkt_residual(problem, origin, top) < 1e-12).all()
    assert (kkt_residual(problem, origin, 0.999 * top) > 5e-4).all()
