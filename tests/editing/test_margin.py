"""One mistake corrected by hand."""

import pytest
import torch
from small_bottleneck import CLASSES, C, K, bottleneck

from cbm.editing import edited_model, margin_edits
from cbm.errors import UserError

TEXTS = [f"concept {k}" for k in range(K)]


def test_the_picture_wins_by_the_margin_exactly_and_other_classes_stay():
    model, x = bottleneck()
    before = model.logits(x)
    signs = set()
    for row in range(10):
        away = model.activations(x[[row]])[0] - model.reference
        column = int((away / model.spread).abs().argmax())
        signs.add(bool(away[column] > 0))
        label = int(before[row].argsort()[1])
        rival = int(before[row].argmax())
        edits = margin_edits(model, x[row], label, column, TEXTS, CLASSES, margin=0.2)
        edited = edited_model(model, edits, TEXTS, CLASSES)
        after = edited.logits(x)
        assert float(after[row, label] - after[row, rival]) == pytest.approx(0.2, abs=1e-4)
        others = [c for c in range(C) if c not in (label, rival)]
        torch.testing.assert_close(after[:, others], before[:, others])
        torch.testing.assert_close(edited.base(), model.base())  # the average picture keeps its logits
    assert signs == {True, False}


def test_a_concept_that_is_average_cannot_decide():
    model, x = bottleneck()
    model.reference[2] = model.activations(x)[0, 2]
    with pytest.raises(UserError, match="'concept 2' is within 0.1 standard deviations of its average"):
        margin_edits(model, x[0], 1, 2, TEXTS, CLASSES)


def test_several_pictures_get_the_margin_on_average():
    model, x = bottleneck()
    away = (model.activations(x)[:, 0] - model.reference[0]) / model.spread[0]
    chosen = x[away.argsort(descending=True)[:3]]
    one = [margin_edits(model, row, 1, 0, TEXTS, CLASSES).edits for row in chosen]
    three = margin_edits(model, chosen, 1, 0, TEXTS, CLASSES).edits
    rivals = {edits[1].classes for edits in one}
    if len(rivals) == 1:
        expected = sum(edits[0].number for edits in one) / 3
        assert three[0].number == pytest.approx(expected, rel=1e-6)
    assert three[0].classes == (CLASSES[1],)
