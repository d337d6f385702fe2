"""What an editor for another domain is: what it may look at, what it answers, how it is found by name."""

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
    """What an editor may look at.

    Attributes:
        model: the bottleneck.
        texts: of its K concepts.
        classes: C names.
        domain: what the other domain is called.
        source: labelled images of the model's own domain.
        support: a few labelled images of the other domain.
        unlabelled: ``[N, D]`` images of the other domain.
        zero_shot: ``[N, C]`` logits of zero-shot classification of these, if the encoder reads text.
        groups: columns of concepts that exclude each other.
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
        """The model's head."""
        return LinearConceptHead(self.model.weights(), self.model.biases())

    def statistics(self) -> SourceStatistics:
        """What the model's concepts do at home."""
        return source_statistics(self.model.activations(self.source.x), self.source.y, self.head)

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Activations ``[n, K]`` and classes of the labelled images of the other domain."""
        assert self.support is not None
        return self.model.activations(self.support.x), self.support.y


@dataclass(frozen=True)
class Proposal:
    """An editor's answer.

    Attributes:
        model: what decides in the other domain.
        reason: in words.
        edits: the same as edits of the model that was given; None if they cannot be said so.
        plan: of ``test_time``.
        gate: which images the edits are for, beyond the domain's name.
        source: what the edits do at home where they may get there: balanced accuracy before, after, and the 95 %
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
    """Settings of an editor. Subclasses say what they need and how they correct.

    Attributes:
        support: folder of labelled images, a folder per class; by default they are drawn from the split that is
            evaluated, and the others are tested.
        shots: labelled images per class; fewer where a folder has fewer.
        seed: of the draw and of everything random.
        requires: of "support" and "unlabelled", what must be there.
    """

    support: str | None = None
    shots: int = 4
    seed: int = 0
    requires: ClassVar[frozenset[str]] = frozenset({"support"})

    def propose(self, context: EditContext) -> Proposal:
        """What should become of the model in the other domain.

        Raises:
            UserError: something that is required is not there, or the model cannot be corrected so.
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
"""An editor from its settings: ``name`` and its fields."""
