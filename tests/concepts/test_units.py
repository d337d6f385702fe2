"""Units of a bank: what is read of them, and names that change while the unit stays the same."""

import json
from pathlib import Path

import pytest
import torch

from cbm.concepts import Concept, ConceptBank, load_bank
from cbm.concepts.units import find_unit, former_names, name_back, rename_unit, unit_of, units_of
from cbm.errors import UserError


def unit(number: int, word: str | None = None, **more) -> Concept:
    text = word or f"unnamed {number:04d}"
    return Concept(text, provenance={"unit": {"number": number, "word": word, **more}})


@pytest.fixture
def bank() -> ConceptBank:
    concepts = (unit(0, "red wing", auroc=0.9), unit(3), unit(7, words=[{"text": "blue", "cosine": 0.3}]))
    return ConceptBank("discovered", "topk", concepts, "e", torch.eye(3))


def test_what_is_known(bank: ConceptBank):
    units = units_of(bank)
    assert [each.named for each in units] == [True, False, False]
    assert [each.state for each in units] == ["named by its word", "unnamed", "unnamed"]
    assert (units[2].words, units[2].cosine, units[1].cosine) == ((("blue", 0.3),), 0.3, None)
    assert units_of(None) is units_of(ConceptBank("a", "a", (Concept("red"), unit(1)))) is None


@pytest.mark.parametrize(
    "said",
    [None, 3, {}, {"number": "3"}, {"number": True}, {"number": float("nan")}],
)
def test_what_is_no_unit(said):
    assert unit_of(Concept("x", provenance={"unit": said})) is None


def test_what_a_damaged_file_says_is_left_out():
    found = unit_of(
        unit(1, words=[{"text": 3, "cosine": 1}, "x", {"text": "a"}], auroc="high", pictures=[1, "a.png"], former=[3],
             crop={"image": "a.png", "box": [0, 0, 2, 1]}, named_by="nobody", proposed=3, again=[])
    )  # fmt: skip
    assert (found.words, found.auroc, found.pictures, found.former) == ((), None, ("a.png",), ())
    assert found.crop is found.named_by is found.proposed is found.again is None
    assert unit_of(unit(1, proposed={"model": "m", "auroc": "high"})).proposed == {"model": "m", "auroc": None}
    crop = unit_of(unit(1, crop={"image": "a.png", "box": [0.5, 0, 1, 0.25]})).crop
    assert (crop.image, crop.box) == ("a.png", (0.5, 0.0, 1.0, 0.25))


def test_names_change_and_come_back(bank: ConceptBank, tmp_path: Path):
    """Through a file each time: the embeddings belong to the units whatever they are called."""
    bank.save(tmp_path)
    written = (tmp_path / "embeddings.safetensors").read_bytes()

    def through_a_file(changed: ConceptBank) -> ConceptBank:
        (tmp_path / "bank.json").write_bytes(changed.to_json())
        read = load_bank(tmp_path)
        assert torch.equal(read.embeddings, torch.eye(3))
        return read

    one = through_a_file(rename_unit(bank, "unnamed 0003", "  spotted wing "))
    assert one.texts == ["red wing", "spotted wing", "unnamed 0007"]
    assert (units_of(one)[1].named_by, units_of(one)[1].former) == ("person", ("unnamed 0003",))
    assert one.phrases == one.texts  # what labels are compared with
    assert rename_unit(one, "unnamed 0003", "red wing (2)").phrases[1] == "red wing"
    two = through_a_file(rename_unit(one, "unnamed 0003", "dotted wing", "model", {"model": "m", "auroc": 0.8}))
    assert former_names(two) == {"unnamed 0003": "dotted wing", "spotted wing": "dotted wing"}
    assert units_of(two)[1].state == "named by a model"
    assert units_of(two)[1].proposed == {"model": "m", "auroc": 0.8}
    three = through_a_file(rename_unit(two, "red wing", "crimson wing"))
    assert find_unit(three, "red wing") == 0
    back, was, now = name_back(three)
    assert (was, now) == ("crimson wing", "red wing")
    assert through_a_file(back).concepts[0].provenance["unit"].pop("taken_back") == ["crimson wing"]
    assert back.texts[0] == bank.texts[0]
    assert former_names(back)["crimson wing"] == "red wing"
    back, was, now = name_back(back, "dotted wing")
    assert (was, now, units_of(back)[1].named_by, units_of(back)[1].proposed) == (
        "dotted wing", "spotted wing", "person", None,
    )  # fmt: skip
    back, *_ = name_back(back)
    assert through_a_file(back).texts == through_a_file(back).phrases == bank.texts
    assert [each.word for each in units_of(back)] == ["red wing", None, None]
    assert former_names(back) == {"crimson wing": "red wing", "dotted wing": "unnamed 0003",
                                  "spotted wing": "unnamed 0003"}  # fmt: skip
    again = through_a_file(rename_unit(back, "unnamed 0007", "spotted wing"))  # it was taken back, and is free
    assert find_unit(again, "spotted wing") == 2
    assert former_names(again)["dotted wing"] == "unnamed 0003"
    assert (tmp_path / "embeddings.safetensors").read_bytes() == written
    three.save(tmp_path / "new")
    assert load_bank(tmp_path / "new").texts == three.texts


def test_embeddings_of_other_phrases_are_still_refused(bank: ConceptBank, tmp_path: Path):
    bank.save(tmp_path)
    content = json.loads((tmp_path / "bank.json").read_text())
    content["concepts"][0]["text"] = "green wing"
    (tmp_path / "bank.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="of other phrases"):
        load_bank(tmp_path)


@pytest.mark.parametrize(
    "name", ["\u067e\u0631\u0646\u062f\u0647\u200c\u0647\u0627", "\U0001f469\u200d\U0001f33e farmer"]
)
def test_names_of_letters_that_are_joined(bank: ConceptBank, name: str):
    """A Persian plural, and an emoji of two."""
    assert name in rename_unit(bank, "unnamed 0003", name).texts


def test_what_is_refused(bank: ConceptBank):
    for text, new, said in (
        ("unamed 0003", "x", "no unit 'unamed 0003': did you mean 'unnamed 0003'"),
        ("unnamed 0003", " ", "expected a name of 1 to 80 letters"),
        ("unnamed 0003", "x" * 81, "expected a name of 1 to 80 letters"),
        ("unnamed 0003", "a\x1bb", "expected a name of 1 to 80 letters"),
        ("unnamed 0003", "\u200d", "expected a name of 1 to 80 letters"),
        ("unnamed 0003", "unnamed 0003", "called so already"),
        ("unnamed 0003", "red wing", "another unit's name"),
    ):
        with pytest.raises(UserError, match=said):
            rename_unit(bank, text, new)
    with pytest.raises(UserError, match="nothing to undo"):
        name_back(bank)
    with pytest.raises(UserError, match="'red wing' was not given another name"):
        name_back(bank, "red wing")
    moved = rename_unit(bank, "red wing", "crimson wing")
    with pytest.raises(UserError, match="'red wing' was the name of the unit 'crimson wing', and edits"):
        rename_unit(moved, "unnamed 0003", "red wing")
    with pytest.raises(UserError, match="were written down"):
        rename_unit(ConceptBank("a", "a", (Concept("red"),)), "red", "blue")
