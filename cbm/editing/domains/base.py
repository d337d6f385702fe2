"""``DomainEditor``: the base class of editors that correct a model for another domain, its input and its answer."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from cbm.config import Registry
from cbm.data import FeatureSplit
from cbm.editing.domains.attribution import Plan
from cbm.editing.domains.concept_head import LinearConceptHead
from cbm.editing.domains.gate import Gate
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

    @property
    def head(self) -> LinearConceptHead:
        """The head of the model."""
        return LinearConceptHead(self.model.weights(), self.model.biases())

    def statistics(self) -> SourceStatistics:
        """Statistics of the model's concepts in the source domain."""
        return source_statistics(self.model.activations(self.source.x), self.source.y, self.head)

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
    """

    model: ConceptBottleneck
    reason: str
    edits: EditSet | None = None
    plan: Plan | None = None
    gate: Gate | None = None
    source: tuple[float, float, tuple[float, float]] | None = None


@dataclass(frozen=True)
class DomainEditor:
    """Settings of an editor. Subclasses define what they require and how they correct.

    Attributes:
        support: folder of labelled images, with a folder per class; by default they are drawn from the split that is
            evaluated, and the others are tested.
        shots: number of labelled images per class; fewer if a folder has fewer.
        seed: random seed for the draw and for everything random.
        requires: required fields of the ``EditContext``: "support", "unlabelled" or both.
    """

    support: str | None = None
    shots: int = 4
    seed: int = 0
    requires: ClassVar[frozenset[str]] = frozenset({"support"})

    def propose(self, context: EditContext) -> Proposal:
        """Propose a correction of the model for the other domain.

        Raises:
            UserError: required images are missing, or the model cannot be corrected in this way.
        """
        for name in sorted(self.requires):
            if getattr(context, name) is None:
                raise UserError(f"this editor needs {name} pictures of the other domain")
        return self._propose(context)

    def _propose(self, context: EditContext) -> Proposal:
        raise NotImplementedError


EDITORS: Registry[type[DomainEditor]] = Registry("editor")
register_editor = EDITORS.register
"""Make an editor available as ``editor=NAME`` (its defaults go to ``configs/editor/NAME.yaml``)."""
create_editor = EDITORS.create
"""Make an editor from its settings: ``name`` and its fields; a UserError for an unknown one."""
