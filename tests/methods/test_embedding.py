"""Concept embeddings: the formulas, what names say and what they do not, and whether the model follows a correction."""

import functools
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import leaky_relu

from cbm.concepts.bank import Concept, ConceptBank
from cbm.config import TrainerConfig
from cbm.data.features import FeatureData, FeatureSplit
from cbm.editing import Edit, EditSet, ask_in_turn, counterfactual, edited_logits, edited_model
from cbm.editing.asking.policies import policies_for
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, load_model, predict_logits, save_model
from cbm.losses.embedding import drawn_to_tell
from cbm.methods import create_method, fit_method
from cbm.metrics.evaluate import residual_metrics
from cbm.trained.portable import PortableModel

COUNT, WIDE, CLASSES = 6, 32, 8
NAMES = [f"concept {k}" for k in range(COUNT)]


def drawn(n: int, seed: int) -> FeatureSplit:
    """Pictures of six concepts and something without a name; the class needs two of the six and the unnamed."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(WIDE, COUNT + 1, generator=torch.Generator().manual_seed(0)))[0].T
    c = (torch.rand(n, COUNT, generator=generator) < 0.5).float()
    h = (torch.rand(n, generator=generator) < 0.5).float()
    x = 1.5 * ((2 * c - 1) @ directions[:COUNT]) + 1.5 * (2 * h - 1)[:, None] * directions[COUNT]
    x = x + 1.1 * torch.randn(n, WIDE, generator=generator)
    y = (4 * c[:, 0] + 2 * c[:, 1] + h).long()
    return FeatureSplit(x, y, [f"{i}.png" for i in range(n)], c)


@functools.cache
def planted() -> tuple[FeatureData, ConceptBank]:
    splits = {"train": drawn(2000, 1), "val": drawn(600, 2), "test": drawn(4000, 3)}
    data = FeatureData(splits, [str(c) for c in range(CLASSES)], concept_names=NAMES)
    bank = ConceptBank("planted", "test", tuple(Concept(name) for name in NAMES))
    return data, bank


@functools.cache
def trained(kind: str, seed: int = 0) -> ConceptBottleneck:
    """``supervised`` by its training, or an embedding by its kind."""
    data, bank = planted()
    settings = {"name": "supervised", "training": kind, "patience": 8, "max_epochs": 60, "batch_size": 256}
    if kind in ("mix", "cem"):
        settings = {"name": "embedding", "kind": kind, "width": 8, "patience": 8, "max_epochs": 60}
    model, _ = fit_method(create_method(settings), data, bank, 1.0, seed=seed, trainer=TrainerConfig(progress=False))
    return model


def accuracy(logits: torch.Tensor) -> float:
    return float((logits.argmax(dim=1) == planted()[0].test.y).float().mean())


def told(model: ConceptBottleneck, count: int, *, wrong: bool = False) -> float:
    """Accuracy when ``count`` concepts of every test picture, drawn at random, are told."""
    test = planted()[0].test
    rank = torch.rand(len(test), COUNT, generator=torch.Generator().manual_seed(5)).argsort(dim=1).argsort(dim=1)
    said = 1 - test.concepts if wrong else test.concepts
    return accuracy(model.told(test.x, torch.where(rank < count, said, model.activations(test.x))))


# --------------------------------------------------------------------------------------------------------- formulas


def reference(model: ConceptBottleneck, x: torch.Tensor, told: dict[int, float]) -> torch.Tensor:
    """Logits of one picture by the papers' formulas, concept by concept, in float64."""
    made, residual = model.activation.embeddings, model.residual
    weight, total = residual.weight.double(), torch.zeros(CLASSES, dtype=torch.float64)
    bias = model.biases().double() - residual.constant.double().sum(dim=1)
    z = (x.double() - made.mean.double()) / made.std.double()
    width = made.width
    for k in range(COUNT):
        rows = slice(2 * width * k, 2 * width * (k + 1))
        both = leaky_relu(made.context.weight[rows].double() @ z + made.context.bias[rows].double(), 0.01)
        own = torch.zeros_like(both) if made.common is None else made.common[k].double().flatten()
        odds = float(made.scorer[0].double() @ (own + both) + made.scorer_bias[0].double())
        p = 1 / (1 + torch.exp(torch.tensor(-odds, dtype=torch.float64)))
        if made.common is not None:
            bits = -(p * p.log2() + (1 - p) * (1 - p).log2())
            both = own + 0.5 * (1 - bits) * both
        q = told.get(k, p)
        total += weight[:, k] @ (q * both[:width] + (1 - q) * both[width:])
    return total + bias


