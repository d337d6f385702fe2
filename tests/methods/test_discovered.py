"""Concepts that are found: every dictionary to a named bank and a head, files of others, controls, and bad settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank
from cbm.config import TrainerConfig
from cbm.data import FeatureData, FeatureSplit
from cbm.data.features import CropFeatures
from cbm.errors import UserError
from cbm.files.dictionaries import Dictionary, read_dictionary, write_dictionary
from cbm.layers import SparseCode, UnitCode, load_model, save_model
from cbm.methods import create_method, fit_method
from cbm.methods.discovered import DICTIONARIES, learning_rate
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.found_units import unit_metrics
from cbm.metrics.nec import head_logits, resolve_heads
from cbm.solvers import sparse_code

THINGS, D = 24, 16
NAMES = ["a", "b", "c", "d"]
TRAINER = TrainerConfig(progress=False)


def world(seed: int = 0, n: int = 800) -> tuple[FeatureData, ConceptBank]:
    """Pictures that show three of 24 things; the class has two of them. The words are the things' names."""
    g = torch.Generator().manual_seed(seed)
    things = normalize(torch.randn(THINGS, D, generator=g), dim=1)
    splits = {}
    for name in ("train", "val", "test"):
        y = torch.arange(n) % len(NAMES)
        shown = torch.zeros(n, THINGS)
        shown[torch.arange(n), y] = 1.0
        shown[torch.arange(n), 4 + y] = (torch.rand(n, generator=g) < 0.7).float()
        others = torch.rand(n, THINGS - 8, generator=g).topk(1, dim=1).indices + 8
        shown.scatter_(1, others, 1.0)
        weight = shown * (0.6 + 0.8 * torch.rand(n, THINGS, generator=g))
        x = weight @ things + 0.05 * torch.randn(n, D, generator=g) + 0.6
        splits[name] = FeatureSplit(normalize(x, dim=1), y, [f"{name}{i}.jpg" for i in range(n)], shown)
    texts = [f"thing {i}" for i in range(THINGS)]
    words = normalize(things + 0.05 * torch.randn(THINGS, D, generator=g), dim=1)
    owners = [(NAMES[i % 4],) if i < 8 else () for i in range(THINGS)]
    concepts = tuple(Concept(text, classes) for text, classes in zip(texts, owners))
    return FeatureData(splits, NAMES, concept_names=texts), ConceptBank("w", "w", concepts, "e", words)


def found(**settings):
    data, bank = world()
    quick = {"size": 48, "k": 4, "passes": 60, "batch_size": 100} | settings
    method = create_method({"name": "discovered", **quick})
    model, units = fit_method(method, data, bank, 100.0, trainer=TRAINER)
    return model, units, data, method


@pytest.fixture(scope="module")
def topk():
    return found()


def test_units_are_named_truly(topk):
    model, bank, data, method = topk
    facts = method.facts
    assert facts["name_named"] >= 0.4  # half of the 48 units cannot be one of 24 things
    assert facts["name_named_dealt"] <= 0.07
    assert facts["name_cosine"] > facts["name_cosine_null"]
    measured = unit_metrics(model, bank, data)
    assert measured["test/name_true"] >= 0.6
    assert measured["test/name_true_dealt"] <= measured["test/name_true"] / 2
    assert 0 <= measured["test/unnamed_share"] < 0.5
    assert measured["test/code_r2_best"] > 0.8
    assert measured["test/accuracy_l0_5"] > 0.7


def test_the_bank_says_what_is_known(topk):
    _, bank, data, _ = topk
    assert len(set(bank.texts)) == len(bank)
    for concept in bank.concepts:
        unit = concept.provenance["unit"]
        assert 0 < unit["firing"] <= 1
        assert 1 <= len(unit["pictures"]) <= 20
        assert set(unit["pictures"]) <= set(data.train.names)
        assert [word["cosine"] for word in unit["words"]] == sorted((w["cosine"] for w in unit["words"]), reverse=True)
        if unit["word"]:
            assert concept.text.startswith(unit["word"])
            assert unit["auroc"] >= 0.7
            assert unit["words"][0]["text"] == unit["word"]
        else:
            assert concept.text == f"unnamed {unit['number']:04d}"
            assert unit["why"]
    owners = {c.provenance["unit"]["word"]: c.classes for c in bank.concepts}
    assert owners.get("thing 1", ("b",)) == ("b",)
    assert bank.phrases == [c.provenance["unit"]["word"] or c.text for c in bank.concepts]
    torch.testing.assert_close(bank.directions().norm(dim=1), torch.ones(len(bank)), atol=1e-5, rtol=0)
    assert all(dropped.reason == "fires on no training image" for dropped in bank.dropped)
    assert len(bank) + len(bank.dropped) == 48


