"""Sparse bottlenecks: concepts that were planted are found, and every objective does what is written about it."""

import copy
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from planted import planted
from torch import Tensor
from torch.nn import functional as F

import cbm.methods.sparse
from cbm.concepts import ConceptBank, merge_duplicates
from cbm.data import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.kernels import gumbel_noise
from cbm.layers import ConceptBottleneck, load_model, save_model
from cbm.losses import anchored_contrastive_loss, contrastive_loss, gumbel_nll, similarity_loss
from cbm.methods import Built, Method, create_method
from cbm.methods.sparse import OBJECTIVES, SparseBottleneck
from cbm.metrics import ConceptAlignment, ImageSparsity
from cbm.training import ConceptBottleneckModule, fit

TRAINER = {"accelerator": "cpu", "devices": 1}
SCALE = 100.0
EVERY = [(objective, fidelity) for objective in OBJECTIVES for fidelity in ("repaired", "paper", "released")]


def build(data: FeatureData, bank: ConceptBank, seed: int = 0, **settings) -> tuple[Method, SparseBottleneck]:
    seed_everything(seed, verbose=False)
    method = create_method({"name": "sparse", **settings})
    model = method.build(data, bank, SCALE).model
    assert isinstance(model, SparseBottleneck)
    return method, model


def train(
    data: FeatureData, bank: ConceptBank, **settings
) -> tuple[Method, SparseBottleneck, ConceptBottleneck, SparseBottleneck]:
    """Method, the trained module, what is made of it, and the module as it was before that."""
    method, model = build(data, bank, **settings)
    fit(
        ConceptBottleneckModule(model, method.optimizer, method.loss), data, batch_size=method.config.batch_size,
        patience=method.config.patience,
        max_epochs=method.config.max_epochs, trainer=TRAINER,
    )  # fmt: skip
    before = copy.deepcopy(model.eval().requires_grad_(False))
    finished = method.finish(Built(model, bank), data)
    assert isinstance(finished, ConceptBottleneck)
    return method, model, finished, before


# -------------------------------------------------------------------------------------------------------- planted truth


CLASSES, CONCEPTS, RELEVANT, DIM = 8, 40, 14, 64


def planted_triples(seed: int) -> tuple[FeatureData, ConceptBank, Tensor]:
    """Every class is three of 14 concepts (two classes share one at most); every picture shows these and, just as
    strongly, three of the 26 others. Also which concepts are the classes' ``[C, K]``."""
    g = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(CONCEPTS, DIM, generator=g), dim=1)
    own: list[Tensor] = []
    while len(own) < CLASSES:
        triple = torch.zeros(CONCEPTS).index_fill_(0, torch.randperm(RELEVANT, generator=g)[:3], 1.0)
        if all(float(triple @ other) <= 1 for other in own):
            own.append(triple)
    truth = torch.stack(own)
    splits = {}
    for name, n in (("train", 800), ("val", 400), ("test", 400)):
        y = torch.arange(n) % CLASSES
        others = RELEVANT + torch.rand(n, CONCEPTS - RELEVANT, generator=g).argsort(1)[:, :3]
        shown = truth[y].scatter(1, others, 1.0)
        x = shown @ directions + 0.3 * torch.randn(n, DIM, generator=g) / DIM**0.5
        splits[name] = FeatureSplit(F.normalize(x, dim=1), y, [f"{name}{i}" for i in range(n)])
    phrases = [(f"phrase {k}", (), None) for k in range(CONCEPTS)]
    bank = replace(merge_duplicates("b", "b", phrases), embeddings=directions)
    return FeatureData(splits, [f"class {c}" for c in range(CLASSES)]), bank, truth.bool()


def found(seed: int, **settings) -> dict[str, float]:
    """Accuracy, share of the kept concepts that are the ones of the picture's class, and alignment."""
    data, bank, truth = planted_triples(seed)
    model = train(data, bank, k=3, max_epochs=100, **settings)[2]
    x, y = data.test.x, data.test.y
    kept = model.activations(x) != 0
    assert (kept.sum(1) == 3).all()
    alignment = ConceptAlignment(model.concepts, bank.directions())
    alignment.update(x)
    return {
        "accuracy": float((model(x).argmax(1) == y).float().mean()),
        "recovery": float((kept & truth[y]).sum() / kept.sum()),
        **{key: float(value) for key, value in alignment.compute().items()},
    }


