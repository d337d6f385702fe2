from dataclasses import replace

import pytest
import torch
from planted import CLASSES, PER_CLASS, parts, planted
from torch.nn.functional import cross_entropy

from cbm.data import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck
from cbm.methods import create_method
from cbm.metrics import top_concepts
from cbm.solvers import fit_scale
from cbm.training import ConceptBottleneckModule, fit
from cbm.training.batches import TrainingBatches


def accuracy(model, split):
    return float((model(split.x).argmax(1) == split.y).float().mean())


def test_before_training_it_is_the_prototype_classifier():
    """R -> 0: the prior alone classifies by the mean of each class's own phrases."""
    data, bank = planted()
    model, used = (
        (built := create_method({"name": "labo", "concepts_per_class": PER_CLASS}).build(data, bank, 100.0)).model,
        built.bank,
    )
    own = used.owners(data.classes).float()
    prototypes = own @ used.directions() / own.sum(1, keepdim=True)
    prediction = (data.test.x @ prototypes.T).argmax(1)
    assert torch.equal(model(data.test.x).argmax(1), prediction)


@pytest.mark.parametrize("fidelity", ["repaired", "paper"])
def test_training_improves_the_validation_loss_and_stays_row_stochastic(fidelity: str):
    data, bank = planted()
    method = create_method({"name": "labo", "concepts_per_class": 4, "fidelity": fidelity, "max_epochs": 20})
    model = method.build(data, bank, 100.0).model
    assert isinstance(model, ConceptBottleneck)
    before = float(cross_entropy(model(data.val.x), data.val.y))
    module = ConceptBottleneckModule(model, method.optimizer)
    fit(module, data, patience=20, max_epochs=20, trainer={"accelerator": "cpu"})
    assert float(cross_entropy(model(data.val.x), data.val.y)) < before
    weight = model.head.weight()
    torch.testing.assert_close(weight.sum(1), torch.ones(CLASSES))
    assert (weight >= 0).all()
    assert float(model.scale.detach()) == pytest.approx(100.0) or fidelity == "repaired"
    assert accuracy(model, data.test) > 0.9


def test_planted_concepts_stay_on_top():
    data, bank = planted()
    method = create_method({"name": "labo", "concepts_per_class": PER_CLASS, "max_epochs": 30})
    model, used = parts(method.build(data, bank, 100.0))
    fit(
        ConceptBottleneckModule(model, method.optimizer),
        data,
        patience=20,
        max_epochs=30,
        trainer={"accelerator": "cpu"},
    )
    top = top_concepts(model, 3)
    owned = used.owners(data.classes).gather(1, top).float().mean()
    assert float(owned) >= 0.8  # by chance 0.2


def test_full_batch_and_minibatch_are_both_possible():
    data, bank = planted()
    for size, steps in ((None, 1), (64, 4)):
        built = create_method({"name": "labo", "batch_size": size}).build(data, bank, 100.0)
        assert TrainingBatches(data, built.batch_size, built.targets).train_dataloader().per_pass == steps


def test_ownerless_concepts_are_claimed():
    data, bank = planted()
    ownerless = replace(bank, concepts=tuple(replace(c, classes=()) for c in bank.concepts))
    model, used = (
        (built := create_method({"name": "labo", "concepts_per_class": 4}).build(data, ownerless, 100.0)).model,
        built.bank,
    )
    assert set(used.classes) == set(data.classes)
    assert accuracy(model, data.test) > 0.8


def test_classes_may_be_renamed_without_changing_the_model():
    data, bank = planted()
    one = create_method({"name": "labo", "concepts_per_class": 4}).build(data, bank, 100.0).model
    order = [3, 1, 4, 0, 2]
    moved = FeatureData(
        {
            n: FeatureSplit(s.x, torch.tensor([order.index(int(c)) for c in s.y]), s.names)
            for n, s in data.splits.items()
        },
        [data.classes[c] for c in order],
    )
    two = create_method({"name": "labo", "concepts_per_class": 4}).build(moved, bank, 100.0).model
    torch.testing.assert_close(one(data.test.x)[:, order], two(data.test.x), rtol=1e-4, atol=1e-4)


def test_fit_scale_is_the_minimum():
    torch.manual_seed(0)
    similarity, labels = torch.randn(300, 4) * 0.1, torch.randint(0, 4, (300,))
    similarity[torch.arange(300), labels] += 0.15
    best = fit_scale(similarity, labels, 100.0)
    losses = {f: float(cross_entropy(best * f * similarity.double(), labels)) for f in (0.97, 1.0, 1.03)}
    assert losses[1.0] < min(losses[0.97], losses[1.03])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "labo", "fidelty": "paper"}, "unknown setting 'method.fidelty'.*did you mean 'fidelity'"),
        ({"name": "labo", "fidelity": "papper"}, "method.fidelity=papper: did you mean 'paper'"),
        ({"name": "labo", "score": "mutual_info"}, "method.score=mutual_info: did you mean 'mutual_information'"),
        ({"name": "labo", "lr": "fast"}, "method.lr: .*fast"),
        ({"name": "labbo"}, "unknown method 'labbo': did you mean 'labo'"),
    ],
)
def test_wrong_settings(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        create_method(settings)


def test_a_scale_that_stands_for_raw_features():
    """100 on raw features is 100 times their norm on unit-norm ones, where all norms are equal."""
    data, bank = planted()
    method = create_method({"name": "labo", "concepts_per_class": 4, "fidelity": "paper", "scale": 1800.0})
    model = method.build(data, bank, 100.0).model
    assert float(model.scale) == pytest.approx(1800)
    raw = 18 * data.test.x
    torch.testing.assert_close(
        model(data.test.x), 100 * raw @ (model.head.weight() @ model.concepts).T, rtol=1e-4, atol=1e-2
    )
    for name in ("scale", "score_weight"):
        with pytest.raises(UserError, match=f"method.{name}=-1.0: expected a number above 0"):
            create_method({"name": "labo", name: -1.0})
