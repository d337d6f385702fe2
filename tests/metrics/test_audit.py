"""Use of a concept: exact against holding it by hand, a planted one is in use, random directions are not."""

import numpy as np
import pytest
import torch

from cbm.layers import ConceptBottleneck, LinearHead, Sigmoid
from cbm.metrics.audit import FLIPS, chance_flips, concept_use, phrase_use, random_changes

D, K, C = 12, 40, 3


def planted(seed: int = 0) -> tuple[ConceptBottleneck, torch.Tensor]:
    """A head that reads all concepts a little and concept 4 a lot; concept 9 has no weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(600, D, generator=generator), dim=1)
    concepts = torch.nn.functional.normalize(torch.randn(K, D, generator=generator), dim=1)
    weights = torch.randn(C, K, generator=generator)
    weights[:, 4] *= 6
    weights[:, 9] = 0
    return ConceptBottleneck(concepts, LinearHead(weights, torch.zeros(C))).calibrate(x), x


def test_a_concept_is_held_exactly():
    model, x = planted()
    weights, held = model.weights().double(), model.activations(x).double()
    before = model.logits(x).argmax(dim=1)
    use = concept_use(model, x, [4, 7], [], 0.0)
    for columns, share in (([4], use.flips), ([4, 7], use.alike)):
        moved = held.clone()
        moved[:, columns] = model.reference[columns].double()
        after = (moved @ weights.T).argmax(dim=1)
        assert share == pytest.approx(float((after != before).double().mean()))
    np.testing.assert_array_equal(use.changed, (after != before).numpy())
    for end, share in zip((0.05, 0.95), use.ends):
        moved = held.clone()
        moved[:, 4] = torch.quantile(held[:, 4], end)
        assert share == pytest.approx(float(((moved @ weights.T).argmax(dim=1) != before).double().mean()))


def test_only_the_classes_that_it_is_about_lose_it():
    model, x = planted()
    moved = model.logits(x).double()
    moved[:, 1] -= (model.activations(x)[:, 4] - model.reference[4]).double() * model.weights()[1, 4].double()
    after = moved.argmax(dim=1)
    use = concept_use(model, x, [4], [1], 0.0)
    assert use.flips == pytest.approx(float((after != model.logits(x).argmax(dim=1)).double().mean()))


def test_the_planted_concept_is_in_use_and_random_directions_are_not():
    for seed in range(3):
        model, x = planted(seed)
        chance = chance_flips(model, x, seed=seed)
        assert concept_use(model, x, [4], [], chance).in_use
        assert not concept_use(model, x, [9], [], chance).in_use
        others = [float(each.mean()) for each in random_changes(model, x, seed=1000 + seed, draws=20)]
        assert sum(share > max(FLIPS, chance) for share in others) <= 3  # 1 of 20 expected: more than 3 in 1.6 %


def test_a_phrase_is_held_through_the_class_vectors():
    model, x = planted()
    direction = model.concepts[4] * 3
    unit = torch.nn.functional.normalize(direction, dim=0).double()
    vectors = model.weights().double() @ model.concepts.double()
    flat = x.double() - (x.double() @ unit - (x.double() @ unit).mean())[:, None] * unit
    after = (flat @ vectors.T).argmax(dim=1)
    use = phrase_use(model, x, direction, [], 0.0)
    assert use.flips == use.alike == pytest.approx(float((after != model.logits(x).argmax(dim=1)).double().mean()))
    with pytest.raises(ValueError, match="linear bottleneck"):
        phrase_use(ConceptBottleneck(model.concepts, model.head, activation=Sigmoid(torch.zeros(K))), x, unit, [], 0.0)
