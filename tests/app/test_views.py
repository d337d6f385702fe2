"""Pictures, classes, concepts, another domain: what the views are told."""

import copy
from dataclasses import replace

import pytest
import torch
from birds_run import COUNTS, shared_folder
from explored_run import explored, trained
from torch.nn.functional import normalize
from torchmetrics.functional.classification import binary_auroc

from cbm.app import Explorer, Session
from cbm.app.adapt import suggest
from cbm.app.classes import describe_class
from cbm.app.concepts import describe_concept
from cbm.app.filters import MISTAKES, Filter
from cbm.app.gallery import PER_PAGE, find_pictures
from cbm.app.render import render
from cbm.app.session import EVERYWHERE
from cbm.concepts.readers import match_concepts
from cbm.config import load_card
from cbm.errors import UserError


def test_pictures_by_class_and_mistakes():
    explorer = explored()
    everything = find_pictures(explorer)
    assert (everything.count, len(everything.tiles)) == (len(explorer.split), PER_PAGE)
    last = find_pictures(explorer, number=10**6)
    assert last.number == last.pages - 1
    name = explorer.classes[3]
    assert {tile.true for tile in find_pictures(explorer, Filter(of=name)).tiles} == {name}
    wrong = find_pictures(explorer, Filter(kind=MISTAKES))
    assert wrong.count == int((explorer.predicted != explorer.split.y).sum())
    assert not any(tile.right for tile in wrong.tiles)
    with pytest.raises(UserError, match="did you mean"):
        find_pictures(explorer, Filter(of=name[:-1]))
    with pytest.raises(UserError, match="did you mean 'mistakes'"):
        find_pictures(explorer, Filter(kind="mistake"))


def test_only_the_thumbnails_of_a_page_are_made(monkeypatch: pytest.MonkeyPatch):
    explorer, opened = explored(), []
    images = type(explorer.images)
    original = images.open
    monkeypatch.setattr(images, "open", lambda self, row: opened.append(row) or original(self, row))
    find_pictures(explorer, number=3)
    assert len(opened) <= PER_PAGE


