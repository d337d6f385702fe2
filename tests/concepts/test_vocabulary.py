import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT

from cbm.concepts.vocabulary import PATTERNS, build_vocabulary, names_class
from cbm.errors import UserError

SEEDS = PROJECT / "concepts" / "visual_words.yaml"


def seed_file(folder: Path, adjectives: list[str], nouns: list[str]) -> Path:
    path = folder / "seeds.yaml"
    path.write_text(yaml.safe_dump({"adjective": {"any": adjectives}, "noun": {"any": nouns}}))
    return path


def test_counts_are_what_the_patterns_say(tmp_path: Path):
    seeds = seed_file(tmp_path, ["red", "striped"], ["beak", "wing", "tail"])
    found = build_vocabulary(seeds, n_adjectives=0, n_nouns=0, patterns=PATTERNS)
    assert len(found) == 2 + 3 + 6 + 4 * 6
    assert {"red", "beak", "striped tail", "has red wing", "made of striped beak"} <= set(found.texts)
    assert list(found.texts) == sorted(set(found.texts))


def test_words_are_clean():
    found = build_vocabulary(SEEDS, n_adjectives=100, n_nouns=1500, patterns=("adjective", "noun"))
    assert all(re.fullmatch("[a-z]+", text) and len(text) >= 2 for text in found.texts)
    assert {"red", "striped", "round", "beak", "feather", "petal"} <= set(found.texts)  # the published lists lack them
    assert not {"the", "feathers", "ou", "mn", "verzeichnis", "porn", "minutes", "often"} & set(found.texts)
    assert found.recipe["adjectives"] > 100
    assert found.recipe["nouns"] > 1500


def test_frequent_words_are_a_choice(tmp_path: Path):
    seeds = seed_file(tmp_path, ["red"], ["beak"])
    few = build_vocabulary(seeds, n_adjectives=0, n_nouns=20, patterns=("noun",))
    more = build_vocabulary(seeds, n_adjectives=0, n_nouns=40, patterns=("noun",))
    assert len(few) == 21
    assert set(few.texts) < set(more.texts)
    assert few.sha256 != more.sha256


def test_the_same_in_every_process():
    """The published list came out of a set, in another order every time."""
    program = (
        "from pathlib import Path; from cbm.concepts.vocabulary import build_vocabulary as b;"
        f"print(hash('a'), b(Path({str(SEEDS)!r}), n_adjectives=5, n_nouns=50).sha256)"
    )
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    printed = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": other, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert int(printed[0]) != hash("a")  # sets of words have another order there
    assert printed[1] == build_vocabulary(SEEDS, n_adjectives=5, n_nouns=50).sha256


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("black cat", True), ("two black cats", True), ("catalog", False), ("cattle", False),
        ("white polar bear", True), ("brown bear", True), ("polar light", False), ("bearing", False),
        ("wolves", True), ("puppy", False), ("kitty", True), ("redwinged blackbird", True), ("red wing", False),
    ],
)  # fmt: skip
def test_class_names_are_found_word_by_word(text: str, named: bool):
    classes = ["cat", "polar_bear", "001.Wolf", "Redwinged_Blackbird"]
    assert names_class([text], classes, synonyms=["kitty"]) == [named]


def test_no_classes_no_names():
    assert names_class(["anything", "at all"], []) == [False, False]


def test_bad_settings(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown pattern 'adjectiv'.*adjective"):
        build_vocabulary(SEEDS, patterns=("adjectiv",))
    with pytest.raises(UserError, match=r"'Red' is not one lower-case word"):
        build_vocabulary(seed_file(tmp_path, ["Red"], ["beak"]), n_nouns=5)
    with pytest.raises(UserError, match="cannot read .*none.yaml"):
        build_vocabulary(tmp_path / "none.yaml")
