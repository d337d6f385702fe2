"""From data to HTML. Every name is escaped: class, concept and file names come from files that others wrote."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cbm.report.wording import clip, deviations, percent, signed

TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"clip": clip, "deviations": deviations, "percent": percent, "signed": signed}
    return environment


def render(template: str, **data: Any) -> str:
    """``templates/TEMPLATE.html`` with the data."""
    return _environment().get_template(f"{template}.html").render(data)