@pytest.mark.parametrize("kind", ["mix", "cem"])
def test_logits_are_those_of_the_formulas(kind: str):
    model, x = trained(kind), planted()[0].test.x[:20]
    for i in range(20):
        expected = reference(model, x[i], {})
        assert torch.allclose(model(x[i : i + 1])[0].double(), expected, atol=2e-4)
        some = {0: 1.0, 3: 0.0}
        p = model.activations(x[i : i + 1])
        p[0, 0], p[0, 3] = 1.0, 0.0
        assert torch.allclose(model.told(x[i : i + 1], p)[0].double(), reference(model, x[i], some), atol=2e-4)


def test_the_expectation_is_the_mean_over_what_is_left_out():
    model, x = trained("mix"), planted()[0].test.x[:8]
    made, head = model.activation.embeddings, model.residual.weight
    both, odds = made(x)
    p, generator = odds.sigmoid(), torch.Generator().manual_seed(0)
    bias = model.biases() - model.residual.constant.sum(dim=1)
    total = torch.zeros(8, CLASSES, dtype=torch.float64)
    for _ in range(4096):
        vectors = made.vectors(both, p, (torch.rand(p.shape, generator=generator) < 0.5).float())
        mixed = p[..., None] * vectors[:, :, 0] + (1 - p)[..., None] * vectors[:, :, 1]
        total += mixed.flatten(1) @ head.flatten(1).T + bias
    scale = float(model(x).std())
    assert float((total / 4096 - model(x)).abs().max()) < 0.05 * scale


def test_randint_tells_known_concepts_of_some_images():
    generator = torch.Generator().manual_seed(0)
    c = (torch.arange(2000).view(400, 5) % 3 == 0).float()
    c[:, 4] = torch.nan
    before = c.clone()
    found = drawn_to_tell(c, 0.25, generator=generator)
    assert torch.equal(c.nan_to_num(7), before.nan_to_num(7))
    assert not bool(found[:, 4].any())  # nobody knows it
    assert 0.2 < float(found[:, :4].float().mean()) < 0.3
    assert len(found.unique(dim=0)) > 5  # drawn for every image
    together = drawn_to_tell(c, 0.5, per_batch=True, generator=generator)[:, :4]
    assert len(together.unique(dim=0)) == 1


# ------------------------------------------------------------------------------- what names say, and what they do not


@pytest.mark.parametrize("kind", ["mix", "cem"])
def test_named_and_unnamed_sum_to_the_logits(kind: str):
    model, data = trained(kind), planted()[0]
    x = data.test.x[:50]
    rests = model.residual.by_concept(x)  # [N, C, K]
    named = model.weights() * (model.activations(x) - model.reference)[:, None]
    assert torch.allclose(model.base() + named.sum(dim=2) + rests.sum(dim=2), model(x), atol=1e-4)
    assert torch.allclose(rests.sum(dim=2), model.residual(x), atol=1e-4)
    assert float(model.residual.by_concept(data.train.x).mean(dim=0).abs().max()) < 1e-3
    assert torch.allclose(predict_logits(model, x), model(x), atol=1e-4)
    moved = model.activations(x) + 0.1 * torch.eye(COUNT)[2]
    votes = model.votes(x)
    assert torch.allclose(model.told(x, moved) - model(x), 0.1 * votes[:, 2], atol=1e-4)


@pytest.mark.parametrize("kind", ["mix", "cem"])
@pytest.mark.parametrize(
    "edits",
    [
        [Edit("set", NAMES[0], "present")],
        [Edit("set", NAMES[0], 0.3, classes=("1", "5"))],
        [Edit("mask", NAMES[1])],
        [Edit("remove", NAMES[1], classes=("2",))],
        [Edit("scale", NAMES[2], 0.5), Edit("shift", NAMES[2], 0.2)],
        [Edit("mask", NAMES[0]), Edit("set", NAMES[0], "absent")],
        [Edit("remove", NAMES[0]), Edit("set", NAMES[0], "present")],
        [Edit("reweight", NAMES[3], 1.0)],
    ],
    ids=lambda edits: "-".join(edit.op for edit in edits),
)
def test_edits_of_all_and_of_single_pictures_agree_with_their_meaning(kind: str, edits: list[Edit]):
    (data, bank), model = planted(), trained(kind)
    x, classes = data.test.x[:30], data.classes
    acting = EditSet(tuple(edits))
    found = edited_logits(model, acting, bank, classes, x)
    assert torch.allclose(found, predict_logits(edited_model(model, acting, bank.texts, classes), x), atol=1e-5)
    single = EditSet(tuple(Edit(e.op, e.concept, e.value, e.classes, ("7.png",)) for e in edits))
    alone = edited_logits(model, single, bank, classes, x, data.test.names[:30])
    assert torch.allclose(alone[7], found[7], atol=1e-5)
    others = [i for i in range(30) if i != 7]
    assert torch.equal(alone[others], model(x)[others])

    k, p = bank.texts.index(edits[-1].concept), model.activations(x)
    rows = [classes.index(c) for c in edits[-1].classes or classes]
    untouched = [c for c in range(CLASSES) if c not in rows]
    assert torch.allclose(found[:, untouched], model(x)[:, untouched], atol=1e-4)
    ops = [edit.op for edit in edits]
    without = (
        model(x) - (model.weights()[:, k] * (p[:, [k]] - model.reference[k])) - model.residual.by_concept(x)[..., k]
    )
    if ops in (["mask"], ["remove"], ["remove", "set"]):
        expected = without  # nothing of the picture is left under that name
    elif ops == ["reweight"]:
        expected = model(x) + (1.0 / model.spread[k] - model.weights()[:, k]) * (p[:, [k]] - model.reference[k])
    else:
        value = {"present": 0.95, "absent": 0.05}.get(edits[-1].value, edits[-1].value)
        to = torch.full_like(p[:, k], value) if ops[-1] == "set" else 0.5 * p[:, k] + 0.2
        expected = model.told(x, p.index_copy(1, torch.tensor([k]), to[:, None]))
    assert torch.allclose(found[:, rows], expected[:, rows], atol=2e-4)


