"""Post-hoc bottlenecks on data in which the right concepts are known."""

from dataclasses import replace

import pytest
import torch
from planted import CLASSES, PER_CLASS, parts, planted
from torch.nn import functional as F

from cbm.concepts import ConceptBank
from cbm.data.features import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearProbe, load_model, predict_logits, save_model
from cbm.methods import create_method
from cbm.methods.posthoc import PosthocConfig
from cbm.methods.sparse_head import fit_sparse_head, informative_images, sparsest_good
from cbm.metrics.evaluate import evaluate_split, residual_share
from cbm.training import ConceptBottleneckModule, fit

TRAINER = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}


def build(**settings) -> tuple[ConceptBottleneck, ConceptBank]:
    data, bank = planted()
    return parts(create_method({"name": "posthoc", **settings}).build(data, bank, 100.0))


def test_a_sparse_head_on_all_concepts_classifies_and_reads_its_own():
    data, bank = planted()
    model, used = build()
    assert used is not None
    assert len(used) == len(bank)
    values = evaluate_split(model, used, data, "test")
    assert values["test/accuracy"] > 0.9
    assert values["test/nec"] < 0.6 * CLASSES * PER_CLASS
    own = used.owners(data.classes)
    positive = model.weights().clamp(min=0)
    assert float((positive * own).sum() / positive.sum()) > 0.8


def test_the_head_is_the_solution_on_standardised_scores():
    """A float64 check of the optimality conditions from the model's own raw weights."""
    data, bank = planted()
    lam, rho = 0.02, 0.99
    model, _ = build(lam=lam, tol=1e-7)
    model.requires_grad_(False)
    raw = data.train.x.double() @ bank.directions().double().T
    z = (raw - raw.mean(0)) / raw.std(0)
    weight = model.weights().double() * raw.std(0)
    logits = data.train.x.double() @ (model.weights().double() @ bank.directions().double()).T + model.head.bias
    slope = (logits.softmax(1) - F.one_hot(data.train.y, CLASSES)).T @ z / len(z) + lam * (1 - rho) * weight
    active = weight != 0
    assert active.any()
    assert float((slope + lam * rho * weight.sign())[active].abs().max()) < 1e-3 * lam
    assert float(slope[~active].abs().max()) < lam * rho * (1 + 1e-3)


def test_the_length_of_a_concept_vector_matters_as_published_only_in_paper():
    data, bank = planted()
    longer = tuple(replace(c, provenance={"cav": {"norm": 4.0}}) if k == 0 else c for k, c in enumerate(bank.concepts))
    stretched = replace(bank, concepts=longer)

    def weights(fidelity: str, bank: ConceptBank, **settings) -> torch.Tensor:
        return (
            create_method({"name": "posthoc", "fidelity": fidelity, **settings}).build(data, bank, 1.0).model.weights()
        )

    for fidelity in ("repaired", "released"):
        assert torch.equal(weights(fidelity, bank, lam=1e-3), weights(fidelity, stretched, lam=1e-3))
    plain, changed = (weights("paper", b, lam=0.2) for b in (bank, stretched))
    assert not torch.allclose(plain, changed)
    assert float(changed[:, 0].abs().max()) < float(plain[:, 0].abs().max())  # a quarter of the score for the penalty


def test_the_paper_divides_the_penalty_by_classes_times_concepts():
    data, bank = planted()
    scaled = create_method({"name": "posthoc", "fidelity": "paper", "lam": 0.2}).build(data, bank, 1.0).model
    lam = 0.2 / (CLASSES * len(bank))
    given = create_method({"name": "posthoc", "fidelity": "released", "lam": lam}).build(data, bank, 1.0).model
    torch.testing.assert_close(scaled.weights(), given.weights())  # text vectors have length 1: nothing else differs


def fitted_hybrid() -> tuple[ConceptBottleneck, ConceptBottleneck]:
    data, bank = planted()
    method = create_method({"name": "posthoc", "lam": 0.05, "residual": True, "batch_size": 64, "max_epochs": 20})
    alone = create_method({"name": "posthoc", "lam": 0.05}).build(data, bank, 1.0).model
    model = method.build(data, bank, 1.0).model
    fit(
        ConceptBottleneckModule(model, method.optimizer),
        data,
        batch_size=64,
        patience=5,
        max_epochs=20,
        trainer=TRAINER,
    )
    return alone, model


def test_pcbm_h_keeps_its_concept_path_and_says_what_the_residual_takes(tmp_path):
    data, bank = planted()
    alone, hybrid = fitted_hybrid()
    assert torch.equal(hybrid.weights(), alone.weights())
    torch.testing.assert_close(hybrid.concept_path()(data.test.x), alone(data.test.x))
    assert hybrid.residual is not None
    assert float(hybrid.residual.matrix.detach().abs().max()) > 0
    values = evaluate_split(hybrid, bank, data, "test")
    assert 0 < values["test/residual_share"] < 1
    assert values["test/loss_both"] < values["test/loss_concepts_only"]
    without = evaluate_split(alone, bank, data, "test")["test/accuracy"]
    assert values["test/accuracy_concepts_only"] == pytest.approx(without)

    save_model(hybrid, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded(data.test.x), hybrid(data.test.x))
    torch.testing.assert_close(predict_logits(hybrid, data.test.x), hybrid(data.test.x), rtol=1e-4, atol=1e-4)


