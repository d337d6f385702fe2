from dataclasses import replace

import pytest
import torch
from planted import CLASSES, DIM, PER_CLASS, parts, planted
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cbm.concepts import ConceptBank, apply_control
from cbm.data import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.methods import create_method, label_free

NOISE = 8
SETTINGS = {"name": "label_free", "n_lambdas": 10}


def build(data: FeatureData, bank: ConceptBank, **settings):
    return parts(create_method({**SETTINGS, **settings}).build(data, bank, 100.0))


def alone() -> tuple[FeatureData, ConceptBank]:
    """An encoder that teaches itself; class names that are like no phrase."""
    data, bank = planted()
    generator = torch.Generator().manual_seed(5)
    names = normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)
    data = replace(data, encoder="backbone", class_embeddings=names)
    return data, replace(bank, encoder="backbone")


def taught() -> tuple[FeatureData, ConceptBank, Tensor]:
    """A teacher that sees what the backbone sees, rotated, and 8 things that it does not; 8 phrases are about those.

    Returns:
        The data, the bank (the last 8 concepts are about noise), and the right directions ``[K, D]`` of the others.
    """
    data, bank = alone()
    generator = torch.Generator().manual_seed(7)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q

    def seen(split: FeatureSplit) -> FeatureSplit:
        noise = 0.3 * torch.randn(len(split), NOISE, generator=generator)
        return FeatureSplit(torch.cat([split.x @ rotation, noise], dim=1), split.y, split.names)

    pad = torch.nn.functional.pad
    real = pad(bank.directions() @ rotation, (0, NOISE))
    empty = pad(torch.eye(NOISE), (DIM, 0))
    concepts = (*bank.concepts, *(replace(bank.concepts[k], text=f"noise {k}") for k in range(NOISE)))
    phrases = replace(bank, concepts=concepts, embeddings=torch.cat([real, empty]), encoder="teacher")
    teacher = FeatureData({name: seen(data.splits[name]) for name in ("train", "val")}, data.classes, encoder="teacher")
    both = FeatureData(data.splits, data.classes, encoder="backbone", teacher=teacher)
    both = replace(both, class_embeddings=pad(data.class_embeddings @ rotation, (0, NOISE)))
    return both, phrases, bank.directions()


def test_without_a_teacher_a_phrase_is_its_own_direction(monkeypatch: pytest.MonkeyPatch):
    data, bank = alone()
    monkeypatch.setattr(label_free, "fit_projection", lambda *a, **k: pytest.fail("nothing is to be learned"))
    model, used = build(data, bank)
    torch.testing.assert_close(model.concepts, bank.directions())
    assert {c.score for c in used.concepts} == {1.0}
    assert used.encoder == "backbone"
    assert float((model(data.test.x).argmax(1) == data.test.y).float().mean()) > 0.9


def test_paper_searches_for_it():
    data, bank = alone()
    model, used = build(data, bank, fidelity="paper", clip_cutoff=-1, class_cutoff=None, duplicate_cutoff=None)
    found = cosine_similarity(model.concepts, bank.directions())
    assert 0.99 < float(found.mean()) < 1
    assert all(0.99 < c.score < 1 for c in used.concepts)


def test_directions_repeat_what_the_teacher_sees_and_noise_is_left_out():
    data, bank, right = taught()
    model, used = build(data, bank)
    assert used.texts == bank.texts[:-NOISE]
    assert float(cosine_similarity(model.concepts, right).min()) > 0.99
    assert min(c.score for c in used.concepts) > 0.99
    assert [d.text for d in used.dropped] == bank.texts[-NOISE:]
    assert all(d.reason.startswith("not learned: similarity") for d in used.dropped)
    assert used.encoder == "backbone"
    torch.testing.assert_close(used.directions(), model.concepts)


def test_noise_stays_if_nobody_asks():
    data, bank, _ = taught()
    _, used = build(data, bank, interpretability_cutoff=None)
    assert len(used) == len(bank)
    assert max(c.score for c in used.concepts[-NOISE:]) < 0.45


def test_a_phrase_that_means_a_class_goes_wherever_it_stands():
    """The published code compares positions, not meanings: concept i survives class i."""
    data, bank = alone()
    embeddings = bank.directions().clone()
    embeddings[[0, 9]] = data.class_embeddings[[0, 3]]
    _, used = build(data, replace(bank, embeddings=embeddings))
    assert [d.text for d in used.dropped] == ["phrase 0", "phrase 9"]
    assert "near the class name 'class 0'" in used.dropped[0].reason


def test_filters_in_turn():
    data, bank = alone()
    embeddings = bank.directions().clone()
    embeddings[10] = embeddings[9]
    concepts = [replace(c, text="x" * 31) if k == 3 else c for k, c in enumerate(bank.concepts)]
    bank = replace(bank, concepts=tuple(concepts), embeddings=embeddings)
    _, used = build(data, bank)
    assert [d.reason.split(" (")[0] for d in used.dropped] == [
        "longer than 30 characters", "nearly the same as 'phrase 10'",
    ]  # fmt: skip
    off = dict.fromkeys(("max_characters", "class_cutoff", "duplicate_cutoff"))
    assert len(build(data, bank, **off)[1]) == len(bank)


def test_a_control_has_the_names_that_passed_and_no_filters():
    data, bank, _ = taught()
    method = create_method(SETTINGS)
    used = method.build(data, bank, 100.0).bank
    control, names = method.as_control(bank, used)
    assert names.concepts == used.concepts
    torch.testing.assert_close(names.directions(), bank.directions()[:-NOISE])
    for kind in ("random", "shuffled"):
        kept = control.build(data, apply_control(names, kind, 0), 100.0).bank
        assert kept.texts == used.texts
        assert kept.owners(data.classes).equal(used.owners(data.classes))


def test_the_teacher_must_have_seen_the_same_pictures():
    data, _, _ = taught()
    other = data.teacher.splits["val"]
    wrong = FeatureData({"val": replace(other, names=other.names[::-1])}, data.classes)
    with pytest.raises(ValueError, match="the teacher's val pictures"):
        FeatureData(data.splits, data.classes, teacher=wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fidelity": "papper"}, "method.fidelity=papper: did you mean 'paper'"),
        ({"n_lambdas": 1}, "method.n_lambdas=1: expected"),
        ({"projection_steps": -1}, "method.projection_steps=-1: expected 0 or more"),
        ({"max_charcters": 3}, "did you mean 'max_characters'"),
        ({"max_characters": 3}, "method.max_characters=3 leaves 0 of 48 .* none for class 'class 0' .* larger number"),
        ({"clip_cutoff": 0.99}, "method.clip_cutoff=0.99 leaves 0 of 48 .* smaller number"),
        ({"interpretability_cutoff": 1.0}, "method.interpretability_cutoff=1 leaves 0 of 48 .*smaller"),
    ],
)
def test_what_can_be_wrong(settings: dict, message: str):
    data, bank, _ = taught()
    with pytest.raises(UserError, match=message):
        build(data, bank, **settings)


def test_a_class_that_loses_all_its_concepts_is_named():
    data, bank, _ = taught()
    owners = bank.owners(data.classes)
    owners[4] = False
    owners[4, -1] = True  # a phrase about noise
    with pytest.raises(UserError, match="and none for class 'class 4': a smaller number"):
        build(data, bank.owned_by(owners, data.classes))
    ownerless = bank.owned_by(torch.zeros_like(owners), data.classes)
    assert len(build(data, ownerless)[1]) == CLASSES * PER_CLASS
