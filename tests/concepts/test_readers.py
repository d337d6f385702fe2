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


MARKED = ["- {}", "* {}", "1. {}", "2) {}", "(3) {}", "• {}", "•{}", "– {}", "a) {}", "iv. {}", "- [ ] {}", "+ {}",
          '"{}"', "'{}',", "“{}”", "  -  {}", "**{}**", "- **{}**", "7: {}", "◦ {}", "`{}`"]  # fmt: skip


def test_list_marks_and_quotes_are_no_part_of_a_phrase(tmp_path: Path):
    phrases = ["yellow beak", "long neck", "black cap"]
    for mark in MARKED:
        text = "\n".join(mark.format(phrase) for phrase in phrases)
        assert read_bank(write(tmp_path, text, "list.txt")).texts == phrases, mark
    plain = ["3 stripes", "3.5 cm beak", "bird's wing", "t-shirt", "x-shaped mark"]
    assert read_bank(write(tmp_path, "\n".join(plain), "plain.TXT")).texts == plain


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "phrase,class\nyellow beak,heron\nlong neck,heron\nblack cap,tern\nlong neck,tern"),
        ("b.csv", "Class;Concept\nheron;yellow beak\nheron|tern;'long neck'\ntern;black cap\n\n"),
        ("c.tsv", "label\tscore\ttext\nheron\t1\tyellow beak\nheron;tern\t2\tlong neck\ntern\t3\tblack cap"),
        ("d.txt", 'concept,species\n"yellow beak",heron\n- long neck,heron;tern\nblack cap,tern'),
        ("e.json", '[{"text": "yellow beak", "classes": ["heron"]}, {"phrase": "long neck", "class": "heron"}, '
                   '{"concept": "black cap", "label": "tern"}, {"text": "long neck", "classes": ["tern"]}]'),
        ("f.json", '{"heron": [{"text": "yellow beak"}, {"text": "long neck", "classes": ["tern"]}], '
                   '"tern": ["black cap"]}'),
        ("g.txt", '{"heron": ["yellow beak", "long neck"], "tern": ["long neck", "black cap"]}'),
    ],
)  # fmt: skip
def test_tables_and_objects(tmp_path: Path, name: str, text: str):
    bank = read_bank(write(tmp_path, text, name))
    assert {c.text: c.classes for c in bank.concepts} == {
        "yellow beak": ("heron",), "long neck": ("heron", "tern"), "black cap": ("tern",),
    }  # fmt: skip


def test_columns_and_lists_of_one_kind(tmp_path: Path):
    assert read_bank(write(tmp_path, "phrase\nred\nblue", "one.csv")).texts == ["red", "blue"]
    assert read_bank(write(tmp_path, '"red, dark"\nblue', "bare.csv")).texts == ["red, dark", "blue"]
    assert read_bank(write(tmp_path, {"concepts": ["red", "blue"], "name": "x"}, "own.json")).texts == ["red", "blue"]
    bare = read_bank(write(tmp_path, {"crow": ["dark"], "dove": []}, "bare.json"))
    assert [(d.classes, d.reason) for d in bare.dropped] == [(("dove",), "class without phrases")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.docx", "red", "not read from .docx files; expected bank.json"),
        ("a.yaml", "- red", "not read from .yaml files"),
        ("a.csv", "bird,colour\nheron,grey", "no column is called phrase, concept or text .*'bird,colour'"),
        ("a.csv", "phrase,class\nred,a,b", "row 2 has 3 cells"),
        ("a.json", [{"name": "red"}], r"entry 1 is \{\"name\": \"red\"\}, expected a 'text'"),
        ("a.json", [{"text": "red", "classes": [1]}], "expected 'classes' to be a list of names"),
        ("a.json", [3], "entry 1 is 3, expected a string"),
        ("a.json", "null", "the file holds a NoneType"),
    ],
)
def test_what_is_refused_names_what_is_read(tmp_path: Path, name: str, text, message: str):
    with pytest.raises(UserError, match=message):
        read_bank(write(tmp_path, text, name))


@pytest.mark.parametrize(
    "mark",
    ["→", ">", "☐", "✅", "❖", "1️⃣", "①", "#1", "**1.**", "1 -", "1.)", "[1]", "~", "o", "Step 1:", "1\t", "»"],
)
def test_marks_of_lists(tmp_path: Path, mark: str):
    phrases = ["yellow beak", "2 long legs", "3-toed feet"]
    lines = "\n".join(f"{mark} {phrase}" for phrase in phrases)
    assert read_bank(write(tmp_path, lines, "a.txt")).texts == phrases
    assert read_bank(write(tmp_path, {"heron": lines.split("\n")[:1]})).texts == phrases[:1]


def test_lists_of_python_and_tables_with_a_hint_are_no_phrases(tmp_path: Path):
    with pytest.raises(UserError, match="is not JSON"):
        read_bank(write(tmp_path, "['yellow beak', 'red cap']", "a.txt"))
    bank = read_bank(write(tmp_path, 'sep=;\nclass;phrases\nheron;"grey wings; long legs"', "a.csv"))
    assert [(c.text, c.classes) for c in bank.concepts] == [("grey wings", ("heron",)), ("long legs", ("heron",))]
    marked = "| class | phrase |\n|---|:--|\n| heron | yellow beak |\n"
    assert read_bank(write(tmp_path, marked, "b.txt")).texts == ["yellow beak"]


def test_columns_that_are_passed_over_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert read_bank(write(tmp_path, "bird,feature\nheron,yellow beak", "a.csv")).classes == []
    assert "columns 'bird' are passed over; none is called class or label" in caplog.text
