import torch

from cbm.concepts import merge_duplicates
from cbm.concepts.lint import diff_banks, lint_bank, undetected


def make(phrases):
    return merge_duplicates("b", "b", [(text, tuple(owners), None) for text, owners in phrases])


def kinds(findings):
    return {(f.kind, f.text) for f in findings}


def test_lint_finds_planted_faults():
    faulty = make([
        ("cat ears", ["cat"]), ("chased by a cat", ["dog"]), ("wet nose", ["dog"]), ("Wet nose.", ["dog"]),
        ("very loud sound", ["dog"]), ("word " * 30, ["cat"]), ("", ["cat"]),
    ])  # fmt: skip
    found = kinds(lint_bank(faulty))
    assert ("own class name", "cat ears") in found
    assert ("class name", "chased by a cat") in found
    assert ("duplicate", "wet nose") in found
    assert ("not visual: sound", "very loud sound") in found
    assert ("blank", "") in found
    assert any(kind == "longer than 20 words" for kind, _ in found)
    assert ("few concepts", "dog") in found


def test_undetected_concepts():
    x = torch.nn.functional.normalize(torch.eye(4)[[0] * 20 + [1] * 20] + 0.1 * torch.randn(40, 4), dim=1)
    y = torch.tensor([0] * 20 + [1] * 20)
    concepts = make([("seen", ["a"]), ("not seen", ["a"])])
    found = undetected(concepts, torch.eye(4)[[0, 3]], x, y, ["a", "b"])
    assert [f.text for f in found] == ["not seen"]


def test_diff():
    before = make([("red", ["a"]), ("blue", ["a"]), ("green", ["a"])])
    after = make([("A red", ["a", "b"]), ("green", ["a"]), ("white", ["b"])])
    changes = diff_banks(before, after)
    assert changes.added == ["white"]
    assert changes.removed == ["blue"]
    assert changes.owners == {"A red": (("a",), ("a", "b"))}
