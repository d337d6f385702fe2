"""Editors that correct a model for another domain: ``create_editor(settings).propose(context)``.

    test_time   mask and amplify a few concepts, chosen by a few labelled images (``cbm.editing.domains.attribution``)
    prune       remove the concepts that cause most errors on the same images, without any further test
    recentre    move every concept's mean to where it is in the source domain: as many edits as concepts
    conda       change concepts and head by gradient on unlabelled images (``cbm.editing.domains.conda``)
    refit       fit a new head on the labelled images alone: logistic regression on standardised concepts
    combined    several closed forms, of which images left out choose one (``cbm.editing.domains.combined``)

The first three answer with edits that a person can read, the others with another model. None changes the given model.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from cbm.editing.apply import edited_model
from cbm.editing.domains.attribution import Plan, applied, blamed_concepts, plan_edits
from cbm.editing.domains.base import DomainEditor, EditContext, Proposal, register_editor
from cbm.editing.domains.closed_forms import mean_shift
from cbm.editing.domains.concept_head import LinearConceptHead
from cbm.editing.domains.conda import adapt_unlabelled, pseudo_labels
from cbm.editing.domains.gate import ALLOWED_LOSS, fit_gate
from cbm.editing.domains.source_card import SourceStatistics, effect_at_home
from cbm.editing.edits import Edit, EditSet
from cbm.editing.prune import prune
from cbm.errors import UserError, did_you_mean
from cbm.layers.activations import Sigmoid

PROTECTIONS = ("tag", "gate", "batch", "none")


@register_editor("test_time")
@dataclass(frozen=True)
class ShiftAttribution(DomainEditor):
    """Training-free test-time editing.

    Attributes:
        guard: condition that edits must meet when one image is left out: lenient, default or strict (``plan_edits``).
        per_class: whether no class may lose an image that was left out.
        protect: texts of concepts that may not be masked.
        protection: how images of the source domain are protected: "tag" (edits carry the domain's name), "gate" (only
            images that look like the domain are edited), "batch" (only batches that do), or "none" (edits act
            everywhere, and are kept only while accuracy in the source domain holds).
        alpha: share of images of the source domain that may pass a gate.
        batch: number of images that a batch gate judges together.
    """

    guard: str = "default"
    per_class: bool = False
    protect: list[str] = field(default_factory=list)
    protection: str = "tag"
    alpha: float = 0.05
    batch: int = 32

    def _propose(self, context: EditContext) -> Proposal:
        if self.protection not in PROTECTIONS:
            raise UserError(f"editor.protection={self.protection}: {did_you_mean(self.protection, PROTECTIONS)}")
        model, texts = context.model, context.texts
        if model.residual is not None:
            raise UserError(
                "the model decides past its concepts too (a residual): test-time editing would not reach it"
            )
        EditSet(tuple(Edit("mask", text) for text in self.protect)).check(texts, context.classes)
        source, (a, y) = context.statistics(), context.labelled()
        plan = plan_edits(
            a,
            y,
            context.head,
            source,
            guard=self.guard,
            per_class=self.per_class,
            groups=context.groups,
            protect=[texts.index(text) for text in self.protect],
            pivot="zero" if isinstance(model.activation, Sigmoid) else "target",
            seed=self.seed,
        )
        gate, at_home = None, None
        if self.protection in ("gate", "batch"):
            if context.support is None:
                raise UserError(f"editor.protection={self.protection} needs labelled images of the other domain")
            size = self.batch if self.protection == "batch" else 1
            labels = (context.source.y, context.support.y)
            gate = fit_gate(
                context.source.x, context.support.x, labels=labels, alpha=self.alpha, batch=size, seed=self.seed
            )
        if self.protection != "tag" and plan.changes:
            plan, at_home = keep_home(plan, source, context.head, None if gate is None else gate(context.source.x))
        edits = plan.edits(texts, None if self.protection == "none" else context.domain)
        edited = edited_model(model, edits, texts, context.classes, context.domain)
        known = context.support is not None and context.support.subjects is not None
        left_out = None if known else plan.left_out  # images of one subject are left out together
        return Proposal(edited, plan.reason, edits, plan, gate, at_home, left_out)


def keep_home(
    plan: Plan, source: SourceStatistics, head: LinearConceptHead, passed: Tensor | None
) -> tuple[Plan, tuple[float, float, tuple[float, float]]]:
    """Drop the last edits until balanced accuracy in the source domain falls by no more than 0.005.

    Args:
        plan: plan with one change or more.
        source: statistics of the source domain, with its images.
        head: head of the model.
        passed: which of these images ``[M]`` (bool) pass the gate; None if all do.
    """
    before = head(source.a).argmax(dim=1) == source.y
    while True:
        after = head(applied(source.a, plan.changes)).argmax(dim=1) == source.y
        after = after if passed is None else torch.where(passed, after, before)
        found = effect_at_home(before, after, source.y)
        if found[1] - found[0] >= -ALLOWED_LOSS or not plan.changes:
            return plan, found
        plan = replace(plan, changes=plan.changes[:-1], reason=f"{plan.reason}; one edit less for accuracy at home")


@register_editor("recentre")
@dataclass(frozen=True)
class Recentre(DomainEditor):
    """Move every concept's mean to where it is in the source domain: the simplest use of the labels."""

    def _propose(self, context: EditContext) -> Proposal:
        why = f"the class-balanced mean in '{context.domain}' is put where it is at home"
        edits = shift_edits(context, mean_shift(*context.labelled(), context.statistics().mean), why)
        model = edited_model(context.model, edits, context.texts, context.classes, context.domain)
        return Proposal(model, why, edits)


