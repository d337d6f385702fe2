"""Scores that are mostly zero are those of the dense matrix, for every solver."""

import pytest
import torch

from cbm.solvers import LinearScores, SparseScores, elastic_net_path


def both(n: int = 200, k: int = 30, m: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    columns = torch.stack([torch.randperm(k, generator=g)[:m] for _ in range(n)])
    values = torch.rand(n, m, generator=g) + 0.1
    columns[::3, 3] = -1
    dense = torch.zeros(n, k).scatter_add_(1, columns.clamp(min=0), values.where(columns >= 0, 0.0))
    sparse = SparseScores(values, columns, k)
    std = dense.double().std(dim=0, correction=0).float()
    return sparse, LinearScores(dense, mean=torch.zeros(k), std=std), columns


def test_blocks_columns_and_pulls():
    sparse, dense, _ = both()
    torch.testing.assert_close(sparse.block(slice(3, 9)), dense.block(slice(3, 9)))
    rows, columns = torch.tensor([5, 0, 7]), torch.tensor([29, 1, 4])
    torch.testing.assert_close(sparse.block(rows, columns), dense.block(rows, columns))
    torch.testing.assert_close(sparse.take(columns).block(slice(None)), dense.block(slice(None), columns))
    weight, bias = torch.randn(3, 30), torch.randn(3)
    for one, other in zip(sparse.on_raw(weight, bias), dense.on_raw(weight, bias)):
        torch.testing.assert_close(one, other)
    products, sums = torch.randn(3, 30), torch.randn(3)
    torch.testing.assert_close(sparse.pull(products, sums), dense.pull(products, sums))
    vectors, offset, errors = torch.randn(3, 30), torch.randn(3), torch.randn(6, 3)
    here = slice(3, 9)
    torch.testing.assert_close(
        sparse.logits(sparse.part(here), vectors, offset), dense.logits(dense.part(here), vectors, offset)
    )
    sums = torch.zeros(2, 3, 30)
    sparse.collect(sums[0], errors, sparse.part(here))
    dense.collect(sums[1], errors, dense.part(here))
    torch.testing.assert_close(sums[0], sums[1])
    assert sparse.to(torch.float64).block(slice(2)).dtype == torch.float64


def test_what_does_not_fit_in_memory_stays_sparse(monkeypatch):
    sparse, dense, _ = both()
    monkeypatch.setattr("cbm.solvers.sparse_scores._HELD_BYTES", 100)
    columns = torch.tensor([29, 1, 4, 7, 8])
    taken = sparse.take(columns)
    assert isinstance(taken, SparseScores)
    torch.testing.assert_close(taken.block(slice(None)), dense.block(slice(None), columns))
    torch.testing.assert_close(
        taken.take(torch.tensor([1, 0])).block(slice(None)), dense.block(slice(None), columns[[1, 0]])
    )


def test_a_score_that_nobody_has_keeps_no_weight():
    sparse = SparseScores(torch.ones(4, 1), torch.tensor([[0], [-1], [0], [-1]]), 3)
    assert sparse.inverse_std[1] == sparse.inverse_std[2] == 0


def test_the_path_and_its_certificates():
    sparse, dense, columns = both(n=300)
    y = (columns[:, 0] % 5).long()
    settings = {"num_classes": 5, "n_lambdas": 8, "lambda_ratio": 1e-2, "tol": 1e-6, "nec": [3]}
    one, other = elastic_net_path(sparse, y, **settings), elastic_net_path(dense, y, **settings)
    for mine, theirs in zip(one.points, other.points):
        torch.testing.assert_close(mine.weight(), theirs.weight(), atol=2e-3, rtol=1e-2)
        assert mine.gap == pytest.approx(theirs.gap, abs=2e-6)
    assert one.at_nec[3].nec == other.at_nec[3].nec


def test_memory_is_that_of_the_values():
    sparse = SparseScores(torch.rand(50_000, 8), torch.randint(20_000, (50_000, 8)), 20_000, std=torch.ones(20_000))
    assert all(tensor.numel() <= 50_000 * 8 for tensor in vars(sparse).values() if isinstance(tensor, torch.Tensor))
    first = next(sparse.chunks(10))
    assert (first.stop - first.start) * 10 <= 2**22
    part = sparse.part(slice(0, 1000))
    assert sum(tensor.numel() for tensor in part) == 2 * 1000 * 8
