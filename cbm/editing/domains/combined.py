"""``editor=combined``: corrections in closed form, of which labelled images that were left out choose one.

    concepts    the mean of every concept is put back to where it is in the source domain
    features    the mean of the features is, before the concepts are read
    head        the same, and the head moves towards the labelled images as far as a penalty allows
    masks       up to four concepts are masked or amplified, those that are blamed most for mistakes

With ``transductive`` the mean of the features is taken from the unlabelled images of the domain that are to be decided
(the model's own beliefs stand for their classes), and only it and the head on top of it are tried.

The choice is checked like a correction of its own: what decides about an image is the correction that does best on the
*other* images, made without it. So the guard does not mind how many corrections were tried. Choosing costs certainty,
though, where labelled images are few: the first of the corrections, which has least to find, is checked along with the
choice, and made if only it is significant.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cbm.editing.apply import edited_model
from cbm.editing.domains.attribution import blamed_edits
from cbm.editing.domains.base import DomainEditor, EditContext, Proposal, register_editor
from cbm.editing.domains.closed_forms import (
    class_means,
    mean_shift,
    recentred_concepts,
    recentred_features,
    shrunk_refit,
    unlabelled_shift,
)
from cbm.editing.domains.editors import shift_edits
from cbm.editing.domains.gate import fit_gate
from cbm.editing.domains.guard import balanced_weights, folds, in_units, tempered_losses
from cbm.editing.domains.source_card import effect_at_home
from cbm.editing.edits import EditSet
from cbm.errors import UserError, did_you_mean
from cbm.layers import ConceptBottleneck

PROTECTIONS = ("tag", "gate")


@register_editor("combined")
@dataclass(frozen=True)
class Combined(DomainEditor):
    """Several corrections in closed form, of which images left out choose one.

    Attributes:
        penalties: penalties of the head's change, each a correction to choose from.
        transductive: whether the unlabelled images that are to be decided are used, too.
        protection: how images of the source domain are protected: "tag" (the correction is for the domain's images
            alone), or "gate" (for images that look like the domain; ``cbm.editing.domains.gate``).
    """

    penalties: list[float] = field(default_factory=lambda: [0.3, 0.1])
    transductive: bool = False
    protection: str = "tag"

    def _propose(self, context: EditContext) -> Proposal:
        if self.protection not in PROTECTIONS:
            raise UserError(f"editor.protection={self.protection}: {did_you_mean(self.protection, PROTECTIONS)}")
        for penalty in self.penalties:
            if not 0 < penalty < float("inf"):
                raise UserError(f"editor.penalties: {penalty:g}; expected numbers above 0")
        support = context.support
        assert support is not None
        moved = self._by_unlabelled(context) if self.transductive else None
        choices = list(self.corrections(context, moved))
        left_out = torch.zeros(len(choices), len(support), len(context.classes))
        for out, rest in folds(support.y, subjects=support.subjects):
            tried = self.corrections(replace(context, support=support.take(rest.numpy())), moved)
            for number, correction in enumerate(tried):
                left_out[number, out] = correction.model.logits(support.x[out])
        share, y = balanced_weights(support.y), support.y
        losses = torch.stack([share * tempered_losses(in_units(z), y) for z in left_out])
        others = (losses.sum(dim=1, keepdim=True) - losses).argmin(dim=0)
        chosen = choices[int(losses.sum(dim=1).argmin())]
        proposal = replace(chosen, left_out=left_out[others, torch.arange(len(y))])
        simple = replace(choices[0], left_out=left_out[0])
        if self.protection == "gate":
            proposal, simple = (gated(context, each, self.seed) for each in (proposal, simple))
        return replace(proposal, fallback=simple)

    def corrections(self, context: EditContext, moved: ConceptBottleneck | None) -> Iterator[Proposal]:
        """Every correction, made with the context's labelled images, the simplest first.

        Args:
            context: the editor's input.
            moved: the model with its features' mean put back by unlabelled images, if they are used.
        """
        model, support, source = context.model, context.support, context.statistics()
        assert support is not None
        if moved is not None:
            yield Proposal(moved, "the features' mean is put back, by unlabelled pictures")
            yield from self._heads(context, moved)
            return
        a = model.activations(support.x)
        by, why = mean_shift(a, support.y, source.mean), "the concepts' means are put back"
        concepts = recentred_concepts(model, by)
        yield Proposal(concepts, why, shift_edits(context, by, why))
        features = recentred_features(model, mean_shift(support.x, support.y, home_means(context)))
        if features is not None:
            yield Proposal(features, "the features' mean is put back")
        yield from self._heads(context, concepts if features is None else features)
        yield self._masked(context, a)

    def _heads(self, context: EditContext, base: ConceptBottleneck) -> Iterator[Proposal]:
        """Heads that are fitted again near that of ``base``."""
        support = context.support
        assert support is not None
        for penalty in self.penalties:
            moved = shrunk_refit(base, support.x, support.y, context.statistics(), penalty)
            yield Proposal(
                moved, f"the mean is put back and the head refitted near its old place (penalty {penalty:g})"
            )

    def _by_unlabelled(self, context: EditContext) -> ConceptBottleneck:
        """The model with its features' mean put back by unlabelled images."""
        if context.unlabelled is None:
            raise UserError("editor.transductive=true needs unlabelled pictures of the other domain")
        home = home_means(context)
        if recentred_features(context.model, torch.zeros(home.shape[1])) is None:
            raise UserError("editor.transductive=true moves features, whose directions are no concepts of this model")
        by = unlabelled_shift(context.model, context.unlabelled, context.statistics(), home)
        found = recentred_features(context.model, by)
        assert found is not None
        return found

    def _masked(self, context: EditContext, a: Tensor) -> Proposal:
        """A few concepts are masked or amplified."""
        support, why = context.support, "the most blamed concepts are masked or amplified"
        assert support is not None
        changes = blamed_edits(a, support.y, context.head, context.statistics(), context.groups)
        edits = EditSet(tuple(e for change in changes for e in change.edits(context.texts, context.domain, why)))
        return Proposal(edited_model(context.model, edits, context.texts, context.classes, context.domain), why, edits)


def home_means(context: EditContext) -> Tensor:
    """Mean features ``[C, D]`` of the classes in the source domain."""
    return class_means(context.source.x, context.source.y, len(context.classes))


def gated(context: EditContext, proposal: Proposal, seed: int) -> Proposal:
    """The proposal behind a gate, whose threshold is the lowest that costs the source domain little."""
    source, support = context.source, context.support
    assert support is not None
    hits = [model.logits(source.x).argmax(dim=1) == source.y for model in (context.model, proposal.model)]
    harm = balanced_weights(source.y) * (hits[0].double() - hits[1].double())
    gate = fit_gate(source.x, support.x, labels=(source.y, support.y), harm=harm, seed=seed)
    at_home = effect_at_home(hits[0], torch.where(gate(source.x), hits[1], hits[0]), source.y)
    return replace(proposal, gate=gate, source=at_home)
