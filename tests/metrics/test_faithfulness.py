"""Deletion and insertion of concepts: against a loop over images and concepts, and where bars are known to decide."""

import pytest
import torch

from cbm.layers import ConceptBottleneck, LinearHead, LinearProbe, Sigmoid
from cbm.metrics.evaluate import deleted_logits
from cbm.metrics.faithfulness import STEPS, _as_long, faithfulness, rows_for

N, D, K, C = 12, 7, 9, 4


def drawn(seed: int = 0, residual: bool = False) -> tuple[ConceptBottleneck, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    head = LinearHead(torch.randn(C, K, generator=g), 0.1 * torch.randn(C, generator=g))
    model = ConceptBottleneck(torch.randn(K, D, generator=g), head, activation=Sigmoid(torch.zeros(K)))
    x = torch.randn(N, D, generator=g)
    model.requires_grad_(False).calibrate(x)
    if residual:
        model.residual = LinearProbe(0.2 * torch.randn(C, D, generator=g), torch.zeros(C)).requires_grad_(False)
    return model, x


@pytest.mark.parametrize("residual", [False, True])
def test_curves_are_those_of_a_loop(residual: bool):
    model, x = drawn(residual=residual)
    found = faithfulness(model, x)
    decided = model(x).argmax(dim=1)
    sizes = sorted({round(K * step / STEPS) for step in range(STEPS + 1)})
    assert (found.shares * K).round().long().tolist() == sizes
    for i, size in enumerate(sizes):
        kept = reached = 0
        for n in range(N):
            a, w = model.activations(x[[n]])[0], model.weights()
            order = sorted(range(K), key=lambda k: -abs(float(w[decided[n], k] * (a[k] - model.reference[k]))))
            without, only = model(x[[n]])[0].clone(), deleted_logits(model, x[[n]])[0].clone()
            for k in order[:size]:
                without -= w[:, k] * (a[k] - model.reference[k])
                only += w[:, k] * (a[k] - model.reference[k])
            kept += int(without.argmax() == decided[n])
            reached += int(only.argmax() == decided[n])
        assert float(found.deletion["own"][i]) == pytest.approx(kept / N)
        assert float(found.insertion["own"][i]) == pytest.approx(reached / N)


def test_ends_of_the_curves():
    model, x = drawn(1)
    found = faithfulness(model, x)
    decided = model(x).argmax(dim=1)
    none_left = float((deleted_logits(model, x).argmax(dim=1) == decided).double().mean())
    for name in ("own", "random", "other"):
        assert float(found.deletion[name][0]) == float(found.insertion[name][-1]) == 1
        assert float(found.deletion[name][-1]) == float(found.insertion[name][0]) == pytest.approx(none_left)


def test_what_decides_is_found_first():
    """Three of forty concepts tell two classes apart: without them every decision is a toss, and few reach it."""
    g = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(2, 40, generator=g)
    weight[:, :3] += torch.tensor([[2.0], [-2.0]])
    model = ConceptBottleneck(torch.eye(40), LinearHead(weight, torch.zeros(2))).requires_grad_(False)
    y = torch.arange(300) % 2
    x = torch.randn(300, 40, generator=g)
    x[:, :3] = 1.0 - 2.0 * y[:, None] + 0.1 * torch.randn(300, 3, generator=g)
    found = faithfulness(model.calibrate(x), x)
    values = found.metrics()
    assert 0.3 < values["flipped_without_5"] < 0.7
    assert values["flipped_without_random"] < 0.05
    assert values["deletion_area"] < values["deletion_area_random"] - 0.05
    assert values["insertion_area"] > values["insertion_area_random"] + 0.05
    assert values["concepts_needed"] <= 3


def test_random_others_have_bars_as_long():
    g = torch.Generator().manual_seed(3)
    length = torch.rand(50, 30, generator=g)
    strongest = torch.zeros_like(length).scatter(1, length.topk(5, dim=1).indices, 1.0)
    chosen = _as_long(length, strongest, g)
    assert not bool((chosen * strongest).any())
    total, goal = (length * chosen).sum(dim=1), (length * strongest).sum(dim=1)
    assert bool((total >= goal - 1e-6).all())
    assert bool((total < goal + length.max()).all())


def test_few_images_where_there_are_many_concepts_and_classes():
    small, _ = drawn()
    assert rows_for(small) == 256
    large = ConceptBottleneck(torch.zeros(5000, 2), LinearHead(torch.zeros(1000, 5000), torch.zeros(1000)))
    assert rows_for(large.requires_grad_(False)) == 53
