"""Edits as a list and as a file."""

from pathlib import Path

import pytest
import torch
from small_bottleneck import CLASSES, C, D, K, N, bank, bottleneck
from torch.utils.flop_counter import FlopCounterMode

from cbm.editing import Edit, EditSet, edited_logits, edited_model, load_edits
from cbm.errors import UserError
from cbm.layers import LinearProbe
from cbm.layers.activations import Sigmoid, TopK

EDITS = EditSet((
    Edit("set", "concept 1", 0.5),
    Edit("scale", "concept 1", 2, classes=("bee",)),
    Edit("mask", "concept 2", classes=("ant", "dog")),
    Edit("reweight", "concept 3", -1.5, classes=("cat",)),
    Edit("remove", "concept 4"),
    Edit("reweight", "concept 4", 0.7, classes=("dog",)),
    Edit("scale", "concept 3", -1.0),
    Edit("set", "concept 5", "present", samples=("picture 3", "picture 7")),
    Edit("remove", "concept 1", classes=("bee",)),
    Edit("set", "concept 6", "absent"),
    Edit("shift", "concept 7", 0.3),
    Edit("shift", "concept 3", -0.2, classes=("cat", "dog")),
    Edit("scale", "concept 6", 0.5, samples=("picture 7",)),
))  # fmt: skip


def by_hand(model, x, edits, names) -> torch.Tensor:
    """One picture, class and edit after the other, in float64."""
    activations, weights = model.activations(x).double(), model.weights().double()
    logits = torch.zeros(len(x), C).double()
    for n in range(len(x)):
        for c in range(C):
            a, w, b = activations[n].clone(), weights[c].clone(), model.head.bias[c].double()
            mean = model.reference.double().clone()  # what the class takes the average picture to show
            for e in edits.edits:
                if (e.samples and names[n] not in e.samples) or (e.classes and CLASSES[c] not in e.classes):
                    continue
                k = int(e.concept.split()[1])
                low, high = (model.reference[k] + z * model.spread[k] for z in (-1.645, 1.645))
                value = {"present": high, "absent": low}.get(e.value, e.value)
                if e.op == "set":
                    a[k] = mean[k] = value
                elif e.op == "mask":
                    a[k] = mean[k] = model.reference[k]
                elif e.op == "shift":
                    a[k], mean[k] = a[k] + value, mean[k] + value
                elif e.op == "scale":
                    a[k], mean[k] = a[k] * value, mean[k] * value
                else:
                    new = 0 if e.op == "remove" else value / model.spread[k]
                    b, w[k] = b + (w[k] - new) * mean[k], new
            logits[n, c] = a @ w + b
    return logits


