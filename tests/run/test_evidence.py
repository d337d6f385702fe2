"""The verdict where the truth is known: true, false, exchanged, flat and meaningless phrases on small birds."""

import json
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from birds_run import QUICK, shared_folder, small
from torch.nn.functional import normalize

from cbm import config
from cbm.concepts.bank import Concept, ConceptBank
from cbm.methods import create_method, fit_method
from cbm.metrics.integrity import Integrity
from cbm.run.evidence import Subject, gather_evidence
from cbm.run.train import Clock, encode, gather, read_training_images, text_tower


@pytest.fixture(scope="module")
def birds():
    """The configuration, the encoder, its text tower, and the features of small birds."""
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        quick = [setting for setting in QUICK if not setting.startswith("method.")]
        more = [f"dataset.root={shared_folder() / 'more-birds'}", "dataset.args.n_test=20", "method=posthoc"]
        cfg = hydra.compose("train", [*small(), *quick, *more])
    config.choose_encoder(cfg)
    clock, method = Clock(), create_method(cfg.method)
    inputs = gather(method, cfg, read_training_images(cfg), clock)
    _, data, bank = encode(method, cfg, inputs, clock)
    return cfg, inputs.encoder, text_tower(inputs.encoder, cfg), data, bank


def written(birds, owned: dict[str, list[str]]) -> ConceptBank:
    """A bank of phrases with their classes, embedded by the text tower."""
    cfg, encoder, tower, data, _ = birds
    owners: dict[str, list[str]] = {}
    for name, phrases in owned.items():
        for phrase in phrases:
            owners.setdefault(phrase, []).append(name)
    concepts = tuple(Concept(text, tuple(names)) for text, names in owners.items())
    bank = ConceptBank("planted", "planted", concepts, encoder.fingerprint)
    return replace(bank, embeddings=tower(bank.texts))


def examine(birds, bank: ConceptBank, settings: dict | None = None) -> Integrity:
    """The evidence for a bank under a post-hoc bottleneck, without controls that are fitted."""
    cfg, encoder, tower, data, _ = birds
    method = create_method({"name": "posthoc", "max_nec": 10.0, **(settings or {})})
    model, used = fit_method(method, data, bank, encoder.logit_scale)
    return gather_evidence(Subject(model, used, data, cfg, encoder, tower), None, None, encoder.logit_scale)[0]


def typical(birds) -> dict[str, list[str]]:
    """The phrases of every class, by what most of its birds show."""
    data = birds[3]
    shown = torch.stack([data.train.concepts[data.train.y == c].nanmean(dim=0) for c in range(len(data.classes))])
    names = data.concept_names
    return {
        name: [names[k] for k in (row > 0.5).nonzero().flatten().tolist()] for name, row in zip(data.classes, shown)
    }


def without_owners(bank: ConceptBank) -> ConceptBank:
    """The same phrases, one a line."""
    return replace(bank, concepts=tuple(replace(concept, classes=()) for concept in bank.concepts))


def statuses(found: Integrity) -> dict[str, str]:
    return {key: found.status(key) for key in ("names", "association", "truth", "leak", "outside")}


def test_true_phrases_carry_the_decision(birds):
    found = examine(birds, written(birds, typical(birds)))
    assert set(statuses(found).values()) == {"passed"}
    assert found.carries
    assert found.good
    assert found.verdict.startswith("the concepts carry the decision: a reader of five words gets ")
    names = found.test("names")
    assert names.null < 0.12  # 20 classes
    assert names.value > 0.3
    assert names.p == pytest.approx(1 / 200)


def test_random_directions_under_true_names_do_not(birds):
    bank = written(birds, typical(birds))
    torch.manual_seed(0)
    random = replace(bank, embeddings=normalize(torch.randn(bank.embeddings.shape), dim=1))
    found = examine(birds, random)
    assert found.status("names") == found.status("association") == found.status("truth") == "failed"
    assert found.good is False
    assert found.verdict.startswith("the names say nothing about the classes: a reader of five words gets ")
    assert "carry" not in found.verdict


def test_exchanged_names_do_not(birds):
    """Names dealt out anew over the whole bank."""
    bank = written(birds, typical(birds))
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(1))
    found = examine(birds, replace(bank, embeddings=bank.embeddings[order]))
    assert found.status("names") == found.status("truth") == "failed"
    assert not found.carries


