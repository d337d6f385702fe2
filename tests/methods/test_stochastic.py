"""A supervised bottleneck that learns which concepts go together: nothing changes until somebody answers."""

import functools
import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from correlated_concepts import COUNT, TRUE_01, TRUE_23, drawn

import cbm
from cbm.concepts.bank import Concept, ConceptBank
from cbm.config import TrainerConfig
from cbm.data import FeatureData, FeatureSplit
from cbm.editing import Edit, EditSet, edited_model
from cbm.editing.asking import questions
from cbm.editing.asking.propagation import follow_correlation, follow_covariance
from cbm.editing.asking.questions import ask_in_turn
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead, Valued, load_model, save_model
from cbm.methods import create_method, fit_method
from cbm.methods.concept_layer import out_of_fold
from cbm.methods.stochastic import told_gain
from cbm.solvers import told_probabilities

NAMES = [f"concept {k}" for k in range(COUNT)]
UNITS = [[k] for k in range(COUNT)]


@functools.cache
def planted() -> tuple[FeatureData, ConceptBank]:
    """The class is what the first of each pair of concepts says."""
    splits = {}
    for seed, (name, n) in enumerate({"train": 2000, "val": 600, "test": 2000}.items()):
        x, c = drawn(n, seed)
        c = torch.from_numpy(c).float()
        y = (2 * c[:, 1] + c[:, 2]).long()
        splits[name] = FeatureSplit(torch.from_numpy(x).float(), y, [f"{name}{i}" for i in range(n)], c)
    data = FeatureData(splits, list("abcd"), concept_names=NAMES)
    return data, ConceptBank("planted", "test", tuple(map(Concept, NAMES)))


@functools.cache
def trained(name: str = "stochastic"):
    data, bank = planted()
    method = create_method({"name": name, "training": "independent", "patience": 8, "lr": 0.01, "max_epochs": 80})
    model, _ = fit_method(method, data, bank, 1.0, trainer=TrainerConfig(progress=False))
    return method, model


def test_nothing_but_the_correlation_differs_from_the_supervised_bottleneck():
    (method, model), (_, plain) = trained(), trained("supervised")
    x = planted()[0].test.x
    assert torch.equal(model.activations(x), plain.activations(x))
    assert torch.equal(model(x), plain(x))
    assert plain.correlation is None
    r = model.correlation
    assert torch.equal(r.diagonal(), torch.ones(COUNT))
    assert torch.equal(r, r.T)
    assert float(torch.linalg.eigvalsh(r).min()) > 0
    assert abs(float(r[0, 1]) - TRUE_01) <= 0.1
    assert abs(float(r[2, 3]) - TRUE_23) <= 0.1
    assert method.facts["told_gain"] > 0
    assert method.facts["pairs_too_few"] == 0


def test_told_concepts_are_exact_and_all_told_is_the_head_on_the_answers():
    model, test = trained()[1], planted()[0].test
    p = model.activations(test.x)
    told = torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    after = follow_correlation(p, told, test.concepts, model)
    assert torch.equal(after[told], test.concepts[told])
    assert not torch.equal(after[~told], p[~told])
    everything = follow_correlation(p, torch.ones_like(told), test.concepts, model)
    torch.testing.assert_close(model.told(test.x, everything), model.told(test.x, test.concepts))


def test_telling_the_partner_tells_the_class():
    """The class reads concepts 1 and 2, and never their partners 0 and 3: only the correlation can use those."""
    model, test = trained()[1], planted()[0].test
    answers = torch.full(test.concepts.shape, torch.nan)
    answers[:, [0, 3]] = test.concepts[:, [0, 3]]

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, y)

    arguments = (model, test.x, test.y, answers, [[0], [3]], "random")
    alone, together = ask_in_turn(*arguments, quality=loss), ask_in_turn(*arguments, correlated=True, quality=loss)
    assert float(together.accuracy[0]) == float(alone.accuracy[0])
    assert all(after < before for before, after in pairwise(together.accuracy.tolist()))
    assert float(together.accuracy[-1]) < float(alone.accuracy[-1]) - 0.01