def test_a_model_decides_by_its_units(topk, tmp_path):
    model, bank, data, _ = topk
    x = data.test.x
    codes = model.activation.code(x, model.concepts)
    assert int(codes.count.max()) <= 4
    torch.testing.assert_close(
        model(x), codes.dense(len(bank)) @ model.weights().T + model.biases(), atol=1e-4, rtol=1e-4
    )
    values = evaluate_split(model, bank, data, "test")
    assert values["test/accuracy"] > 0.9
    assert values["test/code_r2"] > 0.8
    assert values["test/code_l0"] == pytest.approx(4, abs=0.2)
    assert "test/alignment" not in values  # encoder rows are no directions of texts
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors")(x).equal(model(x))


def test_heads_are_resolved_on_what_the_head_reads(topk):
    model, _, data, _ = topk
    head = resolve_heads(model, data.train, 4, [3])[0]
    assert head.nec == pytest.approx(3, abs=0.3)
    expected = model.activations(data.test.x) @ head.weight.T + head.bias
    torch.testing.assert_close(head_logits(model, data.test.x, head), expected, atol=1e-4, rtol=1e-4)


def test_r2_of_the_mean_is_zero(topk):
    """A code that says nothing explains nothing; the cosine of the mean alone is its length."""
    model, bank, data, _ = topk
    layer = UnitCode(
        torch.full((len(bank),), 1e3), data.test.x.mean(0), torch.zeros(len(bank)), model.activation.atoms, 0
    )
    values = evaluate_split(model.with_activation(layer), bank, data, "test")
    assert values["test/code_r2"] == pytest.approx(0, abs=1e-6)
    assert values["test/code_cosine_mean_only"] == pytest.approx(float(data.test.x.mean(0).norm()), abs=0.01)


def test_the_same_seed_gives_the_same_bits():
    (a, _, _, one), (b, _, _, two) = found(passes=5), found(passes=5)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(value.equal(b.state_dict()[key]) for key, value in a.state_dict().items())
    assert one.seeds[0].equal(two.seeds[0])
    assert not one.seeds[0].equal(one.found.atoms)


@pytest.mark.parametrize("dictionary", [name for name in DICTIONARIES if name != "crops"])
def test_every_dictionary_ends_in_a_named_bank_and_a_head(dictionary):
    model, bank, data, method = found(dictionary=dictionary, passes=20)
    assert evaluate_split(model, bank, data, "test")["test/accuracy"] > 0.6
    assert model.concepts.shape == (len(bank), D)
    assert {"stability_cosine", "stability_cosine_null", "stability_matched", "name_named"} <= method.facts.keys()
    values = unit_metrics(model, bank, data)
    assert {"test/unnamed_share", "test/accuracy_l0_5"} <= values.keys()
    clusters = dictionary in ("kmeans", "semi_nmf")
    assert (model.activation is None) == clusters
    assert ("test/code_r2_best" in values) != clusters


@pytest.mark.parametrize("dictionary", ["topk", "kmeans"])
def test_sparse_codes_over_the_atoms(dictionary):
    model, bank, data, _ = found(dictionary=dictionary, passes=20, encode="code")
    assert isinstance(model.activation, SparseCode)
    torch.testing.assert_close(model.concepts, bank.directions())
    assert evaluate_split(model, bank, data, "test")["test/code_l0"] <= 4


def test_as_many_units_fire_as_were_asked_for():
    for kind in ("relu", "jumprelu", "batch_topk"):
        model, _, data, _ = found(dictionary=kind, passes=100, seeds=1)
        count = model.activation.code(data.test.x, model.concepts).count.double().mean()
        assert 2.5 <= float(count) <= 5.5, kind


