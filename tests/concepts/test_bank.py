from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cbm.concepts import Concept, ConceptBank, load_bank
from cbm.errors import UserError


@pytest.fixture
def bank() -> ConceptBank:
    concepts = (
        Concept("yellow belly", ("a", "b"), "belly", 0.5, {"prompt": "p"}),
        Concept("hooked beak", ("b",)),
        Concept("sky"),
    )
    return ConceptBank("birds", "birds.json", concepts, "abc", torch.eye(3))


def test_owners_are_multi_hot(bank: ConceptBank):
    assert bank.owners(["b", "a", "c"]).tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert bank.classes == ["a", "b"]


def test_save_and_load(bank: ConceptBank, tmp_path: Path):
    bank = bank.keep([None, "not visual", None], "hygiene")
    bank = replace(bank, embeddings=torch.eye(3)[:2], encoder="abc")
    bank.save(tmp_path)
    again = load_bank(tmp_path)
    assert again.concepts == bank.concepts
    assert again.dropped == bank.dropped
    assert again.dropped[0].reason == "not visual"
    assert again.concepts[0].provenance == {"prompt": "p", "filters": ["hygiene"]}
    assert torch.equal(again.directions(), bank.directions())


def test_take_keeps_embeddings_aligned(bank: ConceptBank):
    part = bank.take([2, 0])
    assert part.texts == ["sky", "yellow belly"]
    assert torch.equal(part.directions(), torch.eye(3)[[2, 0]])


def test_unknown_concept_names_the_nearest(bank: ConceptBank):
    assert bank.index("hooked beak") == 1
    with pytest.raises(UserError, match="unknown concept 'yelow bely': did you mean 'yellow belly'"):
        bank.index("yelow bely")


def test_embeddings_that_do_not_fit(bank: ConceptBank, tmp_path: Path):
    bank.save(tmp_path)
    replace(bank, concepts=bank.concepts[:2], embeddings=None).save(tmp_path)
    with pytest.raises(UserError, match="3 rows, but the bank beside it has 2 concepts"):
        load_bank(tmp_path)


def test_not_a_bank(tmp_path: Path):
    (tmp_path / "bank.json").write_text('{"concepts": [{"txt": "a"}]}')
    with pytest.raises(UserError, match="is not a concept bank"):
        load_bank(tmp_path)
