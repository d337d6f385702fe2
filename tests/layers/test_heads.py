import math

import pytest
import torch

from cbm.layers import AssociationHead, owner_prior


def blocks(classes: int, own: int, extra: int = 0) -> torch.Tensor:
    owners = torch.eye(classes).repeat_interleave(own, 1).bool()
    return torch.cat([owners, torch.zeros(classes, extra, dtype=torch.bool)], dim=1)


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("classes", "own"), [(2, 3), (10, 50), (100, 7)])
def test_the_prior_puts_the_stated_mass_on_own_concepts(classes: int, own: int, mass: float):
    owners = blocks(classes, own, extra=4)
    weight = AssociationHead(owner_prior(owners, mass)).weight()
    torch.testing.assert_close((weight * owners).sum(1), torch.full((classes,), mass))
    torch.testing.assert_close(weight.sum(1), torch.ones(classes))


@pytest.mark.parametrize(("classes", "mass"), [(7, 0.31), (10, 0.23), (100, 0.027), (1000, 0.0027)])
def test_the_published_prior_means_less_the_more_classes_there_are(classes: int, mass: float):
    owners = blocks(classes, 5)
    own = (AssociationHead(owner_prior(owners, None)).weight() * owners).sum(1)
    torch.testing.assert_close(own, torch.full((classes,), mass), rtol=0.02, atol=1e-4)
    k, total = 5, 5 * classes
    assert float(own[0]) == pytest.approx(k * math.e / (k * math.e + total - k), rel=1e-4)


def test_a_shared_concept_gets_prior_weight_in_every_owners_row():
    owners = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    weight = AssociationHead(owner_prior(owners, 0.8)).weight()
    assert float(weight[0, 1]) == pytest.approx(0.4)
    assert float(weight[1, 1]) == pytest.approx(0.4)


def test_a_class_that_owns_nothing_or_everything_starts_uniform():
    owners = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    weight = AssociationHead(owner_prior(owners, 0.9)).weight()
    torch.testing.assert_close(weight[:2], torch.full((2, 3), 1 / 3))