def test_the_released_formulas():
    model, bank, data, method = found(dictionary="relu", fidelity="released", passes=20)
    assert method.facts["name_named"] <= 1
    assert all(concept.provenance["unit"]["word"] for concept in bank.concepts)  # no threshold
    assert int(model.activation.k) == 0
    assert model.activation.mean.norm() < 0.5  # not centred


def test_crops():
    data, bank = world()
    rows = np.arange(600) % 200
    names = [f"train{row}.jpg#2x2:{1 + i // 200}" for i, row in enumerate(rows)]
    boxes = np.tile(np.array([[0, 0, 0.5, 0.5]], dtype=np.float32), (600, 1))
    crops = CropFeatures(data.train.x[rows], rows, boxes, names, None)
    method = create_method({"name": "discovered", "dictionary": "crops", "size": 20})
    assert method.reads_crops
    model, units = fit_method(method, replace(data, crops=crops), bank, 100.0, trainer=TRAINER)
    crop = units.concepts[0].provenance["unit"]["crop"]
    assert crop["image"] in data.train.names
    assert crop["box"] == [0, 0, 0.5, 0.5]
    with pytest.raises(UserError, match="crops needs the training images themselves"):
        fit_method(method, data, bank, 100.0, trainer=TRAINER)


def test_random_directions_are_named_by_the_same_rule(topk):
    *_, method = topk
    _, bank, _, strict = found(naming={"above_random": True})
    assert strict.facts["name_named_null"] <= min(0.1, method.facts["name_named_null"])
    words = {concept.provenance["unit"]["word"] for concept in bank.concepts}
    assert strict.facts["name_distinct"] == len(words - {None})


def test_matching_pursuit_starts_where_the_encoder_does(topk):
    model, bank, data, _ = topk
    best = unit_metrics(model, bank, data)["test/code_r2_best"]
    layer, x = model.activation, data.test.x
    away = x - layer.mean
    codes = sparse_code(normalize(away, dim=1), bank.embeddings, k=4)
    rest = away - codes.reconstruct(bank.embeddings) * away.norm(dim=1, keepdim=True)
    assert best == pytest.approx(1 - float(rest.square().sum() / (x - x.mean(dim=0)).square().sum()), abs=1e-4)


def test_without_a_vocabulary_everything_is_unnamed():
    data, _ = world()
    method = create_method({"name": "discovered", "size": 32, "k": 4, "passes": 5})
    model, bank = fit_method(method, data, None, 100.0, trainer=TRAINER)
    assert all(text.startswith("unnamed ") for text in bank.texts)
    assert "name_named" not in method.facts
    assert "test/name_true" not in unit_metrics(model, bank, data)
    assert unit_metrics(model, bank, data)["test/unnamed_share"] == 1.0


def test_a_teacher_names_what_an_encoder_without_text_sees():
    """The teacher's space is another one: units are named by the mean of its pictures."""
    data, bank = world()
    g = torch.Generator().manual_seed(9)
    turn = torch.linalg.qr(torch.randn(D, D, generator=g))[0]
    own = {name: replace(split, x=normalize(split.x @ turn, dim=1)) for name, split in data.splits.items()}
    seen = FeatureData({name: data.splits[name] for name in ("train", "val")}, NAMES)
    taught = replace(data, splits=own, teacher=seen)
    method = create_method({"name": "discovered", "size": 48, "k": 4, "passes": 60, "batch_size": 100})
    model, units = fit_method(method, taught, bank, 100.0, trainer=TRAINER)
    assert unit_metrics(model, units, taught)["test/name_true"] >= 0.6
    blind = fit_method(method, replace(taught, teacher=None), bank, 100.0, trainer=TRAINER)
    assert method.facts["name_named"] < 0.5 or unit_metrics(*blind, taught)["test/name_true"] < 0.4


def test_unnamed_units_can_be_left_out():
    model, bank, _, _ = found(passes=20, naming={"unnamed": "drop"})
    assert all(concept.provenance["unit"]["word"] for concept in bank.concepts)
    assert len(model.concepts) == len(bank)
    with pytest.raises(UserError, match="leaves no unit: none has a name"):
        found(passes=2, naming={"unnamed": "drop", "min_auroc": 1.0, "fdr": 1e-9})


