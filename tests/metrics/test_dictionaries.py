"""Two dictionaries side by side, and random directions beside them."""

import torch
from torch.nn.functional import normalize

from cbm.metrics import dictionaries
from cbm.metrics.dictionaries import directions_like, match_dictionaries


def test_a_permutation_is_found_again():
    g = torch.Generator().manual_seed(0)
    atoms = torch.randn(40, 16, generator=g)
    order = torch.randperm(40, generator=g)
    found = match_dictionaries(atoms, 3 * atoms[order] + 0.01 * torch.randn(40, 16, generator=g))
    assert order[found.partner].equal(torch.arange(40))
    assert found.matched == 1.0
    assert found.mean > 0.999


def test_two_random_dictionaries_match_nowhere():
    g = torch.Generator().manual_seed(0)
    found = match_dictionaries(torch.randn(60, 64, generator=g), torch.randn(60, 64, generator=g))
    assert found.matched == 0
    assert 0.1 < found.mean < 0.4  # the best of 60 cosines is not 0


def test_of_another_size_and_too_large_for_an_exact_assignment(monkeypatch):
    atoms = torch.eye(6)
    few = match_dictionaries(atoms, atoms[:2])
    assert few.partner.tolist() == [0, 1, -1, -1, -1, -1]
    assert few.cosine.isnan().tolist() == [False, False, True, True, True, True]
    monkeypatch.setattr(dictionaries, "EXACT", 1)
    nearest = match_dictionaries(atoms, atoms.flip(0))
    assert nearest.partner.tolist() == [5, 4, 3, 2, 1, 0]
    assert nearest.matched == 1.0


def test_random_directions_have_the_pictures_covariance():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, generator=g) * torch.tensor([3.0, 1.0, 1.0, 0.1, 0.0])
    drawn = directions_like(torch.cov(x.T), 4000, seed=1)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000))
    assert drawn[:, 4].abs().max() < 1e-5
    assert (drawn[:, 0].square().mean() > 3 * drawn[:, 1].square().mean()).item()
    expected = normalize(torch.randn(4000, 5, generator=g) * torch.tensor([3.0, 1.0, 1.0, 0.1, 0.0]), dim=1)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(expected.T), atol=0.02, rtol=0)
