"""Codes of a dictionary's units: against loops over pictures and units, alone and in a batch, saved and loaded."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cbm.layers import ConceptBottleneck, LinearHead, UnitCode, load_model, save_model

K, D, N = 12, 8, 40


def unit_code(k: int, threshold=None, seed: int = 0) -> tuple[UnitCode, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    offset, mean, atoms = 0.1 * torch.randn(K, generator=g), torch.randn(D, generator=g), torch.randn(K, D, generator=g)
    x = normalize(torch.randn(N, D, generator=g), dim=1)
    return UnitCode(offset, mean, torch.ones(K), atoms, k, threshold), torch.randn(K, D, generator=g), x


def slow(layer: UnitCode, concepts: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Unit by unit, in float64."""
    codes = torch.zeros(len(x), K, dtype=torch.float64)
    for n, picture in enumerate(x.double()):
        scores = [float(picture @ row) - float(o) for row, o in zip(concepts.double(), layer.offset.double())]
        best = sorted(range(K), key=lambda i: (-scores[i], i))[: int(layer.k) or K]
        for i in best:
            codes[n, i] = scores[i] if scores[i] > float(layer.threshold[i]) else 0.0
    return codes


@pytest.mark.parametrize(
    ("k", "threshold"), [(3, None), (0, None), (0, torch.linspace(0, 2, K)), (K, None), (20, None)]
)
def test_a_code_is_what_it_says(k, threshold):
    layer, concepts, x = unit_code(k, threshold)
    expected = slow(layer, concepts, x).float()
    found = layer.code(x, concepts)
    torch.testing.assert_close(found.dense(K), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(x @ concepts.T), expected, atol=1e-5, rtol=1e-4)
    assert (found.values > 0).equal(found.columns >= 0)
    assert (expected >= 0).all()  # the k strongest, but never a negative one
    weights, bias = torch.randn(5, K), torch.randn(5)
    logits = layer.logits(x, concepts, weights, bias)
    torch.testing.assert_close(logits, expected @ weights.T + bias, atol=1e-4, rtol=1e-4)
    alone = torch.cat([layer.code(part, concepts).dense(K) for part in x.split(1)])
    torch.testing.assert_close(alone, found.dense(K), atol=1e-6, rtol=1e-5)


def test_no_unit_that_fires():
    layer, concepts, x = unit_code(0, torch.full((K,), 1e3))
    assert layer.code(x, concepts).dense(K).abs().max() == 0
    assert layer.logits(x, concepts, torch.ones(2, K), torch.tensor([1.0, 2.0]))[0].tolist() == [1.0, 2.0]


def test_units_can_be_taken():
    layer, concepts, x = unit_code(0)
    columns = torch.tensor([4, 1, 7])
    part = layer.take(columns).code(x, concepts[columns]).dense(3)
    torch.testing.assert_close(part, layer.code(x, concepts).dense(K)[:, columns])


def test_saved_and_loaded(tmp_path: Path):
    layer, concepts, x = unit_code(3, torch.linspace(0, 1, K))
    model = ConceptBottleneck(concepts, LinearHead(torch.randn(4, K), torch.randn(4)), activation=layer).eval()
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert isinstance(again.activation, UnitCode)
    assert again(x).equal(model(x))
    assert again.activation.threshold.equal(layer.threshold)
