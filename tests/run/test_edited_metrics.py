"""The numbers of one evaluation are of one decision, also where a gate or edits of single images decide."""

import json
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from sklearn.metrics import balanced_accuracy_score, log_loss

import cbm
from cbm.editing import Edit, EditSet, Gate
from cbm.metrics import classification_metrics

CACHE = small()[1]
OF_LOGITS = ("accuracy", "accuracy_macro", "ece", "loss")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("edited")


@pytest.fixture
def run(command, place: Path) -> Path:
    if not (place / "one").is_dir():
        settings = [*small(), *QUICK, f"run_dir={place}/one", "report=false", "controls=false"]
        status, errors = command("train", *settings)
        assert status == 0, errors
    return place / "one"


def evaluated(command, run: Path, *arguments: str) -> dict[str, float]:
    status, errors = command("eval", f"run={run}", CACHE, *arguments, "output=out.json")
    assert status == 0, errors
    return json.loads(Path("out.json").read_text())


def by_hand(model: cbm.TrainedModel, split, decide) -> torch.Tensor:
    """Logits in float64, image by image: ``decide(name, x)`` gives the factor on each concept's distance from its mean,
    1 for a concept that is left alone."""
    bottleneck = model.model
    rows = []
    for name, x in zip(split.names, split.x):
        activation = bottleneck.concepts.double() @ x.double()
        reference = bottleneck.reference.double()
        kept = reference + decide(name, x) * (activation - reference)
        rows.append(bottleneck.weights().double() @ kept + bottleneck.biases().double())
    return torch.stack(rows)


@pytest.mark.parametrize("how", ["gate", "single images", "gate and single images"])
def test_all_numbers_are_of_the_decision(command, run: Path, how: str):
    model = cbm.load(run)
    split = model.split("test", cache=CACHE.removeprefix("cache="))
    texts = model.bank.texts
    masked, alone = texts[:40], texts[40:80]
    chosen = tuple(split.names[::3]) if "single" in how else ()
    edits = [Edit("mask", text, domain="birds") for text in masked]
    edits += [Edit("mask", text, samples=chosen) for text in alone] if chosen else []
    EditSet(tuple(edits)).save(Path("edits.yaml"))
    arguments = ["edits=edits.yaml"]
    gate = None
    if "gate" in how:
        direction = torch.randn(split.x.shape[1], generator=torch.Generator().manual_seed(0)).double()
        gate = Gate(direction, float((split.x.double() @ direction).sort().values[59:61].mean()), 0.05)
        gate.save(Path("gate.safetensors"))
        arguments.append("gate=gate.safetensors")
    found = evaluated(command, run, *arguments)

    def decide(name: str, x: torch.Tensor) -> torch.Tensor:
        factor = torch.ones(len(texts), dtype=torch.double)
        if gate is None or bool(gate(x[None])[0]):
            factor[:40] = 0.0
        if name in chosen:
            factor[40:80] = 0.0
        return factor

    logits = by_hand(model, split, decide)
    truth = split.y.numpy()
    assert found["test/accuracy"] == pytest.approx(float((logits.argmax(1) == split.y).double().mean()), abs=1e-9)
    assert found["test/accuracy"] == found["edits/accuracy_after"] != found["edits/accuracy_before"]
    assert found["test/accuracy_macro"] == pytest.approx(balanced_accuracy_score(truth, logits.argmax(1)), abs=1e-6)
    assert found["test/loss"] == pytest.approx(log_loss(truth, logits.softmax(1).numpy()), abs=1e-4)
    assert found["test/ece"] == pytest.approx(classification_metrics(logits.float(), split.y)["ece"], abs=1e-4)
    spans = {f"{key}_{end}" for key in ("accuracy", "accuracy_macro", "ece") for end in ("low", "high")}
    expected = {f"test/{key}" for key in (*OF_LOGITS, *spans, "ece_debiased")}
    assert {key for key in found if key.startswith("test/")} == expected
    for key in ("accuracy", "accuracy_macro"):
        assert found[f"test/{key}_low"] < found[f"test/{key}"] < found[f"test/{key}_high"]


def test_edits_of_all_images_are_one_model_and_keep_its_numbers(command, run: Path):
    texts = cbm.load(run).bank.texts
    EditSet(tuple(Edit("remove", text) for text in texts[:40])).save(Path("edits.yaml"))
    found, plain = evaluated(command, run, "edits=edits.yaml"), evaluated(command, run)
    assert found["test/accuracy"] == found["edits/accuracy_after"]
    assert found["test/nec"] < plain["test/nec"]
    assert {"test/accuracy_nec5", "test/concept_accuracy", "test/image_l0"} <= found.keys()
