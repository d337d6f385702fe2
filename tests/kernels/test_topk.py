import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_tensors import LargeTensors

from cbm.kernels import concept_scores, topk_concepts


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


def test_topk_of_affine_scores_with_some_concepts_forbidden_and_a_threshold():
    g = torch.Generator().manual_seed(0)
    x, concepts = torch.randn(9, 5, generator=g).double(), torch.randn(40, 5, generator=g).double()
    alpha, beta = torch.rand(40, generator=g).double(), torch.randn(40, generator=g).double()
    inv_norm, allowed = 1 / x.norm(dim=1), torch.rand(40, generator=g) < 0.3
    settings = {"inv_norm": inv_norm, "scale": 3.0, "alpha": alpha, "beta": beta}
    scores = concept_scores(x, concepts, **settings).masked_fill(~allowed, -torch.inf)
    expected_values, expected = brute_topk(scores, 20)
    for threshold in (None, 0.5):
        values, indices = topk_concepts(x, concepts, 20, **settings, allowed=allowed, threshold=threshold, chunk=7)
        out = expected_values < (-1e9 if threshold is None else threshold)
        assert bool(out.any())
        assert torch.equal(indices, expected.masked_fill(out, -1))
        torch.testing.assert_close(values, expected_values.masked_fill(out, -torch.inf))


def test_topk_gradients_of_the_affine_map():
    g = torch.Generator().manual_seed(1)
    leaves = [torch.randn(s, generator=g).double().requires_grad_() for s in ((4, 6), (20, 6), (), (20,), (20,))]
    allowed = torch.arange(20) % 3 > 0

    def values(x, concepts, scale, alpha, beta):
        return topk_concepts(x, concepts, 3, scale=scale, alpha=alpha, beta=beta, allowed=allowed)[0]

    assert torch.autograd.gradcheck(values, leaves)


def test_topk_registration():
    x, concepts = torch.randn(9, 5), torch.randn(40, 5)
    torch.library.opcheck(torch.ops.cbm.topk_concepts, (x, concepts, None, None, torch.randn(40), 3, 8, False))