@pytest.mark.parametrize("policy", ["random", "ucp", "ectp"])
def test_questions_end_at_the_head_on_all_answers(policy):
    model, test = trained()[1], planted()[0].test.take(torch.arange(300).numpy())
    curve = ask_in_turn(model, test.x, test.y, test.concepts, UNITS, policy, correlated=True)
    expected = (model.told(test.x, test.concepts).argmax(dim=1) == test.y).double().mean()
    assert float(curve.accuracy[-1]) == float(expected)
    again = ask_in_turn(model, test.x, test.y, test.concepts, UNITS, policy, correlated=True)
    assert torch.equal(curve.accuracy, again.accuracy)


def test_the_correlation_is_saved_and_stays_with_an_edited_model(tmp_path):
    (data, bank), model = planted(), trained()[1]
    edited = edited_model(model, EditSet((Edit("mask", NAMES[0]),)), bank.texts, data.classes)
    for each in (model, edited):
        save_model(each, tmp_path / "model.safetensors")
        assert torch.equal(load_model(tmp_path / "model.safetensors").correlation, model.correlation)
    save_model(trained("supervised")[1], tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").correlation is None


def test_values_that_exclude_each_other_sum_to_one_and_numbers_stay():
    group = torch.tensor([0, 0, 0, -1, -1])
    r = torch.eye(5)
    r[3, 0] = r[0, 3] = 0.6
    activation = Valued(torch.zeros(5), torch.tensor([False, False, False, False, True]), group)
    model = ConceptBottleneck(torch.eye(5), LinearHead(torch.ones(2, 5)), activation=activation, correlation=r)
    p = model.activations(torch.randn(50, 5, generator=torch.Generator().manual_seed(0)))
    told = torch.zeros(50, 5, dtype=torch.bool)
    told[:, 3:] = True
    after = follow_correlation(p, told, torch.ones(50, 5), model)
    torch.testing.assert_close(after[:, :3].sum(dim=1), torch.ones(50))
    assert bool((after[:, 0] > p[:, 0]).all())
    assert torch.equal(after[:, 4], p[:, 4])


def test_probabilities_out_of_fold_do_not_see_their_own_label_nor_that_of_the_subject():
    data, _ = planted()
    labels = {name: data.splits[name].concepts for name in ("train", "val")}
    before = out_of_fold(data, labels, 5)
    changed = labels["train"].clone()
    changed[7] = 1 - changed[7]
    after = out_of_fold(data, labels | {"train": changed}, 5)
    assert torch.equal(after[7], before[7])
    assert not torch.equal(after, before)
    pairs = torch.arange(len(changed)).numpy() // 2
    of_patients = replace(data, splits=data.splits | {"train": replace(data.train, subjects=pairs)})
    before, after = (out_of_fold(of_patients, labels | {"train": each}, 5) for each in (labels["train"], changed))
    assert torch.equal(after[6:8], before[6:8])


def test_what_telling_is_worth_is_nothing_without_correlation_and_pairs_without_pictures_are_named(caplog):
    data, bank = planted()
    p, truth = trained()[1].activations(data.val.x), data.val.concepts

    def by(correlation: torch.Tensor):
        return lambda rows, p, told, answers: told_probabilities(p, told, answers, correlation)

    assert told_gain(p, truth, by(torch.eye(COUNT)), 0) == pytest.approx(0, abs=1e-9)
    assert told_gain(p, truth, by(-trained()[1].correlation + 2 * torch.eye(COUNT)), 0) < 0
    assert told_gain(p, torch.full_like(truth, torch.nan), by(torch.eye(COUNT)), 0) == 0.0
    rare = {}
    for name, split in data.splits.items():
        c = split.concepts.clone()
        c[:, 5] = 0.0
        c[:3, 5] = 1.0
        rare[name] = replace(split, concepts=c)
    caplog.set_level(logging.INFO)
    method = create_method({"name": "stochastic", "max_epochs": 2})
    fit_method(method, replace(data, splits=rare), bank, 1.0, trainer=TrainerConfig(progress=False))
    assert "'concept 0 / concept 5'" in caplog.text
    assert method.facts["pairs_too_few"] == pytest.approx(5 / 15)


def test_errors_are_one_line():
    with pytest.raises(UserError, match="CLIP's opinion is a function of the picture"):
        create_method({"name": "stochastic", "labels": "pseudo"})
    with pytest.raises(UserError, match="method.labels=auto"):
        create_method({"name": "stochastic", "labels": "auto"})
    with pytest.raises(UserError, match="method.folds=1: expected 2 or more"):
        create_method({"name": "stochastic", "folds": 1})


def test_a_run_is_asked_with_and_without_its_correlation(command, module, tmp_path: Path, monkeypatch):
    followed = []

    def follow(*arguments):
        followed.append(arguments)
        return follow_correlation(*arguments)

    monkeypatch.setattr(questions, "follow_correlation", follow)
    status, errors = command("train", *small(), *QUICK, "nec=[]", "run_dir=one", "report=none", "controls=false",
                             "method=stochastic")  # fmt: skip
    assert status == 0, errors
    assert cbm.load(tmp_path / "one").model.correlation is not None
    assert "method/told_gain" in json.loads((tmp_path / "one" / "metrics.json").read_text())
    curves = {}
    for flag in ([], ["--propagate"]):
        arguments = ("--cache", small()[1].removeprefix("cache="), "--policies", "random", *flag)
        assert not followed
        status, _, errors = module("intervene", "one", *arguments)
        assert status == 0, errors
        curves[bool(flag)] = json.loads((tmp_path / "one" / "interventions.json").read_text())["random"]["accuracy"]
    assert len(followed) == 2 * (len(curves[True]) - 1)  # random, and told wrong
    assert curves[True][0] == curves[False][0]
    assert curves[True][-1] == pytest.approx(curves[False][-1])


@functools.cache
def learned(covariance: str = "global", precision_weight: float = 0.0, frozen: bool = False):
    data, bank = planted()
    method = create_method({
        "name": "stochastic", "training": "joint", "patience": 8, "lr": 0.01, "max_epochs": 60, "samples": 30,
        "covariance": covariance, "precision_weight": precision_weight, "frozen": frozen,
    })  # fmt: skip
    return fit_method(method, data, bank, 1.0, trainer=TrainerConfig(progress=False))[0]


def correlations(model, x: torch.Tensor) -> torch.Tensor:
    covariance = model.covariance.matrix(x).mean(dim=0)
    return covariance / covariance.diagonal().sqrt()[:, None] / covariance.diagonal().sqrt()


def test_a_learned_covariance_has_the_planted_signs_and_the_released_penalty_erases_it():
    x = planted()[0].test.x
    free, held = (correlations(learned(precision_weight=weight), x) for weight in (0.0, 1.0))
    assert float(free[0, 1]) > 0.2
    assert float(free[2, 3]) < -0.2
    assert float((held - torch.eye(COUNT)).abs().max()) < 0.05


@pytest.mark.parametrize("settings", [("global",), ("amortised",), ("global", 0.0, True)])
def test_a_learned_covariance_moves_the_others_and_is_saved(settings, tmp_path):
    model, test = learned(*settings), planted()[0].test
    p = model.activations(test.x)
    told = torch.zeros_like(p, dtype=torch.bool)
    told[:, 0] = True
    present, absent = (follow_covariance(p, told, torch.full_like(p, value), model, test.x) for value in (1.0, 0.0))
    way = model.covariance.matrix(test.x)[:, 0, 1].sign()
    assert bool((way * (present - p)[:, 1] >= -1e-6).all())  # however sure the model was
    assert bool((way * (absent - p)[:, 1] <= 1e-6).all())
    assert float((present - absent)[:, 1].abs().mean()) > 0.01
    assert torch.equal(present[:, 0], torch.ones(len(p)))
    assert torch.equal(follow_covariance(p, torch.ones_like(told), test.concepts, model, test.x), test.concepts)
    assert torch.equal(follow_covariance(p, torch.zeros_like(told), test.concepts, model, test.x), p)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    torch.testing.assert_close(again.covariance.matrix(test.x), model.covariance.matrix(test.x))
    edited = edited_model(model, EditSet((Edit("mask", NAMES[0]),)), planted()[1].texts, planted()[0].classes)
    assert edited.covariance is not None
