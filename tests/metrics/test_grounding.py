"""Association with the owners, beside owners that are dealt out anew."""

import pytest
import torch
from torch.nn.functional import normalize

from cbm.metrics.grounding import association, concept_gaps


def planted(strength: float = 1.0, n: int = 400, classes: int = 8, each: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, 24, generator=g)
    x = normalize(strength * centres[y] + torch.randn(n, 24, generator=g), dim=1)
    owners = torch.zeros(classes, classes * each, dtype=torch.bool)
    owners[torch.arange(classes * each) // each, torch.arange(classes * each)] = True
    concepts = normalize(centres.repeat_interleave(each, 0) + torch.randn(classes * each, 24, generator=g), dim=1)
    return x, y, concepts, owners


def test_concepts_of_their_classes_pass():
    found = association(*planted())
    assert found.passed
    assert found.p == 1 / 200
    assert found.low < found.gap < found.high
    assert abs(found.null) < 0.1
    assert found.gap == pytest.approx(float(concept_gaps(*planted())[1].mean()), rel=1e-5)


def test_random_directions_do_not():
    x, y, concepts, owners = planted()
    g = torch.Generator().manual_seed(1)
    found = association(x, y, normalize(torch.randn(concepts.shape, generator=g), dim=1), owners)
    assert not found.passed


def test_the_null_is_that_of_permuted_owners():
    """By the slow way: owners exchanged, gaps computed anew."""
    x, y, concepts, owners = planted(n=80)
    found = association(x, y, concepts, owners, draws=30, seed=3)
    g = torch.Generator().manual_seed(3)
    slow = []
    for _ in range(30):
        order = torch.randperm(owners.shape[1], generator=g)
        moved = torch.zeros_like(owners)
        moved[:, order] = owners
        slow.append(float(concept_gaps(x, y, concepts, moved)[1].nanmean()))
    assert found.null == pytest.approx(sum(slow) / 30, abs=1e-4)
    assert found.null_sd == pytest.approx(float(torch.tensor(slow).std()), rel=1e-2)


def test_p_is_uniform_if_owners_mean_nothing():
    below = 0
    for seed in range(80):
        x, y, concepts, owners = planted(n=120, seed=seed)
        order = torch.randperm(owners.shape[1], generator=torch.Generator().manual_seed(seed))
        below += association(x, y, concepts, owners[:, order], draws=99, seed=seed).p < 0.05
    assert below <= 10


def test_a_concept_that_every_class_owns_has_no_gap():
    x, y, concepts, owners = planted(n=80)
    assert association(x, y, concepts, torch.ones_like(owners)) is None
    owners[:, 0] = True
    assert association(x, y, concepts, owners) is not None