def test_a_stricter_rule_names_fewer():
    _, bank, _, method = found(passes=20, seeds=1)
    _, strict, _, stricter = found(passes=20, seeds=1, naming={"above_random": True})
    named = [sum(bool(c.provenance["unit"]["word"]) for c in each.concepts) for each in (bank, strict)]
    assert named[1] <= named[0]
    assert stricter.facts["name_named"] <= method.facts["name_named"] + 1e-9


# --------------------------------------------------------------------------------------------------------------- files


def test_a_dictionary_is_left_and_read_again(topk, tmp_path):
    model, bank, data, method = topk
    method.leave(tmp_path)
    left = read_dictionary(tmp_path / "dictionary.safetensors")
    assert len(left) == 48
    assert left.k == 4
    assert len(read_dictionary(tmp_path / "seeds" / "1.safetensors")) == 48
    again, units, _, other = found(dictionary=str(tmp_path / "dictionary.safetensors"), k=None)
    assert other.trains is False
    assert other.seeds == []  # a file has no other start
    assert "stability_matched" not in other.facts
    assert units.texts == bank.texts
    torch.testing.assert_close(again(data.test.x), model(data.test.x), atol=1e-4, rtol=1e-4)


def test_a_file_is_read_once_and_says_nothing_of_stability(topk, tmp_path):
    """Read a second time it would be found again unit by unit, which is no finding."""
    *_, method = topk
    method.leave(tmp_path)
    _, units, _, other = found(dictionary=str(tmp_path / "dictionary.safetensors"), k=None)
    assert not any("stability" in key for key in other.facts)
    assert all("again" not in concept.provenance["unit"] for concept in units.concepts)
    other.leave(tmp_path / "again")
    assert not (tmp_path / "again" / "seeds").exists()
    (tmp_path / "seeds").rename(tmp_path.parent / "elsewhere")
    _, same, _, _ = found(dictionary=str(tmp_path), k=None)  # its folder
    assert same.texts == units.texts


def test_codes_begin_with_what_the_dictionary_has_without_any_unit(topk, tmp_path):
    _, _, data, method = topk
    method.leave(tmp_path)
    file = str(tmp_path / "dictionary.safetensors")
    trained, _, _, coded = found(encode="code")
    read, _, _, _ = found(dictionary=file, encode="code")
    for model in (trained, read):
        assert isinstance(model.activation, SparseCode)
        torch.testing.assert_close(model.activation.mean, method.found.layer.mean)
    probabilities = [model(data.test.x).softmax(dim=1) for model in (read, trained)]
    torch.testing.assert_close(*probabilities, atol=1e-3, rtol=1e-3)
    coded.leave(tmp_path / "coded")
    left = read_dictionary(tmp_path / "coded" / "dictionary.safetensors")
    torch.testing.assert_close(left.mean, method.found.layer.mean)
    drawn, _, _, _ = found(dictionary="random", encode="code")
    assert isinstance(drawn.activation, SparseCode)


def test_atoms_whose_mean_is_of_longer_features(tmp_path):
    """A matrix and its mean, made of features of length 10."""
    data, _ = world()
    mean = data.train.x.mean(0)
    atoms = normalize(data.train.x[::10] - mean, dim=1)
    write_dictionary(tmp_path / "a.safetensors", Dictionary(atoms, 10 * mean))
    model, _, _, _ = found(dictionary=str(tmp_path / "a.safetensors"))
    torch.testing.assert_close(model.activation.mean, mean)


def test_fewer_units_than_should_fire(tmp_path):
    data, bank = world(n=100)
    method = create_method({"name": "discovered", "passes": 5})
    fit_method(method, data, bank, 100.0, trainer=TRAINER)
    method.leave(tmp_path)
    left = read_dictionary(tmp_path / "dictionary.safetensors")
    assert (len(left), left.k) == (12, 12)


def test_nothing_that_could_be_tested_is_no_number():
    """Both of two clusters are among the three nearest of every image: they fire on all."""
    *_, method = found(dictionary="kmeans", size=2, k=3)
    assert method.facts["name_named"] == 0
    assert "name_auroc" not in method.facts
    assert all(value == value for value in method.facts.values())


