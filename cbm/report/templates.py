"""The one template loader: pages are escaped, because class, concept and file names come from files of others."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cbm.report.wording import clip, deviations, number, percent, quote, signed


@cache
def _environment(folder: Path, page: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=page,
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
    }
    return environment


def load_template(path: Path) -> Template:
    """The template of a file. What it says is escaped in ``.html``; a name that is not given is an error."""
    return _environment(path.parent, path.suffix == ".html").get_template(path.name)
