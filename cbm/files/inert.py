"""Text of others, made inert for the place where it goes: one function per place, and no other escaping elsewhere.

Names of classes, concepts, files and servers come from strangers. A terminal obeys escape sequences, a spreadsheet
formulas, Markdown and LaTeX their marks. Pages in HTML are made from templates that escape what they are given
(``cbm.report.templates``); for other HTML there is ``for_html``. In figures text is ``one_line``, and
``cbm.report.figures.svg`` keeps matplotlib from taking dollar signs for formulas.
"""

import html
import re
import unicodedata

UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of what is no letter but a command: control characters, half a letter, breaks of lines and paragraphs."""
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that turn the order of the letters around them, so that a text reads as another."""
IN_PLACE = "\ufffd"
"""What stands where such a character was."""
FORMULA = re.compile(r"[\s\"'\ufeff\u200b-\u200f\u2060]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that spreadsheets take for a formula, with what they strip first, and in wide letters too."""
NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?%?")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\u00b1": r"$\pm$",
    "\u2013": "--",
    "\u2248": r"$\approx$",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}
MARKDOWN = {
    **{mark: f"\\{mark}" for mark in "\\`*_[]|~$!#"},
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
    "@": "&#64;",  # or GitHub tells somebody of that name
}


def plain(text: str, keep: str = "") -> str:
    """Text without characters that are commands: ``\\ufffd`` stands for each.

    Args:
        text: any text.
        keep: control characters that may stay, such as ``\\n``.

    Example:
        >>> plain("\\x1b[31mred\\x1b[0m") == "\\ufffd[31mred\\ufffd[0m"
        True
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        IN_PLACE if c not in keep and (c in TURNING or unicodedata.category(c) in UNSEEN) else c for c in text
    )


def one_line(text: str) -> str:
    """Text on one line, with single spaces, for a terminal, a log or a plot.

    Example:
        >>> one_line(" a\\n b\\t\\x07") == "a b \\ufffd"
        True
    """
    return plain(" ".join(text.split()))


def for_terminal(text: str) -> str:
    """Text for a terminal: lines and tabs stay, nothing moves the cursor, colours or renames a window."""
    return plain(text, "\n\t")


def for_json(written: str) -> str:
    """JSON that was written with ``ensure_ascii=False``, for a terminal too: the same content, commands as ``\\uXXXX``.

    Example:
        >>> for_json('"\x9b and \u00e9"') == '"' + chr(92) + 'u009b and \u00e9"'
        True
    """
    return "".join(f"\\u{ord(c):04x}" if plain(c, "\n") == IN_PLACE != c else c for c in written)


def for_element(text: str) -> str:
    """Text inside an element of HTML, and nowhere else: quotes stay.

    Example:
        >>> for_element("<b> it's")
        "&lt;b&gt; it's"
    """
    return html.escape(plain(text, "\n\t"), quote=False)


def for_html(text: str) -> str:
    """Text inside an element or a quoted attribute.

    Example:
        >>> for_html('<b a="x">')
        '&lt;b a=&quot;x&quot;&gt;'
    """
    return for_element(text).replace('"', "&quot;").replace("'", "&#x27;")


def for_markdown(text: str) -> str:
    """Text inside a line or a table cell of Markdown: no marks, no HTML, no links, nobody who is told of it.

    Example:
        >>> for_markdown("a|b <i>*c*")
        'a\\\\|b &lt;i&gt;\\\\*c\\\\*'
    """
    marked = "".join(MARKDOWN.get(c, c) for c in one_line(text))
    marked = re.sub(r"^([-+]|\d+[.)])(?=\s|$)", _first_escaped, marked)
    return re.sub(r"://", "&#58;//", re.sub(r"(?i)\b(www|mailto|xmpp)([.:])", _apart, marked))


def _first_escaped(match: re.Match[str]) -> str:
    """``-`` or ``1.`` at the beginning, which would make a list."""
    return f"{match[0][:-1]}\\{match[0][-1]}"


def _apart(match: re.Match[str]) -> str:
    """``www.``, which some make a link of."""
    return f"{match[1]}&#{ord(match[2])};"


def for_code(text: str) -> str:
    """Text inside a pair of backticks in Markdown, where marks mean nothing but a backtick ends it.

    Example:
        >>> for_code("a`b|c")
        "a'b\\\\|c"
    """
    return one_line(text).replace("`", "'").replace("|", "\\|")


def for_latex(text: str) -> str:
    """Text inside a line or a table cell of LaTeX.

    Example:
        >>> for_latex("50 % of a_b")
        '50 \\\\% of a\\\\_b'
    """
    return "".join(LATEX.get(c, c) for c in one_line(text))


def for_csv(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: ``'`` stands before one. Numbers stay as they are.

    Example:
        >>> for_csv("=1+1"), for_csv(" @x"), for_csv("-0.5"), for_csv("a\\tb")
        ("'=1+1", "' @x", '-0.5', 'a\\tb')
    """
    text = plain(text, "\n\t\r")
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_csv(cell: str) -> str:
    """The text of a cell that ``for_csv`` wrote.

    Example:
        >>> from_csv(for_csv("=1+1")), from_csv("'tis")
        ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and for_csv(cell[1:]) == cell else cell


def path_for_csv(path: str) -> str:
    """A path in a table, which programs open again: ``./=x.png`` is the same file as ``=x.png``, and no formula.

    Example:
        >>> path_for_csv("=x.png"), path_for_csv("a/=x.png")
        ('./=x.png', 'a/=x.png')
    """
    return f"./{path}" if FORMULA.match(path) else path


def path_from_csv(cell: str) -> str:
    """The path that ``path_for_csv`` wrote."""
    return cell[2:] if cell.startswith("./") and FORMULA.match(cell[2:]) else cell