@pytest.mark.parametrize("kind", ["mix", "cem"])
def test_an_edited_model_is_told_and_flipped_as_it_is(kind: str):
    (data, bank), model = planted(), trained(kind)
    x, ops = data.test.x[:25], (Edit("scale", NAMES[0], 0.5), Edit("mask", NAMES[1]), Edit("shift", NAMES[2], 0.1))
    edited = edited_model(model, EditSet(ops), bank.texts, data.classes)
    p = edited.activations(x)
    assert torch.allclose(edited.told(x, p), edited(x), atol=1e-4)
    for k in range(COUNT):
        moved = p + 0.2 * torch.eye(COUNT)[k]
        assert torch.allclose(edited.told(x, moved) - edited(x), 0.2 * edited.votes(x)[:, k], atol=1e-4)
    assert float(edited.votes(x)[:, 1].abs().max()) < 1e-5  # masked: nothing is read of it
    flips = 0
    for row in range(25):
        for each in (model, edited):
            found = counterfactual(each, x[row], budget=COUNT)
            if found is None:
                continue
            flips += 1
            to = each.activations(x[[row]])
            to[0, found.columns] = torch.tensor(found.values)
            assert int(each.told(x[[row]], to)[0].argmax()) == found.after
    assert flips > 10


def test_a_saved_model_is_the_model(tmp_path):
    (data, bank), x = planted(), planted()[0].test.x[:20]
    for kind in ("mix", "cem"):
        model = trained(kind)
        edited = edited_model(model, EditSet((Edit("mask", NAMES[0]),)), bank.texts, data.classes)
        for each in (model, edited):
            save_model(each, tmp_path / "model.safetensors")
            again = load_model(tmp_path / "model.safetensors")
            assert torch.allclose(again(x), each(x), atol=1e-5)
            assert torch.allclose(again.concept_path()(x), each.concept_path()(x), atol=1e-5)
        assert not torch.allclose(edited(x), model(x), atol=1e-2)


# ------------------------------------------------------------------------------------------ does it follow a correction


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixcem_gains_by_being_told_and_falls_when_told_wrong(seed: int):
    model = trained("mix", seed)
    curve = [told(model, count) for count in range(COUNT + 1)]
    assert all(b >= a - 0.01 for a, b in pairwise(curve))
    assert curve[0] > 0.7
    assert curve[-1] >= 0.88  # the names and what has none; the names alone allow one half
    assert told(model, COUNT, wrong=True) <= 0.05
    values = residual_metrics(model, planted()[0].test)
    assert values["residual_share"] <= 0.5
    assert values["accuracy_concepts_only"] >= 0.38


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cem_hardly_follows_a_wrong_answer_and_decides_past_its_names(seed: int):
    model = trained("cem", seed)
    assert told(model, COUNT, wrong=True) >= 0.4
    assert residual_metrics(model, planted()[0].test)["residual_share"] >= 0.8


def test_bottlenecks_of_probabilities_tell_by_their_names_alone():
    sequential, joint = trained("sequential"), trained("joint")
    curve = [told(sequential, count) for count in range(COUNT + 1)]
    assert all(b >= a - 0.01 for a, b in pairwise(curve))
    assert told(sequential, COUNT, wrong=True) <= 0.01
    assert told(joint, COUNT) < told(joint, 0) - 0.1  # what else its scores carried is lost: the test can fail


