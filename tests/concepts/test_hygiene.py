import pytest

from cbm.concepts import clean_class_name, clean_class_names, drop_class_names, hygiene_reason, merge_duplicates
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
        (["black_footed_albatross"], "a blackfooted albatross", "blackfooted albatross"),
        (["T-shirt"], "a white t shirt", "t shirt"),
        (["t shirt"], "a white T\N{NON-BREAKING HYPHEN}shirt", "T\N{NON-BREAKING HYPHEN}shirt"),
        (["ice cream"], "icecream in a cone", "icecream"),
        (["café au lait"], "Cafe au lait", "Cafe au lait"),
        (["ice cream"], "nice creamy colour", None),
        (["guinea_pig", "hot_dog"], "a pig by a dog", None),
        (["grey butterfly"], "greybutterflies", "greybutterflies"),
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


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], ["black footed albatross", "laysan albatross"]),
        (["005.Crested_Auklet", "081.Kingfisher"], ["crested auklet", "kingfisher"]),  # a part of the classes
        (["0_cat", "1_dog", "2_owl"], ["cat", "dog", "owl"]),
        (["1_euro", "2_euro", "5_cent", "10_cent"], ["1 euro", "2 euro", "5 cent", "10 cent"]),
        (["01_euro", "02_euro"], ["01 euro", "02 euro"]),
        (["3 wheeler", "4 door"], ["3 wheeler", "4 door"]),
        (["1-euro", "2-euro"], ["1-euro", "2-euro"]),
        (["10_cent", "20_cent", "50_euro"], ["10 cent", "20 cent", "50 euro"]),
        (["1_cat", "1_dog"], ["1 cat", "1 dog"]),
        (["001.Crow", "owl"], ["001.crow", "owl"]),
        (["737-200", "747-200"], ["737-200", "747-200"]),
        (["Lo\u0308we", "B\u00e4r"], ["l\u00f6we", "b\u00e4r"]),
    ],
)
def test_numbers_are_cut_only_where_they_run_and_tell_nothing_apart(names: list[str], said: list[str]):
    assert clean_class_names(names) == said
    assert len(set(clean_class_names(names))) == len(names)


def test_phrases_with_a_numbered_class_are_found():
    bank = merge_duplicates("b", "b", [("an old cat", ("1_cat",), None), ("round", ("2_dog",), None)])
    assert drop_class_names(bank, ["1_cat", "2_dog"], "own").texts == ["round"]


def test_numbers_stay_where_only_a_plural_would_tell_names_apart():
    assert clean_class_names(["1_pound", "2_pounds"]) == ["1 pound", "2 pounds"]
    assert clean_class_names(["1_bass", "2_trout"]) == ["bass", "trout"]