@pytest.mark.parametrize("activation", [None, TopK(torch.zeros(K), 4)])
def test_edits_are_what_a_loop_says(activation):
    model, x = bottleneck(activation)
    names = [f"picture {i}" for i in range(N)]
    found = edited_logits(model, EDITS, bank(), CLASSES, x, names)
    torch.testing.assert_close(found.double(), by_hand(model, x, EDITS, names), rtol=1e-4, atol=1e-4)
    alone = edited_logits(model, EDITS, bank(), CLASSES, x)
    torch.testing.assert_close(alone, edited_model(model, EDITS, bank().texts, CLASSES)(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(alone[7], found[7])
    torch.testing.assert_close(alone[8], found[8])


def test_no_edit_is_bit_by_bit_the_model():
    model, x = bottleneck()
    logits, names = model.logits(x), [str(i) for i in range(N)]
    edits = EditSet((Edit("set", "concept 0", 2.0, samples=("4",)),))
    found = edited_logits(model, edits, bank(), CLASSES, x, names)
    changed = (found != logits).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == [4]
    assert torch.equal(edited_logits(model, EditSet(), bank(), CLASSES, x), logits)


def test_the_residual_stays_and_probabilities_have_their_own_levels():
    model, x = bottleneck(Sigmoid(torch.zeros(K)))
    edits = EditSet((Edit("set", "concept 0", "present"),))
    change = edited_logits(model, edits, bank(), CLASSES, x) - model.logits(x)
    expected = (0.95 - model.activations(x)[:, :1]) * model.weights()[:, 0]
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4)
    model.residual = LinearProbe(torch.randn(C, D), torch.randn(C))
    with_residual = edited_model(model, edits, bank().texts, CLASSES)(x)
    torch.testing.assert_close(with_residual, edited_logits(model, edits, bank(), CLASSES, x), rtol=1e-4, atol=1e-4)


def test_fifty_edits_of_ten_thousand_pictures_cost_fifty_concepts():
    """Not five hundred."""
    model, x = bottleneck(n=10_000, k=500, d=512)
    edits = EditSet(tuple(Edit("scale", f"concept {k}", 0.5) for k in range(50)))
    logits = model.logits(x)
    with FlopCounterMode(display=False) as counted:
        edited_logits(model, edits, bank(500), CLASSES, x, logits=logits)
    assert counted.get_total_flops() == 2 * 10_000 * 50 * (512 + C)


def test_a_file_gives_the_same_edits(tmp_path: Path):
    signed = EDITS + Edit("mask", "concept 8", why="spurious: ü", who="me", when="2026-01-01T00:00:00+00:00")
    signed.save(tmp_path / "edits.yaml")
    assert load_edits(tmp_path / "edits.yaml") == signed
    (tmp_path / "hand.yaml").write_text("- {op: remove, concept: concept 1, classes: ant, when: 2026-01-01}\n")
    assert load_edits(tmp_path / "hand.yaml").edits == (
        Edit("remove", "concept 1", classes=("ant",), when="2026-01-01"),
    )
    (tmp_path / "empty.yaml").write_text("")
    assert load_edits(tmp_path / "empty.yaml") == EditSet()


def test_sets_of_edits():
    first, second = EditSet(EDITS.edits[:3]), EditSet(EDITS.edits[3:])
    assert first + second == EDITS
    added, gone = first.diff(EditSet((*EDITS.edits[1:3], Edit("mask", "concept 0", who="me"))))
    assert [edit.concept for edit in added] == ["concept 0"]
    assert gone == [EDITS.edits[0]]
    assert EDITS.samples == {"picture 3", "picture 7"}
    assert str(EDITS.edits[1]) == "scale 'concept 1' to 2 for bee"
    assert str(EDITS.edits[7]) == "set 'concept 5' to present on 2 pictures"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("a: 1", "is no list of edits"),
        ("- remove", "edit 1: expected a mapping with 'op' and 'concept'"),
        ("- {op: remove, concept: a}\n- {op: remov, concept: a}", "edit 2: unknown edit 'remov' of 'a': did you"),
        ("- {op: remove, concept: a, clases: b}", "unknown key 'clases': did you mean 'classes'"),
        ("- {op: remove, concept: a, value: 1}", "takes no value; got 1"),
        ("- {op: set, concept: a}", "value is None; expected a finite number"),
        ("- {op: set, concept: a, value: presnt}", "expected a number, 'present' or 'absent'"),
        ("- {op: scale, concept: a, value: present}", "value is 'present'; expected a number"),
        ("- {op: scale, concept: a, value: .nan}", "expected a finite number"),
        ("- {op: scale, concept: a, value: true}", "expected a finite number"),
        ("- {op: mask, concept: a, classes: 3}", "'classes' is 3; expected a list of names"),
        ("- {op: mask, concept: a, classes: []}", "the list 'classes' is empty; leave it out to mean all"),
        ("- !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, content: str, message: str):
    (tmp_path / "e.yaml").write_text(content)
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("(", r"\(")):
        load_edits(tmp_path / "e.yaml")
    with pytest.raises(UserError, match="cannot read .*none.yaml"):
        load_edits(tmp_path / "none.yaml")


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(UserError, match="edit 2: no concept 'concept 11' in this model: did you mean 'concept 1'"):
        (EditSet((Edit("mask", "concept 1"), Edit("mask", "concept 11")))).check(bank().texts, CLASSES)
    with pytest.raises(UserError, match="edit 1: no class 'bea' in this model: did you mean 'bee'"):
        EditSet((Edit("mask", "concept 1", classes=("bea",)),)).check(bank().texts, CLASSES)
