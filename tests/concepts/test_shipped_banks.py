"""Every class-to-phrases JSON in ``concepts/`` is checked, so a new one is held to the same rules."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "concepts"
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
BANKS = {
    name: content
    for name, content in FILES.items()
    if isinstance(content, dict) and all(isinstance(phrases, list) for phrases in content.values())
}
IRREGULAR = {"mice": "mouse", "men": "man", "women": "woman", "wolves": "wolf", "leaves": "leaf", "buses": "bus"}


def singulars(word):
    """The word and what it may be the plural of."""
    forms = {word, IRREGULAR.get(word, word)}
    if word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if word.endswith("es"):
        forms.add(word[:-2])
    if word.endswith("s"):
        forms.add(word[:-1])
    return forms


def leaked_words(name, phrase):
    name_words = set().union(*(singulars(w) for w in re.findall(r"[a-z0-9]+", name.lower())))
    return {w for w in re.findall(r"[a-z0-9]+", phrase.lower()) if singulars(w) & name_words}


def test_the_leak_check_sees_plurals_and_whole_words_only():
    assert leaked_words("pickup_truck", "two trucks side by side") == {"trucks"}
    assert leaked_words("butterfly", "many butterflies") == {"butterflies"}
    assert leaked_words("mouse", "a family of mice") == {"mice"}
    assert not leaked_words("cat", "cattle on a pasture")


def test_banks_are_there():
    assert {"cifar10", "cifar100"} <= set(BANKS)
    assert len(BANKS["cifar10"]) == 10
    assert len(BANKS["cifar100"]) == 100
    assert all(len(phrases) == 25 for phrases in BANKS["cifar10"].values())
    assert all(len(phrases) >= 20 for phrases in BANKS["cifar100"].values())


@pytest.mark.parametrize("name", BANKS)
def test_phrases_are_short_lower_case_and_distinct(name):
    for owner, phrases in BANKS[name].items():
        assert len(set(phrases)) == len(phrases), f"{owner} repeats a phrase"
        for phrase in phrases:
            assert phrase == phrase.strip().lower(), f"{owner}: {phrase!r} is not plain lower case"
            assert 2 <= len(phrase.split()) <= 8, f"{owner}: {phrase!r} is not two to eight words"


@pytest.mark.parametrize("name", BANKS)
def test_no_phrase_names_its_own_class(name):
    leaks = [(owner, p) for owner, phrases in BANKS[name].items() for p in phrases if leaked_words(owner, p)]
    assert not leaks


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])  # paper birds share their attributes by design
def test_most_phrases_belong_to_one_class(name):
    phrases = [p for own in BANKS[name].values() for p in own]
    assert len(set(phrases)) > 0.9 * len(phrases)


def test_general_concepts():
    concepts = (FOLDER / "general.txt").read_text(encoding="utf-8").splitlines()
    assert len(concepts) >= 350
    assert len(set(concepts)) == len(concepts)
    assert all(c == c.strip().lower() and 1 <= len(c.split()) <= 8 for c in concepts)
