from dataclasses import replace

import pytest
import torch

from cbm.concepts import apply_control, merge_duplicates


@pytest.fixture
def bank():
    bank = merge_duplicates("b", "b", [(f"phrase {i}", ("x",), None) for i in range(40)])
    return replace(bank, embeddings=torch.nn.functional.normalize(torch.randn(40, 8), dim=1))


def test_shuffled_keeps_the_set_of_directions_and_nobodys_own(bank):
    shuffled = apply_control(bank, "shuffled", 0)
    assert shuffled.texts == bank.texts
    before, after = bank.directions(), shuffled.directions()
    assert not (before == after).all(dim=1).any()
    torch.testing.assert_close(before.sort(dim=0).values, after.sort(dim=0).values)


def test_random_directions_are_unit_and_seeded(bank):
    one = apply_control(bank, "random", 0).directions()
    torch.testing.assert_close(one.norm(dim=1), torch.ones(40))
    assert torch.equal(one, apply_control(bank, "random", 0).directions())
    assert not torch.equal(one, apply_control(bank, "random", 1).directions())
    assert apply_control(bank, None, 0) is bank