@pytest.mark.parametrize("kind", ["mix", "cem"])
def test_portable_models_say_the_same(kind: str):
    (data, bank), x = planted(), planted()[0].test.x[:10]
    edited = edited_model(trained(kind), EditSet((Edit("mask", NAMES[0]),)), bank.texts, data.classes)
    for model in (trained(kind), edited, trained(kind).concept_path()):
        plain = PortableModel(model, top_k=3)
        length = x.norm(dim=1, keepdim=True)
        unit = x / length
        logits, values, indices = plain(x)
        assert torch.allclose(logits, model(unit), atol=1e-4)
        assert torch.allclose(values, model.activations(unit).gather(1, indices), atol=1e-5)
        exported = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)).module()
        assert torch.allclose(exported(x[:7])[0], logits[:7], atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"width": 0}, "method.width=0: expected 1 or more"),
        ({"randint": 2.0}, "method.randint=2: expected 0 or more, 1 at most"),
        ({"drop": -0.5}, "method.drop=-0.5: expected 0 or more, 1 at most"),
        ({"prior_weight": -1.0}, "method.prior_weight=-1: expected 0 or more"),
        ({"concept_weight": float("nan")}, "method.concept_weight=nan: expected 0 or more"),
        ({"kind": "mixcem"}, "method.kind=mixcem: "),
    ],
)
def test_settings_out_of_range_are_named(setting: dict, message: str):
    with pytest.raises(UserError, match=message):
        create_method({"name": "embedding", **setting})


def test_a_label_does_not_read_the_concept_that_it_is():
    data, bank = planted()
    splits = {name: replace(split, y=split.concepts[:, :3].clone()) for name, split in data.splits.items()}
    data = FeatureData(splits, [NAMES[0], NAMES[1], "other"], concept_names=NAMES)
    settings = {"name": "embedding", "width": 4, "max_epochs": 3}
    model, _ = fit_method(create_method(settings), data, bank, 1.0, trainer=TrainerConfig(progress=False))
    assert model.weights()[0, 0] == model.weights()[1, 1] == 0
    rests = model.residual.by_concept(data.test.x[:20])
    assert float(rests[:, 0, 0].abs().max()) < 1e-6
    assert float(rests[:, 1, 0].abs().max()) > 1e-4
    assert bool((model.weights()[2] != 0).all())


# ------------------------------------------------------------------------------------------------- what to ask (IntCEM)


@functools.cache
def asking(seed: int = 0) -> ConceptBottleneck:
    data, bank = planted()
    settings = {"name": "embedding", "kind": "cem", "width": 8, "patience": 8, "max_epochs": 60, "policy_weight": 1.0}
    model, _ = fit_method(create_method(settings), data, bank, 1.0, seed=seed, trainer=TrainerConfig(progress=False))
    return model


def agrees(model: ConceptBottleneck) -> float:
    """Share of test pictures whose first question, as learned, is the one that raises the true class's logit most."""
    test = planted()[0].test
    p = model.activations(test.x)
    chosen = model.activation.questions(test.x, p, torch.zeros_like(p).bool()).argmax(dim=1)
    gain = (test.concepts - p) * model.votes(test.x).gather(2, test.y[:, None, None].expand(-1, COUNT, 1))[..., 0]
    return float((chosen == gain.argmax(dim=1)).float().mean())


def test_learned_questions_agree_with_the_best_one_twice_as_often_as_chance():
    assert agrees(asking()) >= 2 / COUNT


def test_learned_questions_are_asked_in_turn_and_saved(tmp_path):
    model, test = asking(), planted()[0].test
    assert policies_for(model)[-1] == "learned"
    units = [[k] for k in range(COUNT)]
    curve = ask_in_turn(model, test.x, test.y, test.concepts, units, "learned")
    chance = ask_in_turn(model, test.x, test.y, test.concepts, units, "random")
    assert sorted(curve.asked[0].tolist()) == list(range(COUNT))
    assert curve.area > chance.area
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(ask_in_turn(again, test.x, test.y, test.concepts, units, "learned").asked, curve.asked)
    assert torch.equal(again(test.x), model(test.x))


def test_a_model_that_did_not_learn_to_ask_says_so():
    test = planted()[0].test
    assert "learned" not in policies_for(trained("mix"))
    with pytest.raises(UserError, match="has not learned what to ask"):
        ask_in_turn(trained("mix"), test.x, test.y, test.concepts, [[k] for k in range(COUNT)], "learned")


def test_the_horizon_reaches_its_limit():
    method = create_method({"name": "embedding", "policy_weight": 1.0})
    data, bank = planted()
    built = method.build(data, bank, 1.0)
    assert float(built.model.horizon) == 2.0
    for _ in range(250):
        method.loss(built.model, data.train.x[:8], data.train.y[:8], built.targets["train"][:8])
    assert float(built.model.horizon) == 6.0
