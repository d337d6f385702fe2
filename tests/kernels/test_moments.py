import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from cbm.kernels import class_sums, feature_moments, moments, score_moments


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 30), k=st.integers(1, 6), d=st.integers(1, 5), ddof=st.sampled_from([0, 1]))
def test_moments_equal_those_of_the_scores(n, k, d, ddof):
    g = torch.Generator().manual_seed(n + 100 * k + 1000 * d)
    x, concepts = torch.randn(n, d, generator=g).double() + 2, torch.randn(k, d, generator=g).double()
    mean, std = score_moments(x, concepts, ddof)
    for j in range(k):
        scores = [sum(float(a) * float(b) for a, b in zip(row, concepts[j])) for row in x]
        centre = sum(scores) / n
        spread = (sum((s - centre) ** 2 for s in scores) / (n - ddof)) ** 0.5
        assert float(mean[j]) == pytest.approx(centre, rel=1e-9, abs=1e-9)
        assert float(std[j]) == pytest.approx(spread, rel=1e-6, abs=1e-7)


def clip_like(n, d, k, offset=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1).float() ** -0.7
    x = torch.randn(n, d, generator=g) * spectrum + offset * torch.randn(d, generator=g)
    return torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.1, 1.0, 30.0])
def test_chunked_float32_is_exact_even_with_a_large_mean(dtype, offset):
    x, concepts = (t.to(dtype) for t in clip_like(9000, 64, 50, offset))
    mean, std = score_moments(x, concepts)
    scores = x.double() @ concepts.double().T
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean.double(), scores.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(std.double(), scores.std(0), rtol=1e-5, atol=0)


def test_first_chunk_far_from_the_rest(monkeypatch):
    monkeypatch.setitem(moments._ROWS, "cpu", 100)
    x, concepts = clip_like(1000, 16, 10)
    x[:100] += 5
    mean, std = score_moments(x, concepts)
    scores = x.double() @ concepts.double().T
    torch.testing.assert_close(mean.double(), scores.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(std.double(), scores.std(0), rtol=1e-5, atol=0)


def test_a_concept_that_hardly_varies_is_computed_in_float64():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 8, generator=g)
    x[:, 0] = 1e-5 * x[:, 0]
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=g).double())[0]
    x = x.double() @ rotation
    concepts = rotation[:1].float()
    _, std = score_moments(x.float(), concepts)
    exact = (x.float().double() @ concepts.double().T).std(0)
    torch.testing.assert_close(std.double(), exact, rtol=1e-3, atol=0)


def test_memory_mapped_features(tmp_path):
    x, concepts = clip_like(5000, 16, 7)
    path = str(tmp_path / "features.bin")
    x.numpy().tofile(path)
    mapped = torch.from_file(path, size=x.numel()).view(5000, 16)
    for got, expected in zip(score_moments(mapped, concepts), score_moments(x, concepts)):
        assert torch.equal(got, expected)


def test_constant_features_and_zero_concepts():
    mean, std = score_moments(torch.ones(10, 3), torch.tensor([[1.0, 1, 1], [0, 0, 0]]))
    assert mean.tolist() == [3.0, 0.0]
    assert std.tolist() == [0.0, 0.0]


def test_errors():
    with pytest.raises(ValueError, match=r"x has shape \[1, 3\]; expected more than ddof=1 rows"):
        score_moments(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"concepts has shape \[2, 4\]"):
        score_moments(torch.zeros(5, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="ddof is 2"):
        score_moments(torch.zeros(5, 3), torch.zeros(2, 3), ddof=2)


@given(st.integers(2, 30), st.integers(1, 6), st.integers(1, 9), st.floats(-100, 100))
@settings(max_examples=40, deadline=None)
def test_moments_of_features_do_not_cancel(n: int, d: int, rows: int, offset: float):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n * 100 + d), dtype=torch.float64) + offset
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(moments._ROWS, "cpu", rows)
        mean, std = feature_moments(x)
        half = feature_moments(x.half())[0]
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(std, x.std(0))
    torch.testing.assert_close(half, x.half().double().mean(0).float())
    with pytest.raises(ValueError, match="expected two rows or more"):
        feature_moments(x[:1])


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_sums_of_classes(n: int, d: int, rows: int):
    g = torch.Generator().manual_seed(n * 100 + d)
    x, y = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randint(4, (n,), generator=g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(moments._ROWS, "cpu", rows)
        sums = class_sums(x, y, 5)
    torch.testing.assert_close(sums, torch.stack([x[y == c].sum(0) for c in range(5)]))
    with pytest.raises(ValueError, match=r"y has classes from .* expected 0 to num_classes - 1 = 4"):
        class_sums(x, y + 5, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_covariance_of_half_precision_as_a_gpu_takes_it(monkeypatch, dtype):
    """Centred, rounded again and multiplied in blocks: a large common mean, means that drift, a last ragged block."""
    monkeypatch.setattr(moments, "_HALF_ROWS", 64)
    monkeypatch.setattr(moments, "_PARTS", 8)
    g = torch.Generator().manual_seed(0)
    n, d = 20_000, 12
    x = torch.randn(n, d, generator=g) * torch.linspace(0.02, 0.1, d) + torch.linspace(-3, 3, d)
    x = (x + torch.linspace(0, 0.2, n)[:, None]).to(dtype)
    mean, covariance = moments._half_covariance(x, x.device, ddof=1)
    exact = x.double()
    assert float(((mean - exact.mean(0)) / exact.std(0)).abs().max()) < 1e-5
    assert float((covariance - exact.T.cov()).norm() / exact.T.cov().norm()) < 2e-3


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 3e-4), (torch.float16, 3e-5)])
def test_what_half_precision_costs_at_the_size_from_which_it_is_taken(dtype, most):
    g = torch.Generator().manual_seed(0)
    n, d = moments._MANY, 64
    x = (normalize(torch.randn(n, d, generator=g)) / 2 + normalize(torch.randn(1, d, generator=g))).to(dtype)
    t = normalize(torch.randn(200, d, generator=g)).double()
    mean, covariance = moments._half_covariance(x, x.device, ddof=1)
    scores = x.double() @ t.T
    std = ((t @ covariance) * t).sum(1).sqrt()
    assert float(((std - scores.std(0)) / scores.std(0)).abs().max()) < most
    assert float(((t @ mean - scores.mean(0)) / scores.std(0)).abs().max()) < 1e-6
