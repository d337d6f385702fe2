"""From data to HTML. Every name is escaped: class, concept and file names come from files that others wrote."""

from pathlib import Path
from typing import Any

from cbm.app.explorer import Explorer
from cbm.report.templates import load_template

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **data: Any) -> str:
    """``templates/TEMPLATE.html`` with the data."""
    return load_template(TEMPLATES / f"{template}.html").render(data)


def script(name: str) -> str:
    """``templates/NAME.js``: what a view does in the browser; Gradio gives it ``element``, ``trigger``, ``watch``."""
    return (TEMPLATES / f"{name}.js").read_text(encoding="utf-8")


def page_header(explorer: Explorer, run: str, *, editable: bool) -> str:
    """What is said of a run above everything else.

    Args:
        explorer: the run.
        run: what it is called there.
        editable: whether edits can be made on the page.
    """
    return render(
        "header",
        run=run,
        editable=editable,
        method=explorer.model.config.method.name,
        dataset=explorer.domain,
        split=explorer.name,
        pictures=len(explorer.split),
        classes=len(explorer.classes),
        concepts=len(explorer.bank) if explorer.has_concepts else None,
        headline=explorer.headline,
        many=explorer.many,
    )
