import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbm.kernels import choose_plan, class_logits, class_vectors, linear, linear_bottleneck_logits

# B, K, D, C and milliseconds of one step: through N x K, re-associated, with the scores kept (EPYC, 1 thread, float32).
# The smallest shape is timed with the mean text vector taken out, the others without: there it makes no difference.
MEASURED = [
    (128, 500, 512, 10, 1.0, 0.5, 0.2),
    (512, 500, 512, 10, 4.2, 1.4, 0.6),
    (4096, 500, 512, 10, 31.7, 5.9, 4.2),
    (512, 2000, 512, 40, 14.7, 3.8, 2.9),
    (4096, 2000, 512, 40, 144, 13.6, 22.7),
    (512, 5000, 512, 100, 46.2, 16.4, 15.1),
    (4096, 5000, 512, 100, 422, 30.0, 111),
    (2048, 10000, 768, 200, 647, 94.8, 206),
    (1024, 50000, 768, 1000, 4541, 2510, 3345),
    (64, 100, 512, 2, 0.19, 0.28, 0.11),
    (4096, 100, 512, 100, 15.8, 19.2, 5.4),
]


def problem(n, k, d, c, dtype=torch.float64, seed=0, standardised=True):
    g = torch.Generator().manual_seed(seed)
    tensors = {
        "x": torch.randn(n, d, generator=g),
        "concepts": torch.randn(k, d, generator=g) + 1,
        "head": torch.randn(c, k, generator=g),
        "scale": torch.tensor(1.7),
    }
    if standardised:
        tensors["mean"] = torch.randn(k, generator=g)
        tensors["std"] = torch.rand(k, generator=g) + 0.5
        tensors["bias"] = torch.randn(c, generator=g)
    return {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}


