"""``page.html``: what a correction of a model for another domain changes, for a reader who did not train it."""

from dataclasses import dataclass
from pathlib import Path

from cbm.editing import EditContext, Proposal, changed_most
from cbm.editing.domains.correct import Correction
from cbm.files import write_atomically
from cbm.layers import save_model
from cbm.report.templates import load_template

CLASSES = 12


@dataclass(frozen=True)
class EditedConcept:
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


def write_correction(folder: Path, correction: Correction, run: str) -> None:
    """``edits.yaml`` or ``model.safetensors``, ``gate.safetensors`` and ``page.html`` of a correction.

    Args:
        folder: where; made if need be.
        correction: what was found.
        run: whose model it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("edits.yaml", "model.safetensors", "gate.safetensors"):  # those of another correction
        (folder / name).unlink(missing_ok=True)
    if correction.proposal.edits is not None:
        correction.proposal.edits.save(folder / "edits.yaml")
    else:
        save_model(correction.proposal.model, folder / "model.safetensors")
    if correction.proposal.gate is not None:
        correction.proposal.gate.save(folder / "gate.safetensors")
    write_atomically(folder / "page.html", correction_page(correction, run).encode())


def correction_page(correction: Correction, run: str) -> str:
    """The page of one correction of the model of ``run``."""
    context, proposal, comparison = correction.context, correction.proposal, correction.comparison
    return load_template(Path(__file__).parent / "correction.html").render(
        run=run,
        editor=correction.name,
        domain=context.domain,
        n=len(comparison.y),
        metrics=comparison.metrics(),
        gained=len(comparison.gained),
        lost=len(comparison.lost),
        p=comparison.p_value,
        concepts=edited_concepts(context, proposal),
        proposal=proposal,
        baselines=correction.baselines,
        inside=correction.inside,
        support=0 if context.support is None else len(context.support),
        classes=changed_most(comparison, CLASSES),
        accepted=comparison.accept(),
    )


def edited_concepts(context: EditContext, proposal: Proposal) -> list[EditedConcept]:
    """Every edited concept with what becomes of it and how it moved, those that moved most first."""
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
    found = [
        EditedConcept(text, "; ".join(what), home[column[text]], there[column[text]]) for text, what in words.items()
    ]
    return sorted(found, key=lambda each: -abs(each.there - each.home))
