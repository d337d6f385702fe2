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


def test_markup_unread_phrases_and_classes_without_any():
    bank = make([("- red wing", ["a"]), ("long tail", ["a"]), ("<b>grey</b> wing", ["b"]), ("gelber Bauch", ["b"])])
    pieces = [["red", "wing"], ["long", "tail"], ["grey", "wing"], list("gelberBauch")]
    found = kinds(lint_bank(bank, ["a", "b", "c"], pieces=pieces))
    assert {("markup", "- red wing"), ("markup", "<b>grey</b> wing"), ("no phrases", "c")} <= found
    assert [text for kind, text in found if kind == "hard to read"] == ["gelber Bauch"]
    assert ("hard to read", "gelber Bauch") not in kinds(lint_bank(bank, pieces=pieces, one_language=False))
    assert not [kind for kind, _ in kinds(lint_bank(make([("red wing", [])]), ["a"])) if kind == "no phrases"]


def test_lint_with_a_data_set_finds_its_bare_classes(module, colour_folder, tmp_path):
    (tmp_path / "bank.json").write_text('{"red": ["warm colour"], "grün": ["cold colour"]}')
    status, out, errors = module("concepts", "lint", "bank.json", "--dataset", "folder", "--root", str(colour_folder))
    assert status == 0, errors
    assert "no phrases (2)" in out
    assert "loading the encoder" in errors
    assert "encoding 1 phrases and the training images" in errors


def test_brackets_in_phrases_are_shown_as_they_are(module, tmp_path):
    (tmp_path / "bank.json").write_text('{"red [bird]": ["[/closing] the red bird", "[bold]red[/bold] wing"]}')
    status, out, errors = module("concepts", "lint", "bank.json")
    assert status == 0, errors
    assert "markup (2)" in out
    assert "[/closing] the red bird" in out
