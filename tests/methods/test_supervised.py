import pytest
import torch
from ising import ising
from labelled_pictures import NAMES, fitted, planted

from cbm.concepts.bank import Concept, ConceptBank
from cbm.methods import create_method
from cbm.metrics.evaluate import evaluate_split


@pytest.mark.parametrize("training", ["independent", "sequential", "joint"])
def test_concepts_and_classes_are_learned_from_labels(training):
    data = planted()
    _, model, bank = fitted(data, "supervised", training=training)
    values = evaluate_split(model, bank, data, "test")
    assert values["test/concept_accuracy"] > 0.8
    best = float((ising(0).posterior(data.test.x)[1].argmax(1) == data.test.y).float().mean())
    assert values["test/accuracy"] > 0.85 * best
    assert values["test/intervention_accuracy_100"] > values["test/intervention_accuracy_0"]


def test_the_bottleneck_is_the_two_heads():
    data = planted()
    method = create_method({"name": "supervised"})
    built = method.build(data, ConceptBank("b", "b", tuple(map(Concept, NAMES))), 1.0)
    model, two = method.finish(built, data), built.model
    torch.testing.assert_close(model(data.test.x), two(data.test.x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.activations(data.test.x), two.concept_logits(data.test.x).sigmoid(), atol=1e-5,
                               rtol=1e-4)  # fmt: skip


def test_only_joint_training_lets_the_class_shape_the_concepts():
    data = planted()
    y = data.train.y[:64]
    for training, shaped in (("independent", False), ("sequential", False), ("joint", True)):
        torch.manual_seed(0)
        method = create_method({"name": "supervised", "training": training, "concept_weight": 0.0})
        two = method.build(data, ConceptBank("b", "b", tuple(map(Concept, NAMES))), 1.0).model
        method.loss(two, data.train.x[:64], y, data.train.concepts[:64]).backward()
        assert bool((two.concept.weight.grad != 0).any()) == shaped
