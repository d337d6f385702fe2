import json
import os
from pathlib import Path

import pytest

from cbm.concepts import read_bank
from cbm.errors import UserError


def write(tmp_path: Path, content, name: str = "bank.json") -> Path:
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_shared_phrases_keep_all_their_owners(tmp_path: Path):
    phrases = {"crow": ["Black wings.", "black  wings", "a hooked beak"], "raven": ["black wings", ""]}
    bank = read_bank(write(tmp_path, phrases, "labo.json"))
    assert bank.texts == ["Black wings.", "a hooked beak"]
    assert bank.concepts[0].classes == ("crow", "raven")
    assert bank.concepts[0].provenance["merged"] == ["black wings"]
    assert [(d.text, d.classes, d.reason) for d in bank.dropped] == [("", ("raven",), "blank")]


def test_scores_lists_and_lines(tmp_path: Path):
    scored = read_bank(write(tmp_path, {"crow": [["black", 0.5]]}, "scored.json"))
    assert scored.concepts[0].score == 0.5
    assert read_bank(write(tmp_path, ["a", "b"], "list.json")).texts == ["a", "b"]
    lines = read_bank(write(tmp_path, "# colours\nred\n\nblue\nRed\n", "lines.txt"))
    assert lines.texts == ["red", "blue"]
    assert lines.classes == []


def test_our_own_format(tmp_path: Path):
    bank = read_bank(write(tmp_path, {"name": "mine", "concepts": [{"text": "red", "classes": ["x"]}]}, "own.json"))
    assert bank.name == "mine"
    assert bank.concepts[0].classes == ("x",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ["b"', "is not JSON.*line 1"),
        ({"a": "b"}, "'a' holds a str"),
        ({"a": [1]}, "a phrase of 'a' is 1"),
        ({}, "has no concepts"),
        ({"a": [""]}, "has no concepts"),
    ],
)
def test_files_that_are_no_bank(tmp_path: Path, content, message: str):
    with pytest.raises(UserError, match=message):
        read_bank(write(tmp_path, content))


def test_missing_file_names_the_nearest(tmp_path: Path):
    write(tmp_path, ["a"], "cifar10.json")
    with pytest.raises(UserError, match="did you mean 'cifar10.json'"):
        read_bank(tmp_path / "cifar_10.json")
    (tmp_path / "latin.txt").write_bytes("gef\xe4rbt".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_bank(tmp_path / "latin.txt")


PUBLISHED = os.environ.get("CBM_PUBLISHED_BANKS")


@pytest.mark.skipif(
    PUBLISHED is None, reason="CBM_PUBLISHED_BANKS does not name a folder with the published concept sets"
)
@pytest.mark.parametrize(
    ("name", "concepts", "classes"),
    [
        ("labo_cifar10.json", 4459, 10),
        ("labo_cub.json", None, 200),
        ("labo_cifar10_selected.json", None, 10),
        ("v2c_cifar10.json", None, 10),
        ("conceptnet_cifar10.txt", None, 0),
        ("lf_cifar10.txt", None, 0),
    ],
)
def test_published_concept_sets_as_found(name: str, concepts: int | None, classes: int):
    bank = read_bank(Path(str(PUBLISHED)) / name)
    assert len(bank.classes) == classes
    assert concepts is None or len(bank) == concepts
    assert len(bank) > 100
