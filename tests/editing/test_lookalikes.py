"""Concepts that go with others in pictures, and what is still said after a removal."""

import pytest
import torch
from torch.nn.functional import normalize

from cbm.editing import look_alikes, lookalikes, prune, still_said
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.layers.activations import Sigmoid

N, D = 3000, 40


def world() -> tuple[ConceptBottleneck, torch.Tensor, torch.Tensor]:
    """Concept 0 and its paraphrases 1 (another direction, the same in pictures) and 2 (a paraphrase of 1 alone); 3 goes
    with 0 only because both go with the class; 4 is its opposite; 5 to 7 are others."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    x = 0.05 * torch.randn(N, D, generator=g)
    shown, own = torch.randn(2, N, generator=g)
    x[:, 0] = shown + 4.0 * y
    x[:, 1] = 0.9 * shown + 0.45 * own + 4.0 * y  # seen with it, in a direction of its own
    x[:, 2] = own
    x[:, 3] = torch.randn(N, generator=g) + 4.0 * y
    x[:, 5:8] = torch.randn(N, 3, generator=g)
    directions = torch.zeros(8, D)
    directions[0, 0] = directions[3, 3] = 1.0
    directions[1, 1] = 1.0
    directions[2, 1], directions[2, 2] = 1.0, 0.6
    directions[4, 0] = -1.0
    directions[range(5, 8), range(5, 8)] = 1.0
    weights = torch.zeros(2, 8)
    weights[1, :3] = torch.tensor([1.0, 1.0, 0.0])
    weights[1, 6] = 0.5
    return ConceptBottleneck(normalize(directions, dim=1), LinearHead(weights, torch.zeros(2))).calibrate(x), x, y


def given(*columns: int) -> torch.Tensor:
    found = torch.zeros(8, dtype=torch.bool)
    found[list(columns)] = True
    return found


def test_paraphrases_are_found_through_each_other_and_the_class_does_not_count():
    model, x, y = world()
    found = {each.concept: each for each in look_alikes(model, given(0), x, y)}
    assert set(found) == {1, 2}
    assert found[1].via == 0
    assert found[2].via == 1  # too far from 0 itself
    cosine = normalize(model.concepts, dim=1) @ normalize(model.concepts, dim=1).T
    assert float(cosine[0, 1]) == 0  # no threshold on directions finds it
    scores = model.scores(x).double()
    slow = torch.stack([torch.corrcoef(torch.stack([scores[y == c, 0], scores[y == c, 1]]))[0, 1] for c in (0, 1)])
    assert found[1].correlation == pytest.approx(float(slow.mean()), abs=0.01)
    assert {each.concept for each in look_alikes(model, given(0), x, torch.zeros_like(y))} >= {1, 2, 3}
    assert not look_alikes(model, given(), x, y)
    assert not look_alikes(model, given(5), x, y)


def test_scores_that_are_computed_image_by_image_agree(monkeypatch: pytest.MonkeyPatch):
    model, x, y = world()
    curved = ConceptBottleneck(model.concepts, model.head, activation=Sigmoid(torch.zeros(8)))
    product = {each.concept: each.correlation for each in look_alikes(curved, given(0), x, y)}
    assert set(product) == {1, 2}
    monkeypatch.setattr(lookalikes, "Embedded", Sigmoid)  # as if its scores were no products of features
    one_by_one = {each.concept: each.correlation for each in look_alikes(curved, given(0), x, y)}
    assert one_by_one == pytest.approx(product, abs=1e-6)


def test_a_concept_that_never_varies_goes_with_nothing():
    model, x, y = world()
    model.concepts[5] = 0.0
    assert 5 not in {each.concept for each in look_alikes(model, given(0), x, y, least=-1.0)}
    assert not look_alikes(model, given(5), x, y)


def test_what_the_others_still_say():
    model, x, y = world()
    shares = {}
    for name, columns in (("0", (0,)), ("both", (0, 1)), ("6", (6,))):
        after = prune(model, given(*columns).expand(2, 8))
        shares[name] = still_said(model.logits(x), after.logits(x), y)
    assert 0.8 < shares["0"] < 1.0  # the paraphrase says .9 of it
    assert abs(shares["both"]) < 0.05
    assert abs(shares["6"]) < 0.2
    assert still_said(model.logits(x), model.logits(x), y) != still_said(model.logits(x), model.logits(x), y)  # NaN


def test_labels_count_as_one_class():
    model, x, y = world()
    many = torch.stack([y, 1 - y], dim=1).float()
    assert {each.concept for each in look_alikes(model, given(0), x, many)} >= {1, 2, 3}
    after = prune(model, given(0).expand(2, 8))
    assert still_said(model.logits(x), after.logits(x), many) > 0.5
