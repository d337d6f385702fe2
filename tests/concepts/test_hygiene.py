import pytest

from cbm.concepts import clean_class_name, drop_class_names, hygiene_reason, merge_duplicates
from cbm.concepts.hygiene import class_name_pattern


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("bright yellow belly", None),
        ("stands on thin orange legs", None),
        ("ab", "too short"),
        ("extract concepts from sentence: wings", "leaked prompt"),
        ("located on the side of the", "cut off after 'the'"),
        ("texture texture with holes", "doubled word"),
        ("up to 5 pounds", "not visual: measurement"),
        ("makes a loud cawing sound", "not visual: sound"),
        ("threatened species", "not visual: status"),
        ("symbol of freedom", "not visual: meaning"),
        ("w " * 21, "longer than 20 words"),
    ],
)
def test_reasons(text: str, reason: str | None):
    assert hygiene_reason(text) == reason


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (["cat"], "two cats on a sofa", "cats"),
        (["cat"], "a scattered pattern", None),
        (["cat"], "Cat-like eyes", "Cat"),
        (["ray"], "gray feathers", None),
        (["butterfly"], "colourful butterflies", "butterflies"),
        (["pickup_truck"], "a pickup truck bed", "pickup truck"),
        (["001.Black_footed_Albatross"], "like a black-footed albatross", "black-footed albatross"),
        (["fox"], "foxes", "foxes"),
    ],
)
def test_class_names_are_matched_as_words(names: list[str], text: str, found: str | None):
    pattern = class_name_pattern(names)
    assert pattern is not None
    match = pattern.search(text)
    assert (match.group() if match else None) == found


def test_own_and_any():
    phrases = [("cat ears", ("cat",), None), ("chased by a cat", ("dog",), None), ("soft fur", ("cat", "dog"), None)]
    bank = merge_duplicates("b", "b", [*phrases, ("seen with a dog", (), None)])
    own = drop_class_names(bank, ["cat", "dog"], "own")
    assert own.texts == ["chased by a cat", "soft fur"]
    assert [d.reason for d in own.dropped] == ["names the class 'cat'", "names the class 'dog'"]
    assert drop_class_names(bank, ["cat", "dog"], "any").texts == ["soft fur"]
    assert drop_class_names(bank, ["cat", "dog"], "none") is bank


def test_clean_class_name():
    assert clean_class_name("001.Black_footed_Albatross") == "black footed albatross"
    assert clean_class_name("maple_tree") == "maple tree"
    assert clean_class_name("737-200") == "737-200"  # an aircraft, not number 737 of a list
