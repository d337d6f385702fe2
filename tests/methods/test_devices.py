"""Training steps and predictions of every trained method on a GPU that is not there: nothing is left on the CPU."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import detected_pictures
import labelled_pictures
import planted
import pytest
import torch
from pretended_cuda import OnGpu, pretended_cuda
from torch.nn.functional import normalize

from cbm import training
from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.prepare import class_name_bank
from cbm.methods import METHODS, create_method
from cbm.methods import fit as fit_module
from cbm.training.batches import Batches, TrainingBatches

LABELLED = {"embedding", "energy", "stochastic", "supervised"}
SETTINGS = [
    {"name": "labo"}, {"name": "labo", "fidelity": "paper"}, {"name": "v2c"}, {"name": "posthoc", "residual": True},
    *({"name": "sparse", "objective": objective} for objective in ("l1", "contrastive", "gumbel")), {"name": "energy"},
    {"name": "energy", "fidelity": "released"}, {"name": "supervised"}, {"name": "stochastic"}, {"name": "embedding"},
    {"name": "stochastic", "covariance": "global", "precision_weight": 1.0},
    {"name": "stochastic", "covariance": "amortised"},
    {"name": "embedding", "kind": "cem", "randint_per": "batch", "shared_scorer": False, "prior_weight": 1.0},
    {"name": "embedding", "policy_weight": 1.0},
    *({"name": "discovered", "dictionary": kind, "size": 20} for kind in ("topk", "relu", "jumprelu", "batch_topk")),
    {"name": "discovered", "dictionary": "archetypal", "size": 20}, {"name": "discovered", "dead": "resample"},
    {"name": "discovered", "dictionary": "matryoshka", "size": 20},
]  # fmt: skip
UNTRAINED = [
    {"name": "grounded"},
    *({"name": name} for name in ("cms", "linear_probe", "posthoc", "label_free", "zero_shot", "splice")),
    {"name": "splice", "k": 3, "head": "names"}, {"name": "splice", "head": "none"},
    {"name": "posthoc", "head": "names"}, {"name": "discovered", "dictionary": "kmeans", "size": 20},
    {"name": "discovered", "dictionary": "random", "size": 20},
]  # fmt: skip
GENERATOR = torch.Generator().manual_seed(0)


def three_steps_on_a_gpu(module, data, *, batch_size=None, targets=None, **_):
    """What Lightning would do on a GPU: the model there, every batch sent there, a validation at the end."""
    batches = TrainingBatches(data, batch_size, targets or {})
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    batches.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    with pretended_cuda(), mock.patch.object(torch.cuda, "mem_get_info", return_value=(2**30, 2**31)):
        module.model.to("cuda")
        optimizer = module.configure_optimizers()
        for _, batch in zip(range(3), batches.train_dataloader()):
            assert all(isinstance(tensor, OnGpu) for tensor in batch)  # made there
            optimizer.zero_grad()
            loss = module._loss(module.model, *batch)
            loss.backward()
            optimizer.step()
            assert isinstance(loss, OnGpu)
            assert loss.isfinite().all()
        for batch in batches.val_dataloader():
            loss, logits = module._validate(module.model, *(tensor.to("cuda") for tensor in batch))
            assert logits is None or isinstance(logits, OnGpu)  # a dictionary has none
        trained = [p for p in module.model.parameters() if p.requires_grad]
        assert trained
        assert all(isinstance(p, OnGpu) for p in trained)
        module.model.cpu()


def fitted(settings, tmp_path):
    if settings["name"] in LABELLED:
        data = labelled_pictures.planted()
        bank = ConceptBank("planted", "planted", tuple(map(Concept, labelled_pictures.NAMES)))
    else:
        data, bank = planted.planted()
        names = normalize(torch.rand(planted.CLASSES, planted.DIM, generator=GENERATOR) + 0.1, dim=1)
        data = replace(data, encoder="backbone", class_embeddings=names)
        bank = replace(bank, encoder="backbone")
        if settings["name"] == "zero_shot":
            bank = class_name_bank(data.classes, "a {}", lambda texts: names, "backbone")
    if settings["name"] == "grounded":
        data, bank = detected_pictures.detected()
        file = detected_pictures.write_table(tmp_path / "detections.csv", gated=False, asked=False)
        settings = settings | {"detections": str(file)}
    method = create_method(settings)
    with mock.patch.object(training, "fit", three_steps_on_a_gpu):
        return fit_module.fit_method(method, data, bank, 100.0)[0], data


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_trained_methods(settings, tmp_path):
    model, data = fitted(settings, tmp_path)
    assert not any(isinstance(tensor, OnGpu) for tensor in model.state_dict().values())
    predicted_on_a_gpu(model, data)


@pytest.mark.parametrize("settings", UNTRAINED, ids=lambda s: "-".join(map(str, s.values())))
def test_untrained_methods(settings, tmp_path):
    predicted_on_a_gpu(*fitted(settings, tmp_path))


def predicted_on_a_gpu(model, data):
    x = data.test.x[:40]
    expected = model(x)
    with pretended_cuda():
        logits = model.to("cuda")(x.to("cuda"))
        assert isinstance(logits, OnGpu)
        torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_every_method_is_here():
    assert {s["name"] for s in SETTINGS + UNTRAINED} == set(METHODS)


def test_a_split_that_does_not_fit_is_sent_batch_by_batch():
    data, _ = planted.planted()
    for free, there in ((2**20, OnGpu), (2**10, torch.Tensor)):
        with pretended_cuda(), mock.patch.object(torch.cuda, "mem_get_info", return_value=(free, 2**31)):
            batches = Batches(data.train, 64, shuffle=True, device=torch.device("cuda"))
            assert all(type(tensor) is there for batch in batches for tensor in batch)
