from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cbm.errors import UserError
from cbm.layers import (
    AssociationHead,
    ConceptBottleneck,
    Cube,
    Largest,
    LinearHead,
    LinearProbe,
    TopK,
    load_model,
    save_model,
)

N, D, K, C = 20, 12, 30, 5


def make(kind: str = "association", dtype=torch.float64) -> tuple[ConceptBottleneck, torch.Tensor]:
    torch.manual_seed(0)
    concepts, x = normalize(torch.randn(K, D), dim=1), normalize(torch.randn(N, D), dim=1)
    head = (
        AssociationHead(torch.randn(C, K)) if kind == "association" else LinearHead(torch.randn(C, K), torch.randn(C))
    )
    offset = 0.1 * torch.randn(K)
    activation = {"topk": TopK(offset, 3), "largest": Largest(offset), "cube": Cube(offset)}.get(kind)
    model = ConceptBottleneck(concepts, head, scale=13.0, activation=activation).calibrate(x)
    return model.to(dtype), x.to(dtype)


KINDS = ["association", "linear", "topk", "largest", "cube"]


def activated(model: ConceptBottleneck, x: torch.Tensor, kind: str) -> list[float]:
    """The activations of one picture, one number at a time."""
    scores = [sum(float(a) * float(b) for a, b in zip(x, row)) for row in model.concepts]
    if model.activation is None:
        return scores
    scores = [score - float(offset) for score, offset in zip(scores, model.activation.offset)]
    best = sorted(range(K), key=lambda k: -scores[k])
    if kind == "topk":
        return [score if k in best[:3] else 0.0 for k, score in enumerate(scores)]
    if kind == "largest":
        return [float(k == best[0]) for k in range(K)]
    return [score**3 for score in scores]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_against_loops(kind: str):
    model, x = make(kind)
    weight, bias = model.head.weight(), model.head.bias
    for i in range(3):
        values = activated(model, x[i], kind)
        for c in range(C):
            value = sum(13.0 * values[k] * float(weight[c, k]) for k in range(K))
            assert float(model(x)[i, c]) == pytest.approx(value + (0 if bias is None else float(bias[c])), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_sum_to_the_logit(kind: str):
    model, x = make(kind)
    for c in range(C):
        classes = torch.full((N,), c)
        total = model.base()[classes] + model.contributions(x, classes).sum(1)
        torch.testing.assert_close(total, model(x)[:, c])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_many_pictures_are_the_model(kind: str, monkeypatch: pytest.MonkeyPatch):
    model, x = make(kind)
    torch.testing.assert_close(model.logits(x), model(x))
    torch.testing.assert_close(model.logits(x, model.weights()), model(x))
    monkeypatch.setattr("cbm.layers.bottleneck.ACTIVATIONS_AT_ONCE", 3 * K)
    torch.testing.assert_close(model.logits(x), model(x))
    again = ConceptBottleneck(model.concepts, model.head, activation=model.activation).calibrate(x)
    torch.testing.assert_close(again.spread.float(), model.spread.float())
    model.residual = LinearProbe(torch.randn(C, D), torch.randn(C)).double()
    torch.testing.assert_close(model.logits(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_calibration(kind: str):
    model, x = make(kind)
    values = model.activations(x)
    rests = kind in ("topk", "largest")
    expected = torch.zeros_like(model.reference) if rests else values.mean(0)
    torch.testing.assert_close(model.reference, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.spread, values.std(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_concept_without_weight_is_held_at_its_reference(kind: str):
    model, x = make(kind)
    keep = torch.rand(C, K) < 0.4
    values = model.activations(x)[:, None, :].expand(N, C, K)
    held = torch.where(keep, values, model.reference)
    bias = 0.0 if model.head.bias is None else model.head.bias
    torch.testing.assert_close(model.logits(x, model.weights() * keep), (model.weights() * held).sum(2) + bias)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_kept_leaves_a_constant(kind: str):
    model, x = make(kind)
    torch.testing.assert_close(model.logits(x, torch.zeros_like(model.weights())), model.base().expand(N, C))


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, tmp_path: Path):
    model, x = make(kind, torch.float32)
    model.mixing = torch.randn(K, K)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(model(x), again(x))
    assert torch.equal(model.mixing, again.mixing)
    assert type(again.activation) is type(model.activation)
    assert not any(p.requires_grad for p in again.parameters())


def test_save_and_load_a_probe(tmp_path: Path):
    probe = LinearProbe(torch.randn(C, D), torch.randn(C))
    save_model(probe, tmp_path / "m.safetensors")
    x = torch.randn(3, D)
    assert torch.equal(probe(x), load_model(tmp_path / "m.safetensors")(x))


def test_files_that_are_no_model(tmp_path: Path):
    with pytest.raises(UserError, match="is the run finished"):
        load_model(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04evil")
    with pytest.raises(UserError, match="is damaged or was not written by cbm"):
        load_model(tmp_path / "model.safetensors")
