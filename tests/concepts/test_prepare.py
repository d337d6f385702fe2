from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cbm.concepts import merge_duplicates
from cbm.concepts.prepare import adopt_classes, class_name_bank, find_bank, prepare_bank
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
