"""The NEC protocol: heads re-solved with an exact number of concepts per class."""

import pytest
import torch
from planted import CLASSES, planted

from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.nec import load_heads, resolve_heads, save_heads


@pytest.fixture
def setting():
    data, bank = planted()
    model = ConceptBottleneck(bank.directions(), LinearHead(torch.zeros(CLASSES, len(bank))))
    return data, bank, model


def test_heads_have_the_number_of_weights_that_was_asked_for(setting):
    data, bank, model = setting
    heads = resolve_heads(model, data.train, CLASSES, [2, 5])
    assert [head.target for head in heads] == [2, 5]
    for head in heads:
        assert int((head.weight != 0).sum()) == head.target * CLASSES == head.nec * CLASSES
        assert head.gap <= 1e-4
        assert head.kkt < 0.05
    values = evaluate_split(model, bank, data, "test", heads)
    assert values["test/accuracy"] == pytest.approx(0.2, abs=0.05)  # the model's own head is zero
    assert values["test/accuracy_nec5_resolved"] > 0.9
    assert values["test/accuracy_nec_avg_resolved"] == pytest.approx(
        (values["test/accuracy_nec2_resolved"] + values["test/accuracy_nec5_resolved"]) / 2
    )


def test_more_than_there_is_says_what_it_has(setting):
    data, _, model = setting
    few = ConceptBottleneck(model.concepts[:3], LinearHead(torch.zeros(CLASSES, 3)))
    (head,) = resolve_heads(few, data.train, CLASSES, [5])
    assert head.target == 5
    assert head.nec <= 3


def test_nothing_asked_nothing_solved(setting):
    data, bank, model = setting
    assert resolve_heads(model, data.train, CLASSES, []) == []
    values = evaluate_split(model, bank, data, "test")
    assert "test/accuracy_nec5" in values
    assert "test/accuracy_nec5_resolved" not in values


def test_heads_come_back_from_their_file(setting, tmp_path):
    data, _, model = setting
    heads = resolve_heads(model, data.train, CLASSES, [2, 4])
    save_heads(heads, tmp_path / "nec.safetensors")
    for before, after in zip(heads, load_heads(tmp_path / "nec.safetensors")):
        assert torch.equal(before.weight, after.weight)
        assert torch.equal(before.bias, after.bias)
        assert (before.target, before.nec, before.lam, before.gap, before.kkt, before.cut) == (
            after.target, after.nec, after.lam, after.gap, after.kkt, after.cut,
        )  # fmt: skip
    assert load_heads(tmp_path / "none.safetensors") == []
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        load_heads(tmp_path / "bad.safetensors")
