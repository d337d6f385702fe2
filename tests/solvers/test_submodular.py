import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbm.solvers import greedy_select
from cbm.solvers.submodular import _Problem, _select_batch, _select_one

COVERAGES = ["facility_cosine", "facility_cos2", "maxpool", "none"]


def bank(m, d, seed=0, duplicates=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(2, m // 6), d, generator=g)
    features = centres[torch.randint(len(centres), (m,), generator=g)] + 0.7 * torch.randn(m, d, generator=g)
    modular = torch.rand(m, generator=g)
    if duplicates:
        features[m - duplicates :] = features[:duplicates]
        modular[m - duplicates :] = modular[:duplicates]
    return modular, features


def brute_force(modular, features, candidates, k, coverage, coverage_weight, modular_weight):
    """Greedy in float64, the utility of every extended set from scratch, one scalar at a time."""
    n = len(candidates)
    if n <= k:
        return candidates.tolist()
    f = features[candidates].double()
    gain = [modular_weight * float(v) for v in modular[candidates]]
    if coverage == "maxpool":
        rewards = [[gain[i], *f[i].tolist()] for i in range(n)]
    elif coverage == "none":
        rewards = [[] for _ in range(n)]
    else:
        unit = f / f.norm(dim=1, keepdim=True).clamp(min=1e-12)
        rewards = (unit @ unit.T).tolist()
        if coverage == "facility_cos2":
            rewards = [[v * v for v in row] for row in rewards]

    def utility(chosen):
        covered = sum(max(0.0, *(rewards[i][j] for i in chosen)) for j in range(len(rewards[0])))
        return sum(gain[i] for i in chosen) + coverage_weight * covered

    picks = []
    while len(picks) < k:
        values = {i: utility([*picks, i]) for i in range(n) if i not in picks}
        best = max(values.values())
        picks.append(min(i for i, v in values.items() if v >= best - 1e-9))
    return [int(candidates[i]) for i in picks]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(2, 14),
    k=st.integers(1, 8),
    coverage=st.sampled_from(COVERAGES),
    coverage_weight=st.sampled_from([0.0, 0.1, 1.0, 15.0]),
    modular_weight=st.sampled_from([0.0, 1.0, 100.0]),
    duplicates=st.integers(0, 4),
)
def test_picks_equal_brute_force(seed, n, k, coverage, coverage_weight, modular_weight, duplicates):
    modular, features = bank(20, 5, seed, duplicates)
    g = torch.Generator().manual_seed(seed)
    candidates = [torch.randperm(20, generator=g)[:size] for size in (n, 1, 3)]
    weights = {"coverage_weight": coverage_weight, "modular_weight": modular_weight}
    picks = greedy_select(modular, features, candidates, k, coverage=coverage, **weights)
    for got, own in zip(picks, candidates):
        assert got.tolist() == brute_force(modular, features, own, k, coverage, **weights)


def vectorised_brute_force(modular, rewards, k):
    covered, picks = rewards.new_zeros(rewards.shape[1]), []
    for _ in range(k):
        gains = (rewards - covered).clamp(min=0).sum(1) + modular
        gains[picks] = -torch.inf
        picks.append(int((gains >= gains.max() - 1e-9).nonzero()[0]))
        covered = torch.maximum(covered, rewards[picks[-1]])
    return picks


@pytest.mark.parametrize("coverage", COVERAGES[:3])
@pytest.mark.parametrize("seed", range(4))
def test_both_paths_equal_float64_greedy_at_real_size(coverage, seed):
    problems, expected = [], []
    for i, n in enumerate((300, 211, 60)):
        modular, features = bank(n, 64, seed + 10 * i, duplicates=20)
        problem = _Problem(modular.double(), features, coverage, 0.7)
        rewards = problem.rewards(problem.rows(torch.float64))
        expected.append(vectorised_brute_force(modular.double(), rewards, 50))
        problems.append(problem)
    assert [_select_one(p, p.rewards(), 50).tolist() for p in problems] == expected
    assert [p.tolist() for p in _select_batch(problems, 50)] == expected


def test_no_coverage_is_top_k_and_so_is_weight_zero():
    modular, features = bank(40, 6)
    modular[7] = modular[3]  # a tie: the earlier candidate first
    expected = sorted(range(40), key=lambda i: (-float(modular[i]), i))[:10]
    every = [torch.arange(40)]
    assert greedy_select(modular, features, every, 10, coverage="none")[0].tolist() == expected
    for coverage in COVERAGES:
        picks = greedy_select(modular, features, every, 10, coverage=coverage, coverage_weight=0.0)
        assert picks[0].tolist() == expected


def test_ragged_classes_share_nothing():
    modular, features = bank(60, 8)
    g = torch.Generator().manual_seed(3)
    candidates = [torch.randperm(60, generator=g)[:size] for size in (30, 4, 0, 17, 60)]
    together = greedy_select(modular, features, candidates, 5)
    for own, picks in zip(candidates, together):
        assert torch.equal(picks, greedy_select(modular, features, [own], 5)[0])
        assert set(picks.tolist()) <= set(own.tolist())
        assert len(picks) == min(5, len(own))
    assert torch.equal(together[1], candidates[1])


def test_coverage_avoids_duplicates():
    features = torch.eye(3)[[0, 0, 0, 1, 2]]
    modular = torch.tensor([0.3, 0.3, 0.3, 0.2, 0.1])
    picks = greedy_select(modular, features, [torch.arange(5)], 3)[0].tolist()
    assert picks == [0, 3, 4]
    assert greedy_select(modular, features, [torch.arange(5)], 3, coverage="none")[0].tolist() == [0, 1, 2]


def test_a_large_scale_of_the_modular_term():
    """LaBo's 1e7 on scores of 1e-9: no precision is lost to the weight."""
    modular, features = bank(50, 8)
    small = modular.double() * 1e-9
    plain = greedy_select(modular.double(), features, [torch.arange(50)], 20, coverage="maxpool", modular_weight=1e-2)
    scaled = greedy_select(small, features, [torch.arange(50)], 20, coverage="maxpool", modular_weight=1e7)
    assert torch.equal(plain[0], scaled[0])


def test_errors():
    modular, features = bank(5, 3)
    every = [torch.arange(5)]
    with pytest.raises(ValueError, match=r"candidates\[1\] reaches from 0 to 5; expected 0 to 4"):
        greedy_select(modular, features, [every[0], torch.tensor([0, 5])], 1)
    with pytest.raises(ValueError, match=r"candidates\[0\] has 2 entries, 1 of them distinct"):
        greedy_select(modular, features, [torch.tensor([1, 1])], 1)
    with pytest.raises(ValueError, match=r"candidates\[0\] has shape \[1, 5\]"):
        greedy_select(modular, features, [every[0][None]], 1)
    with pytest.raises(ValueError, match=r"modular has shape \[4\].*\[5\]"):
        greedy_select(modular[:4], features, every, 1)
    with pytest.raises(ValueError, match="coverage is 'cosine'"):
        greedy_select(modular, features, every, 1, coverage="cosine")
    with pytest.raises(ValueError, match="coverage_weight is -1"):
        greedy_select(modular, features, every, 1, coverage_weight=-1)
    with pytest.raises(ValueError, match="k is 0"):
        greedy_select(modular, features, every, 0)
    features[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"features has shape \[5, 3\] and a NaN"):
        greedy_select(modular, features, every, 1)
