"""Where kernels went wrong without a word: views, mixed dtypes, float16 and many rows, -inf, NaN, numbers out of range.

Run like ``test_triton.py``: on a GPU, or by Triton's interpreter (``test_interpreter.py``).
"""

import pytest
import torch
from bottleneck_problem import affine, exact, leaves, problem, relative

from cbm.kernels import (
    association_adam_,
    association_vectors,
    concept_scores,
    fused_bottleneck_logits,
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

HALF = (torch.bfloat16, torch.float16)
ROUNDED = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def on(tensors):
    return {name: t.to(DEVICE) for name, t in tensors.items()}


def loss_of(t, plan="chunked", backend="triton", **options):
    return fused_bottleneck_loss(
        t["x"], t["concepts"], t["head"], t["y"], activation="sigmoid", bias=t["bias"], scale=3.0, plan=plan,
        backend=backend, **affine(t), **options,
    )[0]  # fmt: skip


@pytest.mark.parametrize("shape", [
    (1, 1, 1, 1), (1, 40, 513, 3), (5, 1, 513, 2), (300, 3, 16, 1), (2, 130, 8, 257), (129, 257, 24, 5),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ROUNDED)
def test_odd_shapes(shape, dtype):
    """One of everything, 513 dimensions, fewer concepts than a tile, rows that descriptors take or do not."""
    t = on(problem(*shape, dtype))
    e = exact(t)
    out = concept_scores(t["x"], t["concepts"], scale=3.0, activation="tanh", backend="triton", **affine(t))
    scores = concept_scores(e["x"], e["concepts"], scale=3.0, **affine(e))
    assert relative(out, scores.tanh()) < 1e-5
    k = min(7, shape[1])
    values, indices = topk_concepts(t["x"], t["concepts"], k, scale=3.0, backend="triton", **affine(t))
    expected = scores.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(values.cpu().double(), expected.values[:, :k], rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(scores.gather(1, indices.cpu()), expected.values[:, :k], rtol=2e-5, atol=1e-5)
    names = ("x", "concepts", "head", "alpha", "beta", "bias")
    found, slow = leaves(t, *names), leaves(e, *names)
    upstream = torch.randn(shape[0], shape[3], generator=torch.Generator().manual_seed(0)).double() / 2**6
    for leaf, plan in ((found, "chunked"), (slow, "eager")):
        logits = fused_bottleneck_logits(
            leaf["x"],
            leaf["concepts"],
            leaf["head"],
            activation="sigmoid",
            bias=leaf["bias"],
            plan=plan,
            **affine(leaf),
        )
        (logits * upstream.to(logits)).sum().backward()
    for name in names[:-1]:
        size = float(slow[name].grad.norm())
        error = float((found[name].grad.cpu().double() - slow[name].grad).norm())
        assert error < 4 * ROUNDED[dtype] * size + 1e-7, name


@pytest.mark.parametrize("way", ["loss", "logits"])
def test_gradients_of_a_mean_over_many_rows(way):
    """(p - y) / n lies under what float16 can say from n of a few thousand on."""
    n, c = (1024, 4000) if way == "loss" and not ON_GPU else (8192, 500)  # a program a row: slow where interpreted
    t = on(problem(n, 16, 8, c, torch.float16))
    names, found = ("head", "alpha", "beta", "bias"), []
    for leaf, backend in ((leaves(exact(t), *names), "torch"), (leaves(t, *names), "triton")):
        if way == "loss":
            loss = loss_of(leaf, backend=backend)
        else:
            logits = fused_bottleneck_logits(
                leaf["x"], leaf["concepts"], leaf["head"], activation="sigmoid", bias=leaf["bias"], scale=3.0,
                plan="chunked", backend=backend, **affine(leaf),
            )  # fmt: skip
            loss = torch.nn.functional.cross_entropy(logits, leaf["y"])
        loss.backward()
        found.append(leaf)
    for name in names:
        assert relative(found[1][name].grad, found[0][name].grad) < 2e-3, name


@pytest.mark.parametrize("take", ["scores", "sampled"])
def test_small_gradients_of_scores_and_samples_in_float16(take):
    """Entries of 1e-7 that add up to what float16 holds."""
    n = 400 if take == "sampled" and not ON_GPU else 1000  # a program a row: slow where interpreted
    t = on(problem(n, 40, 8, 3, torch.float16))
    t["x"], t["alpha"] = t["x"].abs(), t["alpha"].new_ones(40)
    found = []
    for leaf, backend in ((leaves(exact(t), "concepts"), "torch"), (leaves(t, "concepts"), "triton")):
        if take == "scores":
            out = concept_scores(leaf["x"], leaf["concepts"], activation="sigmoid", backend=backend)
        else:
            out = 40 * gumbel_topk(leaf["x"], leaf["concepts"], 4, 1.0, 3, backend=backend)[2]
        (out.sum() * 2e-7).backward()
        found.append(leaf["concepts"].grad)
    assert relative(found[1], found[0]) < 6e-3


def strided(vector):
    """The same numbers, not next to each other."""
    return torch.stack([vector, torch.full_like(vector, 7)], 1)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_layout_of_vectors_and_labels_does_not_matter(dtype):
    n = 70
    t = on(problem(n, 90, 16, 13, dtype))
    t["alpha"] = torch.full_like(t["alpha"], 1.5)
    views = {name: strided(t[name]) if t[name].ndim == 1 else t[name] for name in t}
    views["alpha"] = torch.tensor(1.5, device=DEVICE).expand(90)
    wide = torch.randn(40, 30, device=DEVICE).to(dtype)
    ids = torch.arange(0, 2 * n, 2, device=DEVICE)
    order = torch.stack([torch.randperm(90, generator=torch.Generator().manual_seed(i))[:9] for i in range(n)])[None]
    order, change, votes = order.to(DEVICE), torch.randn(1, n, 9, device=DEVICE), torch.randn(90, 13, device=DEVICE)
    logits = torch.randn(n, 13, device=DEVICE)
    results = []
    compact = t, torch.arange(0, n, 2, device=DEVICE), ids
    for v, rows, these in (
        compact,
        (views, torch.arange(n, device=DEVICE)[::2], torch.arange(2 * n, device=DEVICE)[::2]),
    ):
        leaf = leaves(v, "head", "alpha", "beta") | ({} if v is t else {n: v[n].detach() for n in ("alpha", "beta")})
        for name in ("alpha", "beta"):
            leaf[name] = v[name].detach().requires_grad_()
        leaf["y"], leaf["inv_norm"], leaf["bias"] = v["y"], v["inv_norm"], v["bias"]
        loss = loss_of(leaf)
        sampled = gumbel_topk(v["x"], v["concepts"], 4, 1.0, 3, these, head=leaf["head"], backend="triton",
                              **{n: leaf[n] for n in ("alpha", "beta", "inv_norm")})  # fmt: skip
        gradients = torch.autograd.grad(loss + sampled[1].sum(), [leaf["head"], leaf["alpha"], leaf["beta"]])
        results.append([
            loss, *gradients, *sampled,
            concept_scores(v["x"], v["concepts"], rows=rows, activation="relu", backend="triton", **affine(v)),
            *topk_concepts(v["x"], v["concepts"], 5, backend="triton", **affine(v)),
            *intervene(logits, order, change, votes, v["y"], return_target=True, backend="triton"),
        ])  # fmt: skip
    for found, expected in zip(*results):
        assert torch.equal(found, expected)
    view, compact = (
        concept_scores(m, m[:20], activation="relu", backend="triton") for m in (wide.T, wide.T.contiguous())
    )
    torch.testing.assert_close(view, compact)


@pytest.mark.parametrize(("of_x", "of_concepts"), [
    (torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16),
])  # fmt: skip
def test_operands_of_two_dtypes(of_x, of_concepts):
    t = on(problem(30, 200, 16, 4, torch.float32))
    t["x"], t["concepts"] = t["x"].to(of_x), t["concepts"].to(of_concepts)
    e = exact(t)
    scores = concept_scores(e["x"], e["concepts"], **affine(e))
    out = concept_scores(t["x"], t["concepts"], activation="sigmoid", backend="triton", **affine(t))
    assert relative(out, scores.sigmoid()) < 1e-5
    assert relative(topk_concepts(t["x"], t["concepts"], 5, backend="triton", **affine(t))[0], scores.topk(5)[0]) < 1e-5
    found = gumbel_topk(t["x"], t["concepts"], 5, 1.0, 3, head=t["head"], backend="triton", **affine(t))
    expected = gumbel_topk(e["x"], e["concepts"], 5, 1.0, 3, head=e["head"], backend="torch", **affine(e))
    assert torch.equal(found[0].cpu(), expected[0])
    assert relative(found[1], expected[1]) < 1e-5
    assert relative(loss_of(t), loss_of(e, plan="eager", backend="torch")) < 1e-5


@pytest.mark.parametrize("dtype", HALF)
def test_a_float32_head_leaves_the_scores_in_half_precision(dtype, monkeypatch):
    """Every nn.Parameter is float32: were it to decide, the product with the concepts would be one of float32."""
    from cbm.kernels.gpu import scores

    seen, real = [], scores.scores
    monkeypatch.setattr(scores, "scores", lambda x, concepts, *rest: seen.append(x.dtype) or real(x, concepts, *rest))
    t = on(problem(30, 200, 16, 4, dtype))
    leaf = leaves(t | {"head": t["head"].float()}, "head")
    loss_of(leaf).backward()
    assert seen == [dtype]
    assert leaf["head"].grad.dtype == torch.float32
    slow = leaves(exact(t), "head")
    loss_of(slow, plan="eager", backend="torch").backward()
    assert relative(leaf["head"].grad, slow["head"].grad) < 2 * ROUNDED[dtype]


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("banned", [64, 200, 300])
def test_concepts_of_minus_infinity(dtype, banned):
    """The first tiles hold nothing; or everything is -inf."""
    t = on(problem(20, 300, 16, 4, dtype))
    t["beta"][:banned] = -torch.inf
    e = exact(t)
    found = gumbel_topk(t["x"], t["concepts"], 5, 0.7, 0, beta=t["beta"], head=t["head"], backend="triton")
    expected = gumbel_topk(e["x"], e["concepts"], 5, 0.7, 0, beta=e["beta"], head=e["head"], backend="torch")
    assert torch.equal(found[0].cpu(), expected[0])
    if banned == 300:
        assert torch.equal(found[2].cpu().double(), expected[2])  # all -inf
    else:
        torch.testing.assert_close(found[2].cpu().double(), expected[2], rtol=1e-5, atol=1e-5)


def test_first_logits_of_minus_infinity():
    """More classes than a block holds, none of the first block possible."""
    from cbm.kernels.gpu import elementwise

    logits, y = torch.randn(6, 5000, device=DEVICE), torch.tensor([4097, 4999, 4500, 4100, 4096, 4998], device=DEVICE)
    logits[:, :4096] = -torch.inf
    gradient = torch.empty_like(logits)
    loss, _ = elementwise.cross_entropy_chunk(logits, y, 0.0, gradient)
    leaf = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, y, reduction="sum")
    expected.backward()
    assert relative(loss, expected) < 1e-6
    assert relative(gradient, leaf.grad) < 1e-6


@pytest.mark.parametrize("name", ["alpha", "beta", "inv_norm", "bias"])
def test_one_vector_of_float64_makes_the_sums_float64(name):
    t = on(problem(6, 30, 8, 3, torch.float32))
    t[name] = t[name].double() + 1e-9
    e = exact(t)
    options = affine(t)
    logits = fused_bottleneck_logits(
        t["x"], t["concepts"], t["head"], activation="sigmoid", bias=t["bias"], plan="chunked", **options
    )
    expected = fused_bottleneck_logits(
        e["x"], e["concepts"], e["head"], activation="sigmoid", bias=e["bias"], plan="eager", **affine(e)
    )
    assert logits.dtype == torch.float64
    assert relative(logits, expected) < (1e-6 if name == "bias" else 1e-12)  # a bias is added to sums of the others
    with pytest.raises(ValueError, match="backend is 'triton', but a tensor is torch.float64"):
        loss_of(t)
    if name != "bias":
        scores = concept_scores(t["x"], t["concepts"], **options)
        assert name == "inv_norm" or scores.dtype == torch.float64
        assert relative(scores, concept_scores(e["x"], e["concepts"], **affine(e))) < 3e-7


def test_under_the_new_words_for_precision():
    """``torch.get_float32_matmul_precision`` raises once they were used."""
    before = torch.backends.cuda.matmul.fp32_precision
    t = on(problem(6, 30, 8, 3, torch.float32))
    try:
        for word in ("tf32", "ieee"):
            torch.backends.cuda.matmul.fp32_precision = word
            assert loss_of(t).isfinite()
            topk_concepts(t["x"], t["concepts"], 3, backend="triton")
            gumbel_topk(t["x"], t["concepts"], 3, 1.0, 0, backend="triton")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("stream", [2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1])
@pytest.mark.parametrize("seed", [1, 16, -(2**63), 2**64 - 1])
def test_every_stream_and_seed(stream, seed):
    ids = torch.tensor([0, 1, 2**33 + 7, 2**62], device=DEVICE)
    expected = gumbel_noise(ids.cpu(), 77, seed, stream=stream, backend="torch")
    torch.testing.assert_close(gumbel_noise(ids, 77, seed, stream=stream, backend="triton").cpu(), expected)
    x, concepts = torch.zeros(4, 8, device=DEVICE), torch.zeros(77, 8, device=DEVICE)
    lse = gumbel_topk(x, concepts, 3, 1.0, seed, ids, stream=stream, backend="triton")[2]
    torch.testing.assert_close(lse.cpu(), expected.logsumexp(1), rtol=1e-5, atol=1e-5)
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=f"stream is {wrong}; expected 0 to 2"):
            gumbel_topk(x, concepts, 3, 1.0, seed, ids, stream=wrong)
        with pytest.raises(ValueError, match=f"stream is {wrong}; expected 0 to 2"):
            gumbel_noise(ids, 3, seed, stream=wrong)


@pytest.mark.parametrize("label", [-1, -100, 7, 2**40])
def test_a_label_that_is_no_class_is_seen(label):
    """A GPU is not waited for to look at labels: the row's loss is NaN, and nothing beside it is read."""
    from cbm.kernels.gpu import elementwise
    from cbm.kernels.gpu import interventions as gpu

    logits, y = torch.randn(3, 7, device=DEVICE), torch.tensor([0, label, 6], device=DEVICE)
    gradient = torch.empty_like(logits)
    loss, _ = elementwise.cross_entropy_chunk(logits, y, 0.0, gradient)
    assert loss.isnan()
    assert gradient.isnan().any(1).tolist() == [False, True, False]
    order, change = torch.zeros(1, 3, 2, dtype=torch.int64, device=DEVICE), torch.ones(1, 3, 2, device=DEVICE)
    right, target = gpu.intervene(logits, order, change, torch.randn(4, 7, device=DEVICE), y, True)
    assert right[0, 1].tolist() == [0, 0, 0]
    assert target.isnan().any(2).tolist() == [[False, True, False]]


def test_a_concept_that_is_told_and_does_not_exist_is_seen():
    from cbm.kernels.gpu import interventions as gpu

    logits, y = torch.zeros(3, 7, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    order = torch.tensor([[[0, 1], [1, 4], [2**40, 0]]], device=DEVICE)
    votes, change = torch.zeros(4, 7, device=DEVICE), torch.ones(1, 3, 2, device=DEVICE)
    right, target = gpu.intervene(logits, order, change, votes, y, True)
    assert right[0].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert target.isnan()[0].tolist() == [[False] * 3, [False, False, True], [False, True, True]]
    if not ON_GPU:
        with pytest.raises(ValueError, match=f"order has concept {2**40}; expected at most 3"):
            intervene(logits, order, change, votes, y, backend="triton")


def test_rows_are_numbered_as_everywhere_in_torch():
    t = on(problem(9, 30, 8, 3, torch.bfloat16))
    rows = torch.tensor([-1, 0, -9, 8], device=DEVICE)
    out = concept_scores(t["x"], t["concepts"], rows=rows, inv_norm=t["inv_norm"], activation="relu", backend="triton")
    expected = concept_scores(t["x"][rows], t["concepts"], inv_norm=t["inv_norm"][rows], activation="relu")
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("k", [1, 4, 40, 128])
def test_rows_with_too_little_to_choose_from(dtype, k):
    """Of NaN and -inf the lowest index that is not taken, as on a CPU; never one twice."""
    ones, odd = torch.ones(3, 1, device=DEVICE), torch.full((300, 1), -torch.inf, device=DEVICE)
    odd[250], odd[260], odd[2] = 1.0, 3.0, torch.nan
    ones[1] = torch.nan
    ones, odd = ones.to(dtype), odd.to(dtype)
    values, indices = topk_concepts(ones, odd, k, backend="triton")
    expected = topk_concepts(ones.cpu(), odd.cpu(), k, backend="torch")
    assert torch.equal(indices.cpu(), expected[1])
    assert torch.equal(values.cpu(), expected[0].float())
    assert all(len(set(row)) == k for row in indices.tolist())


def test_a_sample_of_nan_scores_has_no_likelihood():
    x, concepts = torch.randn(3, 8, device=DEVICE), torch.randn(100, 8, device=DEVICE)
    x[1] = torch.nan
    for dtype in ROUNDED:
        lse = gumbel_topk(x.to(dtype), concepts.to(dtype), 4, 1.0, 0, backend="triton")[2]
        assert lse.isnan().tolist() == [False, True, False]


def test_adam_keeps_the_digits_of_its_decay():
    """1 - 0.999 in float32 is off by 5e-5: so was the second moment."""
    g = torch.Generator().manual_seed(0)
    logits, concepts, upstream = (torch.randn(s, generator=g) for s in ((5, 300), (300, 16), (5, 16)))
    results = []
    for backend, dtype, device in (("triton", torch.float32, DEVICE), ("torch", torch.float64, "cpu")):
        state = [logits.to(device, dtype, copy=True), *torch.zeros(2, 5, 300, dtype=dtype, device=device)]
        text = concepts.to(device, dtype)
        vectors, lse = association_vectors(state[0], text)
        association_adam_(*state, upstream.to(device, dtype), vectors, lse, text, 1, lr=0.1, backend=backend)
        results.append(state[2])
    assert relative(*results) < 2e-6


def test_stored_scores_are_searched_chunk_by_chunk(monkeypatch):
    """float32: the keys of one chunk of concepts are taken up by the next; ties, samples and log-sum-exps as in one."""
    from cbm.kernels import chunks
    from cbm.kernels.gpu import topk

    g = torch.Generator().manual_seed(0)
    x, concepts = (torch.randint(-2, 3, (n, 4), generator=g).float().to(DEVICE) for n in (50, 300))
    whole = topk_concepts(x, concepts, 9, backend="triton"), gumbel_topk(x, concepts, 9, 1.0, 0, backend="triton")
    monkeypatch.setattr(topk, "_CONCEPTS", 52)
    monkeypatch.setitem(chunks._LEAST, DEVICE, 16)
    monkeypatch.setitem(chunks.CHUNK_BYTES, DEVICE, 1)
    parts = topk_concepts(x, concepts, 9, backend="triton"), gumbel_topk(x, concepts, 9, 1.0, 0, backend="triton")
    expected = (x @ concepts.T).sort(dim=1, descending=True, stable=True)
    for values, indices in (whole[0], parts[0]):
        assert torch.equal(indices, expected.indices[:, :9])
        assert torch.equal(values, expected.values[:, :9])
    assert torch.equal(whole[1][0], parts[1][0])
    torch.testing.assert_close(whole[1][2], parts[1][2])
