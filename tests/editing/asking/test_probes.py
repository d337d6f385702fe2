"""Representations that a probe is made to agree with."""

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from cbm.editing import ConceptProbe, edit_representation, fit_concept_probe, intervenability
from cbm.layers.probe import LinearProbe

CERTAIN = math.log(19)


def toy():
    """Concepts are directions; the class is how many of the first three are shown."""
    g = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(10, 10, generator=g)).Q[:5]
    concepts = (torch.rand(600, 5, generator=g) < 0.5).float()
    x = (2 * concepts - 1) @ directions + 0.8 * torch.randn(600, 10, generator=g)
    weight = torch.outer(torch.arange(4.0), directions[:3].sum(0))
    model = LinearProbe(weight, -torch.arange(4.0).square() + 3 * torch.arange(4.0))
    return x, concepts, concepts[:, :3].sum(1).long(), model


def test_nearest_representation():
    g = torch.Generator().manual_seed(1)
    probe = ConceptProbe(torch.randn(4, 9, generator=g).double(), torch.randn(4, generator=g).double(), torch.zeros(4))
    x = torch.randn(20, 9, generator=g).double()
    told = torch.where(torch.rand(20, 4, generator=g) < 0.5, (torch.rand(20, 4, generator=g) < 0.5).double(), math.nan)
    told[0] = math.nan
    edited = edit_representation(x, probe, told, rho=0.0)
    assert torch.equal(edited[0], x[0])
    known = ~told.isnan()
    reached = probe(edited)
    sign = 2 * told[known] - 1
    wanted = torch.maximum(probe(x)[known] * sign, torch.tensor(CERTAIN).double())  # what is certain already stays
    torch.testing.assert_close(reached[known] * sign, wanted)
    assert 0 < int((wanted > CERTAIN).sum()) < len(wanted)
    for row in range(1, 20):  # of all such representations the nearest
        own = probe.directions[known[row]]
        step = edited[row] - x[row]
        inside = torch.linalg.lstsq(own.T, step[:, None]).solution
        torch.testing.assert_close((own.T @ inside)[:, 0], step)
    assert float((edit_representation(x, probe, told, rho=1e12) - x).abs().max()) < 1e-6
    lax, strict = (edit_representation(x, probe, told, rho=rho) for rho in (1.0, 1e-3))
    target = (told > 0.5).double()
    losses = [binary_cross_entropy_with_logits(probe(each)[known], target[known]) for each in (x, lax, strict)]
    assert losses[0] > losses[1] > losses[2]
    assert edit_representation(x[:0], probe, told[:0]).shape == (0, 9)


def test_the_class_follows_what_is_told():
    x, concepts, y, model = toy()
    probe = fit_concept_probe(x[:300], concepts[:300], x[300:], concepts[300:])
    assert float(probe.auroc.min()) > 0.8
    test, truth, label = x[300:], concepts[300:], y[300:]
    gains = []
    for count in range(4):
        told = truth.clone()
        told[:, count:] = math.nan
        gains.append(intervenability(model, test, label, edit_representation(test, probe, told)))
    assert gains[0] == 0
    assert gains[1] < gains[2] < gains[3]


def test_concepts_that_never_change_and_unknown_ones():
    x, concepts, _, _ = toy()
    concepts[:, 0] = 1.0
    concepts[::2, 1] = math.nan
    probe = fit_concept_probe(x[:300], concepts[:300], x[300:], concepts[300:])
    assert math.isnan(float(probe.auroc[0]))
    assert float(probe(x)[:, 0].min()) > 0
    assert float(probe.auroc[1]) > 0.8
