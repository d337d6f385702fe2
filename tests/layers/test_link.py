"""What logits stand for, and that a saved model still knows it."""

from pathlib import Path

import pytest
import torch
from small_bottleneck import C, K, bottleneck

from cbm.errors import UserError
from cbm.files.tensors import read_tensors, write_tensors
from cbm.layers import (
    ConceptBottleneck,
    LinearProbe,
    Valued,
    decide,
    is_many,
    load_model,
    one_class,
    probabilities,
    save_model,
)
from cbm.layers.link import same_link
from cbm.trained.portable import PortableModel

CUTS = torch.tensor([0.5, -1.0, 0.0, 2.0])
LOGITS = torch.tensor([[0.4, -0.9, 0.0, 2.5], [0.6, -1.0, 0.1, 2.0]])


def labels(activation=None) -> tuple[ConceptBottleneck, torch.Tensor]:
    model, x = bottleneck(activation)
    model.link = "sigmoid"
    return model, x


def valued() -> Valued:
    """Columns 0-2 exclude each other, as do 5 and 7; column 4 is a number; the others are yes or no."""
    number = torch.zeros(K, dtype=torch.bool)
    number[4] = True
    return Valued(torch.linspace(-0.3, 0.3, K), number, torch.tensor([3, 3, 3, -1, -1, 0, -1, 0, -1]))


def test_labels_are_judged_one_by_one():
    model, _ = labels()
    assert model.many
    assert is_many(model)
    torch.testing.assert_close(model.probabilities(LOGITS), 1 / (1 + (-LOGITS).exp()))
    assert model.decide(LOGITS).tolist() == [[True, False, False, True], [True, False, True, True]]
    assert model.with_thresholds(CUTS) is model
    said = model.decide(LOGITS)
    assert said.dtype == torch.bool
    assert said.tolist() == [[False, True, False, True], [True, False, True, False]]  # at the threshold: not there
    assert torch.equal(decide(model, LOGITS), said)
    torch.testing.assert_close(probabilities(model, LOGITS), LOGITS.sigmoid())


def test_classes_compete():
    model, x = bottleneck()
    assert not model.many
    logits = model(x)
    torch.testing.assert_close(model.probabilities(logits).sum(dim=1), torch.ones(len(x)))
    assert torch.equal(model.decide(logits), logits.argmax(dim=1))
    assert torch.equal(decide(torch.nn.Identity(), logits), logits.argmax(dim=1))
    torch.testing.assert_close(probabilities(torch.nn.Identity(), logits), logits.softmax(dim=1))
    one_class(model, "x")
    with pytest.raises(UserError, match="the explorer asks which class an image is; this model says any number"):
        one_class(labels()[0], "the explorer")


def test_whoever_stands_in_says_the_same():
    model, x = labels()
    model.with_thresholds(CUTS)
    other = same_link(model, LinearProbe(torch.randn(C, 12), torch.zeros(C)))
    assert is_many(other)
    assert torch.equal(other.thresholds, CUTS)
    other.thresholds += 1  # a copy
    assert torch.equal(model.thresholds, CUTS)
    for made in (
        model.with_weights(model.weights(), model.biases()),
        model.concept_path(),
    ):
        assert is_many(made)
        assert torch.equal(made.decide(made(x)), model.decide(model(x)))


@pytest.mark.parametrize("cuts", [None, CUTS])
@pytest.mark.parametrize("kind", ["linear", "valued", "probe", "residual"])
def test_a_saved_model_of_labels_says_the_same(kind: str, cuts, tmp_path: Path):
    model, x = labels(valued() if kind == "valued" else None)
    if kind == "probe":
        model = LinearProbe(torch.randn(C, x.shape[1]), torch.randn(C), "sigmoid")
    if kind == "residual":
        model.residual = LinearProbe(torch.randn(C, x.shape[1]), torch.randn(C), "sigmoid")
    if cuts is not None:
        model.with_thresholds(cuts)
    save_model(model, tmp_path / "model.safetensors")
    read = load_model(tmp_path / "model.safetensors")
    assert read.link == "sigmoid"
    assert (read.thresholds is None) == (cuts is None)
    torch.testing.assert_close(read(x), model(x))
    assert torch.equal(read.decide(read(x)), model.decide(model(x)))
    if kind == "valued":
        assert torch.equal(read.activation.number, model.activation.number)
        assert torch.equal(read.activation.group, model.activation.group)
        torch.testing.assert_close(read.activations(x), model.activations(x))


def test_a_file_of_before_says_one_class(tmp_path: Path):
    model, x = bottleneck()
    save_model(model, tmp_path / "model.safetensors")
    tensors, kind = read_tensors(tmp_path / "model.safetensors")
    assert "link" not in kind  # files of one class are what they were
    assert "thresholds" not in tensors
    write_tensors(tmp_path / "old.safetensors", tensors, {k: v for k, v in kind.items() if k != "link"})
    read = load_model(tmp_path / "old.safetensors")
    assert read.link == "softmax"
    assert torch.equal(read.decide(read(x)), model(x).argmax(dim=1))


def test_values_share_one_probability_and_numbers_are_their_score():
    layer, (model, x) = valued(), labels(valued())
    z = model.scores(x) - layer.offset
    a = model.activations(x)
    torch.testing.assert_close(a[:, 4], z[:, 4])
    assert bool((a[:, 4] < 0).any())  # no probability
    for columns in ([0, 1, 2], [5, 7]):
        torch.testing.assert_close(a[:, columns].sum(dim=1), torch.ones(len(x)))
        torch.testing.assert_close(a[:, columns], z[:, columns].exp() / z[:, columns].exp().sum(dim=1, keepdim=True))
    for column in (3, 6, 8):
        torch.testing.assert_close(a[:, column], z[:, column].sigmoid())
    expected = a @ model.weights().T + model.biases()
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.logits(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("concepts", ["scores", "valued"])
def test_labels_are_exported(concepts: str):
    model, x = labels(valued()) if concepts == "valued" else labels()
    model.with_thresholds(CUTS)
    torch.testing.assert_close(PortableModel(model)(2.5 * x), model.logits(x))
