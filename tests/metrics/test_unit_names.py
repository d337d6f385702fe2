"""Names of units: AUROC against a loop, planted words that must be found, and names dealt out that must not."""

import pytest
import torch
from torch.nn.functional import normalize

from cbm.metrics.unit_names import (
    LEAST,
    benjamini_hochberg,
    firing_auroc,
    mean_directions,
    name_units,
    top_pictures,
)

V, E, N = 300, 48, 2000


def world(seed: int = 0):
    """Pictures that show three of 300 things each, things along random directions, words near their things."""
    g = torch.Generator().manual_seed(seed)
    things = normalize(torch.randn(V, E, generator=g), dim=1)
    shown = torch.rand(N, V, generator=g).topk(3, dim=1).indices
    x = things[shown].sum(dim=1) + 0.3 * torch.randn(N, E, generator=g) / E**0.5
    words = normalize(things + 0.5 * torch.randn(V, E, generator=g) / E**0.5, dim=1)
    return normalize(x, dim=1), things, words, shown


def test_firing_auroc_against_a_loop():
    g = torch.Generator().manual_seed(1)
    fires = torch.stack([torch.randperm(7, generator=g)[:3] for _ in range(30)]).where(
        torch.rand(30, 3, generator=g) > 0.2, -1
    )
    scores = torch.randint(0, 6, (30, 4), generator=g).float()  # with ties
    found = firing_auroc(fires, 8, scores)
    for k in range(8):
        on = (fires == k).any(dim=1)
        for j in range(4):
            if not on.any() or on.all():
                assert found[k, j].isnan()
                continue
            a, b = scores[on, j][:, None], scores[~on, j][None]
            assert float(found[k, j]) == pytest.approx(float(((a > b) + 0.5 * (a == b)).double().mean()), abs=1e-6)


def test_units_that_are_things_get_their_words():
    x, things, words, shown = world()
    units = torch.arange(0, V, 2)
    place = torch.full((V,), -1)
    place[units] = torch.arange(len(units))
    found = name_units(things[units], place[shown], x, words)
    assert float((found.words[:, 0] == units).double().mean()) >= 0.98
    assert float(found.named.double().mean()) >= 0.95
    assert float(found.auroc.nanmean()) > 0.9
    assert found.dealt <= 0.07
    assert found.auroc_dealt == pytest.approx(0.5, abs=0.05)
    assert (found.margin > 0).all()
    assert found.cosine.shape == (len(units), 5)
    assert found.cosine.equal(found.cosine.sort(dim=1, descending=True).values)


def test_the_rows_of_the_vocabulary_get_their_own_word():
    x, _, words, shown = world()
    found = name_units(words, shown, x, words)
    assert float((found.words[:, 0] == torch.arange(V)).double().mean()) >= 0.99


def test_words_dealt_out_anew_name_nothing():
    x, things, words, shown = world(3)
    found = name_units(things, shown, x, words[torch.randperm(V)])
    assert float(found.named.double().mean()) > 0.9  # in any order
    mixed = name_units(things[torch.randperm(V)], shown, x, words)
    assert float(mixed.named.double().mean()) <= 0.07


def test_pure_noise_is_not_named():
    g = torch.Generator().manual_seed(5)
    x, _, words, _ = world()
    fires = torch.randint(0, 60, (N, 3), generator=g)
    found = name_units(normalize(torch.randn(60, E, generator=g), dim=1), fires, x, words)
    assert float(found.named.double().mean()) <= 0.05


def test_too_rare_to_test():
    x, things, words, shown = world()
    fires = torch.full((N, 1), -1)
    fires[: LEAST - 1] = 0
    fires[:LEAST, 0] = torch.where(torch.arange(LEAST) < LEAST - 1, 0, 1)
    found = name_units(things[:3], fires, x, words)
    assert found.auroc.isnan().all()
    assert not found.named.any()
    assert found.firing.tolist() == [LEAST - 1, 1, 0]
    always = name_units(things[:1], torch.zeros(N, 1, dtype=torch.long), x, words)
    assert not always.named.any()  # it tells no picture from another


def test_chunks_change_nothing(monkeypatch):
    x, things, words, shown = world()
    whole = name_units(things[:40], shown.where(shown < 40, -1), x, words)
    monkeypatch.setattr("cbm.metrics.unit_names.AT_ONCE", N * 7)
    parts = name_units(things[:40], shown.where(shown < 40, -1), x, words)
    assert whole.auroc.nan_to_num(-1).equal(parts.auroc.nan_to_num(-1))
    assert whole.p.nan_to_num(-1).equal(parts.p.nan_to_num(-1))
    assert whole.dealt == parts.dealt


def test_a_vocabulary_of_one_word():
    x, things, words, shown = world()
    found = name_units(things[:4], shown.where(shown < 4, -1), x, words[:1])
    assert found.cosine.shape == (4, 1)
    assert not found.named.any()  # nothing to compare it with
    assert found.margin.tolist() == [0.0] * 4


def test_benjamini_hochberg_by_its_definition():
    g = torch.Generator().manual_seed(2)
    for _ in range(20):
        p = torch.rand(15, generator=g).square()
        ordered = p.sort().values.tolist()
        most = max((i for i in range(1, 16) if ordered[i - 1] <= 0.1 * i / 15), default=0)
        expected = [value <= (ordered[most - 1] if most else -1) for value in p.tolist()]
        assert benjamini_hochberg(p, 0.1).tolist() == expected
    assert not benjamini_hochberg(torch.full((3,), torch.nan), 0.1).any()


def test_means_and_top_pictures():
    fires = torch.tensor([[0, 2], [0, -1], [2, 0], [-1, -1]])
    weights = torch.tensor([[1.0, 3.0], [5.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    x = torch.eye(4)
    assert top_pictures(fires, weights, 4, 2) == [[1, 2], [], [0, 2], []]
    found = mean_directions(fires, weights, 4, x)
    torch.testing.assert_close(found[0], normalize(torch.tensor([1.0, 5.0, 2.0, 0.0]), dim=0))
    assert found[1].abs().max() == 0
