"""Corrections for another domain, step by step: a few labelled pictures of it say what to change."""

from dataclasses import dataclass

from cbm.app.explorer import Explorer
from cbm.editing import EditSet, create_editor
from cbm.editing.domains.correct import correct
from cbm.errors import UserError
from cbm.report.correction import EditedConcept, edited_concepts
from cbm.trained.domains import edit_context, support_and_tested

EDITORS = ("test_time", "recentre", "combined")
"""What is offered: two kinds of edits, and the best of several corrections, which may be another head."""


@dataclass(frozen=True)
class Suggestion:
    """What the editor proposes; nothing is applied yet.

    Attributes:
        edits: proposed edits; empty if nothing should be edited.
        corrected: whether anything is corrected, by edits or by another head.
        reason: reason for the proposal, in words.
        concepts: change of every edited concept.
        before: accuracy before the edits, on pictures that the editor was not shown.
        after: accuracy after the edits, on the same pictures.
        gained: number of these pictures that become right.
        lost: number of these pictures that become wrong.
        p_value: p of an exact McNemar test.
        baselines: accuracy of simpler uses of the same labels, on the same pictures.
        support: number of labelled pictures that the editor was shown.
        tested: number of pictures that it was not shown.
    """

    edits: EditSet
    corrected: bool
    reason: str
    concepts: list[EditedConcept]
    before: float
    after: float
    gained: int
    lost: int
    p_value: float
    baselines: dict[str, float]
    support: int
    tested: int


def suggest(
    explorer: Explorer, *, shots: int, support: str | None = None, guard: str = "default", editor: str = "test_time"
) -> Suggestion:
    """Ask an editor.

    Args:
        explorer: the run, opened with pictures of the other domain.
        shots: labelled pictures per class.
        support: a folder of them, a folder per class; by default they are drawn from the split, and the rest is tested.
        guard: lenient, default or strict: how much ``test_time`` asks of edits, for pictures left out.
        editor: one of ``EDITORS``.

    Raises:
        UserError: a model that cannot be edited so, too few pictures, no such folder.
    """
    if shots < 1:
        raise UserError("the editor needs a labelled picture of every class, at least")
    settings = {"name": editor, "shots": shots, "support": support or None}
    asked = create_editor(settings | ({"guard": guard} if editor == "test_time" else {}))
    shown, tested = support_and_tested(explorer.model, explorer.card, asked, explorer.split, explorer.cache)
    context = edit_context(explorer.model, explorer.card, shown, tested, domain=explorer.domain, cache=explorer.cache)
    found = correct(context, tested, asked)
    values = found.comparison.metrics()
    return Suggestion(
        found.proposal.edits or EditSet(),
        found.proposal.changes,
        found.proposal.reason,
        edited_concepts(found.context, found.proposal),
        values["edits/accuracy_before"],
        values["edits/accuracy_after"],
        len(found.comparison.gained),
        len(found.comparison.lost),
        found.comparison.p_value,
        found.baselines,
        0 if found.context.support is None else len(found.context.support),
        len(found.tested),
    )
