import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cbm.solvers import medoids, spherical_kmeans
from cbm.solvers.spherical_kmeans import _assign, _move


def planted(n=3000, d=24, k=12, noise=0.25, seed=0):
    """Directions around k far centres: (rows, centres, which)."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.linalg.qr(torch.randn(d, d, generator=g)).Q[:k]
    which = torch.randint(k, (n,), generator=g)
    return normalize(truth[which] + noise * torch.randn(n, d, generator=g) / d**0.5, dim=1), truth, which


def slow_pass(x, centres):
    """One step of Lloyd's in float64, with loops."""
    x, centres = x.double(), centres.double()
    cosines = x @ centres.T
    cluster = cosines.argmax(1)
    moved = [normalize(x[cluster == each].sum(0), dim=0) for each in range(len(centres))]
    return cluster, cosines.amax(1), torch.stack(moved)


def test_finds_planted_clusters():
    x, truth, which = planted()
    centres, cluster, cosine = spherical_kmeans(x, 12, seed=3)
    match = (truth @ centres.T).argmax(1)
    assert len(set(match.tolist())) == 12
    assert float((truth @ centres.T).amax(1).min()) > 0.99
    assert torch.equal(cluster, match[which])
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(cosine, (x * centres[cluster]).sum(1))
    assert centres.dtype == torch.float32
    assert cluster.dtype == torch.int64


def test_a_pass_is_that_of_a_slow_reference():
    x, _, _ = planted(n=700, noise=1.5)
    for passes in range(4):
        centres, cluster, cosine = spherical_kmeans(x, 9, seed=1, passes=passes, tol=0.0, chunk=100)
        found, explained, moved = slow_pass(x, centres)
        assert torch.equal(cluster, found)
        torch.testing.assert_close(cosine.double(), explained, atol=1e-6, rtol=0)
        after = spherical_kmeans(x, 9, seed=1, passes=passes + 1, tol=0.0, chunk=100)[0]
        torch.testing.assert_close(after.double(), moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("k", "noise"), [(5, 1.0), (40, 3.0), (200, 0.2)])
def test_the_objective_never_falls(k, noise):
    x, _, _ = planted(n=800, noise=noise)
    means = [float(spherical_kmeans(x, k, seed=0, passes=p, tol=0.0)[2].double().mean()) for p in range(12)]
    assert all(later >= earlier for earlier, later in pairwise(means))
    assert means[-1] > means[0]


def test_same_bits_again_and_the_same_result_from_chunks_half_precision_and_disk(tmp_path):
    x, _, _ = planted(n=1000, k=8)
    whole = spherical_kmeans(x, 8, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, spherical_kmeans(x, 8, seed=2)))
    parts = spherical_kmeans(x, 8, seed=2, chunk=77)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0], atol=1e-6, rtol=0)
    np.save(tmp_path / "x.npy", x.half().numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    centres, cluster, cosine = spherical_kmeans(mapped, 8, seed=2)
    assert centres.dtype == cosine.dtype == torch.float32
    assert torch.equal(cluster, whole[1])
    torch.testing.assert_close(centres, whole[0], atol=1e-3, rtol=0)
    assert float(cosine.max()) <= 1 + 1e-6  # rows of half precision are brought to unit norm
    assert spherical_kmeans(x.double(), 8, seed=2)[0].dtype == torch.float64


def test_no_cluster_stays_empty_where_there_are_enough_directions():
    """One tight crowd takes nearly all of a poor start; every other direction stands alone."""
    noise = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    crowd = normalize(torch.tensor([1.0] + [0.0] * 15) + 0.01 * noise, dim=1)
    x = torch.cat([crowd, torch.eye(16)[1:]])
    centres, cluster, cosine = spherical_kmeans(x, 16, seed=0)
    assert int(torch.bincount(cluster, minlength=16).min()) >= 1
    assert float(cosine.min()) > 0.9


def test_an_empty_cluster_is_seeded_from_the_row_explained_worst():
    x = torch.eye(4)
    centres = normalize(torch.tensor([[1.0, 1.0, 0.9, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]]), dim=1)
    cluster, cosine, sums = _assign(x, centres, 10)
    assert torch.bincount(cluster, minlength=3).tolist() == [4, 0, 0]
    moved = _move(x, centres, cluster, cosine, sums)
    assert torch.equal(moved[1], x[3])  # cosine 0
    assert torch.equal(moved[2], x[2])  # then the next, which is far from it
    assert float(_assign(x, moved, 10)[1].mean()) > float(cosine.mean())


def test_fewer_directions_than_clusters():
    x = torch.eye(3)[torch.arange(30) % 3]
    centres, cluster, cosine = spherical_kmeans(x, 5, seed=0)
    assert len(cluster.unique()) == 3
    torch.testing.assert_close(cosine, torch.ones(30))
    assert bool(centres.isfinite().all())
    assert medoids(x, centres, cluster).eq(-1).sum() == 2


def test_rows_of_zeros_do_no_harm():
    x, truth, _ = planted(n=300, k=6)
    x[::10] = 0
    centres, _, cosine = spherical_kmeans(x, 6, seed=0)
    assert bool(centres.isfinite().all())
    assert torch.equal(cosine[::10], torch.zeros(30))
    assert float((truth[:6] @ centres.T).amax(1).min()) > 0.98


def test_one_cluster_and_as_many_as_rows():
    x, _, _ = planted(n=50)
    one = spherical_kmeans(x, 1, seed=0)[0]
    torch.testing.assert_close(one[0], normalize(x.sum(0), dim=0))
    assert float(spherical_kmeans(x, 50, seed=0)[2].min()) > 1 - 1e-5


def test_medoids_are_the_nearest_rows():
    x, _, _ = planted(n=400, noise=1.0)
    centres, cluster, _ = spherical_kmeans(x, 7, seed=0)
    found = medoids(x.half(), centres, cluster, chunk=33)
    for each in range(7):
        rows = (cluster == each).nonzero()[:, 0]
        expected = rows[(normalize(x.half().float(), dim=1)[rows] @ centres[each]).argmax()]
        assert int(found[each]) == int(expected)


def test_a_large_start_is_cheap():
    x = normalize(torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0)), dim=1).half()
    began = time.process_time()
    centres, _, _ = spherical_kmeans(x, 1024, seed=0, passes=0)
    assert time.process_time() - began < 10
    assert len(centres.unique(dim=0)) == 1024


def test_mistakes_are_named():
    x, _, _ = planted(n=20)
    with pytest.raises(ValueError, match=r"k is 21; expected 1 <= k <= 20, the number of rows of x"):
        spherical_kmeans(x, 21, seed=0)
    with pytest.raises(ValueError, match="floating-point"):
        spherical_kmeans(x.long(), 2, seed=0)
    with pytest.raises(ValueError, match="passes is -1"):
        spherical_kmeans(x, 2, seed=0, passes=-1)
    x[3, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        spherical_kmeans(x, 2, seed=0)
    with pytest.raises(ValueError, match=r"assignment has a cluster outside of 0 \.\. 1"):
        medoids(x, x[:2], torch.full((20,), 2))
    with pytest.raises(ValueError, match=r"expected int64 \[20\]"):
        medoids(x, x[:2], torch.zeros(3, dtype=torch.int64))
