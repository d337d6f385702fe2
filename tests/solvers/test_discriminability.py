import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbm.solvers import class_similarity, discriminability, mutual_information, negative_entropy


def similarities(m, c, seed=0):
    return torch.rand(m, c, generator=torch.Generator().manual_seed(seed)).double() + 0.05


def mutual_information_by_definition(s):
    """LaBo's joint, and M times sum_y p(c, y) log(p(c, y) / (p(c) p(y)))."""
    m, c = s.shape
    joint = [[float(s[i, y]) / (c * sum(float(s[j, y]) for j in range(m))) for y in range(c)] for i in range(m)]
    return torch.tensor(
        [m * sum(joint[i][y] * math.log(joint[i][y] / (sum(joint[i]) / c)) for y in range(c)) for i in range(m)]
    )


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 8), c=st.integers(1, 6), seed=st.integers(0, 99))
def test_mutual_information_equals_its_definition(m, c, seed):
    s = similarities(m, c, seed)
    got = mutual_information(s)
    assert (got >= 0).all()
    torch.testing.assert_close(got, mutual_information_by_definition(s).double(), rtol=1e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 30), c=st.integers(1, 8), seed=st.integers(0, 99))
def test_class_order_and_class_scale_leave_mutual_information_unchanged(m, c, seed):
    s = similarities(m, c, seed)
    order = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    factor = torch.rand(c, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    torch.testing.assert_close(mutual_information(s[:, order]), mutual_information(s))
    torch.testing.assert_close(mutual_information(s * factor), mutual_information(s))


def test_scores_are_of_order_one_whatever_the_size_of_the_bank():
    small, large = mutual_information(similarities(100, 5)), mutual_information(similarities(10_000, 5))
    assert float(large.mean()) == pytest.approx(float(small.mean()), rel=0.3)


def test_negative_entropy_equals_its_definition():
    s = similarities(20, 7)
    q = s / s.sum(1, keepdim=True)
    expected = torch.tensor([sum(float(v) * math.log(float(v)) for v in row) for row in q], dtype=torch.float64)
    torch.testing.assert_close(negative_entropy(s), expected)
    assert (negative_entropy(s) <= 0).all()
    assert (negative_entropy(s) >= -math.log(7)).all()


def test_a_phrase_of_one_class_beats_a_phrase_of_all():
    s = torch.tensor([[0.9, 0.1, 0.1], [0.4, 0.4, 0.4]])
    for score in (mutual_information, negative_entropy):
        specific, common = score(s)
        assert specific > common


def test_class_similarity_is_the_mean_dot_product():
    g = torch.Generator().manual_seed(0)
    concepts, images = torch.randn(6, 5, generator=g), torch.randn(12, 5, generator=g)
    y = torch.arange(12) % 3
    means = torch.stack([images[y == c].mean(0) for c in range(3)])
    got = class_similarity(concepts, means)
    assert got.dtype == torch.float64
    for i in range(6):
        for c in range(3):
            dots = [float(concepts[i].double() @ image.double()) for image in images[y == c]]
            assert float(got[i, c]) == pytest.approx(sum(dots) / len(dots), abs=1e-6)


@pytest.mark.parametrize("score", ["mutual_information", "negative_entropy"])
def test_streaming_equals_the_whole_and_counts_what_it_raises(score):
    g = torch.Generator().manual_seed(0)
    concepts, means = torch.randn(101, 6, generator=g), torch.randn(4, 6, generator=g)
    s = class_similarity(concepts, means)
    whole = {"mutual_information": mutual_information, "negative_entropy": negative_entropy}[score](s)
    for chunk in (1, 10, 1000):
        scores, clamped = discriminability(concepts, means, score, chunk=chunk)
        assert clamped == int((s <= 0).sum()) > 0
        assert torch.isfinite(scores).all()
        torch.testing.assert_close(scores, whole)


def test_errors():
    with pytest.raises(ValueError, match=r"class_means has shape \[2, 4\].*\[>=1, 3\]"):
        class_similarity(torch.zeros(5, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="score is 'mi'"):
        discriminability(torch.zeros(5, 3), torch.zeros(2, 3), "mi")
    with pytest.raises(ValueError, match=r"similarity has shape \[5\]"):
        mutual_information(torch.zeros(5))
