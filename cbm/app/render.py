"""From data to HTML. Every name is escaped: class, concept and file names come from files that others wrote."""

from pathlib import Path
from typing import Any

from cbm.report.templates import load_template

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **data: Any) -> str:
    """``templates/TEMPLATE.html`` with the data."""
    return load_template(TEMPLATES / f"{template}.html").render(data)