@torch.no_grad()
def triple_loop(x, concepts, head, scale, mean=None, std=None, bias=None):
    n, k, c = len(x), len(concepts), len(head)
    logits = torch.zeros(n, c, dtype=torch.float64)
    for i in range(n):
        for y in range(c):
            total = 0.0 if bias is None else float(bias[y])
            for j in range(k):
                score = float(scale) * sum(float(a) * float(b) for a, b in zip(x[i], concepts[j]))
                score = (score - (0.0 if mean is None else float(mean[j]))) / (1.0 if std is None else float(std[j]))
                total += score * float(head[y, j])
            logits[i, y] = total
    return logits


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 6),
    d=st.integers(1, 5),
    c=st.integers(1, 4),
    standardised=st.booleans(),
    plan=st.sampled_from(["auto", "reassociated", "direct"]),
    center_text=st.booleans(),
)
def test_logits_equal_a_triple_loop(n, k, d, c, standardised, plan, center_text):
    tensors = problem(n, k, d, c, standardised=standardised)
    out = linear_bottleneck_logits(**tensors, plan=plan, center_text=center_text)
    torch.testing.assert_close(out, triple_loop(**tensors), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("center_text", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_plans_agree_on_every_gradient(dtype, tolerance, center_text):
    shape = (37, 61, 24, 5)
    target = torch.randint(5, (37,), generator=torch.Generator().manual_seed(1))
    gradients = []
    for plan in ("reassociated", "direct"):
        tensors = problem(*shape, dtype=dtype)
        logits = linear_bottleneck_logits(**tensors, plan=plan, center_text=center_text)
        torch.nn.functional.cross_entropy(logits, target).backward()
        gradients.append({name: t.grad for name, t in tensors.items()})
    for name in gradients[0]:
        assert relative(gradients[0][name], gradients[1][name]) < tolerance, name


def test_gradcheck():
    tensors = problem(3, 5, 4, 2)
    for plan in ("reassociated", "direct"):
        assert torch.autograd.gradcheck(
            lambda *values: linear_bottleneck_logits(**dict(zip(tensors, values)), plan=plan),  # noqa: B023
            tuple(tensors.values()),
        )


def test_class_vectors_are_the_same_classifier():
    tensors = problem(9, 30, 8, 4)
    x = tensors.pop("x")
    vectors, bias = class_vectors(**tensors)
    assert vectors.shape == (4, 8)
    assert bias.shape == (4,)
    torch.testing.assert_close(x @ vectors.T + bias, linear_bottleneck_logits(x, **tensors))


def test_logits_of_class_vectors(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, vectors, center = (torch.randn(*shape, generator=g).double() for shape in ((11, 5), (3, 5), (5,)))
    bias, scale = torch.randn(3, generator=g).double(), torch.tensor(7.0).double().requires_grad_()
    expected = 7 * (x @ vectors.T)
    torch.testing.assert_close(class_logits(x, vectors, center=center, scale=scale), expected)
    torch.testing.assert_close(class_logits(x, vectors, bias, scale=7.0), expected + bias)
    (slope,) = torch.autograd.grad(class_logits(x, vectors, center=center, scale=scale).sum(), scale)
    torch.testing.assert_close(slope, (x @ vectors.T).sum())
    monkeypatch.setattr(linear, "_UPCAST_ROWS", 4)
    half = class_logits(x.half(), vectors.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, (x.half().double() @ vectors.T).float(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"center has shape \[4\]"):
        class_logits(x, vectors, center=center[1:])


def test_float_scale_and_missing_bias():
    tensors = problem(9, 30, 8, 4, standardised=False)
    tensors["scale"] = 100.0
    x = tensors.pop("x")
    vectors, bias = class_vectors(**tensors)
    assert not bias.any()
    torch.testing.assert_close(x @ vectors.T, linear_bottleneck_logits(x, **tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plan", ["reassociated", "direct"])
def test_half_precision_inputs_keep_class_differences(dtype, plan):
    """LaBo's 0/1 head over text vectors with a common mean: bf16 class vectors get the differences wrong by > 100%."""
    g = torch.Generator().manual_seed(0)
    classes, own, d, n = 100, 20, 128, 64
    mean = torch.nn.functional.normalize(torch.randn(d, generator=g), dim=0)
    text = mean + 0.8 * torch.randn(classes * own, d, generator=g) / d**0.5
    text = torch.nn.functional.normalize(text, dim=1).to(dtype)
    x = torch.nn.functional.normalize(mean + torch.randn(n, d, generator=g) / d**0.5, dim=1).to(dtype)
    owner = torch.zeros(classes, classes * own)
    owner[torch.arange(classes).repeat_interleave(own), torch.arange(classes * own)] = 1.0
    head = owner.softmax(1)

    def error(logits):
        exact = 100 * x.double() @ (head.double() @ text.double()).T
        centred = exact - exact.mean(1, keepdim=True)
        return float((logits.double() - logits.double().mean(1, keepdim=True) - centred).norm() / centred.norm())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_bottleneck_logits(x, text, head, scale=100.0, plan=plan)
    assert out.dtype == torch.float32
    assert error(out) < 1e-3

    vectors, _ = class_vectors(text, head, scale=100.0)
    center = text.float().mean(0)
    rounded = vectors.to(torch.bfloat16).float()
    rounded_centred = (vectors - 100 * center).to(torch.bfloat16).float()
    assert error(x.float() @ rounded.T) > 0.1
    assert error(x.float() @ rounded_centred.T) < 0.01


def test_centring_is_more_exact_in_float32():
    g = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(3 + torch.randn(2000, 64, generator=g), dim=1)
    x = torch.nn.functional.normalize(3 + torch.randn(256, 64, generator=g), dim=1)
    head = torch.rand(50, 2000, generator=g).softmax(1)
    exact = 100 * x.double() @ (head.double() @ text.double()).T
    exact -= exact.mean(1, keepdim=True)
    errors = []
    for center_text in (True, False):
        out = linear_bottleneck_logits(x, text, head, scale=100.0, plan="reassociated", center_text=center_text)
        errors.append(relative(out.double() - out.double().mean(1, keepdim=True), exact))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("b", "k", "d", "c", "naive", "reassociated", "cached"), MEASURED)
def test_plan_is_the_measured_winner(b, k, d, c, naive, reassociated, cached):
    assert choose_plan(b, k, d, c) == ("reassociated" if reassociated < naive else "direct")
    assert choose_plan(b, k, d, c, scores_cached=True) == ("reassociated" if reassociated < cached else "direct")


def test_errors_name_argument_shape_and_range():
    x, text, head = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"concepts has shape \[3, 5\].*\[>=1, 4\]"):
        linear_bottleneck_logits(x, torch.zeros(3, 5), head)
    with pytest.raises(ValueError, match=r"head has shape \[5, 2\].*\[>=1, 3\]"):
        linear_bottleneck_logits(x, text, torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"x has shape \[2, 4\] and dtype torch.int64"):
        linear_bottleneck_logits(x.long(), text, head)
    with pytest.raises(ValueError, match=r"std has shape \[5\].*\[3\]"):
        linear_bottleneck_logits(x, text, head, std=torch.ones(5))
    with pytest.raises(ValueError, match=r"bias has shape \[3\].*\[5\]"):
        class_vectors(text, head, bias=torch.ones(3))
    with pytest.raises(ValueError, match=r"scale has shape \[1\]"):
        linear_bottleneck_logits(x, text, head, scale=torch.ones(1))
    with pytest.raises(ValueError, match="plan is 'fast'"):
        linear_bottleneck_logits(x, text, head, plan="fast")
