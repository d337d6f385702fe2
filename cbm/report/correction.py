"""``page.html``: what a correction of a model for another domain changes, for a reader who did not train it."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cbm.editing import Comparison, EditContext, Proposal, changed_most
from cbm.files import write_atomically
from cbm.report.wording import percent, signed

CLASSES = 12


@dataclass(frozen=True)
class Shown:
    """One edited concept in words.

    Attributes:
        concept: its text.
        what: what becomes of it.
        home: its mean at home, in standard deviations from what it is on average.
        there: its mean in the other domain.
    """

    concept: str
    what: str
    home: float
    there: float


WORDS = {
    "set": "is held at its usual value: it no longer decides",
    "scale": "counts more",
    "shift": "its usual value is put back",
    "remove": "is not read any more",
}


def write_page(
    path: Path, run: str, editor: str, context: EditContext, proposal: Proposal, comparison: Comparison,
    baselines: dict[str, float], inside: float,
) -> None:  # fmt: skip
    """Write the page of one correction.

    Args:
        path: the file.
        run: whose model it is.
        editor: what corrected it.
        context: what the editor looked at.
        proposal: its answer.
        comparison: decisions about pictures it was not shown.
        baselines: accuracy of other uses of the same labels.
        inside: share of the pictures that pass the gate.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "signed": signed}
    metrics = comparison.metrics()
    shown = {
        "run": run, "editor": editor, "domain": context.domain, "n": len(comparison.y), "metrics": metrics,
        "gained": len(comparison.gained), "lost": len(comparison.lost), "p": comparison.p_value,
        "concepts": edited_concepts(context, proposal), "proposal": proposal, "baselines": baselines, "inside": inside,
        "support": 0 if context.support is None else len(context.support), "classes": changed_most(comparison, CLASSES),
        "accepted": comparison.accept(),
    }  # fmt: skip
    write_atomically(path, environment.get_template("correction.html").render(shown).encode())


def edited_concepts(context: EditContext, proposal: Proposal) -> list[Shown]:
    """Every edited concept with what becomes of it and how it moved, as the edits name them."""
    if proposal.edits is None or context.support is None:
        return []
    model = context.model
    spread = model.spread.clamp(min=1e-12)
    home, there = (
        ((model.activations(x).mean(dim=0) - model.reference) / spread).tolist()
        for x in (context.source.x, context.support.x)
    )
    words: dict[str, list[str]] = {}
    for edit in proposal.edits.edits:
        words.setdefault(edit.concept, []).append(WORDS.get(edit.op, edit.op))
    column = {text: k for k, text in enumerate(context.texts)}
    return [Shown(text, "; ".join(what), home[column[text]], there[column[text]]) for text, what in words.items()]