def test_two_classes_hear_the_concepts_beside_a_residual():
    """The published code broadcast one concept logit to both classes, where the softmax cancels it."""
    data, bank = planted()
    two = replace(data.train, y=data.train.y % 2), replace(data.val, y=data.val.y % 2)
    splits = {**data.splits, "train": two[0], "val": two[1]}
    data = replace(data, splits=splits, classes=["even", "odd"])
    model = create_method({"name": "posthoc", "lam": 0.01}).build(data, bank, 1.0).model
    model.residual = LinearProbe(torch.randn(2, data.dim), torch.zeros(2))
    model.requires_grad_(False)
    x = data.test.x
    before = model(x).softmax(1)
    model.head.matrix.mul_(-1)
    assert float((model(x).softmax(1) - before).abs().max()) > 0.01


def test_residual_share():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(500, 4, generator=g), torch.randn(500, 4, generator=g)
    assert residual_share(a, 0 * b) == 0
    assert residual_share(a, a) == pytest.approx(0.5)
    assert residual_share(a, 3 * b) == pytest.approx(0.75, abs=0.02)
    assert residual_share(a, b) == pytest.approx(residual_share(a + 7, b + torch.arange(4.0)), abs=1e-5)


def test_the_sparsest_of_the_good():
    assert sparsest_good([0.1, 0.5, 0.79, 0.80, 0.81, 0.7], 1000) == 3  # one standard error of 0.81 is 0.0124
    assert sparsest_good([0.1, 0.5, 0.79, 0.80, 0.81, 0.7], 10) == 2
    assert sparsest_good([1.0], 5) == 0


def test_never_a_head_without_concepts_while_there_is_another(caplog):
    assert sparsest_good([0.5, 0.5, 0.52], 20, [0, 0, 3], chance=0.5) == 2
    assert sparsest_good([0.25], 20, [0], chance=0.25) == 0  # the only one there is
    caplog.clear()
    # 60 images: one error is .056; .58 is no better than one class for all, .75 is
    assert sparsest_good([0.5, 0.58, 0.75, 0.78, 0.77], 60, [0, 1, 3, 9, 30], chance=0.5) == 2
    assert not caplog.records
    assert sparsest_good([0.5, 0.55, 0.6, 0.58], 30, [0, 1, 3, 9], chance=0.5) == 2  # all the same: the best
    assert "cannot tell the 3 heads of the path apart (accuracy 0.550 to 0.600" in caplog.text


def test_informative_images():
    for sizes in ([30, 30], [57, 3], [10, 20, 30]):
        labels = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
        variance = sum(0.25 / size for size in sizes) / len(sizes) ** 2  # of a balanced accuracy of one half
        assert informative_images(labels) == pytest.approx(0.25 / variance)


@pytest.mark.parametrize("seed", range(3))
def test_small_unbalanced_validation_sets_leave_a_model(seed: int, caplog):
    """60 validation images, four of five of one class: by plain accuracy the head without concepts is good enough."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(8, 24, generator=g), dim=1)

    def split(counts: list[int]) -> FeatureSplit:
        y = torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])
        x = torch.nn.functional.normalize(0.45 * directions[y] + 0.2 * torch.randn(len(y), 24, generator=g), dim=1)
        return FeatureSplit(x, y, [str(i) for i in range(len(y))])

    data = FeatureData({"train": split([160, 20, 20]), "val": split([48, 6, 6])}, ["a", "b", "c"])
    head = fit_sparse_head(data, directions, PosthocConfig())
    assert int((head.weights() != 0).sum()) > 0
    called = head(data.val.x).argmax(1)
    assert len(called.unique()) == 3
    empty = fit_sparse_head(data, directions, PosthocConfig(lam=10.0))
    assert not bool(empty.weights().any())
    assert "no concept has a weight at penalty 1.00e+01" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("fidelity", "papper", "did you mean 'paper'"),
        ("l1_ratio", 0.0, "method.l1_ratio=0.0: expected a number in"),
        ("lam", -1.0, "method.lam=-1.0"),
        ("n_lambdas", 1, "method.n_lambdas=1: expected 2 or more"),
        ("max_nec", 0.0, "method.max_nec"),
        ("tol", 2.0, "method.tol"),
    ],
)
def test_settings_are_checked(setting, value, message):
    with pytest.raises(UserError, match=message):
        create_method({"name": "posthoc", setting: value})