def test_exchanged_within_a_class_are_associated_and_not_true(birds):
    """A reader by owners cannot see it; labels within a class can."""
    data, shown = birds[3], typical(birds)
    # every phrase gets the direction of what else its class shows
    vectors = birds[2]([shown[name][4] for name in data.classes])
    names = [shown[name][0] for name in data.classes]
    keep = [i for i, text in enumerate(names) if names.index(text) == i]
    concepts = tuple(Concept(names[i], (data.classes[i],)) for i in keep)
    planted = ConceptBank("planted", "planted", concepts, birds[1].fingerprint, vectors[keep])
    found = examine(birds, planted)
    assert found.status("association") == found.status("names") == "passed"
    assert found.status("truth") == "failed"
    assert "carry" not in found.verdict
    assert "class-associated" in found.verdict
    assert "but within a class, only " in found.verdict


@pytest.mark.parametrize(
    ("say", "verdict"),
    [("a bird that barks, with {}", "class-associated"), ("no {}", "class-associated"), ("{} in a story", "class-ass")],
    ids=["false", "negated", "not visual"],
)
def test_statements_that_cannot_be_checked_are_called_associated(birds, say: str, verdict: str):
    owned = {name: [say.format(phrase) for phrase in phrases] for name, phrases in typical(birds).items()}
    found = examine(birds, written(birds, owned))
    assert found.status("truth") == "untested"
    assert found.verdict.startswith(verdict)
    assert "not shown: that the phrases are true of the images (cannot be tested" in found.verdict
    assert "carry" not in found.verdict
    assert found.good is None


def test_nonsense_says_nothing(birds):
    generator = torch.Generator().manual_seed(3)
    letters = "bcdfglmnprstvz"

    def word() -> str:
        picks = torch.randint(len(letters), (4,), generator=generator).tolist()
        return "".join(letters[i] + "aeiou"[i % 5] for i in picks)

    owned = {name: [f"{word()} {word()}" for _ in range(6)] for name in birds[3].classes}
    found = examine(birds, written(birds, owned))
    assert not found.carries
    assert found.test("names").value < 0.25
    assert found.status("truth") == "untested"


def test_phrases_of_other_classes_say_the_wrong_class(birds):
    shown = typical(birds)
    names = list(shown)
    found = examine(birds, written(birds, {name: shown[names[(i + 7) % 20]] for i, name in enumerate(names)}))
    assert found.status("names") == "failed"
    assert found.test("names").value < 0.15
    assert found.status("association") == "failed"


def test_class_names_leak(birds):
    owned = {name: [f"a photo of {name}", *phrases[:1]] for name, phrases in typical(birds).items()}
    found = examine(birds, written(birds, owned))
    assert found.status("leak") == "failed"
    assert "phrases name a class" in found.verdict
    assert not found.carries


def test_near_duplicates_are_said(birds):
    owned = {
        name: [form for p in phrases for form in (p, f"the {p}", f"{p}s")] for name, phrases in typical(birds).items()
    }
    found = examine(birds, written(birds, owned))
    assert found.status("leak") == "failed"
    assert "have a near-copy in the bank" in found.verdict
    assert not found.carries


def test_a_flat_bank_is_not_judged_by_owners_it_does_not_have(birds):
    """Neither by owners that a method claimed from the scores of the same directions."""
    bank = without_owners(written(birds, typical(birds)))
    found = examine(birds, bank)
    assert found.status("names") == found.status("association") == "untested"
    assert found.verdict.startswith("the concepts are what they say: they find the images that show them")
    assert "not shown: that the names say the class (cannot be tested: the bank does not say" in found.verdict
    assert found.good is None
    cfg, encoder, tower, data, _ = birds
    model, used = fit_method(create_method({"name": "labo", "max_epochs": 3}), data, bank, encoder.logit_scale)
    assert used.owners_chosen
    claimed = gather_evidence(Subject(model, used, data, cfg, encoder, tower), None, None, 1.0)[0]
    assert claimed.status("names") == claimed.status("association") == "untested"
    assert "the classes of the phrases were chosen on images" in claimed.verdict


