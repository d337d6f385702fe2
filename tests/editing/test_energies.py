"""Edits of energy-based bottlenecks."""

import math

import pytest
import torch

from cbm.concepts import Concept, ConceptBank
from cbm.editing import Edit, EditedEnergies, EditSet, edited_logits, edited_model, energy_guided_edits
from cbm.errors import UserError
from cbm.layers import EnergyBottleneck
from cbm.layers.energy import ReleasedEnergyBottleneck
from cbm.solvers.concept_blocks import concept_blocks

D, K, M = 6, 4, 3
TEXTS = [f"concept {k}" for k in range(K)]
CLASSES = ["ant", "bee", "cat"]
BANK = ConceptBank("planted", "test", tuple(Concept(text) for text in TEXTS))


def energies(kind=EnergyBottleneck):
    torch.manual_seed(0)
    model = kind(D, M, concept_blocks(K), hidden=16, dropout=0.0).eval().requires_grad_(False)
    model.joint_weight.fill_(3.0)
    x = torch.nn.functional.normalize(torch.randn(20, D), dim=1)
    return model, x


def edit(op, k, value=None, **more):
    return Edit(op, TEXTS[k], value, **more)


def by_hand(model, x, logit, clamp):
    """p(y | x) from all 2^K concept vectors."""
    vectors = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * K).double()
    energy = float(model.joint_weight) * model.joint()(vectors.float()).double()
    total = vectors @ logit.double().T  # [2^K, N]
    for k, value in clamp.items():
        total = total.masked_fill((vectors[:, k] != value)[:, None], -math.inf)
    weight = (total[:, :, None] - energy[:, None, :]).logsumexp(dim=0)
    return weight - weight.logsumexp(dim=1, keepdim=True)


def test_told_concepts_and_changed_evidence_against_all_vectors():
    model, x = energies()
    logit = model.concept_logits(x)
    edits = EditSet((edit("set", 0, "present"), edit("set", 1, 2.5), edit("scale", 2, -2.0), edit("shift", 2, 1.0)))
    changed = logit.clone()
    changed[:, 1] = 2.5
    changed[:, 2] = -2.0 * logit[:, 2] + 1.0
    found = edited_model(model, edits, TEXTS, CLASSES)(x)
    torch.testing.assert_close(found.double(), by_hand(model, x, changed, {0: 1.0}), rtol=0, atol=1e-4)
    silent = logit.clone()
    silent[:, 3] = 0.0
    found = edited_model(model, EditSet((edit("mask", 3),)), TEXTS, CLASSES)(x)
    torch.testing.assert_close(found.double(), by_hand(model, x, silent, {}), rtol=0, atol=1e-4)
    last = EditSet((edit("set", 0, "present"), edit("set", 0, "absent")))
    found = EditedEnergies(model, last, TEXTS).infer(x)
    assert not found.concepts[:, 0].any()


def test_edits_of_single_pictures_and_domains_leave_the_others_bit_by_bit():
    model, x = energies()
    names = [f"{i}.png" for i in range(20)]
    edits = EditSet((edit("set", 0, "present", samples=("3.png",)), edit("set", 2, "absent", domain="elsewhere")))
    before = model(x)
    after = edited_logits(model, edits, BANK, CLASSES, x, names)
    others = [i for i in range(20) if i != 3]
    assert torch.equal(after[others], before[others])
    alone = edited_model(model, EditSet((edit("set", 0, "present"),)), TEXTS, CLASSES)(x[[3]])
    torch.testing.assert_close(after[[3]], alone)
    there = edited_logits(model, edits, BANK, CLASSES, x, names, domain="elsewhere")
    assert not torch.equal(there[others], before[others])


def test_what_follows_from_what_is_told():
    model, x = energies()
    model.joint_weight.fill_(0.0)
    told = EditSet((edit("set", 0, "present"),))
    assert energy_guided_edits(model, x[0], told, TEXTS) == told  # nothing joins them
    model.joint_weight.fill_(200.0)
    proposals = [energy_guided_edits(model, row, told, TEXTS) for row in x]
    for row, proposal in zip(x, proposals):
        state = EditedEnergies(model, told, TEXTS).infer(row[None]).concepts[0]
        plain = model.infer(row[None]).concepts[0]
        named = {e.concept: float(e.value == "present") for e in proposal.edits[1:]}
        assert named == {TEXTS[k]: float(state[k]) for k in range(1, K) if state[k] != plain[k]}
    assert any(len(proposal) > 1 for proposal in proposals)


def test_what_energies_have_no_place_for():
    model, x = energies()
    for bad in (edit("remove", 0), edit("reweight", 0, 1.0), edit("set", 0, "present", classes=("ant",))):
        with pytest.raises(UserError, match="no weights of concepts for classes"):
            edited_model(model, EditSet((bad,)), TEXTS, CLASSES)
    with pytest.raises(UserError, match="no concept 'concept 9'"):
        edited_model(model, EditSet((Edit("mask", "concept 9"),)), TEXTS, CLASSES)
    released, x = energies(ReleasedEnergyBottleneck)
    assert EditedEnergies(released, EditSet((edit("set", 0, "present"),)), TEXTS).infer(x).concepts[:, 0].all()
    with pytest.raises(UserError, match="inference as released"):
        EditedEnergies(released, EditSet((edit("scale", 0, 2.0),)), TEXTS)
