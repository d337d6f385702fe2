import numpy as np
import pytest
import torch

from cbm.losses import similarity_loss


def normal(b, k, seed=0):
    return torch.randn(b, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine_of_cubes(a, b):
    a, b = (a - a.mean()) ** 3, (b - b.mean()) ** 3
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize(("b", "k"), [(2, 3), (9, 4), (30, 1)])
def test_equals_numpy(b, k, power):
    z, s = normal(b, k), 0.01 * normal(b, k, 1) + 0.2
    similarity = {1: lambda p, q: np.corrcoef(p, q)[0, 1], 3: cosine_of_cubes}[power]
    expected = -np.mean([similarity(z[:, i].numpy(), s[:, i].numpy()) for i in range(k)])
    assert float(similarity_loss(z, s, power=power)) == pytest.approx(expected, rel=1e-10)
    scaled = similarity_loss(-1e-6 * z + 5, s, power=power)
    assert float(scaled) == pytest.approx(-expected, rel=1e-6)
    if b > 2:  # with two pictures the similarity is 1 or -1 whatever z
        assert torch.autograd.gradcheck(lambda x: similarity_loss(x, s, power=power), z.requires_grad_())


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_columns_count_as_zero(power, dtype):
    z, s = normal(6, 3).to(dtype), normal(6, 3, 1).to(dtype)
    s[:, 1] = 0.1  # its mean is not exactly 0.1
    z[:, 2] = 7.3
    z.requires_grad_()
    loss = similarity_loss(z, s, power=power)
    expected = similarity_loss(z.detach()[:, :1], s[:, :1], power=power) / 3
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, z)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[:, 1:] == 0).all())
    assert bool((gradient[:, 0] != 0).any())


@pytest.mark.parametrize("power", [1, 3])
def test_one_picture_is_zero(power):
    z = normal(1, 4).requires_grad_()
    loss = similarity_loss(z, normal(1, 4, 1), power=power)
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros(1, 4).double())


def test_errors():
    with pytest.raises(ValueError, match="power is 2; expected 1 or 3"):
        similarity_loss(torch.zeros(2, 3), torch.zeros(2, 3), power=2)
    with pytest.raises(ValueError, match=r"s has shape \[2, 4\].*\[2, 3\]"):
        similarity_loss(torch.zeros(2, 3), torch.zeros(2, 4))
