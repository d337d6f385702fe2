from dataclasses import replace

import pytest
import torch
from planted import CLASSES, PER_CLASS, parts, planted
from torch.nn.functional import normalize

from cbm.data import FeatureData
from cbm.errors import UserError
from cbm.methods import create_method
from cbm.training import ConceptBottleneckModule, fit


def few(data: FeatureData, shots: int) -> FeatureData:
    """The first ``shots`` training pictures of every class."""
    rows = torch.cat([(data.train.y == c).nonzero().flatten()[:shots] for c in range(CLASSES)])
    return FeatureData({**data.splits, "train": data.train.take(rows.numpy())}, data.classes)


def test_a_class_owns_what_its_pictures_say():
    data, bank = planted()
    bank = replace(bank, concepts=tuple(replace(concept, classes=()) for concept in bank.concepts))
    method = create_method({"name": "v2c", "concepts_per_class": 4, "k": 2})
    model, used = parts(method.build(data, bank, 100.0))
    planted_owner = [int(text.split()[1]) // PER_CLASS for text in used.texts]
    right = [data.classes[c] in concept.classes for c, concept in zip(planted_owner, used.concepts)]
    assert sum(right) / len(right) >= 0.8  # by chance 0.2


@pytest.mark.parametrize("fidelity", ["repaired", "paper"])
def test_owners_against_a_slow_reference(fidelity: str):
    data, bank = planted()
    method = create_method({"name": "v2c", "concepts_per_class": 3, "k": 2, "fidelity": fidelity})
    owners = method.token_owners(data, bank)
    x, texts = data.train.x.double(), bank.directions().double()
    if fidelity == "repaired":
        x, texts = normalize(x - x.mean(0), dim=1), normalize(texts - texts.mean(0), dim=1)
    scores = x @ texts.T
    for c in range(CLASSES):
        counts: dict[int, list[float]] = {}
        for row in (data.train.y == c).nonzero().flatten().tolist():
            for i in sorted(range(len(bank)), key=lambda i: -float(scores[row, i]))[:2]:
                counts.setdefault(i, []).append(float(scores[row, i]))
        order = sorted(counts, key=lambda i: (-len(counts[i]), -sum(counts[i]), bank.texts[i]))
        assert owners[c].nonzero().flatten().tolist() == sorted(order[:3])


def test_one_shot_reaches_the_wanted_number_by_the_next_nearest():
    data, bank = planted()
    owners = create_method({"name": "v2c", "concepts_per_class": 6, "k": 2}).token_owners(few(data, 1), bank)
    assert owners.sum(dim=1).tolist() == [6] * CLASSES
    more = create_method({"name": "v2c", "concepts_per_class": 500, "k": 2}).token_owners(few(data, 1), bank)
    assert more.all()  # there are only 40


@pytest.mark.parametrize("fidelity", ["repaired", "paper"])
def test_training_finds_the_classes(fidelity: str):
    data, bank = planted()
    method = create_method({"name": "v2c", "concepts_per_class": 4, "fidelity": fidelity, "max_epochs": 30})
    model, used = parts(method.build(data, bank, 100.0))
    module = ConceptBottleneckModule(model, method.optimizer)
    fit(module, data, patience=20, max_epochs=30, trainer={"accelerator": "cpu"})
    assert float((model(data.test.x).argmax(1) == data.test.y).float().mean()) > 0.9
    torch.testing.assert_close(model.head.weight().sum(1), torch.ones(CLASSES))


def test_the_published_start_depends_on_the_shots():
    data, bank = planted()
    method = create_method({"name": "v2c", "fidelity": "paper", "concepts_per_class": 3})
    for shots, prior in ((2, True), (3, False)):
        subset = few(data, shots)
        owners = method.token_owners(subset, bank)
        assert torch.equal(method.start(owners, subset), owners.float()) == prior
        assert torch.equal(method.start(owners, subset), method.start(owners, subset))


def test_a_control_keeps_names_and_owners():
    data, bank = planted()
    method = create_method({"name": "v2c", "concepts_per_class": 4, "k": 2})
    used = method.build(data, bank, 100.0).bank
    control, names = method.as_control(bank, used)
    shuffled = replace(names, embeddings=names.directions().flip(0))
    again = control.build(data, shuffled, 100.0).bank
    assert again.concepts == used.concepts
    torch.testing.assert_close(names.directions(), used.directions())


def test_unknown_fidelity():
    with pytest.raises(UserError, match=r"fidelity=papr.*paper"):
        create_method({"name": "v2c", "fidelity": "papr"})