def shift_edits(context: EditContext, by: Tensor, why: str) -> EditSet:
    """``by`` ``[K]`` is added to the activations, as edits for the domain's images."""
    steps = zip(context.texts, by.tolist())
    return EditSet(tuple(Edit("shift", text, step, domain=context.domain, why=why) for text, step in steps))


@register_editor("prune")
@dataclass(frozen=True)
class PruneBlamed(DomainEditor):
    """Remove the concepts that mislead most, as a person would who looks at the mistakes (the editing of PCBM).

    Attributes:
        count: largest number of concepts to remove.
        normalise: whether the remaining weights of a class are scaled to its former sum of absolute weights.
    """

    count: int = 6
    normalise: bool = False

    def _propose(self, context: EditContext) -> Proposal:
        columns = blamed_concepts(*context.labelled(), context.head, context.statistics())[: self.count]
        removed = torch.zeros(len(context.classes), len(context.texts), dtype=torch.bool)
        removed[:, columns] = True
        why = f"blamed most for mistakes in '{context.domain}'"
        edits = EditSet(tuple(Edit("remove", context.texts[k], domain=context.domain, why=why) for k in columns))
        model = prune(context.model, removed, normalise=self.normalise)
        return Proposal(model, f"{len(columns)} concepts {why}", None if self.normalise else edits)


@register_editor("conda")
@dataclass(frozen=True)
class Conda(DomainEditor):
    """Change concepts and head by gradient on unlabelled images, in the manner of CONDA.

    Attributes:
        steps: number of steps in each of the three stages.
        lr: length of a step, as a share of the root mean square of the parameters that it changes.
    """

    steps: int = 10
    lr: float = 0.02
    requires: ClassVar[frozenset[str]] = frozenset({"unlabelled"})

    def _propose(self, context: EditContext) -> Proposal:
        if context.unlabelled is None:
            raise UserError("editor=conda needs unlabelled images of the other domain")
        labels = pseudo_labels(context.model, context.unlabelled, context.zero_shot)
        model = adapt_unlabelled(
            context.model,
            context.unlabelled,
            labels,
            context.statistics(),
            steps=self.steps,
            lr=self.lr,
            seed=self.seed,
        )
        drift = float((model.concepts - context.model.concepts).norm())
        agreement = float((model.logits(context.unlabelled).argmax(dim=1) == labels).double().mean())
        return Proposal(model, f"concepts moved by {drift:.2f}, {100 * agreement:.0f} % agree with the pseudo-labels")


@register_editor("refit")
@dataclass(frozen=True)
class Refit(DomainEditor):
    """Fit a new head on the labelled images alone.

    Attributes:
        c: inverse strength of the L2 penalty.
    """

    c: float = 0.1

    def _propose(self, context: EditContext) -> Proposal:
        a, y = context.labelled()
        if len(present := y.unique()) == 1:  # nothing to tell apart: the one class that somebody showed
            bias = torch.full((len(context.classes),), -1e4)
            bias[present] = 0.0
            model = context.model.with_weights(torch.zeros(len(bias), a.shape[1]), bias)
            model.residual = None
            return Proposal(model, "the labelled pictures are of one class")
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(a.numpy())
        fitted = LogisticRegression(C=self.c, max_iter=1000).fit(scaler.transform(a.numpy()), y.numpy())
        scale = torch.from_numpy(scaler.scale_)
        present = torch.from_numpy(fitted.classes_)
        coefficients, intercept = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
        if len(present) == 2:
            coefficients, intercept = (
                torch.cat([-coefficients, coefficients]) / 2,
                torch.cat([-intercept, intercept]) / 2,
            )
        weights, bias = (
            torch.zeros(len(context.classes), a.shape[1]).double(),
            torch.zeros(len(context.classes)).double(),
        )
        bias -= 1e4  # classes that nobody showed
        weights[present] = coefficients / scale
        bias[present] = intercept - weights[present] @ torch.from_numpy(scaler.mean_)
        model = context.model.with_weights(weights.float(), bias.float())
        model.residual = None
        return Proposal(model, f"a new head on {len(y)} pictures")