def test_a_file_that_does_not_say_its_scale(tmp_path, caplog):
    """A dictionary that was made on features of another length: the length that explains most is taken."""
    data, bank = world()
    mean = data.train.x.mean(0)
    g = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.train), generator=g)[:60]
    atoms = normalize(data.train.x[rows] - mean, dim=1)
    length = 10.0
    made = Dictionary(atoms, length * mean, atoms, torch.full((60,), -0.2 * length), subtracts=True, source="other")
    write_dictionary(tmp_path / "other.safetensors", made)
    method = create_method({"name": "discovered", "dictionary": str(tmp_path / "other.safetensors")})
    with caplog.at_level("INFO"):
        fit_method(method, data, bank, 100.0, trainer=TRAINER)
    assert "at 10 times their length of 1" in caplog.text


def test_a_file_of_other_features(tmp_path, caplog):
    data, bank = world()
    write_dictionary(tmp_path / "d.safetensors", Dictionary(torch.eye(D + 1), torch.zeros(D + 1)))
    method = create_method({"name": "discovered", "dictionary": str(tmp_path / "d.safetensors")})
    with pytest.raises(UserError, match="17"):
        fit_method(method, data, bank, 100.0, trainer=TRAINER)
    g = torch.Generator().manual_seed(0)
    noise = Dictionary(
        torch.randn(50, D, generator=g), torch.zeros(D), torch.randn(50, D, generator=g), torch.zeros(50)
    )
    write_dictionary(tmp_path / "n.safetensors", noise)
    method = create_method({"name": "discovered", "dictionary": str(tmp_path / "n.safetensors")})
    with caplog.at_level("WARNING"):
        fit_method(method, data, bank, 100.0, trainer=TRAINER)
    assert "its units say nearly nothing of these images" in caplog.text


# ------------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dictionary": "top_k"}, "method.dictionary=top_k: .*topk"),
        ({"dictionary": "missing.safetensors"}, "missing.safetensors"),
        ({"size": 1}, "method.size=1: expected a number of units, 2 or more, or null"),
        ({"k": 0}, "method.k=0"),
        ({"lr": -1.0}, "method.lr=-1.0"),
        ({"dead": "revive"}, "method.dead=revive"),
        ({"seeds": 0}, "method.seeds=0"),
        ({"naming": {"fdr": 1.5}}, "method.naming.fdr=1.5"),
        ({"naming": {"unnamed": "hide"}}, "method.naming.unnamed=hide"),
        ({"naming": {"fd": 0.1}}, "naming"),
        ({"encode": "both"}, "method.encode=both"),
        ({"fidelity": "released", "dictionary": "kmeans"}, "fidelity=released is Discover-then-Name"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        found(**settings)


def test_too_few_images():
    data, bank = world()
    few = replace(data, splits={**data.splits, "train": data.train.take(np.arange(40))})
    method = create_method({"name": "discovered"})
    with pytest.raises(UserError, match="40 training images are too few to find concepts in: expected 64 or more"):
        fit_method(method, few, bank, 100.0, trainer=TRAINER)


def test_more_units_than_the_images_allow(caplog):
    data, bank = world()
    method = create_method({"name": "discovered", "size": 5000, "passes": 2})
    with caplog.at_level("WARNING"):
        fit_method(method, data, bank, 100.0, trainer=TRAINER)
    assert "800 training images are enough for 100 units" in caplog.text


def test_words_of_another_space():
    data, bank = world()
    method = create_method({"name": "discovered", "passes": 2})
    with pytest.raises(UserError, match="the vocabulary's vectors have 5 dimensions and the features 16"):
        fit_method(method, data, replace(bank, embeddings=torch.randn(THINGS, 5)), 100.0, trainer=TRAINER)


def test_pictures_that_are_all_alike():
    data, bank = world()
    alike = {name: replace(split, x=split.x[:1].expand(len(split), -1)) for name, split in data.splits.items()}
    method = create_method({"name": "discovered", "passes": 2})
    with pytest.raises(UserError):
        fit_method(method, replace(data, splits=alike), bank, 100.0, trainer=TRAINER)


def test_the_learning_rate_falls_with_the_size():
    assert learning_rate(64) == 0.03
    assert learning_rate(1024) > learning_rate(6144) > learning_rate(50_000)
