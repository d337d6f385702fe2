"""``correct``: let an editor correct a model for another domain, and compare the result with simpler methods."""

from dataclasses import dataclass, replace

import torch

from cbm.data import FeatureSplit
from cbm.editing.comparison import Comparison
from cbm.editing.domains.base import EDITORS, DomainEditor, EditContext, Proposal, create_editor
from cbm.editing.domains.guard import Judgement
from cbm.editing.edits import EditSet, signed
from cbm.editing.record import Record

BASELINES = ("recentre", "refit")  # stand beside every correction


@dataclass(frozen=True)
class Correction:
    """A model corrected for one domain, and the effect of the correction.

    Attributes:
        name: name of the editor.
        context: input of the editor.
        proposal: answer of the editor.
        tested: images that the editor was not shown.
        comparison: decisions about these images before and after.
        baselines: accuracy of simpler uses of the same labels, on the same images.
        inside: share of the images that pass the gate; 1 without a gate.
    """

    name: str
    context: EditContext
    proposal: Proposal
    tested: FeatureSplit
    comparison: Comparison
    baselines: dict[str, float]
    inside: float

    def metrics(self) -> dict[str, float]:
        """Metrics with keys ``edits/...``, beside those of the comparison."""
        support = self.context.support
        values = {f"edits/{name}_accuracy": value for name, value in self.baselines.items()}
        values |= {"edits/n_support": float(len(support)) if support else 0.0, "edits/share_edited": self.inside}
        if self.proposal.edits is not None:
            values["edits/n_concepts"] = float(len({edit.concept for edit in self.proposal.edits.edits}))
        if (judgement := self.proposal.judgement) is not None:
            values |= {"edits/guard_p": judgement.p, "edits/guard_n": float(judgement.n)}
            values |= {"edits/guard_loss_before": judgement.loss[0], "edits/guard_loss_after": judgement.loss[1]}
            before, after = judgement.accuracy
            values |= {"edits/guard_accuracy_macro_before": before, "edits/guard_accuracy_macro_after": after}
        if self.proposal.source is not None:
            before, after, (low, high) = self.proposal.source
            values |= {"edits/source_accuracy_macro_before": before, "edits/source_accuracy_macro_after": after}
            values |= {"edits/source_change_low": low, "edits/source_change_high": high}
        return values

    def summary(self) -> str:
        """One line for the terminal."""
        edits = self.proposal.edits
        what = "another head" if edits is None else f"{len(edits)} edits" if len(edits) else "nothing is edited"
        return f"{self.name}: {what}; {self.proposal.reason}"


def correct(
    context: EditContext, tested: FeatureSplit, editor: DomainEditor, record: Record | None = None
) -> Correction:
    """Let an editor correct a model for another domain.

    Args:
        context: input of the editor.
        tested: labelled images of the domain that the editor is not shown, on which the decisions are compared.
        editor: the editor with its settings.
        record: the model and the images that the edits are made for, to be kept with them.

    Raises:
        UserError: images that the editor requires are missing, or the model cannot be corrected in this way.
    """
    proposal = editor.propose(context)
    passed = torch.full((len(tested),), True) if proposal.gate is None else proposal.gate(tested.x)
    before = context.model.logits(tested.x)
    after = torch.where(passed[:, None], proposal.model.logits(tested.x), before) if proposal.changes else before
    name = next(name for name, kind in EDITORS.items() if kind is type(editor))
    baselines = {}
    for other in BASELINES:
        if other != name:
            settings = {"name": other, "seed": editor.seed, "level": None}  # what would be had without a check
            logits = create_editor(settings).propose(context).model.logits(tested.x)
            baselines[other] = float((logits.argmax(dim=1) == tested.y).double().mean())
    if proposal.edits is not None:
        who = f"editor={name}"
        signed_edits = tuple(signed(edit, who) for edit in proposal.edits.edits)
        proposal = replace(proposal, edits=EditSet(signed_edits, _expecting(record, proposal.judgement)))
    comparison = Comparison(before, after, tested.y, context.classes)
    return Correction(name, context, proposal, tested, comparison, baselines, float(passed.double().mean()))


def _expecting(record: Record | None, judgement: Judgement | None) -> Record | None:
    """The record with what the guard expects of the edits."""
    if record is None or judgement is None:
        return record
    before, after = judgement.accuracy
    return replace(record, pictures=judgement.n, before=before, after=after, p=judgement.p)
