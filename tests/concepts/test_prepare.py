import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cbm.concepts import load_bank, merge_duplicates
from cbm.concepts.prepare import adopt_classes, class_name_bank, find_bank, match_classes, prepare_bank
from cbm.editing import Edit, EditSet
from cbm.errors import UserError

OPTIONS = dict(hygiene=True, max_words=20, remove_class_names="own")


def bank(**phrases: list[str]):
    return merge_duplicates("b", "b.json", [(p, (name,), None) for name, ps in phrases.items() for p in ps])


def embed(texts: list[str]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(len(texts), 4), dim=1)


def test_class_names_are_adopted_from_the_data_set():
    adopted = adopt_classes(
        bank(black_crow=["dark"], white_dove=["pale"], owl=["round"]), ["001.Black_Crow", "White dove"]
    )
    assert adopted.classes == ["001.Black_Crow", "White dove"]
    assert adopted.texts == ["dark", "pale"]


def test_a_class_without_phrases_is_an_error_that_names_both():
    message = "no phrases for class 'airplane'.*'aeroplane', which the data set does not have; did you mean 'aeroplane'"
    with pytest.raises(UserError, match=message):
        adopt_classes(bank(aeroplane=["wings"], car=["wheels"]), ["airplane", "car"])


def test_filters_leave_a_trace_and_never_empty_a_class():
    phrases = bank(cat=["whiskers", "cat ears", "makes a loud sound"], dog=["wet nose"])
    prepared = prepare_bank(phrases, ["cat", "dog"], embed, "e", **OPTIONS)
    assert prepared.texts == ["whiskers", "wet nose"]
    assert len(prepared.dropped) == 2
    assert prepared.concepts[0].provenance["filters"] == ["hygiene", "class names (own)"]
    assert prepared.directions().shape == (2, 4)
    with pytest.raises(UserError, match="no phrase is left for class 'cat'"):
        prepare_bank(bank(cat=["cat ears"], dog=["wet nose"]), ["cat", "dog"], embed, "e", **OPTIONS)


def test_a_bank_in_another_embedding_space_is_refused():
    embedded = replace(bank(cat=["whiskers"], dog=["nose"]), encoder="other", embeddings=torch.eye(2))
    with pytest.raises(UserError, match=r"embedding space of another encoder \(other"):
        prepare_bank(embedded, ["cat", "dog"], embed, "this", **OPTIONS)
    assert torch.equal(prepare_bank(embedded, ["cat", "dog"], embed, "other", **OPTIONS).directions(), torch.eye(2))


def test_auto_prefers_own_then_matching_then_general(tmp_path: Path):
    own, pets, general = tmp_path / "own.json", tmp_path / "pets.json", tmp_path / "general.txt"
    own.write_text('{"x": ["own"]}')
    pets.write_text('{"cat": ["whiskers"], "dog": ["nose"]}')
    general.write_text("round\n")
    shipped = [pets, general]
    assert find_bank("auto", str(own), ["cat", "dog"], shipped).texts == ["own"]
    assert find_bank("auto", None, ["Cat", "dog"], shipped).texts == ["whiskers", "nose"]
    assert find_bank("auto", None, ["cat", "cow"], shipped).texts == ["round"]
    assert find_bank(str(general), str(own), ["cat"], shipped).texts == ["round"]


def test_class_name_bank():
    names = class_name_bank(["maple_tree", "fox"], "a photo of a {}.", embed, "e")
    assert names.texts == ["a photo of a maple tree.", "a photo of a fox."]
    assert torch.equal(names.owners(["maple_tree", "fox"]), torch.eye(2, dtype=torch.bool))
    with pytest.raises(UserError, match="no place {}"):
        class_name_bank(["a"], "a photo", embed, "e")


def test_concepts_learned_from_pictures_go_to_any_data_set():
    bank = merge_duplicates("b", "b", [("warm", ("red",), None), ("cold", ("green",), None)])
    cavs = replace(bank, concepts=tuple(replace(c, provenance={"cav": {}}) for c in bank.concepts))
    adopted = adopt_classes(cavs, ["Red", "violet"])
    assert [c.classes for c in adopted.concepts] == [("Red",), ()]
    with pytest.raises(UserError, match="no phrases for class 'violet'"):
        adopt_classes(bank, ["Red", "violet"])


