import pytest
import torch
from bottleneck_problem import NAMES, PHI, leaves, problem, relative, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from large_tensors import LargeTensors

from cbm.kernels import bottleneck, fused_bottleneck_logits, fused_bottleneck_loss
from cbm.kernels.chunks import rows_per_chunk


def loss_of(t, activation, **options):
    arguments = {name: t[name] for name in ("alpha", "beta", "bias", "inv_norm")}
    return fused_bottleneck_loss(
        t["x"], t["concepts"], t["head"], t["y"], activation=activation, **arguments, **options
    )


def logits_of(t, activation, **options):
    arguments = {name: t[name] for name in ("alpha", "beta", "bias", "inv_norm")}
    return fused_bottleneck_logits(t["x"], t["concepts"], t["head"], activation=activation, **arguments, **options)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 7),
    d=st.integers(1, 5),
    c=st.integers(2, 5),
    activation=st.sampled_from(sorted(PHI)),
    smoothing=st.sampled_from([0.0, 0.2]),
    l1=st.sampled_from([0.0, 0.7]),
    chunk_rows=st.integers(1, 10),
    plan=st.sampled_from(["eager", "chunked"]),
    wanted=st.sets(st.sampled_from(NAMES)),
    transposed=st.booleans(),
)
def test_loss_and_gradients_equal_a_loop(n, k, d, c, activation, smoothing, l1, chunk_rows, plan, wanted, transposed):
    tensors = problem(n, k, d, c, seed=n + 10 * k)
    expected = leaves(tensors, *wanted)
    exact = slow(expected, activation, 1.7, smoothing, l1)
    given_ = leaves(tensors, *wanted)
    if transposed:  # columns that are not next to each other
        given_ = {name: v.detach().T.contiguous().T.requires_grad_(v.requires_grad) for name, v in given_.items()}
    loss, about = loss_of(
        given_, activation, scale=1.7, label_smoothing=smoothing, l1_scores=l1, chunk_rows=chunk_rows, plan=plan
    )
    torch.testing.assert_close(loss, exact["loss"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(about["mean_abs_score"], exact["mean_abs_score"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(about["accuracy"], exact["accuracy"])
    if wanted:
        (3 * loss).backward()
        (3 * exact["loss"]).backward()
        for name in wanted:
            torch.testing.assert_close(given_[name].grad, expected[name].grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("activation", sorted(PHI))
@pytest.mark.parametrize("wanted", [("head", "bias"), ("alpha", "beta", "head"), NAMES])
def test_logits_and_gradients_equal_a_loop(monkeypatch, activation, wanted):
    monkeypatch.setattr(bottleneck, "rows_per_chunk", lambda n, each, device: 5)
    tensors = problem(13, 6, 4, 3, seed=1)
    expected, given_ = leaves(tensors, *wanted), leaves(tensors, *wanted)
    upstream = torch.randn(13, 3, generator=torch.Generator().manual_seed(2)).double()
    exact = slow(expected, activation, 0.8)["logits"]
    logits = logits_of(given_, activation, scale=0.8, plan="chunked")
    torch.testing.assert_close(logits, exact, rtol=1e-10, atol=1e-10)
    (logits * upstream).sum().backward()
    (exact * upstream).sum().backward()
    for name in wanted:
        torch.testing.assert_close(given_[name].grad, expected[name].grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "cube"])
def test_gradcheck(activation):
    tensors = leaves(problem(5, 4, 3, 3), *NAMES)
    order = [tensors[name] for name in NAMES]

    def loss(*values):
        t = tensors | dict(zip(NAMES, values))
        return loss_of(t, activation, l1_scores=0.1, label_smoothing=0.1, chunk_rows=2, plan="chunked")[0]

    assert torch.autograd.gradcheck(loss, order)
    assert torch.autograd.gradcheck(
        lambda *values: logits_of(tensors | dict(zip(NAMES, values)), activation, plan="chunked"), order
    )


def test_a_learned_scale_has_its_gradient():
    tensors = problem(9, 5, 4, 3)
    found = []
    for plan in ("eager", "chunked"):
        scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        loss_of(tensors, "sigmoid", scale=scale, chunk_rows=4, plan=plan)[0].backward()
        found.append(scale.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert float(found[0]) != 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)])
def test_precision_against_float64_of_the_same_numbers(dtype, tolerance):
    """On a CPU half precision is only how the inputs are stored."""
    tensors = problem(64, 50, 32, 7, dtype)
    exact = leaves({n: v.double() if v.is_floating_point() else v for n, v in tensors.items()}, "head", "alpha")
    reference = slow(exact, "sigmoid", 10.0)["loss"]
    reference.backward()
    given_ = leaves(tensors, "head", "alpha")
    loss, _ = loss_of(given_, "sigmoid", scale=10.0, chunk_rows=16, plan="chunked")
    loss.backward()
    assert loss.dtype == torch.float32
    assert given_["head"].grad.dtype == dtype
    assert relative(loss, reference) < tolerance
    assert relative(given_["alpha"].grad, exact["alpha"].grad) < 10 * tolerance
    rounding = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    assert relative(given_["head"].grad, exact["head"].grad) < 10 * tolerance + rounding


def test_the_chunk_does_not_change_the_result_beyond_rounding():
    tensors = problem(100, 30, 8, 4)
    losses = []
    for rows in (1, 7, 64, 100, 1000):
        t = leaves(tensors, "head")
        loss, _ = loss_of(t, "sigmoid", chunk_rows=rows, plan="chunked")
        loss.backward()
        losses.append((loss.detach(), t["head"].grad))
    for loss, gradient in losses[1:]:
        torch.testing.assert_close(loss, losses[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, losses[0][1], rtol=1e-12, atol=1e-12)


def test_permuting_pictures_or_concepts_permutes_the_result():
    t = problem(20, 15, 6, 4)
    g = torch.Generator().manual_seed(0)
    rows, columns = torch.randperm(20, generator=g), torch.randperm(15, generator=g)
    other = t | {name: t[name][rows] for name in ("x", "y", "inv_norm")}
    other |= {name: t[name][columns] for name in ("concepts", "alpha", "beta")} | {"head": t["head"][:, columns]}
    torch.testing.assert_close(
        logits_of(other, "sigmoid", plan="chunked"), logits_of(t, "sigmoid", plan="chunked")[rows]
    )


@pytest.mark.parametrize("wanted", [("head",), ("head", "alpha", "concepts")])
def test_no_matrix_of_pictures_by_concepts_is_made(wanted):
    t = leaves(problem(2000, 600, 8, 3, torch.float32), *wanted)
    with LargeTensors(2000 * 600 // 4, *t.values()) as seen:
        loss_of(t, "sigmoid", chunk_rows=128, plan="chunked")[0].backward()
    assert not seen.made
    with LargeTensors(2000 * 600, *t.values()) as seen:
        loss_of(t, "sigmoid", plan="eager")[0].backward()
    assert seen.made  # the counter would have seen it


def test_small_problems_take_plain_autograd_and_large_ones_chunks(monkeypatch):
    taken = []
    monkeypatch.setattr(
        bottleneck._Bottleneck, "eager", lambda self: (taken.append(len(self.x)), (self.x[:, :1], self.x[:, :1]))[1]
    )
    for n, direct in ((1000, True), (3000, False)):
        t = problem(n, 1000, 4, 3, torch.float32)
        logits_of(t, "relu")
        assert (n in taken) == direct


@pytest.mark.parametrize(("n", "each", "device", "expected"), [
    (10**6, 4 * 5000, "cpu", 256), (10**6, 4 * 50_000, "cpu", 128), (100, 4 * 5000, "cpu", 100),
    (10**6, 2 * 5000, "cuda", 107_264), (10**6, 2**21, "cuda", 1024), (10**6, 4 * 5000, "meta", 256),
])  # fmt: skip
def test_rows_per_chunk(n, each, device, expected):
    assert rows_per_chunk(n, each, torch.device(device)) == expected


def test_registration():
    t = leaves(problem(6, 5, 4, 3, torch.float32), "head", "alpha")
    arguments = (t["x"], t["concepts"], t["head"], t["alpha"], t["beta"], t["inv_norm"])
    need = [False, False, True, True, False, False]
    torch.library.opcheck(
        torch.ops.cbm.bottleneck_loss, (*arguments, t["bias"], t["y"], "sigmoid", 0.1, 0.0, 4, False, need),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
    torch.library.opcheck(torch.ops.cbm.bottleneck_logits, (*arguments, "sigmoid", False))


def test_compiles_without_a_graph_break():
    t = leaves(problem(40, 20, 8, 3, torch.float32), "head")

    def step(head):
        loss, about = loss_of(t | {"head": head}, "sigmoid", plan="chunked")
        return loss * 2, about["accuracy"]

    expected = step(t["head"])
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(t["head"])
    torch.testing.assert_close(found, expected)
    found[0].backward()
    by_graph, t["head"].grad = t["head"].grad, None
    expected[0].backward()
    torch.testing.assert_close(by_graph, t["head"].grad)


@pytest.mark.parametrize(("change", "options", "message"), [
    ({"head": torch.zeros(3, 7)}, {}, r"head has shape \[3, 7\].*expected a floating-point \[>=1, 5\]"),
    ({"alpha": torch.zeros(4)}, {}, r"alpha has shape \[4\].*\[5\]"),
    ({"bias": torch.zeros(4)}, {}, r"bias has shape \[4\].*\[3\]"),
    ({"inv_norm": torch.zeros(4)}, {}, r"inv_norm has shape \[4\].*\[6\]"),
    ({"y": torch.tensor([0, 1, 2, 3, 0, 0])}, {}, "y has classes from 0 to 3"),
    ({"y": torch.zeros(6)}, {}, r"y has shape \[6\] and dtype torch.float32; expected an int64"),
    ({}, {"label_smoothing": 1.0}, "label_smoothing is 1.0; expected 0 <= label_smoothing < 1"),
    ({}, {"chunk_rows": 0}, "chunk_rows is 0; expected >= 1 or 'auto'"),
    ({}, {"plan": "torch"}, "plan is 'torch'; expected 'auto', 'eager' or 'chunked'"),
    ({}, {"backend": "triton"}, "backend is 'triton', but a tensor is torch.float64 on cpu; expected"),
    ({}, {"activation": "gelu"}, "activation is 'gelu'; expected one of 'identity'"),
])  # fmt: skip
def test_errors(change, options, message):
    t = problem(6, 5, 4, 3) | change
    with pytest.raises(ValueError, match=message):
        loss_of(t, **({"activation": "sigmoid"} | options))
