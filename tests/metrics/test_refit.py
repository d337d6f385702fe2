"""Refit deletion: a concept that another can replace, one that none can, and one that is not used."""

import pytest
import torch

from cbm.data import FeatureSplit
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.metrics.refit import refit_deletion

TWIN, LONE, IDLE = (0, 1), 2, 5


def planted(n: int, seed: int) -> FeatureSplit:
    """Four classes by two bits: the first is said by two concepts, the second by one; others by none."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=draw)
    x = torch.randn(n, 6, generator=draw)
    first, second = 2.0 * (y % 2) - 1, 2.0 * (y // 2) - 1
    x[:, 0] = 3 * first + torch.randn(n, generator=draw)
    x[:, 1] = x[:, 0] + 0.3 * torch.randn(n, generator=draw)
    x[:, LONE] = 3 * second + torch.randn(n, generator=draw)
    return FeatureSplit(x, y, [f"{i}.png" for i in range(n)])


@pytest.fixture(scope="module")
def found():
    train, test = planted(600, 0), planted(400, 1)
    model = ConceptBottleneck(torch.eye(6), LinearHead(torch.zeros(4, 6), torch.zeros(4))).calibrate(train.x)
    return refit_deletion(model, train, test, 4, [[0], [1], list(TWIN), [LONE], [IDLE]], target=2)


def test_what_another_concept_says_is_replaced(found):
    first, second, both, lone, idle = found
    used = max(first, second, key=lambda each: each.held)  # the sparse head takes one of the twins
    assert used.held > 0.3
    assert used.refit < 0.05
    assert used.accuracy[2] > used.accuracy[1] + 0.3
    assert min(both.held, both.refit) > 0.3
    assert min(lone.held, lone.refit) > 0.3
    assert idle.held == idle.refit == 0
    assert [each.columns for each in found] == [(0,), (1,), TWIN, (LONE,), (IDLE,)]


def test_held_is_the_decision_at_the_mean(found):
    """Two classes of four are confused without the second bit, whatever the rest of the head: half are right."""
    assert found[3].accuracy[0] > 0.95
    assert found[3].accuracy[1] == pytest.approx(0.5, abs=0.07)
    assert found[3].accuracy[2] == pytest.approx(0.5, abs=0.07)


def test_something_must_be_left():
    train = planted(60, 0)
    model = ConceptBottleneck(torch.eye(6), LinearHead(torch.zeros(4, 6), torch.zeros(4))).calibrate(train.x)
    with pytest.raises(ValueError, match="1 of 6 concepts are left"):
        refit_deletion(model, train, train, 4, [[0, 1, 2, 3, 4]], target=2)
