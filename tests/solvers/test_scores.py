import pytest
import torch

from cbm.solvers import LinearScores, scores

TAKEN = torch.tensor([5, 0, 3])


def features(n=60, d=7, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=g, dtype=torch.float64) + 0.5).to(dtype)


def directions(k=9, d=7, seed=1):
    return torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standardised(x, concepts=None):
    raw = x.double() if concepts is None else x.double() @ concepts.double().T
    return (raw - raw.mean(dim=0)) / raw.std(dim=0, correction=0)


def assert_same_scores(ours, expected, tolerance=1e-12):
    """The block, the classifier on the features and the way back all speak of the same scores."""
    n, k = expected.shape
    assert len(ours) == n
    assert ours.count == k
    expected = expected.to(ours.dtype)
    torch.testing.assert_close(ours.block(slice(None)), expected, rtol=tolerance, atol=tolerance)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(ours.block(rows, slice(1, 3)), expected[rows, 1:3], rtol=tolerance, atol=tolerance)
    g = torch.Generator().manual_seed(2)
    weight, bias, r = (torch.randn(*s, generator=g, dtype=torch.float64).to(ours.dtype) for s in ((4, k), (4,), (n, 4)))
    vectors, offset = ours.vectors(weight, bias)
    logits = ours.features(slice(None)) @ vectors.T + offset
    torch.testing.assert_close(logits, expected @ weight.T + bias, rtol=tolerance, atol=30 * tolerance)
    back = ours.pull(r.T @ ours.features(slice(None)), r.sum(dim=0))
    torch.testing.assert_close(back, r.T @ expected, rtol=tolerance, atol=300 * tolerance)


@pytest.mark.parametrize("factored", [False, True])
def test_scores_are_standardised(factored):
    x, concepts = features(), directions() if factored else None
    z = LinearScores(x, concepts)
    assert_same_scores(z, standardised(x, concepts))
    torch.testing.assert_close(z.block(slice(None)).mean(dim=0), torch.zeros(z.count).double(), rtol=0, atol=1e-12)


def test_given_mean_and_std_are_used():
    x, concepts = features(), directions()
    mean, std = torch.full((9,), 2.0).double(), torch.full((9,), 4.0).double()
    assert_same_scores(LinearScores(x, concepts, mean=mean, std=std), (x @ concepts.T - 2) / 4)
    raw = x @ concepts.T
    assert_same_scores(LinearScores(x, concepts, std=std), (raw - raw.mean(dim=0)) / 4)


@pytest.mark.parametrize("held_bytes", [2**31, 0], ids=["held", "computed"])
@pytest.mark.parametrize("factored", [False, True])
def test_taken_columns(factored, held_bytes, monkeypatch):
    """Held in memory, or (nothing may be held) picked from the features or from the directions."""
    monkeypatch.setattr(scores, "_HELD_BYTES", held_bytes)
    x, concepts = features(), directions() if factored else None
    taken = LinearScores(x, concepts).take(TAKEN)
    assert (taken.x is x) == (held_bytes == 0)
    assert (taken.picked is None) == (factored or held_bytes > 0)
    expected = standardised(x, concepts)[:, TAKEN]
    assert_same_scores(taken, expected)
    assert_same_scores(taken.take(torch.tensor([2, 1])), expected[:, [2, 1]])


def test_more_columns_than_dimensions_are_not_held():
    x, concepts = features(d=3), directions(d=3)
    columns = torch.arange(1, 9)
    taken = LinearScores(x, concepts).take(columns)
    assert taken.x is x
    assert_same_scores(taken, standardised(x, concepts)[:, columns])


def test_no_column():
    assert LinearScores(features()).take(torch.zeros(0, dtype=torch.int64)).block(slice(None)).shape == (60, 0)


def test_float64_copy_is_exact_and_leaves_the_original():
    x, concepts = features(dtype=torch.float32), directions().float()
    z = LinearScores(x, concepts)
    exact = z.to(torch.float64)
    assert z.block(slice(3)).dtype == torch.float32
    raw = x.double() @ concepts.double().T
    assert_same_scores(exact, (raw - z.mean.double()) * z.inverse_std.double())
    assert_same_scores(exact.take(TAKEN), ((raw - z.mean.double()) * z.inverse_std.double())[:, TAKEN])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factored", [False, True])
def test_a_score_that_does_not_vary_is_zero(dtype, factored):
    x = features(dtype=dtype)
    x[:, 2] = 0.1
    concepts = torch.eye(7, dtype=dtype) if factored else None
    block = LinearScores(x, concepts).block(slice(None))
    assert (block[:, 2] == 0).all()
    assert (block[:, [0, 1, 3, 4, 5, 6]].std(dim=0) > 0.9).all()


def test_half_precision_features():
    x, concepts = features().half(), directions().float()
    z = LinearScores(x, concepts)
    assert z.dtype == torch.float32
    assert_same_scores(z, standardised(x, concepts), tolerance=2e-6)


def test_memory_mapped_features(tmp_path):
    x = features(n=5000, dtype=torch.float32)
    (tmp_path / "x.bin").write_bytes(x.half().numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "x.bin"), shared=False, size=x.numel(), dtype=torch.float16).view_as(x)
    assert_same_scores(LinearScores(mapped, directions().float()), standardised(x.half(), directions()), tolerance=2e-5)


def test_chunks_cover_the_rows_once(monkeypatch):
    monkeypatch.setitem(scores._CACHED, "cpu", 1)
    z = LinearScores(features(n=1000))
    slices = list(z.chunks(5))
    assert len(slices) == 4
    assert torch.equal(torch.cat([torch.arange(1000)[rows] for rows in slices]), torch.arange(1000))


def test_vectors_and_pull_are_adjoint():
    """<W z^T, r> = <W, r^T z> whatever the scores: the gradient belongs to the logits."""
    z = LinearScores(features(), directions())
    g = torch.Generator().manual_seed(3)
    weight, r = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 9), (60, 4)))
    vectors, offset = z.vectors(weight, torch.zeros(4).double())
    forward = ((z.features(slice(None)) @ vectors.T + offset) * r).sum()
    backward = (z.pull(r.T @ z.features(slice(None)), r.sum(dim=0)) * weight).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match=r"x has shape \[60\]"):
        LinearScores(features()[:, 0])
    with pytest.raises(ValueError, match=r"concepts has shape \[9, 6\]"):
        LinearScores(features(), directions(d=6))
    with pytest.raises(ValueError, match=r"mean has shape \[7\]"):
        LinearScores(features(), directions(), mean=torch.zeros(7))
    with pytest.raises(ValueError, match=r"std has shape \[7\]"):
        LinearScores(features(), directions(), std=torch.ones(7))
