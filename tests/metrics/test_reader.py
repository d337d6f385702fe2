"""Reader accuracy: what only names can earn, and its null."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from cbm.layers import ConceptBottleneck, LinearHead
from cbm.metrics.reader import (
    centre_directions,
    few_words,
    read,
    reader_accuracy,
    said_by_owners,
    said_by_texts,
    strongest_words,
)
from cbm.solvers import Codes


def planted(n: int = 400, classes: int = 8, each: int = 5, seed: int = 0):
    """Images that show two of their class's five words; words with a common part, as texts have."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randn(classes * each, 64, generator=g)
    y = torch.arange(n) % classes
    picks = torch.stack([y * each + torch.randint(each, (n,), generator=g) for _ in range(2)], dim=1)
    x = words[picks].sum(dim=1) + 0.3 * torch.randn(n, 64, generator=g) * 3
    owners = torch.zeros(classes, classes * each, dtype=torch.bool)
    owners[torch.arange(classes * each) // each, torch.arange(classes * each)] = True
    return normalize(x, dim=1), y, normalize(words + 3 * torch.randn(64, generator=g), dim=1), owners


def test_names_that_mean_something_are_read_and_exchanged_ones_are_not():
    x, y, concepts, owners = planted()
    words = few_words(x, concepts, x.mean(dim=0))
    says = said_by_owners(owners)
    found = read(words, says, y, "owners")
    assert found.accuracy > 0.8
    assert abs(found.null - 1 / 8) < 0.06
    assert found.passed
    assert found.p == 1 / 200
    assert found.low < found.accuracy <= found.high + 1e-9
    assert found.name_value == pytest.approx(found.accuracy - found.null)


def test_exchanged_names_lie_within_their_null():
    """In 95 % of the draws, up to what 60 draws can tell: p is uniform if names mean nothing."""
    x, y, concepts, owners = planted(n=160)
    words = few_words(x, concepts, x.mean(dim=0))
    says = said_by_owners(owners)
    g = torch.Generator().manual_seed(5)
    below = [
        read(words, says[torch.randperm(len(says), generator=g)], y, "owners", draws=99, seed=s).p < 0.05
        for s in range(60)
    ]
    assert sum(below) <= 8  # binomial(60, .05): more than 8 once in 1,000


def test_random_directions_under_the_same_names_read_like_chance():
    x, y, concepts, owners = planted()
    g = torch.Generator().manual_seed(1)
    random = normalize(torch.randn(concepts.shape, generator=g), dim=1)
    found = read(few_words(x, random, x.mean(dim=0)), said_by_owners(owners), y, "owners")
    assert not found.passed or found.name_value < 0.1
    assert found.accuracy < 0.3


def test_ties_count_as_the_share_of_an_answer():
    words = Codes(torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[0], [-1], [0]]), *torch.zeros(2, 3), 1)
    says = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    y = torch.tensor([0, 1, 3])
    assert reader_accuracy(words, says, y) == pytest.approx((0.5 + 0.25 + 0) / 3)  # no word says nothing: one of four


def test_codes_have_exactly_five_words_of_non_negative_weight():
    x, y, concepts, _ = planted()
    words = few_words(x, concepts, x.mean(dim=0))
    assert words.columns.shape == (400, 5)
    assert float(words.values.min()) >= 0
    assert all(len(set(row.tolist())) == 5 for row in words.columns if (row >= 0).all())
    few = few_words(x, concepts[:3], x.mean(dim=0))
    assert few.columns.shape[1] <= 3


def test_learned_concepts_are_read_by_their_strongest_activations():
    x, y, concepts, owners = planted()
    model = ConceptBottleneck(concepts, LinearHead(torch.zeros(8, 40))).calibrate(x)
    words = strongest_words(model, x)
    level = (x @ concepts.T - model.reference) / model.spread
    torch.testing.assert_close(words.values, level.topk(5, dim=1).values.clamp(min=0))
    assert float(words.values.min()) >= 0


def test_what_texts_say_is_centred_over_classes_and_words():
    says = said_by_texts(torch.randn(30, 16), torch.randn(4, 16))
    torch.testing.assert_close(says.sum(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(says.sum(dim=1), torch.zeros(30), atol=1e-5, rtol=0)
    assert said_by_texts(torch.randn(1, 16), torch.randn(4, 16)).shape == (1, 4)


def test_a_single_concept_keeps_its_direction():
    torch.testing.assert_close(centre_directions(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


def test_images_without_words_do_not_break_the_reading():
    x, y, concepts, owners = planted(n=40)
    mean = x[0].clone()
    found = read(few_words(x[:1].expand(40, -1), concepts, mean), said_by_owners(owners), y, "owners", draws=19)
    assert found.accuracy == pytest.approx(1 / 8)
    assert not math.isnan(found.p)