def test_the_gate_learns_to_keep_the_planted_concepts():
    """With the default settings, on average over four draws of the concepts (0.89 to 0.94 each)."""
    runs = [found(seed) for seed in (2, 3, 4, 5)]
    assert all(values["accuracy"] >= 0.95 for values in runs)
    assert all(values["self_rank"] >= 0.9 for values in runs)
    assert sum(values["recovery"] for values in runs) / len(runs) >= 0.9
    unlearned = found(2, objective="none", mixing="identity")
    assert unlearned["recovery"] <= 0.6  # strongest is not what matters: distractors are shown just as strongly
    assert unlearned["accuracy"] <= runs[0]["accuracy"] - 0.05


def test_the_released_gumbel_objective_spreads_the_outputs():
    """It is smallest for a uniform softmax(z), so in that many more concepts take part than with the cross-entropy
    alone. (In z itself not always: participation does not see how large z is, only its shape.)"""
    data, bank, _ = planted_triples(0)
    participation = {}
    for objective in ("gumbel", "none"):
        _, model, _, _ = train(data, bank, objective=objective, fidelity="released", max_epochs=10)
        z = model.mix(model.scores(data.test.x))
        sparsity = ImageSparsity()
        sparsity.update(z.softmax(dim=1))
        participation[objective] = float(sparsity.compute()["participation"])
    assert participation["gumbel"] >= 1.5 * participation["none"]


# ------------------------------------------------------------------------------------------------- what it trains into


def reference_logits(model: SparseBottleneck, x: Tensor) -> Tensor:
    """Logits ``[N, C]`` in float64, from the definition."""
    s = x.double() @ model.concepts.double().T - model.offset.double()
    z = s if model.mixing is None else s @ model.mixing.detach().double().T
    if model.k is not None:
        z = torch.where(z >= z.topk(model.k, dim=1).values[:, -1:], z, 0.0)
    head = model.head.detach().double()
    if model.unit_votes:
        head = head / head.norm(dim=0)
    return z @ head.T + model.bias.detach().double()


