import pytest
import torch
from scipy.stats import binom

from cbm.editing import Comparison, changed_most


def logits(*decisions: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(decisions), 3).float()


def test_flips_recall_and_chance():
    found = Comparison(
        logits(0, 0, 1, 1, 2, 2, 2), logits(0, 1, 1, 0, 0, 0, 0), torch.tensor([0, 0, 0, 0, 0, 0, 2]), ["a", "b", "c"]
    )
    assert found.gained.tolist() == [3, 4, 5]
    assert found.lost.tolist() == [1, 6]
    assert found.flipped.tolist() == [1, 3, 4, 5, 6]
    assert found.recall() == [("a", 6, pytest.approx(2 / 6), pytest.approx(4 / 6)), ("c", 1, 1.0, 0.0)]
    assert changed_most(found, 1) == [("c", 1, 1.0, 0.0)]
    assert found.p_value == pytest.approx(min(1.0, 2 * binom.cdf(2, 5, 0.5)))
    assert found.accept()
    assert not found.accept(max_class_loss=0.5)
    values = found.metrics()
    assert values["edits/accuracy_after"] == pytest.approx(4 / 7)
    assert values["edits/accuracy_macro_after"] == pytest.approx(1 / 3)
    assert values["edits/largest_class_loss"] == 1.0


def test_nothing_changed():
    same = Comparison(logits(0, 1), logits(0, 1), torch.tensor([0, 2]), ["a", "b", "c"])
    assert (same.p_value, same.accept(), changed_most(same)) == (1.0, False, [])