def test_the_others_get_general_phrases():
    general = merge_duplicates("general", "general.txt", [("round", (), None), ("Wet nose", (), None)])
    options = {**OPTIONS, "general": general}
    bank_of_dogs = bank(dog=["wet nose", "long tail"])
    prepared = prepare_bank(bank_of_dogs, ["cat", "cow", "dog"], embed, "e", **options)
    assert {c.text: c.classes for c in prepared.concepts} == {
        "wet nose": ("dog", "cat", "cow"), "long tail": ("dog",), "round": ("cat", "cow"),
    }  # fmt: skip
    with pytest.raises(UserError, match="for class 'cat'.*concepts.missing_classes=general gives such classes"):
        prepare_bank(bank_of_dogs, ["cat", "cow", "dog"], embed, "e", **OPTIONS)
    assert prepare_bank(bank_of_dogs, ["dog"], embed, "e", **options).texts == ["wet nose", "long tail"]
    with pytest.raises(UserError, match="no phrases for class 'cat'"):  # all of them: another data set's bank
        prepare_bank(bank_of_dogs, ["cat", "cow"], embed, "e", **options)
    embedded = replace(bank_of_dogs, encoder="e", embeddings=torch.eye(2))
    with pytest.raises(UserError, match="embedded already"):
        prepare_bank(embedded, ["cat", "dog"], embed, "e", **options)


def test_exact_names_come_before_cleaned_ones():
    coins = {"1_euro": ["gold"], "2_euro": ["two colours"], "10_cent": ["ridges"], "1 euro": ["other"]}
    adopted = adopt_classes(bank(**coins), ["1_euro", "2_euro", "10_cent"])
    assert {c.text: c.classes for c in adopted.concepts} == {
        "gold": ("1_euro",), "two colours": ("2_euro",), "ridges": ("10_cent",),
    }  # fmt: skip
    assert match_classes(["crow", "Crow", "CROW"], ["Crow", "crow"]) == {"crow": "crow", "Crow": "Crow"}
    assert match_classes(["Black_Crow", "gull"], ["001.Black_Crow", "002.Gull"]) == {
        "Black_Crow": "001.Black_Crow", "gull": "002.Gull",
    }  # fmt: skip


@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("here", ["NFC", "NFD"])
def test_letters_in_any_form(there: str, here: str, tmp_path: Path):
    def form(which: str, text: str) -> str:
        return unicodedata.normalize(which, text)

    phrases = {form(there, "L\u00f6wenzahn"): [form(there, "gelbe Bl\u00fcte")], form(there, "B\u00e4r"): ["braun"]}
    (tmp_path / "b.json").write_text(json.dumps(phrases, ensure_ascii=False))
    classes = [form(here, "B\u00e4r"), form(here, "L\u00f6wenzahn")]
    general = tmp_path / "general.txt"
    general.write_text("round\n")
    adopted = adopt_classes(find_bank("auto", None, classes, [tmp_path / "b.json", general]), classes)
    assert [concept.classes for concept in adopted.concepts] == [(classes[1],), (classes[0],)]
    assert adopted.index(form("NFD", "gelbe Bl\u00fcte")) == 0
    edit = Edit("remove", form(here, "gelbe Bl\u00fcte"), classes=(form(there, "B\u00e4r"),))
    EditSet((edit,)).check(adopted.texts, [form("NFC", name) for name in classes])
    adopted.save(tmp_path / "bank")
    assert load_bank(tmp_path / "bank").texts == ["gelbe Bl\u00fcte", "braun"]


def test_prompts_that_are_the_same_are_said(caplog: pytest.LogCaptureFixture):
    class_name_bank(["Cat", "cat", "dog"], "a photo of a {}.", embed, "e")
    assert "classes 'Cat', 'cat' have the same prompt 'a photo of a cat.': nothing tells them apart" in caplog.text
    caplog.clear()
    named = class_name_bank(["1_euro", "2_euro"], "a photo of a {}.", embed, "e")
    assert named.texts == ["a photo of a 1 euro.", "a photo of a 2 euro."]
    assert caplog.text == ""


def test_a_class_without_phrases_is_named_and_no_separator_stands_alone():
    owners = [letter * 9 for letter in "abcdefghijklmnop"]  # too many to name, and none is like the class
    bank = merge_duplicates("b", "b", [(f"phrase {n}", (name,), None) for n, name in enumerate(owners)])
    with pytest.raises(UserError) as refused:
        adopt_classes(bank, ["zzzz", "yyyy"], hint="; do this")
    assert str(refused.value) == (
        "concept bank 'b' has no phrases for class 'zzzz' (and 1 more); it has phrases for 'aaaaaaaaa', which the data "
        "set does not have; do this"
    )
