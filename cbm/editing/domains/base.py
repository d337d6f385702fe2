"""``DomainEditor``: the base class of editors that correct a model for another domain, its input and its answer."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from cbm.config import Registry
from cbm.data import FeatureSplit
from cbm.editing.domains.attribution import Plan
from cbm.editing.domains.concept_head import LinearConceptHead
from cbm.editing.domains.gate import Gate
from cbm.editing.domains.guard import LEVEL, Judgement, folds, judge, judge_both, too_few
from cbm.editing.domains.source_card import SourceCard, SourceStatistics, source_statistics
from cbm.editing.edits import EditSet
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck


@dataclass(frozen=True)
class EditContext:
    """Everything that an editor may use.

    Attributes:
        model: the bottleneck.
        texts: texts of the K concepts.
        classes: C class names.
        domain: name of the other domain.
        source: labelled images of the source domain.
        support: a few labelled images of the other domain, or None.
        unlabelled: features ``[N, D]`` of images of the other domain, or None.
        zero_shot: logits ``[N, C]`` of zero-shot classification of these images; None if the encoder reads no text.
        groups: lists of columns whose concepts exclude each other.
    """

    model: ConceptBottleneck
    texts: list[str]
    classes: list[str]
    domain: str
    source: SourceCard
    support: FeatureSplit | None = None
    unlabelled: Tensor | None = None
    zero_shot: Tensor | None = None
    groups: list[list[int]] = field(default_factory=list)
    _known: list[tuple[ConceptBottleneck, SourceCard, SourceStatistics]] = field(
        default_factory=list, repr=False, compare=False
    )

    @property
    def head(self) -> LinearConceptHead:
        """The head of the model."""
        return LinearConceptHead(self.model.weights(), self.model.biases())

    def statistics(self) -> SourceStatistics:
        """Statistics of the model's concepts in the source domain, computed once."""
        for model, source, known in self._known:
            if model is self.model and source is self.source:
                return known
        found = source_statistics(self.model.activations(self.source.x), self.source.y, self.head)
        self._known.append((self.model, self.source, found))
        return found

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Activations ``[n, K]`` and class indices of the labelled images of the other domain.

        Raises:
            UserError: there are none.
        """
        if self.support is None:
            raise UserError("no labelled images of the other domain: say editor.support=FOLDER or editor.shots=NUMBER")
        return self.model.activations(self.support.x), self.support.y


@dataclass(frozen=True)
class Proposal:
    """An editor's answer.

    Attributes:
        model: the corrected model for the other domain.
        reason: reason for the proposal, in words.
        edits: the correction as edits of the original model; None if it cannot be written as edits.
        plan: plan of the ``test_time`` editor, or None.
        gate: gate that selects the images to edit, or None if the domain's name selects them.
        source: effect on images of the source domain that pass the gate: balanced accuracy before, after, and the 95 %
            interval of the difference by a paired bootstrap.
        left_out: logits ``[n, C]`` of the labelled images, each of a correction made without it, where the editor has
            them; by default the guard makes them.
        fallback: a simpler correction, with its ``left_out``, that is checked together with this one, and made where
            this one may be chance and it is not.
        judgement: what the guard found; None if it was not asked.
    """

    model: ConceptBottleneck
    reason: str
    edits: EditSet | None = None
    plan: Plan | None = None
    gate: Gate | None = None
    source: tuple[float, float, tuple[float, float]] | None = None
    left_out: Tensor | None = None
    fallback: "Proposal | None" = None
    judgement: Judgement | None = None

    @property
    def changes(self) -> bool:
        """Whether anything is corrected."""
        return self.edits is None or len(self.edits) > 0


@dataclass(frozen=True)
class DomainEditor:
    """Settings of an editor. Subclasses define what they require and how they correct.

    Every correction passes a guard (``cbm.editing.domains.guard``): it must hold for labelled images that it was made
    without, or nothing is corrected.

    Attributes:
        support: folder of labelled images, with a folder per class; by default they are drawn from the split that is
            evaluated, and the others are tested.
        shots: number of labelled images per class; fewer if a folder has fewer.
        seed: random seed for the draw and for everything random.
        level: largest p-value of the guard at which a correction is made; null makes every correction, unchecked.
        requires: required fields of the ``EditContext``: "support", "unlabelled" or both.
    """

    support: str | None = None
    shots: int = 4
    seed: int = 0
    level: float | None = LEVEL
    requires: ClassVar[frozenset[str]] = frozenset({"support"})

    def propose(self, context: EditContext) -> Proposal:
        """Propose a correction of the model for the other domain.

        Raises:
            UserError: required images are missing, or the model cannot be corrected in this way.
        """
        for name in sorted(self.requires):
            if getattr(context, name) is None:
                raise UserError(f"this editor needs {name} pictures of the other domain")
        if self.level is None:
            return self._propose(context)
        if not 0 < self.level < 1:
            raise UserError(f"editor.level={self.level:g}: expected a p-value between 0 and 1, or null for no check")
        if context.support is None:
            hint = "say editor.support=FOLDER, or editor.level=null for no check"
            raise UserError(f"corrections are checked on labelled images of the other domain; there are none: {hint}")
        if (why := too_few(context.support.y)) is not None:
            return Proposal(context.model, why, EditSet())
        proposal = self._propose(context)
        if not proposal.changes:
            return proposal
        before, y, subjects = context.model.logits(context.support.x), context.support.y, context.support.subjects
        after = self._left_out(context, proposal) if proposal.left_out is None else proposal.left_out
        if (simple := proposal.fallback) is None or simple.left_out is None:
            tried = [(proposal, judge(before, after, y, self.level, subjects))]
        else:
            tried = list(zip((proposal, simple), judge_both(before, (after, simple.left_out), y, self.level, subjects)))
        for made, judgement in tried:
            if judgement.accepted:
                return replace(made, reason=f"{made.reason}; {judgement.reason}", judgement=judgement, fallback=None)
        return Proposal(context.model, tried[0][1].reason, EditSet(), judgement=tried[0][1])

    def _left_out(self, context: EditContext, proposal: Proposal) -> Tensor:
        """Logits ``[n, C]`` of the labelled images, each of a correction made without it."""
        support = context.support
        assert support is not None
        if "support" not in self.requires:  # no labels were used
            return proposal.model.logits(support.x)
        z = torch.zeros(len(support), len(context.classes))
        for out, rest in folds(support.y, subjects=support.subjects):
            model = self._propose(replace(context, support=support.take(rest.numpy()))).model
            z[out] = model.logits(support.x[out])
        return z

    def _propose(self, context: EditContext) -> Proposal:
        raise NotImplementedError


EDITORS: Registry[type[DomainEditor]] = Registry("editor")
register_editor = EDITORS.register
"""Make an editor available as ``editor=NAME`` (its defaults go to ``configs/editor/NAME.yaml``)."""
create_editor = EDITORS.create
"""Make an editor from its settings: ``name`` and its fields; a UserError for an unknown one."""
