"""The Triton kernels against PyTorch in float64: on a GPU, or here by Triton's interpreter.

The interpreter is chosen when a kernel is defined, so it needs a process of its own: ``test_interpreter.py`` starts one
(``TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton.py``). Tile sizes are those that ship.
"""

import pytest
import torch
from bottleneck_problem import PHI, affine, exact, leaves, problem, relative

from cbm.kernels import (
    association_adam_,
    association_vectors,
    captured,
    class_sums,
    concept_scores,
    fused_bottleneck_loss,
    gumbel_noise,
    gumbel_topk,
    intervene,
    topk_concepts,
)
from cbm.kernels.backend import interpreted

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.skipif(not (ON_GPU or interpreted()), reason="needs a GPU or TRITON_INTERPRET=1")

TYPES = (torch.float32, torch.bfloat16, torch.float16)
# rows, concepts, dimensions, classes: ragged in all, K below a tile, one of everything, exact tiles
SHAPES = [(70, 90, 80, 13), (33, 5, 7, 2), (1, 1, 1, 2), (128, 128, 64, 64), (20, 300, 33, 65)]
SUMS = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}  # products of half precision are exact
ROUNDED = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # where an activation is an operand


def put(tensors):
    return {name: t.to(DEVICE) for name, t in tensors.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_scores(shape, dtype):
    t = put(problem(*shape, dtype))
    e = exact(t)
    for activation in PHI:
        out = concept_scores(t["x"], t["concepts"], scale=3.0, activation=activation, backend="triton", **affine(t))
        assert out.dtype == torch.float32
        expected = concept_scores(e["x"], e["concepts"], scale=3.0, activation=activation, **affine(e))
        assert relative(out, expected) < 5 * SUMS[dtype]
    rows = torch.tensor([0, len(t["x"]) - 1, 0], device=DEVICE)
    out = concept_scores(t["x"], t["concepts"], rows=rows, out_dtype=torch.bfloat16, backend="triton")
    assert relative(out, e["x"][rows.cpu()] @ e["concepts"].T) < 4e-3


def test_scores_of_strided_rows_and_zero_rows_and_infinities():
    wide = torch.randn(40, 64, device=DEVICE)
    x, concepts = wide[::2, :32], torch.randn(50, 32, device=DEVICE)
    x[3], x[4, 0], x[5, 0] = 0.0, torch.inf, torch.nan
    out, expected = (concept_scores(x, concepts, activation="relu", backend=b) for b in ("triton", "torch"))
    assert torch.equal(out.isnan(), expected.isnan())
    finite = expected.isfinite()
    torch.testing.assert_close(out[finite], expected[finite], rtol=1e-5, atol=1e-5)
    assert float(out[3].abs().max()) == 0


@pytest.mark.parametrize("activation", sorted(PHI))
def test_score_gradients(activation):
    t, names = put(problem(30, 20, 16, 3, torch.float32)), ("x", "concepts", "alpha", "beta")
    found, expected = leaves(t, *names), leaves(exact(t), *names)
    upstream = torch.randn(4, 20)
    rows = torch.tensor([7, 2, 7, 29])
    for leaf, backend in ((found, "triton"), (expected, "torch")):
        out = concept_scores(
            leaf["x"], leaf["concepts"], activation=activation, rows=rows.to(leaf["x"].device), backend=backend,
            **affine(leaf),
        )  # fmt: skip
        (out * upstream.to(out)).sum().backward()
    for name in names:
        assert relative(found[name].grad, expected[name].grad) < 1e-5, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_loss_and_gradients(shape, dtype):
    t = put(problem(*shape, dtype))
    names = ("head", "alpha", "beta", "bias", "x", "concepts")
    options = {"label_smoothing": 0.1, "chunk_rows": 32, "l1_scores": 0.3}
    for activation in PHI if dtype == torch.float32 else ("sigmoid", "relu"):
        found, expected = leaves(t, *names), leaves(exact(t), *names)
        results = []
        for leaf, plan in ((found, "chunked"), (expected, "eager")):
            loss, about = fused_bottleneck_loss(
                leaf["x"], leaf["concepts"], leaf["head"], leaf["y"], activation=activation, bias=leaf["bias"],
                scale=3.0, plan=plan, **affine(leaf), **options,
            )  # fmt: skip
            loss.backward()
            results.append((loss, about))
        tolerance = ROUNDED[dtype]
        assert relative(results[0][0], results[1][0]) < tolerance
        assert relative(results[0][1]["mean_abs_score"], results[1][1]["mean_abs_score"]) < tolerance
        for name in names:
            size = expected[name].grad.norm()
            error = (found[name].grad.cpu().double() - expected[name].grad).norm()
            assert float(error) < 4 * tolerance * float(size) + 1e-7, (activation, name)


def test_many_classes_and_the_row_of_the_best():
    """More classes than one block of the cross-entropy kernel holds."""
    t = put(problem(9, 12, 8, 5000, torch.float32))
    loss, about = fused_bottleneck_loss(
        t["x"], t["concepts"], t["head"], t["y"], activation="tanh", bias=t["bias"], plan="chunked", **affine(t)
    )
    e = exact(t)
    exact_loss, exact_about = fused_bottleneck_loss(
        e["x"], e["concepts"], e["head"], e["y"], activation="tanh", bias=e["bias"], plan="eager", **affine(e)
    )
    assert relative(loss, exact_loss) < 1e-6
    assert float(about["accuracy"]) == float(exact_about["accuracy"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_topk(shape, dtype):
    t = put(problem(*shape, dtype))
    e = exact(t)
    scores = concept_scores(e["x"], e["concepts"], **affine(e))
    for k in {1, min(5, len(t["concepts"])), min(16, len(t["concepts"]))}:
        values, indices = topk_concepts(t["x"], t["concepts"], k, backend="triton", **affine(t))
        expected = scores.sort(dim=1, descending=True, stable=True)
        torch.testing.assert_close(values.cpu().double(), expected.values[:, :k], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scores.gather(1, indices.cpu()), expected.values[:, :k], rtol=1e-5, atol=1e-6)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_topk_with_exact_ties_split_over_programs():
    """Integers: equal scores everywhere, also across tiles and across the parts of a split vocabulary."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (9, 4), generator=g).float()
    concepts = torch.randint(-2, 3, (2500, 4), generator=g).float()
    scores = x @ concepts.T
    for k in (1, 7, 100):
        values, indices = topk_concepts(x.to(DEVICE), concepts.to(DEVICE), k, backend="triton")
        expected = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(indices.cpu(), expected.indices[:, :k])
        assert torch.equal(values.cpu(), expected.values[:, :k])


def test_topk_with_infinities_nan_and_forbidden_concepts():
    odd = torch.zeros(300, 1, device=DEVICE)
    odd[250], odd[260], odd[270], odd[280] = torch.nan, torch.inf, -torch.inf, -0.0
    ones = torch.ones(2, 1, device=DEVICE)
    for backend in ("triton", "torch"):
        assert topk_concepts(ones, odd, 3, backend=backend)[1].tolist() == [[260, 0, 1]] * 2
    allowed = torch.zeros(300, dtype=torch.bool, device=DEVICE)
    allowed[[280, 5, 270]] = True
    values, indices = topk_concepts(ones, odd, 5, allowed=allowed, backend="triton")
    assert indices.tolist() == [[5, 280, -1, -1, -1]] * 2
    assert values[0].tolist() == [0, 0, -torch.inf, -torch.inf, -torch.inf]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_sampled_topk(dtype, hard):
    t = put(problem(40, 300, 24, 5, dtype))
    names = ("x", "concepts", "head", "alpha", "beta")
    found, expected = leaves(t, *names), leaves(exact(t), *names)
    ids = torch.randperm(10**6, generator=torch.Generator().manual_seed(0))[:40] + 2**33
    upstream = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for leaf, backend in ((found, "triton"), (expected, "torch")):
        indices, logits, lse = gumbel_topk(
            leaf["x"], leaf["concepts"], 6, 0.7, 2**40 + 3, ids.to(leaf["x"].device), head=leaf["head"], scale=3.0,
            hard=hard, backend=backend, **affine(leaf),
        )  # fmt: skip
        ((logits * upstream.to(logits)).sum() + lse.sum()).backward()
        results.append((indices.cpu(), logits, lse))
    assert torch.equal(results[0][0], results[1][0])
    assert relative(results[0][1], results[1][1]) < 1e-5
    assert float((results[0][2].cpu() - results[1][2]).abs().max()) < 5e-6
    for name in names:
        assert relative(found[name].grad, expected[name].grad) < max(2e-5, ROUNDED[dtype]), name


def test_noise_in_kernels_is_that_of_the_function():
    """Scores of zero: the values kept are the noise itself."""
    from cbm.kernels.gpu import topk

    n = 70 if ON_GPU else 20  # a program a row: slow where interpreted
    x, concepts = torch.zeros(n, 8, device=DEVICE), torch.zeros(90, 8, device=DEVICE)
    ids = torch.arange(n, device=DEVICE) * 2**33
    for seed, stream in ((0, 0), (-7, 1), (2**62, 2**31 - 1)):
        values, indices, lse = topk.topk(x, concepts, 90, row_ids=ids, seed=seed, stream=stream)
        noise = gumbel_noise(ids.cpu(), 90, seed, stream=stream)
        torch.testing.assert_close(values.cpu(), noise.gather(1, indices.cpu()), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse.cpu(), noise.logsumexp(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_interventions(dtype):
    n = 21 if ON_GPU else 9  # a program a row: slow where interpreted
    g = torch.Generator().manual_seed(0)
    order = torch.stack([torch.stack([torch.randperm(40, generator=g)[:9] for _ in range(n)]) for _ in range(2)])
    order[0, 4, 3:] = -1
    change, logits = torch.randn(2, n, 9, generator=g), torch.randn(n, 13, generator=g)
    votes, y = torch.randn(40, 13, generator=g).to(dtype), torch.randint(13, (n,), generator=g)
    expected = intervene(
        logits.double(), order, change.double(), votes.double(), y, return_target=True, backend="torch"
    )
    on = [t.to(DEVICE) for t in (logits, order, change, votes, y)]
    accuracy, own = intervene(*on, return_target=True, backend="triton")
    torch.testing.assert_close(accuracy.cpu(), expected[0])
    torch.testing.assert_close(own.cpu().double(), expected[1], rtol=1e-5, atol=1e-5)
    assert intervene(*on, backend="triton")[1] is None


@pytest.mark.parametrize("shape", [(70, 90, 80, 13), (3, 5, 7, 2), (64, 64, 32, 128)])
def test_steps_of_adam(shape):
    """Three steps against those of PyTorch in float64; what lies beside the tiles stays as it was."""
    k, d, c = shape[1], shape[2], shape[3]
    g = torch.Generator().manual_seed(0)
    logits, concepts = torch.randn(c, k, generator=g), torch.randn(k, d, generator=g)
    results = []
    for backend, dtype, device in (("triton", torch.float32, DEVICE), ("torch", torch.float64, "cpu")):
        text = concepts.to(device, dtype)
        state = [logits.clone().to(device, dtype), *(torch.zeros(c, k, device=device, dtype=dtype) for _ in range(2))]
        targets = torch.Generator().manual_seed(1)
        for step in (1, 2, 3):
            vectors, lse = association_vectors(state[0], text)
            upstream = vectors - torch.randn(c, d, generator=targets).to(vectors)
            association_adam_(*state, upstream, vectors, lse, text, step, lr=0.1, backend=backend)
        results.append(state)
    for found, expected in zip(*results):
        torch.testing.assert_close(found.cpu().double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_runs_are_bitwise_equal():
    t = put(problem(5000, 3000, 512, 100, torch.bfloat16))
    rows = torch.randint(5000, (9000,), device=DEVICE)  # many of them twice
    runs = []
    for _ in range(5):
        leaf = leaves(t, "head", "alpha", "x")
        loss, _ = fused_bottleneck_loss(
            leaf["x"], leaf["concepts"], leaf["head"], leaf["y"], activation="sigmoid", plan="chunked", **affine(leaf)
        )
        (loss + concept_scores(leaf["x"], leaf["concepts"], rows=rows, activation="tanh").mean()).backward()
        sums = class_sums(t["x"], t["y"], 100)
        runs.append((loss.detach(), leaf["head"].grad, leaf["alpha"].grad, leaf["x"].grad, sums))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_more_scores_than_32_bits_count():
    x = torch.randn(50_000, 16, device=DEVICE, dtype=torch.bfloat16)
    concepts = torch.randn(50_000, 16, device=DEVICE, dtype=torch.bfloat16)
    out = concept_scores(x, concepts, out_dtype=torch.bfloat16)
    assert relative(out[-3:], x[-3:].double() @ concepts.double().T) < 4e-3


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_a_captured_step_replays_to_the_same_result():
    t = leaves(put(problem(512, 1000, 64, 10, torch.bfloat16)), "head")

    def step():
        t["head"].grad = None
        loss, _ = fused_bottleneck_loss(
            t["x"], t["concepts"], t["head"], t["y"], activation="sigmoid", plan="chunked", **affine(t)
        )
        loss.backward()
        return loss.detach()

    expected = step()
    replay = captured(step)
    replay()
    loss = replay()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (300, 130), (257, 128), (31, 200)])
def test_features_near_their_mean(dtype, n, d):
    from cbm.kernels.gpu import moments

    wide = (torch.randn(n, 2 * d, device=DEVICE) + 3).to(dtype)
    x, near = wide[:, :d], torch.full((d,), 3.0, device=DEVICE).to(dtype)
    centred, of_rows, of_centred = moments.centre(x, near)
    rounding = 0 if ON_GPU or dtype == torch.float16 else 2**-7  # the interpreter cuts off what bfloat16 cannot hold
    torch.testing.assert_close(centred, x - near, rtol=rounding, atol=0)
    torch.testing.assert_close(of_rows, x.double().sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_centred, centred.double().sum(0), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
@pytest.mark.parametrize("classes", [3, 8, 13])
def test_classes_of_no_whole_16_bytes(activation, classes):
    """The head is padded: neither loss, nor gradients, nor the mean of |a| may see it."""
    t = put(problem(40, 24, 16, classes, torch.bfloat16))
    exactly = exact(t)
    found, expected = [], []
    for tensors, into, options in ((t, found, {"backend": "triton"}), (exactly, expected, {"backend": "torch"})):
        leaf = leaves(tensors, "x", "concepts", "head", "bias")
        loss, about = fused_bottleneck_loss(
            leaf["x"], leaf["concepts"], leaf["head"], leaf["y"], activation=activation, bias=leaf["bias"],
            plan="chunked", chunk_rows=17, **affine(leaf), **options,
        )  # fmt: skip
        into += [loss, about["mean_abs_score"], about["accuracy"]]
        into += torch.autograd.grad(loss, [leaf[name] for name in ("x", "concepts", "head", "bias")])
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert relative(a.detach().cpu(), b.detach().cpu()) < 2e-2
