import unicodedata

import pytest

from cbm.files.names import differ_in_case, file_name, one_form, quoted

SPACES = [" ", "\t", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\u2060"]


@pytest.mark.parametrize("space", SPACES, ids=[f"{ord(space):04x}" for space in SPACES])
def test_no_space_makes_another_name(space: str):
    assert one_form(f"{space}frog{space}") == "frog"
    assert one_form(f"tree {space}frog") == "tree frog"


@pytest.mark.parametrize("name", ["Löwenzahn", "Ångström", "한국어", "Việt", "ö\u0323"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_in_one_form(name: str, form: str):
    assert one_form(unicodedata.normalize(form, name)) == unicodedata.normalize("NFC", name)


def test_case_and_quotation():
    assert differ_in_case(["Straße", "STRASSE", "ab", "AB", "c"]) == [["Straße", "STRASSE"], ["ab", "AB"]]
    assert quoted(["a", "b"]) == "'a', 'b'"


@pytest.mark.parametrize("name", ["birds", "Löwen zahn.v2", "-x_+", "console", "COM10"])
def test_most_names_stay_as_they_are_in_files(name: str):
    assert file_name(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a:b", "a-b"), ("com1", "com1-"), ("nul.txt", "nul.txt-"), ("..", "-"), ("a\n?", "a--"), ("../up", "..-up")],
)
def test_names_of_files_that_windows_refuses(name: str, expected: str):
    assert file_name(name) == expected