def test_an_independent_reader_reads_a_flat_bank(birds):
    bank = written(birds, typical(birds))
    says = bank.owners(birds[3].classes).T.float()
    found = examine(birds, replace(without_owners(bank), says=says, said_by="somebody"))
    assert found.status("names") == "passed"
    assert "a reader of five words by another text encoder gets" in found.verdict


def test_a_residual_is_outside(birds):
    found = examine(birds, written(birds, typical(birds)), {"residual": True, "max_epochs": 30, "max_nec": 0.5})
    assert found.status("outside") == "failed"
    assert "of the decision does not pass through the concepts" in found.verdict
    assert not found.carries


def test_methods_that_never_read_owners_have_no_shuffled_control(command):
    """The model would be the same by construction."""
    for method, expected in (("posthoc", False), ("labo", True)):
        quick = [each for each in QUICK if method == "labo" or "max_epochs" not in each]
        arguments = ["evidence.random_draws=3", "report=none", f"run_dir={method}"]
        status, errors = command("train", *small(), *quick, f"method={method}", *arguments)
        assert status == 0, errors
        values = json.loads(Path(method, "metrics.json").read_text())
        assert ("integrity/shuffled_accuracy" in values) is expected
        assert {"integrity/random_accuracy", "integrity/random_accuracy_nec5_resolved"} <= set(values)
        assert values["test/name_value"] == pytest.approx(values["test/reader_accuracy"] - values["test/reader_null"])
        assert 0 <= values["test/code_zero_shot_random"] <= 1


def test_the_controls_of_a_names_head_have_its_temperature(birds, monkeypatch):
    """At their own, meaningless names stay at chance whatever gains could do, which flatters the names."""
    from cbm.run import controls

    cfg, encoder, tower, data, _ = birds
    asked = []
    monkeypatch.setattr(controls, "create_method", lambda settings: asked.append(settings) or create_method(settings))
    bank = written(birds, typical(birds))
    method = create_method({"name": "posthoc", "head": "names"})
    model, used = fit_method(method, data, bank, encoder.logit_scale)
    named = replace_method(cfg, "names")
    subject = Subject(model, used, data, named, encoder, tower, method.facts)
    found = gather_evidence(subject, bank, None, encoder.logit_scale)[0]
    assert {settings["names_temperature"] for settings in asked} == {method.facts["names_temperature"]}
    assert found.accuracy["real"] > found.accuracy["random"] > found.chance
    assert found.accuracy["real"] > found.accuracy["shuffled"] > found.chance


def replace_method(cfg, head: str):
    """The configuration with another head."""
    other = cfg.copy()
    other.method.head = head
    return other


def test_a_control_that_the_settings_do_not_fit_does_not_end_the_run(birds, monkeypatch, caplog):
    """A penalty that leaves words of real concepts may leave none of random directions."""
    from omegaconf import OmegaConf

    from cbm.run import controls

    cfg, _, _, data, bank = birds
    chosen = OmegaConf.merge(cfg, {})
    OmegaConf.update(chosen, "method", {"name": "splice", "lam": 0.3}, merge=False)
    asked = []

    def fit(method, data, bank, *args, **kwargs):
        asked.append(bank)
        return fit_method(create_method({"name": "splice", "lam": 50.0}), data, bank, *args)

    monkeypatch.setattr(controls, "fit_method", fit)
    assert controls.fit_controls(bank, bank, data, chosen, 100.0, {}) == {}
    assert asked
    assert "random concepts: the method cannot be fitted on them" in caplog.text


def test_concepts_of_a_head_that_ignores_them_carry_nothing(birds):
    """The names are right and true, and the head decides as if there were no images."""
    bank = written(birds, typical(birds))
    cfg, encoder, tower, data, _ = birds
    model, used = fit_method(create_method({"name": "posthoc"}), data, bank, encoder.logit_scale)
    for factor, carries in ((1.0, True), (0.0, False)):
        same = model.with_weights(model.weights() * factor, model.biases())
        found = gather_evidence(Subject(same, used, data, cfg, encoder, tower), None, None, 100.0)[0]
        assert found.carries is carries
        assert ("the concepts decide nothing: of 5.0% accuracy 5.0% accuracy is left" in found.verdict) is not carries
    assert found.good is False
    assert found.verdict.startswith("class-associated: ")
