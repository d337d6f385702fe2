"""The one template loader: pages are escaped, because class, concept and file names come from files of others."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cbm.files.inert import for_code, for_markdown, one_line, plain
from cbm.files.names import as_text
from cbm.report.wording import clip, deviations, number, percent, quote, signed


class _Escaped(str):
    """Text that a filter has made fit for its place."""


def _in_markdown(value: Any) -> Any:
    return for_markdown(value) if isinstance(value, str) and not isinstance(value, _Escaped) else value


def _in_page(value: Any) -> Any:
    """Without commands to a terminal and marks that turn letters around; what a filter has made of HTML stays."""
    return plain(as_text(value), "\n\t") if type(value) is str else value


@cache
def _environment(folder: Path, page: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=page,
        finalize=_in_page if page else _in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not page,
    )
    environment.filters |= {
        "clip": clip,
        "deviations": deviations,
        "number": number,
        "percent": percent,
        "quote": quote,
        "signed": signed,
        "code": lambda text: _Escaped(for_code(str(text))),
        "literal": lambda text: _Escaped(json.dumps(one_line(str(text)))),
        "url": lambda text: _Escaped(text) if re.fullmatch(r"https?://[\w./~%#?=&:-]+", text) else text,
    }
    return environment


def load_template(path: Path) -> Template:
    """The template of a file. What is filled in is escaped, in ``.html`` for HTML and in ``.md`` for Markdown (between
    backticks by the filter ``code``, as a string of Python or YAML by ``literal``); a name not given is an error."""
    return _environment(path.parent, path.suffix == ".html").get_template(path.name)