COMBINATIONS = [
    {"objective": objective, "fidelity": fidelity, "k": k}
    for objective, fidelity in EVERY
    for k in ("all", 4)
    if (objective, fidelity, k) != ("gumbel", "repaired", "all")
] + [
    {"objective": "none", "fidelity": fidelity, "mixing": mixing, "k": k}
    for fidelity, mixing, k in [
        ("repaired", "identity", 4), ("repaired", "random", 4), ("released", "identity", "all"),
        ("paper", "random", "all"),
    ]
]  # fmt: skip


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_combination_trains_and_keeps_its_logits(settings: dict, tmp_path: Path):
    data, bank = planted()
    method, model, finished, before = train(data, bank, max_epochs=3, batch_size=64, **settings)
    x = data.test.x
    solved = settings["objective"] == "l1" and settings["fidelity"] == "repaired" and settings["k"] == "all"
    logits = model(x)
    assert logits.isfinite().all()
    tolerance = 1e-4 * float(logits.abs().max())
    torch.testing.assert_close(logits.double(), reference_logits(model, x), rtol=0, atol=tolerance)
    torch.testing.assert_close(finished(x), logits, rtol=0, atol=tolerance)
    torch.testing.assert_close(finished.logits(x), logits, rtol=0, atol=tolerance)
    assert torch.allclose(before(x), logits, rtol=0, atol=tolerance) != solved  # l1 solves its layer again

    activations = finished.activations(x)
    if settings["k"] != "all":
        assert ((activations != 0).sum(1) == settings["k"]).all()
    elif not solved:  # a row of zeros in W makes a concept that is never active
        assert (activations != 0).all()
    save_model(finished, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert isinstance(loaded, ConceptBottleneck)
    assert torch.equal(loaded(x), finished(x))
    assert torch.equal(loaded.activations(x), activations)
    if settings.get("mixing") == "identity":
        assert finished.mixing is None
        assert loaded.mixing is None
    else:
        assert finished.mixing is not None
        assert loaded.mixing is not None
        assert torch.equal(loaded.mixing, finished.mixing)

    if settings["objective"] == "l1":
        assert finished.mixing is not None
        assert bool((finished.mixing == 0).any()) == (settings["fidelity"] == "repaired")
    assert ("l1_kkt" in method.facts) == solved
    assert method.facts.get("l1_kkt", 0.0) <= 1e-3


def test_frozen_layers_stay_as_they_are():
    data, bank = planted()
    for mixing in ("identity", "random"):
        _, start = build(data, bank, objective="none", mixing=mixing)
        _, end, _, _ = train(data, bank, objective="none", mixing=mixing, max_epochs=2)
        assert not torch.equal(start.head, end.head)
        if mixing == "random":
            assert start.mixing is not None
            assert end.mixing is not None
            assert torch.equal(start.mixing, end.mixing)


# --------------------------------------------------------------------------------------------------------- the training


def batch(data: FeatureData, rows: int) -> tuple[Tensor, Tensor]:
    return data.train.x[:rows], data.train.y[:rows]


@pytest.mark.parametrize(("objective", "fidelity"), EVERY)
def test_one_step_moves_the_layer_and_the_head_only(objective: str, fidelity: str):
    data, bank = planted()
    method, model = build(data, bank, objective=objective, fidelity=fidelity)
    if fidelity == "repaired":  # the head starts at zero, where the cross-entropy says nothing about W
        model.head.data.uniform_(-0.1, 0.1)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = method.optimizer(model)
    method.loss(model, *batch(data, 64)).backward()
    optimizer.step()
    end = model.state_dict()
    assert not torch.equal(end["mixing"], start["mixing"])
    assert not torch.equal(end["head"], start["head"])
    assert not torch.equal(end["bias"], start["bias"])
    assert torch.equal(end["concepts"], start["concepts"])
    assert torch.equal(end["offset"], start["offset"])
    assert int(end["steps"]) == 1


def objective_alone(method: Method, model: SparseBottleneck, x: Tensor, step: int = 0) -> Tensor | None:
    """Gradient of the objective for W ``[K, K]``, by the public losses; None where there is none."""
    settings, mixing = method.config, model.mixing
    assert mixing is not None
    weight = mixing.detach().clone().requires_grad_()
    s = x @ model.concepts.T - model.offset
    z = s @ weight.T
    repaired, released = settings.fidelity == "repaired", settings.fidelity == "released"
    if settings.objective == "similarity" or (settings.objective == "gumbel" and repaired):
        value = similarity_loss(z, s)
    elif settings.objective == "gumbel":
        value = gumbel_nll(z, seed=model.seed + step, pairing="all" if released else "diagonal")
    elif settings.objective == "contrastive" and repaired:
        value = anchored_contrastive_loss(z, s)
    elif settings.objective == "contrastive":
        value = contrastive_loss(z, block="rectangle" if released else "square")
    elif settings.objective == "l1" and not repaired:
        value = 1e-3 / len(weight) * weight.abs().sum()
    else:
        return None
    return torch.autograd.grad(value, weight)[0]


@pytest.mark.parametrize(("objective", "fidelity"), EVERY)
def test_without_the_cross_entropy_the_layer_follows_the_objective_alone(objective: str, fidelity: str):
    data, bank = planted()
    x, y = batch(data, 64)
    gradients = {}
    for ce in (True, False):
        method, model = build(data, bank, objective=objective, fidelity=fidelity, ce_to_mixing=ce, weight=0.5)
        model.head.data.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(5))
        method.loss(model, x, y).backward()
        assert model.mixing is not None
        assert model.head.grad is not None
        gradients[ce] = model.mixing.grad
        alone = objective_alone(method, model, x)
    if alone is None:
        assert gradients[False] is None
    else:
        torch.testing.assert_close(gradients[False], 0.5 * alone, rtol=1e-4, atol=1e-7)
    both, without = gradients[True], gradients[False]
    assert both is not None
    assert without is None or not torch.allclose(both, without, rtol=1e-3)


