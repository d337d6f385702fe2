import pytest
import torch
from torch.nn.functional import normalize

from cbm.concepts import claim_concepts, select_concepts
from cbm.solvers import discriminability, posterior_entropy

OPTIONS = dict(score="posterior_entropy", coverage="facility_cosine", coverage_weight=5.0)


def planted(classes: int = 6, dim: int = 32, seed: int = 0):
    """Class means along axes; 4 concepts per class that point there, 6 per class that point nowhere in particular."""
    generator = torch.Generator().manual_seed(seed)
    means = normalize(torch.eye(dim)[:classes] + 1.0 / dim, dim=1)  # a large shared part, as CLIP's
    good = means.repeat_interleave(4, 0) + 0.05 * torch.randn(classes * 4, dim, generator=generator)
    common = means.mean(0) + 0.05 * torch.randn(classes * 6, dim, generator=generator)
    owners = torch.cat([torch.eye(classes).repeat_interleave(4, 1), torch.eye(classes).repeat_interleave(6, 1)], dim=1)
    return normalize(torch.cat([good, common]), dim=1), owners.bool(), means


def test_planted_concepts_are_found():
    embeddings, owners, means = planted()
    picks = select_concepts(embeddings, owners, means, 4, **{**OPTIONS, "coverage": "none"})
    assert sorted(picks.tolist()) == list(range(24))


def test_posterior_entropy_ignores_shift_and_scale_of_the_similarities():
    embeddings, _, means = planted()
    value, clamped = discriminability(embeddings, means, "posterior_entropy")
    shared = torch.ones(len(means), 1) @ torch.randn(1, embeddings.shape[1])
    moved, _ = discriminability(embeddings, 7 * means + shared, "posterior_entropy")
    torch.testing.assert_close(value, moved, rtol=1e-4, atol=1e-5)
    assert clamped == 0


def test_posterior_entropy_against_a_loop():
    similarity = torch.randn(5, 3, dtype=torch.float64)
    expected = []
    for row in similarity:
        p = (row / 0.5).exp() / (row / 0.5).exp().sum()
        expected.append(sum(float(q) * float(q.log()) for q in p))
    torch.testing.assert_close(posterior_entropy(similarity, 0.5), torch.tensor(expected, dtype=torch.float64))


def test_shared_concepts_are_chosen_once_and_small_classes_keep_all():
    embeddings, owners, means = planted()
    owners[0, 4:8] = True
    owners[1, 24:] = False
    picks = select_concepts(embeddings, owners, means, 5, **OPTIONS)
    assert len(set(picks.tolist())) == len(picks)
    assert {4, 5, 6, 7} <= set(picks.tolist())


def test_nothing_is_lost_when_the_number_is_no_multiple_of_the_classes():
    embeddings, owners, means = planted()
    assert len(select_concepts(embeddings, owners, means, 7, **OPTIONS)) == 42


def test_ownerless_phrases_go_where_they_stand_out():
    embeddings, owners, means = planted()
    claimed = claim_concepts(embeddings[:24], means)
    assert claimed[owners[:, :24]].all()
    assert claimed.any(dim=1).all()


def published_picks(rows: list[list[float]], score: list[float], weight: float, k: int) -> list[int]:
    """The published code's utility by a naive greedy in float64: sum of w MI(c), and a maximum per coordinate of
    [w MI(c), t_c], which its library takes for similarities."""
    covered, picks = [0.0] * len(rows[0]), []
    while len(picks) < k:
        gains = {
            c: score[c] + weight * sum(max(0.0, value - now) for value, now in zip(row, covered))
            for c, row in enumerate(rows) if c not in picks
        }  # fmt: skip
        best = max(gains, key=gains.__getitem__)
        picks.append(best)
        covered = [max(value, now) for value, now in zip(rows[best], covered)]
    return picks


@pytest.mark.parametrize("weights", [(1e7, 5.0), (1e5, 5.0), (1e3, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_the_published_objective_is_one_setting(seed: int, weights: tuple[float, float]):
    """``score_weight``: the same picks in the same order as the published code makes, where S > 0."""
    g = torch.Generator().manual_seed(seed)
    classes, own, dim = 4, 15, 12
    embeddings = torch.nn.functional.normalize(torch.rand(classes * own, dim, generator=g) + 0.3, dim=1)
    means = torch.rand(classes, dim, generator=g) + 0.1
    owners = torch.eye(classes, dtype=torch.bool).repeat_interleave(own, dim=1)
    similarity = embeddings.double() @ means.double().T
    joint = similarity / (classes * similarity.sum(0))
    marginal = joint.sum(1, keepdim=True)
    information = (joint * (joint / (marginal / classes)).log()).sum(1)
    expected = []
    for row in owners:
        block = row.nonzero().flatten()
        score = (weights[0] * information[block]).tolist()
        table = [[s, *t] for s, t in zip(score, embeddings[block].double().tolist())]
        expected += [int(block[i]) for i in published_picks(table, score, weights[1], 5)]
    settings = {"score": "mutual_information", "coverage": "maxpool", "coverage_weight": weights[1]}
    picks = select_concepts(embeddings, owners, means, 5, **settings, score_weight=weights[0])
    assert picks.tolist() == expected
    if weights[0] < 1e6:  # without it the ratio of the weights is another
        assert select_concepts(embeddings, owners, means, 5, **settings).tolist() != expected
