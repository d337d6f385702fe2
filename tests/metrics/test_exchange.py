"""Tests that even perfect concepts could not pass have no result."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cbm.metrics.exchange import ways_to_deal
from cbm.metrics.grounding import association
from cbm.metrics.integrity import Integrity, association_test, names_test, outside_test, truth_test
from cbm.metrics.reader import read, said_by_owners
from cbm.metrics.truth import concept_truth
from cbm.solvers import Codes


def perfect_words(y: torch.Tensor, per_class: int) -> Codes:
    """One word of its own class for every image."""
    columns = (y * per_class + torch.arange(len(y)) % per_class)[:, None]
    return Codes(torch.ones(len(y), 1), columns, *torch.zeros(2, len(y)), 1)


def owners(classes: int, per_class: int) -> torch.Tensor:
    return torch.eye(classes, dtype=torch.bool).repeat_interleave(per_class, dim=1)


def test_ways():
    assert ways_to_deal(torch.ones(5, 2)) == pytest.approx(1)
    assert ways_to_deal(torch.eye(4)) == pytest.approx(24)
    assert ways_to_deal(torch.full((3, 2), torch.nan)) == pytest.approx(1)
    assert ways_to_deal(torch.arange(20000.0)[:, None]) > 1e300


@pytest.mark.parametrize(("classes", "per_class", "images"), [(3, 1, 300), (2, 2, 300), (1, 9, 300), (2, 20, 2)])
def test_perfect_names_that_cannot_be_tested_are_not_called_empty(classes: int, per_class: int, images: int):
    y = torch.arange(images) % classes
    found = names_test([read(perfect_words(y, per_class), said_by_owners(owners(classes, per_class)), y, "owners")], "")
    assert found.status == "untested"
    assert found.finding.startswith("cannot be tested: ")
    assert Integrity((found,)).verdict.startswith("nothing is shown about the names of the concepts; not shown: that ")


def test_perfect_names_that_can_be_tested_pass():
    y = torch.arange(300) % 3
    assert names_test([read(perfect_words(y, 4), said_by_owners(owners(3, 4)), y, "owners")], "").passed


def test_good_names_on_few_images_are_not_called_empty():
    """Significance is out of reach of what was seen, not of every reader."""
    y = torch.arange(12) % 2
    words = perfect_words(torch.where(torch.arange(12) < 4, 1 - y, y), 4)  # two thirds
    found = names_test([read(words, said_by_owners(owners(2, 4)), y, "owners")], "")
    assert found.status == "failed"
    assert Integrity((found,)).verdict.startswith("it is not shown that the names say anything about the classes: ")


def test_images_of_one_subject_count_once():
    generator = torch.Generator().manual_seed(0)
    subjects = np.repeat(np.arange(20), 20)
    y = torch.from_numpy(subjects) % 4
    wrong = (torch.rand(20, generator=generator) < 0.4)[torch.from_numpy(subjects)]
    words, says = perfect_words(torch.where(wrong, (y + 1) % 4, y), 5), said_by_owners(owners(4, 5))
    alone, together = (read(words, says, y, "owners", subjects=each) for each in (None, subjects))
    assert together.accuracy == alone.accuracy
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_few_owners_cannot_be_exchanged():
    x = normalize(torch.eye(3).repeat(30, 1) + 0.01 * torch.randn(90, 3), dim=1)
    found = association_test(association(x, torch.arange(3).repeat(30), torch.eye(3), owners(3, 1)), "")
    assert found.status == "untested"
    assert "can be exchanged in too few ways" in found.finding


def test_truth_of_one_or_two_names_cannot_be_tested():
    labels = (torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    for many in (1, 2):
        found = truth_test(concept_truth(labels[:, :many], labels[:, :many]), None)
        assert found.status == "untested"
        assert "do not find" not in found.finding


def test_truth_of_few_images_cannot_be_tested():
    labels = torch.eye(6).repeat(1, 2)
    assert truth_test(concept_truth(labels, labels), None).status == "untested"


def test_right_scores_on_few_images_of_a_class_do_not_only_follow_it():
    """Labels differ within a class in one image: no score could be significant there."""
    y = torch.arange(8).repeat_interleave(10)
    labels = torch.eye(8).repeat_interleave(10, dim=0)
    labels[::10] = 1 - labels[::10]
    scores = labels + 0.1 * torch.rand(80, 8, generator=torch.Generator().manual_seed(2))
    labels[10::10] = labels[11::10]  # but for the first class
    overall, within = concept_truth(scores, labels), concept_truth(scores, labels, y)
    assert within is not None
    assert within.untestable
    found = truth_test(overall, within)
    assert "follow the class" not in found.finding
    assert "of too few images to tell" in found.finding


def test_truth_of_a_few_of_many_concepts_is_not_that_of_all():
    labels = torch.rand(300, 6, generator=torch.Generator().manual_seed(0)).lt(0.5).float()
    overall = concept_truth(labels, labels)
    assert truth_test(overall, None, 20).passed
    found = truth_test(overall, None, 200)
    assert found.status == "untested"
    assert "too few concepts have labels (AUROC 1.000 over 6 of 200 concepts with labels" in found.finding
    y = torch.arange(300) % 3
    names = names_test([read(perfect_words(y, 4), said_by_owners(owners(3, 4)), y, "owners")], "")
    assert not Integrity((names, found, outside_test(0.0))).carries
