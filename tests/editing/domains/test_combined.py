"""``editor=combined`` on planted domains: what it chooses, what it says no to, and what it does at home."""

import pytest
import torch
from planted_domain import CLASSES, TEXTS, C, bottleneck, pictures, right

from cbm.editing import EditContext, create_editor, source_card
from cbm.editing.domains.closed_forms import mean_shift, unlabelled_shift
from cbm.editing.domains.combined import Combined, home_means
from cbm.errors import UserError
from cbm.layers import LinearHead


@pytest.fixture(scope="module")
def home():
    found = pictures(800, 1)
    return bottleneck(), source_card(found.x, found.y, C), pictures(800, 4)


def context(home, support, there) -> EditContext:
    model, card, _ = home
    return EditContext(model, TEXTS, CLASSES, "there", card, support, there.x)


def test_a_domain_that_moved_is_put_back(home):
    model, there = home[0], pictures(800, 3, 1.5)
    proposal = create_editor({"name": "combined"}).propose(context(home, pictures(32, 7, 1.5), there))
    assert proposal.judgement.accepted
    assert right(proposal.model, there) > right(model, there) + 0.15
    assert "left out" in proposal.reason


def test_at_home_next_to_nothing_is_edited(home):
    edited = 0
    for seed in range(24):
        support = pictures(16, 100 + seed)
        proposal = create_editor({"name": "combined"}).propose(context(home, support, home[2]))
        edited += proposal.changes
        if proposal.changes:
            assert right(proposal.model, home[2]) > right(home[0], home[2]) - 0.03
    assert edited <= 4  # of 24 at 5 %: five or more would be found once in 170


def test_what_decides_about_an_image_was_made_and_chosen_without_it(home):
    """The label of one image is changed: the left-out logits of that image may not notice."""
    editor, support = Combined(level=None), pictures(20, 7, 1.5)
    first = editor.propose(context(home, support, home[2]))
    for row in (0, 7):
        y = support.y.clone()
        y[row] = (y[row] + 1) % C
        other = type(support)(support.x, y, support.names)
        second = editor.propose(context(home, other, home[2]))
        fold = [int((first.left_out[row] - second.left_out[row]).abs().max() < 1e-4)]
        assert fold == [1] or first.reason != second.reason


def test_the_gate_lets_the_domain_pass_and_costs_home_little(home):
    there = pictures(800, 3, 1.5)
    support = pictures(32, 7, 1.5)
    gated = create_editor({"name": "combined", "protection": "gate"}).propose(context(home, support, there))
    model = home[0]
    z = torch.where(gated.gate(there.x)[:, None], gated.model.logits(there.x), model.logits(there.x))
    gain = float((z.argmax(1) == there.y).double().mean()) - right(model, there)
    assert gain > 0.02
    passed = [float(gated.gate(split.x).double().mean()) for split in (there, home[2])]
    assert passed[0] > 2 * passed[1]
    z = torch.where(gated.gate(home[2].x)[:, None], gated.model.logits(home[2].x), model.logits(home[2].x))
    lost = right(model, home[2]) - float((z.argmax(1) == home[2].y).double().mean())
    ungated = right(model, home[2]) - right(gated.model, home[2])
    assert lost <= 0.02
    assert ungated > 0.02
    before, after, (low, high) = gated.source
    assert after >= before - 0.01
    assert low <= after - before <= high


def test_classes_that_nobody_showed_keep_their_weights_and_are_still_named(home):
    there = pictures(800, 3, 1.5)
    some = pictures(40, 7, 1.5)
    support = some.take(torch.arange(40)[some.y != 3].numpy())
    proposal = create_editor({"name": "combined", "level": None}).propose(context(home, support, there))
    decided = proposal.model.logits(there.x).argmax(1)
    assert float((decided[there.y == 3] == 3).double().mean()) > 0.4


def test_bad_settings(home):
    there = context(home, pictures(32, 7, 1.5), home[2])
    for settings, message in (
        ({"protection": "gat"}, "editor.protection=gat: did you mean 'gate'"),
        ({"penalties": [0.0]}, "editor.penalties: 0; expected numbers above 0"),
        ({"level": 0.0}, "editor.level=0: expected a p-value between 0 and 1, or null"),
    ):
        with pytest.raises(UserError, match=message):
            create_editor({"name": "combined", **settings}).propose(there)
    assert isinstance(there.model.head, LinearHead)


def test_unlabelled_images_put_the_mean_back_without_labels(home):
    model, there = home[0], pictures(800, 3, 1.5)
    case = context(home, pictures(16, 7, 1.5), there)
    proposal = create_editor({"name": "combined", "transductive": True, "level": None}).propose(case)
    assert right(proposal.model, there) > right(model, there) + 0.15
    source = case.statistics()
    by = unlabelled_shift(model, there.x, source, home_means(case))
    truth = mean_shift(there.x, there.y, home_means(case))
    assert float((by - truth).norm()) < 0.15 * float(truth.norm())
    some = there.take(torch.arange(800)[there.y != 2].numpy())  # a class is not there at all
    by = unlabelled_shift(model, some.x, source, home_means(case))
    assert float((by - truth).norm()) < 0.5 * float(truth.norm())
    bare = EditContext(model, TEXTS, CLASSES, "there", home[1], case.support)
    with pytest.raises(UserError, match="needs unlabelled pictures"):
        create_editor({"name": "combined", "transductive": True}).propose(bare)
