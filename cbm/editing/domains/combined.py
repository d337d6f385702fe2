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
from cbm.editing.domains.gate import fit_gate
from cbm.editing.domains.guard import balanced_weights, folds, in_units, tempered_losses
from cbm.editing.domains.source_card import effect_at_home
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
        choices = dict(self.corrections(context, moved))
        left_out = {name: torch.zeros(len(support), len(context.classes)) for name in choices}
        for out, rest in folds(support.y, subjects=support.subjects):
            for name, model in self.corrections(replace(context, support=support.take(rest.numpy())), moved):
                left_out[name][out] = model.logits(support.x[out])
        share, y = balanced_weights(support.y), support.y
        losses = torch.stack([share * tempered_losses(in_units(z), y) for z in left_out.values()])
        names = list(choices)
        others = (losses.sum(dim=1, keepdim=True) - losses).argmin(dim=0).tolist()
        chosen = names[int(losses.sum(dim=1).argmin())]
        judged = torch.stack([left_out[names[other]][i] for i, other in enumerate(others)])
        proposal = Proposal(choices[chosen], chosen, left_out=judged)
        simple = Proposal(choices[names[0]], names[0], left_out=left_out[names[0]])
        if self.protection == "gate":
            proposal, simple = (gated(context, each, self.seed) for each in (proposal, simple))
        return replace(proposal, fallback=simple)

    def corrections(
        self, context: EditContext, moved: ConceptBottleneck | None
    ) -> Iterator[tuple[str, ConceptBottleneck]]:
        """Every correction, made with the context's labelled images.

        Args:
            context: the editor's input.
            moved: the model with its features' mean put back by unlabelled images, if they are used.
        """
        model, support, source = context.model, context.support, context.statistics()
        assert support is not None
        if moved is not None:
            yield "the features' mean is put back, by unlabelled pictures", moved
            yield from self._heads(context, moved)
            return
        a = model.activations(support.x)
        concepts = recentred_concepts(model, mean_shift(a, support.y, source.mean))
        yield "the concepts' means are put back", concepts
        features = recentred_features(model, mean_shift(support.x, support.y, home_means(context)))
        if features is not None:
            yield "the features' mean is put back", features
        yield from self._heads(context, concepts if features is None else features)
        yield self._masked(context, a)

    def _heads(self, context: EditContext, base: ConceptBottleneck) -> Iterator[tuple[str, ConceptBottleneck]]:
        """Heads that are fitted again near that of ``base``."""
        support = context.support
        assert support is not None
        for penalty in self.penalties:
            moved = shrunk_refit(base, support.x, support.y, context.statistics(), penalty)
            yield f"the mean is put back and the head refitted near its old place (penalty {penalty:g})", moved

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

    def _masked(self, context: EditContext, a: Tensor) -> tuple[str, ConceptBottleneck]:
        """A few concepts are masked or amplified: ``a' = gain a + level``, as another head."""
        model, support = context.model, context.support
        assert support is not None
        changes = blamed_edits(a, support.y, context.head, context.statistics(), context.groups)
        gain, level = torch.ones(a.shape[1]), torch.zeros(a.shape[1])
        for change in changes:
            columns = list(change.concepts)
            gain[columns] = change.gain
            level[columns] = torch.tensor(change.level) - change.gain * torch.tensor(change.pivot)
        weights = model.weights()
        return "the most blamed concepts are masked or amplified", model.with_weights(
            weights * gain, model.biases() + weights @ level
        )


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
