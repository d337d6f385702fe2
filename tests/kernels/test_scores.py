import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_tensors import LargeTensors

from cbm.kernels import concept_scores, topk_concepts


def reference(x, concepts, scale, mean, std, activation):
    out = torch.zeros(len(x), len(concepts), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(concepts)):
            s = float(scale) * sum(float(a) * float(b) for a, b in zip(x[i], concepts[j]))
            s = (s - (0 if mean is None else float(mean[j]))) / (1 if std is None else float(std[j]))
            out[i, j] = {"identity": s, "relu": max(s, 0.0), "sigmoid": 1 / (1 + math.exp(-s))}[activation]
    return out


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 6),
    d=st.integers(1, 5),
    activation=st.sampled_from(["identity", "relu", "sigmoid"]),
    with_mean=st.booleans(),
    with_std=st.booleans(),
    scale=st.sampled_from([1.0, 2.5, torch.tensor(0.3)]),
)
def test_scores_equal_a_triple_loop(n, k, d, activation, with_mean, with_std, scale):
    g = torch.Generator().manual_seed(n + 10 * k + 100 * d)
    x, concepts = torch.randn(n, d, generator=g).double(), torch.randn(k, d, generator=g).double()
    mean = torch.randn(k, generator=g).double() if with_mean else None
    std = torch.rand(k, generator=g).double() + 0.5 if with_std else None
    out = concept_scores(x, concepts, scale=scale, mean=mean, std=std, activation=activation)
    torch.testing.assert_close(out, reference(x, concepts, scale, mean, std, activation), rtol=1e-12, atol=1e-12)


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5, 4), (), (5,), (5,)]
    tensors = [torch.rand(s, generator=g).double().add(0.5).requires_grad_() for s in shapes]
    for activation in ("identity", "sigmoid"):

        def scores(x, concepts, scale, mean, std, activation=activation):
            return concept_scores(x, concepts, scale=scale, mean=mean, std=std, activation=activation)

        assert torch.autograd.gradcheck(scores, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_but_the_inputs(dtype):
    g = torch.Generator().manual_seed(0)
    x, concepts = torch.randn(20, 512, generator=g).to(dtype), torch.randn(30, 512, generator=g).to(dtype)
    out = concept_scores(x, concepts, scale=0.01)
    assert out.dtype == torch.float32
    exact = 0.01 * x.double() @ concepts.double().T
    assert float((out - exact).norm() / exact.norm()) < 1e-6


def test_score_errors():
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        concept_scores(torch.zeros(2, 3), torch.zeros(4, 3), activation="tanh")
    with pytest.raises(ValueError, match=r"mean has shape \[3\].*\[4\]"):
        concept_scores(torch.zeros(2, 3), torch.zeros(4, 3), mean=torch.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \[3\]"):
        concept_scores(torch.zeros(3), torch.zeros(4, 3))


def brute_topk(scores, k):
    indices = [sorted(range(len(row)), key=lambda j: (-float(row[j]), j))[:k] for row in scores]
    indices = torch.tensor(indices)
    return scores.gather(1, indices), indices


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5),
    count=st.integers(1, 40),
    chunk=st.integers(1, 50),
    levels=st.integers(1, 4),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_topk_with_many_ties_equals_a_sort(n, count, chunk, levels, seed, data):
    """Small integers: dot products are exact and tie all the time."""
    k = data.draw(st.integers(1, count))
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-levels, levels + 1, (n, 3), generator=g).float()
    concepts = torch.randint(-levels, levels + 1, (count, 3), generator=g).float()
    values, indices = topk_concepts(x, concepts, k, chunk=chunk)
    expected_values, expected_indices = brute_topk(x @ concepts.T, k)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(values, expected_values)


def test_topk_does_not_depend_on_the_chunk_and_covers_many_rows():
    g = torch.Generator().manual_seed(0)
    x, concepts = torch.randn(3000, 8, generator=g).double(), torch.randn(1000, 8, generator=g).double()
    expected = (x @ concepts.T).topk(7)
    for chunk in (64, 333, 100_000):
        values, indices = topk_concepts(x, concepts, 7, chunk=chunk)
        assert torch.equal(indices, expected.indices)
        torch.testing.assert_close(values, expected.values)


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "duplicates"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_topk_streams_to_the_answer_of_a_sort_in_any_order(order, dtype):
    """Integers, so that every sum is exact: many ties within chunks and across them; rows and chunks are ragged."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (131, 8), generator=g).float()
    concepts = torch.randint(-3, 4, (1000, 8), generator=g).float()
    if order == "duplicates":
        concepts = concepts[:100].repeat(10, 1)
    elif order != "random":
        x = x.abs()
        concepts = concepts[concepts.sum(1).argsort(descending=order == "descending")]
    expected_values, expected_indices = brute_topk(x @ concepts.T, 12)
    for chunk in (12, 64, 100, 256, 1000):
        values, indices = topk_concepts(x, concepts.to(dtype), 12, chunk=chunk)
        assert torch.equal(values, expected_values)
        assert torch.equal(indices, expected_indices)


def test_topk_with_every_chunk_better_than_the_last_and_infinities_and_nan_late():
    x = torch.ones(3, 1)
    rising = torch.arange(5000.0)[:, None]
    assert topk_concepts(x, rising, 3, chunk=500)[1].tolist() == [[4999, 4998, 4997]] * 3
    odd = torch.zeros(400, 1)
    odd[250], odd[300], odd[310] = torch.nan, torch.inf, -torch.inf
    values, indices = topk_concepts(x, odd, 3, chunk=100)
    assert indices.tolist() == [[300, 0, 1]] * 3
    assert values[0].tolist() == [torch.inf, 0.0, 0.0]


def test_topk_makes_no_matrix_of_images_by_concepts():
    x, concepts = torch.randn(3000, 4), torch.randn(6000, 4)
    with LargeTensors(3000 * 6000 // 4, x, concepts) as seen:
        topk_concepts(x, concepts, 5)
    assert not seen.made


def test_topk_values_have_gradients():
    g = torch.Generator().manual_seed(0)
    x, concepts = torch.randn(4, 6, generator=g).double(), torch.randn(20, 6, generator=g).double()
    tensors = [x.requires_grad_(), concepts.requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: topk_concepts(a, b, 3)[0], tensors)


def test_topk_puts_nan_last():
    concepts = torch.tensor([[float("nan")], [1.0], [2.0]])
    values, indices = topk_concepts(torch.ones(1, 1), concepts, 3)
    assert indices.tolist() == [[2, 1, 0]]
    assert values.tolist() == [[2.0, 1.0, -torch.inf]]


@pytest.mark.parametrize("k", [0, 5])
def test_topk_errors(k):
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 <= k <= 4"):
        topk_concepts(torch.zeros(2, 3), torch.zeros(4, 3), k)
