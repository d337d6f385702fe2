"""Names of strangers are text wherever they go, and are read as before where they are read again."""

import csv
import html
import io
import json
import random
import re
import unicodedata

import pytest

from cbm.files import inert

NAMES = [
    "green wing", "a_b", "50 %", "x^2 & {y} $z$ #1 ~", "a|b", "<img src=x onerror=alert(1)>", "`code`",
    "[a](http://b.c)", "*bold* _it_", "www.evil.test", "@somebody", "\x1b]0;title\x07", "\x1b[2J\x1b[31m",
    "\x9b31m", "two\nlines", "a\tb", "\u202egnp.exe", "half \ud83d", "\r\nSet-Cookie: a", "\x00", "\u2028",
    "=cmd|' /C calc'!A0", " =1+1", "\t=1", "+1 wing", "@SUM(1)", "-2+3", "\uff1d1", "\u200b=1", "\"=1", "'=1",
    "-0.5", "1e-3", "\\input{/etc/passwd}", "", " ", "1. a", "- a", "&lt;b&gt;", "<!--", "javascript:alert(1)",
    "翼の色 🐦", "e\u0301",
]  # fmt: skip


def commands(text: str, keep: str = "") -> list[str]:
    return [c for c in text if c not in keep and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]


def random_names(count: int = 60) -> list[str]:
    draw, letters = (
        random.Random(0),
        "=+-@ \t\n\r\"'ab1.,%e\x1b\x9b\u202e\ufeff\u200b\uff1d<>&|`*_[]()!~$#\\^{}:/\ud83d",
    )
    return ["".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("name", [*NAMES, *random_names()])
def test_nothing_is_a_command(name: str):
    for write in (inert.one_line, inert.for_markdown, inert.for_code, inert.for_latex):
        assert not commands(write(name)), write
        write(name).encode()
    for write, keep in ((inert.for_terminal, "\n\t"), (inert.for_html, "\n\t"), (inert.for_csv, "\n\t\r")):
        assert not commands(write(name), keep)
    assert not any(c in inert.TURNING for c in inert.for_terminal(name))


@pytest.mark.parametrize("name", [*NAMES, *random_names()])
def test_no_cell_is_a_formula(name: str):
    cell = inert.for_csv(name)
    opened = re.sub(r"^[\s\"\ufeff\u200b-\u200f\u2060]+", "", cell)  # what spreadsheets strip
    number = re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?%?", opened, re.IGNORECASE)
    assert number or not opened.startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    assert inert.from_csv(cell) == inert.plain(name, "\n\t\r")
    written = io.StringIO(newline="")
    csv.writer(written).writerow([cell, "next"])
    assert next(csv.reader(io.StringIO(written.getvalue(), newline="")))[1] == "next"


@pytest.mark.parametrize("path", [name for name in [*NAMES, *random_names()] if name and not name.startswith("./")])
def test_a_path_in_a_table_is_the_same_file(path: str):
    from pathlib import PurePosixPath

    cell = inert.path_for_csv(path)
    assert inert.path_from_csv(cell) == path
    assert PurePosixPath("/r") / cell == PurePosixPath("/r") / path
    assert inert.for_csv(cell) == inert.plain(cell, "\n\t\r")


@pytest.mark.parametrize("name", [*NAMES, *random_names()])
def test_markdown_shows_the_name_and_nothing_else(name: str):
    written = inert.for_markdown(name)
    assert "<" not in written
    assert not re.search(r"(?<!\\)[`*_\[\]|~$!#]", re.sub(r"&#\d+;", "", written.replace("\\\\", "")))
    assert "://" not in written
    assert "@" not in written
    shown = html.unescape(re.sub(r"\\([\\`*_\[\]|~$!#.)+-])", r"\1", written))
    assert shown == inert.one_line(name)


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_no_command_but_those_of_ours(name: str):
    written = inert.for_latex(name)
    for own in sorted(inert.LATEX.values(), key=len, reverse=True):
        written = written.replace(own, "")
    assert not re.search(r"[\\&%$#_{}~^]", written)


@pytest.mark.parametrize("name", NAMES)
def test_json_on_a_terminal_is_the_same_json(name: str):
    text = json.dumps({"a": name}, ensure_ascii=False, indent=1)
    assert json.loads(inert.for_json(text)) == {"a": name}
    assert not commands(inert.for_json(text), "\n")


def test_html_is_text_in_an_element_and_in_an_attribute():
    assert inert.for_html("<b onclick='x' a=\"y\">&") == "&lt;b onclick=&#x27;x&#x27; a=&quot;y&quot;&gt;&amp;"
