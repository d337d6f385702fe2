import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from cbm.losses import anchored_contrastive_loss, contrastive_loss

SIZES = [(3, 5), (4, 4), (7, 3), (1, 4), (4, 1), (1, 1)]  # B, K


def normal(b, k, seed=0):
    return torch.randn(b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(values):
    top = max(values)
    return [v - top - math.log(sum(math.exp(w - top) for w in values)) for v in values]


def naive(z, block):
    m = min(z.shape)
    z = z[:m, :m] if block == "square" else z
    total = sum(log_softmax(z[i].tolist())[i] + log_softmax(z[:, i].tolist())[i] for i in range(m))
    return -total / (2 * m)


@pytest.mark.parametrize("block", ["square", "rectangle"])
@pytest.mark.parametrize(("b", "k"), SIZES)
def test_contrastive_equals_loops_and_gradient_the_closed_form(b, k, block):
    z = normal(b, k).requires_grad_()
    loss = contrastive_loss(z, block=block)
    assert float(loss.detach()) == pytest.approx(naive(z.detach(), block), rel=1e-12, abs=1e-14)
    m = min(b, k)
    expected = torch.zeros(b, k).double()
    with torch.no_grad():
        if block == "square":
            expected[:m, :m] = z[:m, :m].softmax(1) + z[:m, :m].softmax(0) - 2 * torch.eye(m)
        else:
            expected[:m] += z.softmax(1)[:m]
            expected[:, :m] += z.softmax(0)[:, :m]
            expected -= 2 * torch.eye(b, k)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected / (2 * m), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, block=block), z)


def test_contrastive_is_symmetric_infonce_for_a_square():
    z, slots = normal(6, 6), torch.arange(6)
    expected = (cross_entropy(z, slots) + cross_entropy(z.T, slots)) / 2
    for block in ("square", "rectangle"):
        assert float(contrastive_loss(z, block=block)) == pytest.approx(float(expected), rel=1e-14)
    assert float(contrastive_loss(normal(4, 6), block="square")) != float(
        contrastive_loss(normal(4, 6), block="rectangle")
    )


@pytest.mark.parametrize("block", ["square", "rectangle"])
def test_contrastive_depends_on_the_order_of_the_batch(block):
    """The published pairing is a slot number: not a property of the pictures."""
    z = normal(8, 12)
    order = torch.roll(torch.arange(8), 1)
    assert abs(float(contrastive_loss(z, block=block) - contrastive_loss(z[order], block=block))) > 0.1


def naive_targets(values, top):
    kept = sorted(range(len(values)), key=lambda j: -values[j])[:top]
    weights = {j: math.exp(values[j]) for j in kept}
    return [weights.get(j, 0.0) / sum(weights.values()) for j in range(len(values))]


@pytest.mark.parametrize("top", [1, 3, 100])
@pytest.mark.parametrize(("b", "k"), [(3, 5), (4, 4), (7, 3), (4, 1)])
def test_anchored_equals_loops(b, k, top):
    z, s = normal(b, k).requires_grad_(), (2 * normal(b, k, 1) + 20).requires_grad_()
    centred = (s - s.mean(0)).detach()
    total = 0.0
    for logits, scores in ((z.detach(), centred), (z.detach().T, centred.T)):
        for row, anchor in zip(logits.tolist(), scores.tolist()):
            total -= sum(t * p for t, p in zip(naive_targets(anchor, top), log_softmax(row))) / (2 * len(logits))
    loss = anchored_contrastive_loss(z, s, top)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-12)
    loss.backward()
    assert s.grad is None
    assert torch.autograd.gradcheck(lambda x: anchored_contrastive_loss(x, s.detach(), top), z)


def test_anchored_does_not_depend_on_any_order():
    z, s = normal(8, 12), 3 * normal(8, 12, 1)
    loss = float(anchored_contrastive_loss(z, s, 4))
    pictures, concepts = torch.arange(8).roll(3), torch.arange(12).flip(0)
    assert float(anchored_contrastive_loss(z[pictures], s[pictures], 4)) == pytest.approx(loss, rel=1e-13)
    assert float(anchored_contrastive_loss(z[:, concepts], s[:, concepts], 4)) == pytest.approx(loss, rel=1e-13)
    tied = s.round()
    loss = float(anchored_contrastive_loss(z, tied, 4))
    assert float(anchored_contrastive_loss(z[pictures], tied[pictures], 4)) == pytest.approx(loss, rel=1e-13)
    assert float(anchored_contrastive_loss(z[pictures], s, 4)) != pytest.approx(loss, rel=1e-3)


def test_anchored_prefers_outputs_that_agree_with_the_scores():
    s = 3 * normal(8, 12)
    loss = anchored_contrastive_loss(s, s)
    assert (
        float(loss.detach())
        < float(anchored_contrastive_loss(torch.zeros_like(s), s))
        < float(anchored_contrastive_loss(-s, s))
    )
    shifted = anchored_contrastive_loss(s, s + 100 * normal(1, 12, 1))  # how well a concept scores in general
    assert float(shifted) == pytest.approx(float(loss.detach()), rel=1e-12)


def test_one_picture_and_half_precision():
    z, s = normal(1, 5), normal(1, 5, 1)
    expected = -float(z.log_softmax(1).mean()) / 2
    assert float(anchored_contrastive_loss(z, s)) == pytest.approx(expected, rel=1e-12)
    large = (100 * normal(16, 30)).bfloat16()
    for loss in (contrastive_loss(large), anchored_contrastive_loss(large, large)):
        assert loss.dtype == torch.float32
        assert bool(loss.isfinite())


def test_errors():
    with pytest.raises(ValueError, match="block is 'full'; expected 'square' or 'rectangle'"):
        contrastive_loss(torch.zeros(2, 3), block="full")
    with pytest.raises(ValueError, match=r"z has shape \[3\]"):
        contrastive_loss(torch.zeros(3))
    with pytest.raises(ValueError, match=r"s has shape \[3, 2\].*\[2, 3\]"):
        anchored_contrastive_loss(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="top is 0; expected >= 1"):
        anchored_contrastive_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0)