def test_a_class_before_and_after_its_weights_are_corrected():
    tab = Session(explored())
    explorer, name = tab.explorer, tab.explorer.classes[2]
    page = describe_class(tab, name)
    right = (explorer.predicted == 2)[explorer.split.y == 2]
    assert page.before == page.after == pytest.approx(float(right.double().mean()))
    assert sum(count for _, count in page.taken_for) == round(page.count * (1 - page.before))
    sizes = [abs(concept.before) for concept in page.concepts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(float(explorer.bottleneck.importance()[2].abs().max()))
    tab.hold(page.concepts[0].column)
    tab.edit("reweight", -3.0, scope=EVERYWHERE, classes=name)
    after = {concept.column: concept for concept in describe_class(tab, name).concepts}[page.concepts[0].column]
    assert (after.before, after.after) == (page.concepts[0].before, pytest.approx(-3.0, abs=1e-3))


def test_a_concept_with_its_pictures_and_its_labels():
    explorer = explored()
    column, truth = next(
        pair for pair in match_concepts(explorer.bank.texts, explorer.data.concept_names)
        if explorer.bank.concepts[pair[0]].classes
    )  # fmt: skip
    facts = describe_concept(explorer, column)
    scores = explorer.bottleneck.scores(explorer.split.x)[:, column]
    assert [tile.row for tile in facts.top] == scores.argsort(descending=True, stable=True)[:8].tolist()
    expected = binary_auroc(scores.sigmoid(), explorer.split.concepts[:, truth].int())
    assert facts.label_auroc == pytest.approx(float(expected))
    assert facts.owner_auroc is not None
    importance = explorer.bottleneck.importance()[:, column]
    assert facts.used_by[0][0] == explorer.classes[int(importance.abs().argmax())]


def test_pictures_of_another_domain(monkeypatch: pytest.MonkeyPatch):
    card = load_card("birds_shift")
    card.args.update(COUNTS)
    card.root = str(shared_folder() / "birds")
    monkeypatch.setattr("cbm.trained.model.load_card", lambda name: card)
    explorer = Explorer(trained("labo"), shared_folder() / "cache", dataset="birds_shift")
    assert explorer.domain == "birds_shift"
    assert explorer.headline[1] < explored().headline[1]


def test_test_time_editing_finds_what_was_added():
    """All pictures are given more of one concept: it is among what is edited, and the edits help."""
    explorer, data = copy.copy(explored()), explored().data
    split = explorer.split
    planted = replace(split, x=normalize(split.x + explorer.bottleneck.concepts[0], dim=1))
    explorer.data = replace(data, splits={**data.splits, "test": planted})
    explorer.domain = "another camera"
    explorer.logits = explorer.model.model(planted.x)
    found = suggest(explorer, shots=3)
    assert (found.support, found.tested) == (60, len(planted) - 60)
    assert set(found.baselines) == {"recentre", "refit"}
    assert explorer.bank.texts[0] in [shown.concept for shown in found.concepts]
    assert {shown.concept for shown in found.concepts} == {edit.concept for edit in found.edits.edits}
    assert {edit.domain for edit in found.edits.edits} == {"another camera"}
    assert found.after > found.before
    tab = Session(explorer)
    tab.propose(found.edits)
    tab.accept()
    assert not torch.equal(tab.compare().after, explorer.logits)
    with pytest.raises(UserError, match="labelled picture of every class"):
        suggest(explorer, shots=0)
    with pytest.raises(UserError, match="shots"):
        suggest(explorer, shots=1000)


def test_a_run_that_is_not_there():
    run = trained("labo")
    with pytest.raises(UserError, match="did you mean 'explored-labo'"):
        Explorer(run.with_name("explored-lab"), shared_folder() / "cache")
    with pytest.raises(UserError, match="no pictures for 'tests': it has train and val and test"):
        Explorer(run, shared_folder() / "cache", name="tests")


def test_names_from_files_are_text():
    """A picture or concept called like a tag stays a name."""
    evil = "<img src=x onerror=alert(1)>"
    for html in (
        render("picture", name=evil, uri="data:,", tiny=False, heat=None, held="", heat_uri=""),
        render("held", text=evil, unit="sd", pictures=[(evil, evil)]),
        render("location", address=evil),
        render("concept_list", texts=[(0, evil, True)], count=1, words=evil, held=None),
        render("saved", command="python eval.py", path=evil, run=evil, left_out=0),
    ):
        assert "<img src=x" not in html
        assert "&lt;img src=x" in html


def test_the_page_says_which_split_it_shows():
    """Edits are chosen on validation pictures; on test pictures it says what that would do to their numbers."""
    known = dict(
        run="one",
        method="labo",
        dataset="birds",
        pictures=120,
        classes=20,
        concepts=30,
        headline=("accuracy", 0.5),
        many=False,
        editable=True,
    )
    assert "120 pictures of the <b>val</b> split" in render("header", split="val", **known)
    assert "choose on --split val" not in render("header", split="val", **known)
    test = render("header", split="test", **known)
    assert "120 pictures of the <b>test</b> split" in test
    assert "choose on --split val" in test


def test_a_correction_that_is_another_head_is_shown_and_not_applied():
    explorer, data = copy.copy(explored()), explored().data
    planted = replace(explorer.split, x=normalize(explorer.split.x + explorer.bottleneck.concepts[0], dim=1))
    explorer.data = replace(data, splits={**data.splits, "test": planted})
    explorer.domain = "another camera"
    found = suggest(explorer, shots=3, editor="combined")
    assert found.corrected == (found.after != found.before)
    shown = render("suggestion", s=found)
    assert ("This is another head" in shown) == (found.corrected and not len(found.edits))
    few = suggest(explorer, shots=2, editor="recentre")
    assert not few.corrected
    assert "too few to check one" in few.reason
    assert "Nothing is to be edited" in render("suggestion", s=few)


def test_a_concept_says_how_its_scores_are_spread_and_which_decisions_hang_on_it():
    explorer = explored()
    model, y = explorer.bottleneck, explorer.split.y
    column = int(model.importance().abs().amax(dim=0).argmax())
    facts = describe_concept(explorer, column)
    scores = model.scores(explorer.split.x)[:, column].double()
    away = ((scores - scores.mean()) / scores.std()).clamp(-4, 4)
    both = [a + b for a, b in zip(facts.histogram.first, facts.histogram.second)]
    assert both == torch.histc(away, 32, -4, 4).long().tolist()
    assert sum(both) == len(y)
    held = model.activations(explorer.split.x)
    held[:, column] = model.reference[column]
    after = held @ model.weights().T + model.biases()
    flips = (after.argmax(dim=1) != explorer.predicted).nonzero()[:, 0].tolist()
    assert facts.hangs_on == len(flips)
    assert {tile.row for tile in facts.hanging} <= set(flips)
    levels = [float(scores[tile.row]) for tile in facts.along]
    assert levels == sorted(levels)
    assert levels[0] == float(scores.min())
    assert levels[-1] == float(scores.max())
    directions = normalize(model.concepts, dim=1)
    assert facts.nearest[0][1] == pytest.approx(float((directions @ directions[column]).sort().values[-2]), abs=1e-6)
