from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cbm.errors import UserError
from cbm.layers import AssociationHead, ConceptBottleneck, LinearHead, LinearProbe, load_model, save_model

N, D, K, C = 20, 12, 30, 5


def make(head: str = "association", dtype=torch.float64) -> tuple[ConceptBottleneck, torch.Tensor]:
    torch.manual_seed(0)
    concepts, x = normalize(torch.randn(K, D), dim=1), normalize(torch.randn(N, D), dim=1)
    heads = {"association": AssociationHead(torch.randn(C, K)), "linear": LinearHead(torch.randn(C, K), torch.randn(C))}
    scores = x @ concepts.T
    model = ConceptBottleneck(concepts, heads[head], scale=13.0, reference=scores.mean(0), spread=scores.std(0))
    return model.to(dtype), x.to(dtype)


@pytest.mark.parametrize("head", ["association", "linear"])
def test_logits_against_loops(head: str):
    model, x = make(head)
    weight, bias = model.head.weight(), model.head.bias
    for i in range(3):
        for c in range(C):
            value = sum(13.0 * float(x[i] @ model.concepts[k]) * float(weight[c, k]) for k in range(K))
            assert float(model(x)[i, c]) == pytest.approx(value + (0 if bias is None else float(bias[c])), abs=1e-5)


@pytest.mark.parametrize("head", ["association", "linear"])
def test_contributions_sum_to_the_logit(head: str):
    model, x = make(head)
    for c in range(C):
        classes = torch.full((N,), c)
        total = model.base()[classes] + model.contributions(x, classes).sum(1)
        torch.testing.assert_close(total, model(x)[:, c])


@pytest.mark.parametrize("head", ["association", "linear"])
def test_linear_is_the_model(head: str):
    model, x = make(head)
    vectors, bias = model.linear()
    torch.testing.assert_close(x @ vectors.T + bias, model(x))


def test_a_concept_that_is_not_kept_is_held_at_its_reference():
    model, x = make("linear")
    keep = torch.rand(C, K) < 0.4
    vectors, bias = model.linear(keep.double())
    scores = model.scores(x)[:, None, :].expand(N, C, K)
    held = torch.where(keep, scores, model.reference)
    torch.testing.assert_close(x @ vectors.T + bias, (model.weights() * held).sum(2) + model.head.bias)


def test_nothing_kept_leaves_a_constant():
    model, x = make("linear")
    vectors, bias = model.linear(torch.zeros(C, K, dtype=torch.float64))
    assert not vectors.any()
    torch.testing.assert_close(bias, model.base())


@pytest.mark.parametrize("head", ["association", "linear"])
def test_save_and_load(head: str, tmp_path: Path):
    model, x = make(head, torch.float32)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(model(x), again(x))
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
