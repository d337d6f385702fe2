"""Editors of another domain, all behind one door, on planted shifts of features."""

import copy

import numpy as np
import pytest
import torch
from planted_domain import CLASSES, TEXTS, C, D, K, bottleneck, pictures, right

from cbm.editing import EDITORS, EditContext, create_editor, edited_model, source_card
from cbm.editing.domains.conda import adapt_unlabelled, pseudo_labels
from cbm.editing.domains.editors import keep_home
from cbm.errors import UserError
from cbm.layers.probe import LinearProbe


@pytest.fixture(scope="module")
def world():
    home = pictures(800, 1)
    return bottleneck(), source_card(home.x, home.y, C), pictures(32, 7, 1.5), pictures(800, 3, 1.5), pictures(800, 4)


def context(world, **changes) -> EditContext:
    model, card, support, there, _ = world
    settings = {"support": support, "unlabelled": there.x, **changes}
    return EditContext(model, TEXTS, CLASSES, "other camera", card, **settings)


def test_every_editor_answers_and_leaves_the_model_alone(world):
    model, _, _, there, home = world
    before, saved = right(model, there), copy.deepcopy(model.state_dict())
    gains = {}
    for name in EDITORS:
        proposal = create_editor({"name": name, "level": None}).propose(context(world))
        gains[name] = right(proposal.model, there) - before
        assert proposal.reason
        if proposal.edits is not None:
            assert proposal.edits.domains == {"other camera"}
            again = edited_model(model, proposal.edits, TEXTS, CLASSES, "other camera")
            torch.testing.assert_close(again.logits(there.x), proposal.model.logits(there.x))
            at_home = edited_model(model, proposal.edits, TEXTS, CLASSES, "home")
            assert torch.equal(at_home.logits(home.x), model.logits(home.x))
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved[key])
    assert before < 0.75
    assert gains["test_time"] > 0.05
    assert gains["recentre"] > 0.05
    assert gains["prune"] != 0


def test_test_time_editing_names_the_concept_that_moved(world):
    proposal = create_editor({"name": "test_time"}).propose(context(world))
    assert {edit.concept for edit in proposal.edits.edits} == {"concept 0"}
    assert proposal.plan.moved == (0,)
    kept = create_editor({"name": "test_time", "protect": ["concept 0"]}).propose(context(world))
    assert all(edit.op != "set" for edit in kept.edits.edits)


@pytest.mark.parametrize("protection", ["gate", "batch"])
def test_gates_keep_the_edits_away_from_home(world, protection):
    model, _, _, there, home = world
    proposal = create_editor({"name": "test_time", "protection": protection}).propose(context(world))
    assert float(proposal.gate(there.x).double().mean()) > {"gate": 0.5, "batch": 0.9}[protection]
    assert float(proposal.gate(home.x).double().mean()) < 0.15
    before, after, (low, high) = proposal.source
    assert after >= before - 0.005
    assert low <= after - before <= high


def test_without_protection_edits_that_hurt_at_home_are_dropped(world):
    model, card, *_ = world
    proposal = create_editor({"name": "test_time", "protection": "none"}).propose(context(world))
    assert proposal.edits.domains == set()
    before, after, _ = proposal.source
    assert after >= before - 0.005
    tagged = create_editor({"name": "test_time"}).propose(context(world))
    statistics, head = context(world).statistics(), context(world).head
    harm = right(tagged.model, pictures(800, 4)) < right(model, pictures(800, 4)) - 0.02
    plan, (first, last, _) = keep_home(tagged.plan, statistics, head, None)
    assert harm == (len(plan.changes) < len(tagged.plan.changes))
    nobody, (same, still, interval) = keep_home(
        tagged.plan, statistics, head, torch.zeros(len(card.y), dtype=torch.bool)
    )
    assert nobody == tagged.plan
    assert same == still
    assert interval == (0.0, 0.0)


