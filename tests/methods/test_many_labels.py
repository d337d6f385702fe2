"""Every method where an image has any number of labels: it fits, or says in one line which ones can."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import LABELS, class_bank, labelled

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.own_labels import other_concepts
from cbm.config import TrainerConfig
from cbm.data import FeatureData, FeatureSplit
from cbm.data.dataset import ConceptSpec, ImageDataset, Split
from cbm.data.valued import settled
from cbm.errors import UserError
from cbm.layers import Valued, is_many, predict_logits
from cbm.losses.concepts import ConceptLayout
from cbm.methods import create_method, fit_method
from cbm.methods.base import METHODS
from cbm.methods.supervised import TwoHeads
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.multilabel import auroc
from cbm.run.train import resolve_nec
from cbm.training import ConceptBottleneckModule, fit

CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
TRAINER = TrainerConfig(progress=False, accelerator="cpu")
EPOCHS = {"max_epochs": 30, "lr": 0.05}
QUICK = {
    "label_free": {"projection_steps": 50},
    "supervised": EPOCHS,
    "labo": EPOCHS,
    "v2c": EPOCHS,
    "sparse": {"max_epochs": 30, "lr": 0.02},
}


def fitted(data: FeatureData, bank: ConceptBank | None, name: str, **settings):
    method = create_method({"name": name, **QUICK.get(name, {}), **settings})
    bank = {None: None, "class_names": class_bank(data) if data.class_embeddings is not None else None}.get(
        method.concepts_from, bank
    )
    model, used = fit_method(method, data, bank, 100.0, trainer=TRAINER)
    return model, used, method


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_fits_labels_or_names_those_that_can(name: str, tmp_path: Path):
    data, bank = labelled()
    settings = {}
    if name == "grounded":
        rows = [(n, *c) for s in data.splits.values() for n, c in zip(s.names, s.concepts.nan_to_num().tolist())]
        table = "\n".join(",".join(map(str, row)) for row in [("path", *data.concept_names), *rows])
        (tmp_path / "detections.csv").write_text(table + "\n")
        settings = {"detections": str(tmp_path / "detections.csv")}
    if not METHODS.find(name).many_labels:
        with pytest.raises(UserError, match=f"method={name} names one class per picture") as caught:
            fitted(data, bank, name)
        message = str(caught.value)
        assert "\n" not in message
        able = message.rpartition("told by ")[2].split(", ")
        assert able == sorted(key for key, kind in METHODS.items() if kind.many_labels)
        return
    model, used, _ = fitted(data, bank, name, **settings)
    assert is_many(model)
    logits = predict_logits(model, data.test.x)
    assert logits.shape == (60, 3)
    assert bool(logits.isfinite().all())
    assert float(auroc(logits, data.test.y).min()) > 0.9
    values = evaluate_split(model, used, data, "test")
    assert values["test/auroc_macro"] == pytest.approx(float(auroc(logits, data.test.y).mean()))
    assert "test/accuracy" not in values


def test_the_methods_of_the_specification_can():
    able = {name for name, kind in METHODS.items() if kind.many_labels}
    assert able >= {"zero_shot", "linear_probe", "posthoc", "label_free", "sparse", "supervised", "labo", "v2c"}
    assert not able & {"cms", "energy"}


@pytest.mark.parametrize(("name", "settings"), [("posthoc", {}), ("linear_probe", {"l2_to": 1e-2})])
def test_what_is_unknown_of_one_label_is_nothing_to_the_others(name: str, settings):
    data, bank = labelled(unknown=0.0, noise=0.5)
    y = data.train.y.clone()
    y[30:, 0] = math.nan
    some = replace(data, splits={**data.splits, "train": replace(data.train, y=y)})
    whole, part = (predict_logits(fitted(each, bank, name, **settings)[0], data.test.x) for each in (data, some))
    torch.testing.assert_close(part[:, 1:], whole[:, 1:], rtol=1e-3, atol=1e-3)
    assert float((whole - part)[:, 0].abs().max()) > 0.1


def two_ways(seed: int = 0) -> tuple[FeatureData, FeatureData, ConceptBank]:
    """Images of two classes; and the same with the labels (y, 1 - y)."""
    data, bank = labelled(n=200, seed=seed, unknown=0.0, noise=0.6)
    one = {name: replace(split, y=split.y[:, 0].long()) for name, split in data.splits.items()}
    both = {name: replace(s, y=torch.stack([1 - s.y[:, 0], s.y[:, 0]], 1)) for name, s in data.splits.items()}
    classes = ["dry", "wet"]
    return replace(data, splits=one, classes=classes), replace(data, splits=both, classes=classes), bank


def test_labels_y_and_not_y_decide_as_two_classes():
    """Acceptance test 1: the l2 share of the penalty is halved where two classes share one difference of weights."""
    one, both, bank = two_ways()
    lam, rho = 0.02, 0.9
    lam2 = lam * rho + 2 * lam * (1 - rho)
    two, _, _ = fitted(one, bank, "posthoc", lam=lam2, l1_ratio=lam * rho / lam2, tol=1e-9)
    labels, _, _ = fitted(both, bank, "posthoc", lam=lam, l1_ratio=rho, tol=1e-9)
    of_classes, of_labels = (predict_logits(model, one.test.x) for model in (two, labels))
    difference = of_classes[:, 1] - of_classes[:, 0]
    assert float(difference.std()) > 0.3
    torch.testing.assert_close(of_labels[:, 1], difference, rtol=0, atol=1e-5 * float(difference.abs().max() + 10))
    torch.testing.assert_close(of_labels[:, 0], -difference, rtol=0, atol=1e-5 * float(difference.abs().max() + 10))
    assert torch.equal(labels.decide(of_labels)[:, 1].long(), two.decide(of_classes))


def test_zero_shot_compares_two_sentences():
    data, _ = labelled()
    model, used, method = fitted(data, None, "zero_shot")
    x = data.test.x.double().numpy()
    there, absent = data.class_embeddings.double().numpy(), data.negative_embeddings.double().numpy()
    expected = 100.0 * (x @ there.T - x @ absent.T)
    np.testing.assert_allclose(predict_logits(model, data.test.x).numpy(), expected, rtol=1e-4, atol=1e-3)
    assert used.texts == LABELS
    assert model.thresholds is None
    np.testing.assert_array_equal(model.decide(model(data.test.x)).numpy(), expected > 0)
    alone = [float(a) for a in auroc(data.val.x @ data.class_embeddings.T, data.val.y)]
    assert method.facts["auroc_positive_alone"] == pytest.approx(sum(alone) / 3)
    with pytest.raises(UserError, match="method=zero_shot needs sentences for absent labels"):
        fitted(replace(data, negative_embeddings=None), None, "zero_shot")


def test_probabilities_are_refused_by_solved_heads_and_taken_by_the_probe():
    data, bank = labelled(unknown=0.0)
    soft = data.train.y.clone()
    soft[50:, 0] = 0.7
    data = replace(data, splits={**data.splits, "train": replace(data.train, y=soft)})
    for name in ("posthoc", "label_free"):
        with pytest.raises(UserError, match="dataset.args.unknown=soft makes probabilities") as caught:
            fitted(data, bank, name)
        assert "\n" not in str(caught.value)
    model, _, _ = fitted(data, bank, "linear_probe")
    assert float(auroc(predict_logits(model, data.test.x), data.test.y).min()) > 0.9
    for value in (0.0, 1.0):  # and reads them as neither
        hard = replace(data.train, y=soft.where(soft != 0.7, value))
        other, _, _ = fitted(replace(data, splits={**data.splits, "train": hard}), bank, "linear_probe")
        assert float((predict_logits(other, data.test.x) - predict_logits(model, data.test.x)).abs().max()) > 1e-3


def test_a_head_of_names_is_for_classes():
    data, bank = labelled()
    for name in ("posthoc", "labo"):
        with pytest.raises(UserError, match="with several labels leave it out"):
            fitted(data, bank, name, head="names")


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_posthoc_as_published_takes_labels(fidelity: str):
    data, bank = labelled()
    model, _, _ = fitted(data, bank, "posthoc", fidelity=fidelity)
    assert float(auroc(predict_logits(model, data.test.x), data.test.y).min()) > 0.9


def test_a_residual_is_trained_on_labels_and_does_not_touch_the_concepts():
    data, bank = labelled(noise=0.6)
    plain, _, _ = fitted(data, bank, "posthoc")
    model, used, _ = fitted(data, bank, "posthoc", residual=True, max_epochs=20)
    assert is_many(model.residual)
    torch.testing.assert_close(model.weights(), plain.weights())
    assert model.residual.matrix.abs().max() > 0
    values = evaluate_split(model, used, data, "test")
    assert 0 < values["test/residual_share"] < 1
    concepts_only = predict_logits(model.concept_path(), data.test.x)
    assert values["test/auroc_macro_concepts_only"] == pytest.approx(float(auroc(concepts_only, data.test.y).mean()))


def test_the_penalty_of_a_label_is_chosen_on_its_own_validation_loss():
    data, bank = labelled(n=200, noise=0.8)
    model, _, _ = fitted(data, bank, "posthoc")
    y = data.val.y.clone()
    y[:, 1] = y[:, 1][torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    other, _, _ = fitted(replace(data, splits={**data.splits, "val": replace(data.val, y=y)}), bank, "posthoc")
    for label in (0, 2):
        torch.testing.assert_close(model.weights()[label], other.weights()[label])
    assert not torch.equal(model.weights()[1], other.weights()[1])
    assert int((other.weights()[1] != 0).sum()) < int((model.weights()[1] != 0).sum())  # nothing helps: sparse


# ---------------------------------------------------------------------------------------------- concepts with values

SPECS = [
    ConceptSpec("shape", "categorical", ["shape: round", "shape: square", "shape: flat"], ["round", "square", "flat"]),
    ConceptSpec("severity", "ordinal", ["severity"], ["none", "mild", "moderate", "severe"]),
    ConceptSpec("diameter", "continuous", ["diameter"], unit="mm"),
]
NAMES = ["shape: round", "shape: square", "shape: flat", "severity", "diameter", "hairy"]


def valued(n: int = 600, seed: int = 0, unknown: float = 0.1) -> tuple[FeatureData, dict[str, torch.Tensor]]:
    """Shape, severity, diameter and hair each along directions of the features; the class follows from them."""
    g = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(20, 20, generator=g)).Q
    splits, features, levels = {}, {}, {}
    for name in ("train", "val", "test"):
        shape = torch.randint(3, (n,), generator=g)
        severity, diameter = torch.randint(4, (n,), generator=g), torch.randn(n, generator=g)
        hairy = (torch.rand(n, generator=g) < 0.4).float()
        hidden = torch.cat(
            [torch.eye(3)[shape], (severity[:, None] - 1.5) * 0.6, 0.7 * diameter[:, None], hairy[:, None]], dim=1
        )
        x = hidden @ frame[:6] + 0.08 * torch.randn(n, 20, generator=g)
        features[name] = torch.nn.functional.normalize(torch.cat([x, torch.full((n, 1), 2.0)], dim=1), dim=1)
        concepts = torch.cat(
            [torch.eye(3)[shape], severity[:, None].float(), 12 + 5 * diameter[:, None], hairy[:, None]], dim=1
        )
        hide = torch.rand(n, 4, generator=g) < unknown
        concepts[hide[:, [0, 0, 0, 1, 2, 3]]] = math.nan
        levels[name] = severity
        y = ((shape == 0) | (severity >= 2)).long()
        splits[name] = Split([f"{i}" for i in range(n)], y.numpy(), concepts.numpy())
    images = ImageDataset("v", ["no", "yes"], splits, concept_names=NAMES, specs=SPECS,
                          concept_groups={"shape": NAMES[:3]})  # fmt: skip
    made = settled(images)
    data = FeatureData(
        {
            name: FeatureSplit(
                features[name],
                torch.from_numpy(split.labels),
                [f"{name} {i}" for i in range(n)],
                torch.from_numpy(split.concepts),
                values=torch.from_numpy(split.values),
            )
            for name, split in made.splits.items()
        },
        made.classes,
        concept_names=made.concept_names,
        concept_groups=made.concept_groups,
        specs=made.specs,
    )
    return data, levels


def valued_bank(data: FeatureData) -> ConceptBank:
    return ConceptBank("own", "own", tuple(map(Concept, [*data.concept_names, "diameter"])))


@pytest.mark.parametrize("training", ["sequential", "joint", "independent"])
def test_values_levels_and_numbers_are_learned(training: str):
    data, levels = valued()
    model, used, _ = fitted(data, valued_bank(data), "supervised", training=training, max_epochs=60)
    assert isinstance(model.activation, Valued)
    column = {text: k for k, text in enumerate(used.texts)}
    a = model.activations(data.test.x)
    shapes = a[:, [column[name] for name in NAMES[:3]]]
    torch.testing.assert_close(shapes.sum(dim=1), torch.ones(len(a)))
    known = ~data.test.concepts[:, 0].isnan()
    assert float((shapes.argmax(1) == data.test.concepts[:, :3].nan_to_num().argmax(1))[known].float().mean()) > 0.9
    steps = a[:, [column[f"severity: {word}"] for word in ("mild or more", "moderate or more", "severe")]]
    assert bool((steps[:, :-1] >= steps[:, 1:]).all())
    found, true = (steps > 0.5).sum(dim=1), levels["test"]
    weight = (torch.arange(4)[:, None] - torch.arange(4)).double().square()
    table = torch.zeros(4, 4).double().index_put_((true, found), torch.ones(len(true)).double(), accumulate=True)
    chance = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    kappa = 1 - float((weight * table).sum() / (weight * chance).sum())
    assert kappa >= 0.8
    number = used.concepts[column["diameter"]].provenance["number"]
    assert number["unit"] == "mm"
    in_mm = number["mean"] + number["sd"] * a[:, column["diameter"]]
    told = ~data.test.values[:, 0].isnan()
    error = (in_mm - data.test.values[:, 0])[told].square().mean()
    assert 1 - float(error / data.test.values[told, 0].var()) > 0.8
    assert float((model(data.test.x).argmax(1) == data.test.y).float().mean()) > 0.85


def test_labels_and_values_go_together():
    data, _ = valued(n=300)
    splits = {name: replace(s, y=torch.stack([s.y, 1 - s.y], 1).float()) for name, s in data.splits.items()}
    model, used, _ = fitted(replace(data, splits=splits), valued_bank(data), "supervised", max_epochs=40)
    assert isinstance(model.activation, Valued)
    assert float(auroc(model(data.test.x), splits["test"].y).min()) > 0.85
    assert evaluate_split(model, used, replace(data, splits=splits), "test")["test/concept_auroc"] > 0.9


def test_without_specs_supervised_is_what_it_was():
    """A set without specs has the plain mean over all known entries as its loss, and the same weights to the bit."""
    from labelled_pictures import planted

    data = planted(unknown=0.2)
    bank = ConceptBank("b", "b", tuple(map(Concept, data.concept_names)))
    found, _, _ = fitted(data, bank, "supervised", max_epochs=3, lr=0.01)

    torch.manual_seed(0)
    method = create_method({"name": "supervised", "max_epochs": 3, "lr": 0.01})
    model = TwoHeads(data.train.x, len(data.concept_names), 4)
    assert model.layout == ConceptLayout()

    def loss(model, x, y, concepts):
        logits = model.concept_logits(x)
        known = ~concepts.isnan()
        of_concepts = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], concepts[known])
        return torch.nn.functional.cross_entropy(model.head(logits.sigmoid().detach()), y) + of_concepts

    module = ConceptBottleneckModule(
        model, method.optimizer, loss, lambda model, x, y, concepts: (loss(model, x, y, concepts), model(x))
    )
    targets = {name: data.splits[name].concepts for name in ("train", "val")}
    fit(module, data, batch_size=512, targets=targets, patience=20, max_epochs=3, trainer=CPU)
    assert type(found.activation).__name__ == "Sigmoid"
    assert torch.equal(found.head.matrix, model.head.weight)
    assert torch.equal(found.concepts, model.concept.weight / model.std)


def test_numbers_alone_are_concepts_enough():
    """A set that labels nothing but numbers has concepts: its numbers."""
    data, _ = valued(n=200)
    splits = {name: replace(split, concepts=None) for name, split in data.splits.items()}
    data = replace(data, splits=splits, concept_names=[], concept_groups={}, specs=[SPECS[2]])
    bank = ConceptBank("own", "own", (Concept("diameter"),))
    model, used, _ = fitted(data, bank, "supervised", max_epochs=20)
    assert used.texts == ["diameter"]
    assert model.activation.number.tolist() == [True]


def test_a_number_that_never_differs_is_no_concept():
    data, _ = valued(n=60)
    flat = replace(data.train, values=torch.full_like(data.train.values, 3.0))
    with pytest.raises(UserError, match="'diameter' has no two different numbers"):
        fitted(replace(data, splits={**data.splits, "train": flat}), valued_bank(data), "supervised")


# --------------------------------------------------------------------------------- a column that is label and concept


def overlapping() -> tuple[FeatureData, ConceptBank]:
    """The labels with a concept column that is one of them ("tall"), which is by far the best concept for it."""
    data, bank = labelled(unknown=0.0)
    names = ["tall", *data.concept_names[:-1]]
    for split in data.splits.values():
        assert split.concepts is not None
        split.concepts = torch.cat([split.y[:, [1]], split.concepts[:, :-1]], dim=1)
    concepts = (replace(bank.concepts[0], text="tall", classes=()), *bank.concepts[:-1])
    axis = torch.nn.functional.normalize(torch.eye(data.dim)[1], dim=0)
    assert bank.embeddings is not None
    return replace(data, concept_names=names), replace(
        bank, concepts=concepts, embeddings=torch.cat([axis[None], bank.embeddings[:-1]])
    )


@pytest.mark.parametrize("name", ["posthoc", "label_free", "supervised"])
def test_a_label_is_not_told_by_its_own_column(name: str):
    data, bank = overlapping()
    unnamed = replace(data, concept_names=["high", *data.concept_names[1:]])
    with_it = None if name == "supervised" else fitted(unnamed, bank, name)[0]
    model, used, _ = fitted(data, bank, name)
    assert used is not None
    own = used.texts.index("tall")
    weights = model.weights()
    assert float(weights[1, own]) == 0
    assert int((weights[1] != 0).sum()) > 0
    if with_it is not None:  # the same column under a name that no label has is what that label would be told by
        assert float(with_it.weights()[1, own]) > 0
        torch.testing.assert_close(with_it.weights()[[0, 2]], weights[[0, 2]], rtol=1e-2, atol=0.1)
    else:
        assert bool((weights[[0, 2], own] != 0).all())
    heads = resolve_nec(model, used, data, [3])
    assert float(heads[0].weight[1, own]) == 0
    assert (heads[0].weight != 0).sum(dim=1).tolist() == [3, 3, 3]


def test_which_concepts_are_a_labels_own():
    data, bank = overlapping()
    specs = [ConceptSpec("old", "ordinal", ["old: middle or more", "old: much"], ["not", "middle", "much"])]
    texts = ("tall", "old: much", "old stone", "wet sign 0")
    few = replace(bank, concepts=tuple(map(Concept, texts)), embeddings=None)
    allowed = other_concepts(few, replace(data, specs=specs))
    assert allowed is not None
    assert (~allowed).nonzero().tolist() == [[1, 0], [2, 1]]
    one_class = {name: replace(split, y=split.y[:, 0].long()) for name, split in data.splits.items()}
    assert other_concepts(few, replace(data, splits=one_class)) is None