@pytest.mark.parametrize(("objective", "fidelity"), EVERY)
def test_a_batch_of_one(objective: str, fidelity: str):
    data, bank = planted()
    method, model = build(data, bank, objective=objective, fidelity=fidelity)
    optimizer = method.optimizer(model)
    for row in range(3):
        optimizer.zero_grad()
        loss = method.loss(model, data.train.x[row : row + 1], data.train.y[row : row + 1])
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("settings", [{}, {"objective": "none"}, {"objective": "gumbel", "fidelity": "paper"}])
def test_seeds_repeat_and_pictures_do_not_depend_on_each_other(settings: dict):
    data, bank = planted()
    first, again, other = (
        train(data, bank, seed=seed, max_epochs=3, batch_size=64, **settings)[2] for seed in (0, 0, 1)
    )
    x = data.test.x[:50]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))
    if settings != {"objective": "none"}:  # the repaired fidelity starts at W = 1, H = 0: only noise has a seed
        assert not torch.equal(first(x), other(x))
    assert torch.equal(first(x), first(x))
    alone = torch.cat([first(row[None]) for row in x])
    torch.testing.assert_close(first(x), alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


class StopAt(Callback):
    """Dies like a killed process."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.global_step == 57:
            raise SystemError("killed")


@pytest.mark.parametrize(
    "settings",
    [
        {"tau_decay": 0.02},  # falls to 0.37 within the training
        {"objective": "gumbel", "fidelity": "paper"},
        {"objective": "l1"},  # the proximal optimizer
    ],
    ids=["gate", "paper", "l1"],
)
def test_an_interrupted_training_goes_on_with_its_noise(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(checkpoint: Path | None = None) -> ConceptBottleneckModule:
        data, bank = planted()
        method, model = build(data, bank, lr=0.01, batch_size=64, **settings)
        module = ConceptBottleneckModule(model, method.optimizer, method.loss)
        fit(
            module, data, batch_size=64, patience=1000, max_epochs=8, trainer=TRAINER, checkpoint=checkpoint,
            checkpoint_seconds=0,
        )  # fmt: skip
        return module

    whole = start()
    original = lightning.Trainer.__init__

    def with_a_kill(self, *args, callbacks, **kwargs):
        original(self, *args, callbacks=[*callbacks, StopAt()], **kwargs)

    path = tmp_path / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(lightning.Trainer, "__init__", with_a_kill)
        with pytest.raises(SystemError):
            start(path)
    assert path.is_file()
    resumed = start(path)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in whole.history]
    for a, b in zip(whole.history, resumed.history):
        assert a == pytest.approx(b, abs=1e-5)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor)


def test_the_temperature_falls_and_the_noise_is_new_in_every_step(monkeypatch: pytest.MonkeyPatch):
    seen = []
    original = cbm.methods.sparse.gumbel_topk_gate

    def spy(z: Tensor, k: int, tau: float, *, seed: int) -> Tensor:
        seen.append((tau, seed))
        return original(z, k, tau, seed=seed)

    monkeypatch.setattr(cbm.methods.sparse, "gumbel_topk_gate", spy)
    data, bank = planted()
    method, model = build(data, bank, tau=2.0, tau_decay=0.5, tau_min=0.3)
    for _ in range(6):
        method.loss(model, *batch(data, 8))
    expected = [max(0.3, 2.0 * 2.718281828 ** (-0.5 * step)) for step in range(6)]
    assert [tau for tau, _ in seen] == pytest.approx(expected)
    assert len({seed for _, seed in seen}) == 6
    seen.clear()
    model(data.test.x)
    assert not seen  # nothing is drawn after training


# --------------------------------------------------------------------------------------------------------- the formulas


def reference_objective(objective: str, fidelity: str, z: Tensor, s: Tensor, seed: int) -> Tensor:
    """The objectives but for l1, from their formulas in float64."""
    m = min(z.shape)
    if objective == "similarity" or (objective, fidelity) == ("gumbel", "repaired"):
        return -torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(z.T, s.T)]).mean()
    if objective == "gumbel":
        part = z if fidelity == "released" else z[:m, :m]
        g1, g0 = (gumbel_noise(len(part), part.shape[1], seed, stream=i, dtype=torch.float64) for i in (0, 1))
        log_1, log_0 = (part + g1).log_softmax(1), (part + g0).log_softmax(0)
        if fidelity == "released":
            return -(log_1 + log_0).mean() / 2
        return -(log_1.diagonal() + log_0.diagonal()).mean() / 2
    if objective == "contrastive" and fidelity == "repaired":
        centred, terms = s - s.mean(0), []
        for scores, outputs in ((centred, z), (centred.T, z.T)):
            for row, output in zip(scores, outputs):
                top = row.topk(8).indices
                terms.append(-(row[top].softmax(0) * output.log_softmax(0)[top]).sum() / len(scores))
        return torch.stack(terms).sum() / 2
    if objective == "contrastive":
        block = z if fidelity == "released" else z[:m, :m]
        return -(block.log_softmax(1).diagonal()[:m] + block.log_softmax(0).diagonal()[:m]).mean() / 2
    return torch.zeros((), dtype=z.dtype)


@pytest.mark.parametrize(("objective", "fidelity"), EVERY)
@pytest.mark.parametrize("rows", [24, 64])  # fewer pictures and more pictures than the 40 concepts
def test_the_loss_is_the_formula(objective: str, fidelity: str, rows: int):
    data, bank = planted()
    method, model = build(data, bank, objective=objective, fidelity=fidelity, weight=0.7)
    model.requires_grad_(False)
    assert model.mixing is not None
    g = torch.Generator().manual_seed(1)
    for weight, size in ((model.mixing, 0.1), (model.head, 0.2), (model.bias, 0.2)):
        weight.add_(size * torch.randn(weight.shape, generator=g))
    x, y = batch(data, rows)
    for step in range(2):
        q, w = bank.directions().double(), model.mixing.double()
        s = x.double() @ q.T * SCALE
        if fidelity == "repaired":
            train_scores = data.train.x.double() @ q.T
            s = (x.double() @ q.T - train_scores.mean(0)) / train_scores.std(0)
        z = s @ w.T
        read, head = z, model.head.double()
        if (objective, fidelity) == ("gumbel", "repaired"):
            keys = z + gumbel_noise(rows, len(bank), model.seed + step, dtype=torch.float64)
            read = torch.zeros_like(z).scatter(1, keys.topk(5, dim=1).indices, 1.0) * z
        if (objective, fidelity) == ("l1", "repaired"):
            head = head / head.norm(dim=0)
        log_p = (read @ head.T + model.bias.double()).log_softmax(1)
        expected = -log_p[torch.arange(rows), y].mean()
        if objective == "l1" and fidelity != "repaired":
            expected = expected + 0.7 * 1e-3 / len(w) * w.abs().sum()
        else:
            expected = expected + 0.7 * reference_objective(objective, fidelity, z, s, model.seed + step)
        assert float(method.loss(model, x, y)) == pytest.approx(float(expected), rel=2e-5, abs=2e-5)


# --------------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "gumble"}, "method.objective=gumble: did you mean 'gumbel'"),
        ({"fidelity": "papper"}, "method.fidelity=papper: did you mean 'paper'"),
        ({"mixing": "lerned"}, "method.mixing=lerned: did you mean 'learned'"),
        ({"mixing": "random"}, "method.mixing=random is not trained.*say method.objective=none"),
        ({"mixing": "identity", "objective": "l1"}, "method.mixing=identity is not trained.*method.objective=l1"),
        ({"k": 0}, "method.k=0: expected a number of concepts per picture, 1 or more, or 'all'"),
        ({"k": 2.5}, "method.k=2.5: expected"),
        ({"k": "some"}, "method.k=some: expected"),
        ({"k": "all"}, "method.k=all: the repaired gumbel objective chooses.*say method.k=5"),
        ({"weight": -1.0}, "method.weight=-1.0: expected 0 or more"),
        ({"tau": 0.0}, "method.tau=0.0: expected a number > 0"),
        ({"tau_min": 0.0}, "method.tau_min=0.0: expected a number > 0"),
        ({"tau_decay": -0.1}, "method.tau_decay=-0.1: expected 0 or more"),
        ({"top": 0}, "method.top=0: expected 1 or more"),
        ({"power": 2}, "method.power=2: expected 1 or 3"),
        ({"lam": 0.0}, "method.lam=0.0: expected a number > 0, or null"),
        ({"lr": 0.0}, "method.lr=0.0: expected a number > 0"),
        ({"lr": "fast"}, "method.lr: .*fast"),
        ({"objectve": "l1"}, "unknown setting 'method.objectve' of 'sparse': did you mean 'objective'"),
    ],
)
def test_settings_are_checked(settings: dict, message: str):
    with pytest.raises(UserError, match=message) as raised:
        create_method({"name": "sparse", **settings})
    assert "\n" not in str(raised.value)


def test_settings_are_checked_against_the_bank(monkeypatch: pytest.MonkeyPatch):
    data, bank = planted()
    with pytest.raises(UserError, match="method.k=1000: bank 'b' has 40 concepts"):
        build(data, bank, k=1000)
    build(data, bank, k=40)
    monkeypatch.setattr(cbm.methods.sparse, "LARGEST", 39)
    with pytest.raises(UserError, match="a layer of 40 x 40 weights.*at most 39 concepts, or method.mixing=identity"):
        build(data, bank)
    build(data, bank, mixing="identity", objective="none")