def test_prune_removes_columns_and_leaves_the_others_bit_by_bit(world):
    model = world[0]
    proposal = create_editor({"name": "prune", "count": 1}).propose(context(world))
    assert [edit.concept for edit in proposal.edits.edits] == ["concept 0"]
    assert torch.equal(proposal.model.weights()[:, 1:], model.weights()[:, 1:])
    assert not proposal.model.weights()[:, 0].any()
    normalised = create_editor({"name": "prune", "count": 1, "normalise": True}).propose(context(world))
    sums = [(m.weights() * m.spread).abs().sum(1) for m in (model, normalised.model)]
    torch.testing.assert_close(*sums)
    assert normalised.edits is None


def test_unlabelled_pictures_move_concepts(world):
    model, card, _, there, home = world
    source = context(world).statistics()
    labels = pseudo_labels(model, there.x)
    still = adapt_unlabelled(model, there.x, labels, source, steps=0)
    assert torch.equal(still.logits(there.x), model.logits(there.x))
    moved = adapt_unlabelled(model, there.x, labels, source)
    assert not torch.equal(moved.concepts, model.concepts)
    assert moved.residual is not None
    assert torch.equal(model.concepts, torch.eye(D)[:K])
    own = pseudo_labels(model, home.x)
    adapted = adapt_unlabelled(model, home.x, own, source)
    assert right(adapted, home) >= right(model, home) - 0.01
    again = adapt_unlabelled(model, there.x, labels, source)
    assert torch.equal(again.logits(there.x), moved.logits(there.x))
    with pytest.raises(UserError, match="no unlabelled pictures"):
        adapt_unlabelled(model, there.x[:0], labels[:0], source)
    sure = torch.zeros(len(there), C)
    sure[:, 2] = 100.0
    assert (pseudo_labels(model, there.x, sure) == 2).all()


def test_a_refit_knows_only_the_classes_it_saw(world):
    rows = torch.arange(32)[world[2].y < 2].numpy()
    proposal = create_editor({"name": "refit", "level": None}).propose(context(world, support=world[2].take(rows)))
    there = world[3]
    assert set(proposal.model.logits(there.x).argmax(1).tolist()) == {0, 1}
    known = there.take(torch.arange(800)[there.y < 2].numpy())
    assert right(proposal.model, known) > 0.8


def test_bad_settings(world):
    for settings, message in (
        ({"name": "test_tme"}, "unknown editor 'test_tme': did you mean 'test_time'"),
        ({"name": "test_time", "gaurd": "default"}, "unknown setting 'editor.gaurd' of 'test_time'"),
        ({"name": "test_time", "shots": "many"}, "editor.shots"),
        ({"name": "test_time", "protection": "gat"}, "editor.protection=gat: did you mean 'gate'"),
        ({"name": "test_time", "protect": ["concept 00"]}, "no concept 'concept 00'"),
        ({"name": "conda", "steps": -1}, "editor.steps=-1"),
    ):
        with pytest.raises(UserError, match=message):
            create_editor(settings).propose(context(world))
    with pytest.raises(UserError, match="needs support pictures"):
        create_editor({"name": "recentre"}).propose(context(world, support=None))
    with pytest.raises(UserError, match="needs unlabelled pictures"):
        create_editor({"name": "conda"}).propose(context(world, unlabelled=None))
    around = copy.deepcopy(world[0])
    around.residual = LinearProbe(torch.zeros(C, D), torch.zeros(C))
    with pytest.raises(UserError, match="past its concepts"):
        create_editor({"name": "test_time"}).propose(context((around, *world[1:])))


def test_what_the_guard_is_given_was_chosen_without_the_image(world):
    """The logits of images left out are those that the editor itself gives when it is not shown the image."""
    support = world[2].take(np.arange(16))
    editor = create_editor({"name": "test_time", "level": None, "guard": "lenient"})
    whole = editor.propose(context(world, support=support))
    assert whole.left_out is not None
    same = 0
    for row in range(len(support)):
        without = editor.propose(context(world, support=support.take(np.delete(np.arange(16), row))))
        same += int(whole.left_out[row].argmax()) == int(without.model.logits(support.x[[row]]).argmax())
    assert same >= 15  # the number of edits is chosen by fifteen images left out alone, there by pairs
