import itertools
import math

import pytest
import torch

from cbm.kernels import gumbel_noise, noise


def test_noise_has_the_moments_of_the_law():
    g = gumbel_noise(1000, 1000, seed=1)
    assert g.dtype == torch.float32
    assert abs(float(g.double().mean()) - 0.57722) < 4 * math.pi / math.sqrt(6e6)
    assert abs(float(g.double().var()) - math.pi**2 / 6) < 4 * math.sqrt(4.4 / 1e6) * math.pi**2 / 6  # kurtosis 5.4
    assert float(g.min()) >= -2.82
    assert float(g.max()) <= 16.64


@pytest.mark.parametrize(("word", "extreme"), [(0, -2.8115), (2**32 - 1, 16.6355)])
def test_noise_is_finite_at_the_ends_of_its_range(monkeypatch, word, extreme):
    monkeypatch.setattr(noise, "_philox", lambda block, row, *_: (torch.full_like(block + row, word),) * 4)
    for dtype in (torch.float32, torch.float64):
        assert float(gumbel_noise(1, 1, 0, dtype=dtype)) == pytest.approx(extreme, abs=1e-4)


# Known answers of Philox4x32-10 from the Random123 distribution: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_words_are_those_of_the_published_generator(counter, key, expected):
    """The counter is block, row (low, high), stream."""
    row = counter[1] | counter[2] << 32
    row -= 2**64 if row >= 2**63 else 0
    words = noise._philox(torch.tensor([counter[0]]), torch.tensor([[row]]), counter[3], key[0] | key[1] << 32)
    assert tuple(int(w) for w in words) == expected


def test_rows_may_be_numbered_in_any_order():
    whole = gumbel_noise(100, 9, seed=3)
    numbers = torch.tensor([70, 3, 3, 99])
    assert torch.equal(gumbel_noise(numbers, 9, seed=3), whole[numbers])
    far = torch.tensor([2**40, 2**40 + 1])
    assert torch.equal(gumbel_noise(far, 9, 3), gumbel_noise(2, 9, 3, start=2**40))
    assert torch.equal(gumbel_noise(100, 3, seed=3), whole[:, :3])  # nor on the number of columns


def test_draws_of_rows_columns_and_streams_are_not_correlated():
    draws = gumbel_noise(400, 400, seed=1)
    for other in (draws.roll(1, 0), draws.roll(1, 1), draws.T, gumbel_noise(400, 400, seed=1, stream=1)):
        assert abs(float(torch.corrcoef(torch.stack([draws.ravel(), other.ravel()]))[0, 1])) < 4 / 400


def test_noise_does_not_depend_on_the_chunks():
    whole = gumbel_noise(300, 7, seed=5, stream=2)
    for cuts in ([0, 300], [0, 1, 64, 65, 190, 300], list(range(0, 301, 50))):
        parts = [gumbel_noise(b - a, 7, 5, start=a, stream=2) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)
    assert gumbel_noise(0, 7, 5, start=10).shape == (0, 7)


def test_noise_depends_on_seed_stream_and_row_and_not_on_the_precision():
    first = gumbel_noise(64, 50, seed=0)
    assert torch.equal(first, gumbel_noise(64, 50, seed=0))
    torch.testing.assert_close(gumbel_noise(64, 50, seed=0, dtype=torch.float64), first.double(), rtol=2e-6, atol=2e-6)
    others = [
        gumbel_noise(64, 50, seed=s, stream=t, start=a) for s, t, a in ((1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, 0, 64))
    ]
    for other in others:
        assert float((first == other).float().mean()) < 0.01
        assert abs(float(torch.corrcoef(torch.stack([first.ravel(), other.ravel()]))[0, 1])) < 0.08


def test_noise_errors():
    with pytest.raises(ValueError, match="start is -1; expected >= 0"):
        gumbel_noise(2, 3, 0, start=-1)
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16"):
        gumbel_noise(2, 3, 0, dtype=torch.bfloat16)
