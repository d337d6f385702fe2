"""Test-time editing, step by step: a few labelled pictures of another domain say which concepts to mask and amplify."""

from dataclasses import dataclass

from cbm.app.explorer import Explorer
from cbm.editing import EditSet, create_editor
from cbm.editing.domains.correct import correct
from cbm.errors import UserError
from cbm.report.correction import EditedConcept, edited_concepts
from cbm.trained.domains import edit_context, support_and_tested


@dataclass(frozen=True)
class Suggestion:
    """What the editor proposes; nothing is applied yet.

    Attributes:
        edits: to be applied; none if nothing is to be edited.
        reason: in words.
        concepts: what becomes of each.
        before: accuracy of the pictures the editor was not shown.
        after: the same.
        gained: of these, how many become right.
        lost: and how many wrong.
        p_value: of an exact McNemar test.
        baselines: accuracy of simpler uses of the same labels, on the same pictures.
        support: labelled pictures it was shown.
        tested: pictures it was not.
    """

    edits: EditSet
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


def suggest(explorer: Explorer, *, shots: int, support: str | None = None, guard: str = "default") -> Suggestion:
    """Ask ``editor=test_time``.

    Args:
        explorer: the run, opened with pictures of the other domain.
        shots: labelled pictures per class.
        support: a folder of them, a folder per class; by default they are drawn from the split, and the rest is tested.
        guard: lenient, default or strict: what must hold for pictures left out.

    Raises:
        UserError: a model that cannot be edited so, too few pictures, no such folder.
    """
    if shots < 1:
        raise UserError("the editor needs a labelled picture of every class, at least")
    editor = create_editor({"name": "test_time", "shots": shots, "support": support or None, "guard": guard})
    shown, tested = support_and_tested(explorer.model, explorer.card, editor, explorer.split, explorer.cache)
    context = edit_context(explorer.model, explorer.card, shown, tested, domain=explorer.domain, cache=explorer.cache)
    found = correct(context, tested, editor)
    values = found.comparison.metrics()
    return Suggestion(
        found.proposal.edits or EditSet(), found.proposal.reason, edited_concepts(found.context, found.proposal),
        values["edits/accuracy_before"], values["edits/accuracy_after"], len(found.comparison.gained),
        len(found.comparison.lost), found.comparison.p_value, found.baselines,
        0 if found.context.support is None else len(found.context.support), len(found.tested),
    )  # fmt: skip
