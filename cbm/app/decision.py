"""What is decided about one picture and by which concepts, before and after the edits."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cbm.app.concepts import find_concepts
from cbm.app.explorer import Explorer
from cbm.app.gallery import names_of
from cbm.app.session import Session
from cbm.editing import Edit, EditedEnergies, EditSet, edited_model, logit_change
from cbm.editing.apply import levels
from cbm.editing.edits import LEVELS
from cbm.layers import Coded, ConceptBottleneck, EnergyBottleneck, Linked, Sigmoid, SparseCode, Unnamed
from cbm.report.explanations import SumOfWords, sums_of_words
from cbm.report.units import part_name

CLASSES, FOR, AGAINST, FOUND = 6, 8, 6, 12


@dataclass(frozen=True)
class ClassShare:
    """A class or a label, and its probability.

    Attributes:
        name: name of the class.
        before: probability without edits.
        after: probability with the edits.
        true: whether this is the true class of the picture, or a label that it has.
        decided: whether this is the predicted class, or a label that is said.
        explained: whether the bars explain the logit of this class.
        threshold: probability above which a label is said; None of a class.
        unknown: whether nobody knows if the picture has this label.
    """

    name: str
    before: float
    after: float
    true: bool
    decided: bool
    explained: bool
    threshold: float | None = None
    unknown: bool = False


@dataclass(frozen=True)
class Bar:
    """A concept on this picture.

    Attributes:
        column: column of the concept in the bank.
        text: text of the concept.
        before: contribution to the logit without edits; for energies, the concept's probability.
        after: the same with the edits.
        level: activation in standard deviations from the average training picture; None if the training pictures do not
            vary, if the concept is edited, and for energies.
        edited: whether an edit of this picture changes the concept.
        held: whether this is the selected concept.
        beyond: what the picture says under the concept's name and the name does not, with the edits; only a model of
            concept embeddings says such things.
    """

    column: int
    text: str
    before: float
    after: float
    level: float | None
    edited: bool
    held: bool
    beyond: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The picture's decision.

    Attributes:
        called: predicted class after the edits, or the labels that are said.
        was: the same without edits.
        true: true class, or the labels that it has; None if that is not known.
        right: whether nothing that is known of it is said wrongly; None if nothing is known.
        classes: the most probable classes; of labels, those that come nearest to being said, all that are said, and all
            that the picture has.
        explained: class or label that the bars explain.
        bars: the largest bars: contributions for linear heads, probabilities for energies; empty without concepts.
        base: logit of the average picture (linear heads); of a label, less the logit above which it is said.
        others: sum of the contributions of all concepts without a bar.
        others_count: number of these concepts.
        outside: part of the logit that bypasses the concepts (a residual).
        total: the logit; of a label, how far it is above the one from which on the label is said.
        words: the picture as a sum of words; None without a sparse code.
    """

    called: str
    was: str
    true: str | None
    right: bool | None
    classes: list[ClassShare]
    explained: str
    bars: list[Bar]
    base: float = 0.0
    others: float = 0.0
    others_count: int = 0
    outside: float = 0.0
    total: float = 0.0
    words: SumOfWords | None = None

    @property
    def largest(self) -> float:
        """Length of the longest bar."""
        lengths = [max(abs(bar.before), abs(bar.after), abs(bar.after + bar.beyond)) for bar in self.bars]
        return max([*lengths, 1e-12])

    @property
    def beyond(self) -> bool:
        """Whether something is said under the concepts' names and not by them."""
        return any(bar.beyond for bar in self.bars)


@dataclass(frozen=True)
class Reach:
    """The range of values that a concept can be set to.

    Attributes:
        low: lowest value.
        high: highest value.
        now: value on this picture after the edits.
        unit: name of the unit of these values.
        average: activation at the value 0.
        step: change of the activation per unit.
        share: where the value is between absent (0) and present (1).
        number: whether the concept is a number, which is neither present nor absent.
    """

    low: float
    high: float
    now: float
    unit: str
    average: float
    step: float
    share: float = 0.0
    number: bool = False

    def activation(self, value: float) -> float:
        """The activation for a value, as ``set`` expects it."""
        return self.average + self.step * value


@torch.no_grad()
def decide(session: Session) -> Decision:
    """What is decided about the session's picture."""
    explorer = session.explorer
    plain = explorer.model.predict_features(session.picture.x[None]).logits[0]
    logits = session.logits()
    found, explained = (_of_labels if explorer.many else _of_classes)(session, plain, logits)
    if explorer.bottleneck is not None:
        return _explain(session, explorer.bottleneck, found, explained, logits)
    if explorer.energies is not None:
        old, new = believed(session, explorer.energies)
        columns = _most(new, new - old, session, explorer)
        return replace(found, bars=[_bar(session, k, float(old[k]), float(new[k]), None) for k in columns])
    return found


def _of_classes(session: Session, plain: Tensor, logits: Tensor) -> tuple[Decision, int]:
    """What is decided by logits ``[C]`` without and with edits, still unexplained, and the class to explain."""
    explorer, label = session.explorer, session.picture.label
    before, after = plain.softmax(dim=0), logits.softmax(dim=0)
    was, called = int(plain.argmax()), int(logits.argmax())
    explained = session.explained(logits)
    shown = after.topk(min(CLASSES, len(after))).indices.tolist()
    shown += [c for c in dict.fromkeys([was, label, explained]) if c is not None and c not in shown]
    classes = [
        ClassShare(explorer.classes[c], float(before[c]), float(after[c]), c == label, c == called, c == explained)
        for c in sorted(shown, key=lambda c: -float(after[c]))
    ]
    true, right = (None, None) if label is None else (explorer.classes[label], label == called)
    names = explorer.classes
    return Decision(names[called], names[was], true, right, classes, names[explained], []), explained


def _of_labels(session: Session, plain: Tensor, logits: Tensor) -> tuple[Decision, int]:
    """The same of labels, each by itself; the one that is explained is the one furthest above its threshold."""
    explorer, model, y = session.explorer, session.explorer.model.model, session.picture.labels
    cuts = torch.zeros_like(logits)
    if isinstance(model, Linked) and model.thresholds is not None:
        cuts = model.thresholds.to(logits)
    before, after, ends = plain.sigmoid(), logits.sigmoid(), cuts.sigmoid()
    was, said, above = plain > cuts, logits > cuts, logits - cuts
    explained = session.explained(logits)
    there = torch.zeros_like(said) if y is None else y == 1
    shown = said | was | there
    shown[[explained, *above.topk(min(CLASSES, len(above))).indices.tolist()]] = True
    classes = [
        ClassShare(
            explorer.classes[c],
            float(before[c]),
            float(after[c]),
            bool(there[c]),
            bool(said[c]),
            c == explained,
            float(ends[c]),
            y is not None and bool(y[c].isnan()),
        )
        for c in sorted(shown.nonzero()[:, 0].tolist(), key=lambda c: -float(above[c]))
    ]
    known = None if y is None or bool(y.isnan().all()) else ~y.isnan()
    true = None if known is None else names_of(explorer, there)
    right = None if known is None else bool((said == there)[known].all())
    called, name = names_of(explorer, said), explorer.classes[explained]
    return Decision(called, names_of(explorer, was), true, right, classes, name, []), explained


def _explain(session: Session, model: ConceptBottleneck, found: Decision, c: int, logits: Tensor) -> Decision:
    """The logit of a class as a sum of bars."""
    old, new, level = contributions(session, model, c)
    beyond = beyond_names(session, model, c)
    whole = new + beyond
    order = whole.argsort(descending=True, stable=True).tolist()
    explorer = session.explorer
    visible = float(whole.abs().max()) / 50  # bars shorter than 1/50 of the longest are not shown
    columns = [k for k in order[:FOR] if whole[k] > visible]
    columns += [k for k in order[::-1][:AGAINST] if whole[k] < -visible][::-1]
    edited = [explorer.bank.index(text) for text in dict.fromkeys(e.concept for e in session.here.edits)]
    columns += [k for k in edited[-FOUND:] if k not in columns]
    columns += [session.concept] if session.concept is not None and session.concept not in columns else []
    rest = whole.clone()
    rest[columns] = 0.0
    cut = model.cut(c) if model.many else 0.0
    base, total = float(model.base()[c]) - cut, float(logits[c]) - cut
    part = part_name(explorer.bank)
    return replace(
        found,
        bars=[_bar(session, k, float(old[k]), float(new[k]), float(level[k]), float(beyond[k])) for k in columns],
        base=base,
        others=float(rest.sum()),
        others_count=int((rest != 0).sum()),
        outside=total - base - float(whole.sum()),
        total=total,
        words=next(iter(sums_of_words(model, explorer.bank.texts, session.picture.x[None], part=part) or []), None),
    )


@torch.no_grad()
def contributions(session: Session, model: ConceptBottleneck, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """What every concept adds to the logit of class c, before and after the edits, and its level; ``[K]`` each.

    Exact: edits of different concepts change the logit independently of each other, so that the base and the new
    contributions add up to the new logit.
    """
    x, explorer = session.picture.x[None], session.explorer
    old = model.contributions(x, torch.tensor([c]))[0]
    activation, new = model.activations(x)[0], old.clone()
    acting = session.here
    for text in dict.fromkeys(edit.concept for edit in acting.edits):
        own = EditSet(tuple(edit for edit in acting.edits if edit.concept == text))
        change = logit_change(model, own, explorer.bank.texts, explorer.classes)
        k = int(change.columns[0])
        new[k] += activation[k] * change.weights[c, 0] + change.offset[c]
    return old, new, (activation - model.reference) / model.spread


@torch.no_grad()
def beyond_names(session: Session, model: ConceptBottleneck, c: int) -> Tensor:
    """What the picture says of class c under every concept's name and the name does not, after the edits, ``[K]``;
    zeros for all models but those of concept embeddings."""
    if not isinstance(model.residual, Unnamed):
        return torch.zeros(len(model.concepts))
    explorer = session.explorer
    edited = edited_model(model, session.here, explorer.bank.texts, explorer.classes)
    assert isinstance(edited.residual, Unnamed)
    return edited.residual.by_concept(session.picture.x[None])[0, c]


@torch.no_grad()
def believed(session: Session, model: EnergyBottleneck) -> tuple[Tensor, Tensor]:
    """Probability of every concept on the picture, ``[K]``, before and after the edits."""
    texts, x = session.explorer.bank.texts, session.picture.x[None]
    old, new = (
        EditedEnergies(model, edits, texts).infer(x).concept_probability[0] for edits in (EditSet(), session.here)
    )
    return old, new


def _most(new: Tensor, change: Tensor, session: Session, explorer: Explorer) -> list[int]:
    """Concepts of energies that are shown: edited, moved most, most probable."""
    edited = [explorer.bank.index(text) for text in dict.fromkeys(edit.concept for edit in session.here.edits)]
    moved = [k for k in change.abs().topk(min(6, len(change))).indices.tolist() if abs(float(change[k])) > 0.02]
    likely = new.topk(min(FOR + AGAINST, len(new))).indices.tolist()
    held = [] if session.concept is None else [session.concept]
    return sorted(dict.fromkeys([*edited[-FOUND:], *moved, *likely, *held]), key=lambda k: -float(new[k]))


def _bar(session: Session, column: int, before: float, after: float, level: float | None, beyond: float = 0.0) -> Bar:
    text = session.explorer.bank.texts[column]
    edited = any(edit.concept == text for edit in session.here.edits)
    known = level if level is not None and math.isfinite(level) and not edited else None
    return Bar(column, text, before, after, known, edited, column == session.concept, beyond)


@torch.no_grad()
def search_bars(session: Session, words: str) -> list[Bar]:
    """Concepts by their words, as they are on the picture."""
    explorer = session.explorer
    columns = find_concepts(explorer.bank, words)[:FOUND] if words.strip() else []
    if explorer.bottleneck is not None:
        c = explorer.classes.index(decide(session).explained)
        old, new, level = contributions(session, explorer.bottleneck, c)
        return [_bar(session, k, float(old[k]), float(new[k]), float(level[k])) for k in columns]
    assert explorer.energies is not None
    old, new = believed(session, explorer.energies)
    return [_bar(session, k, float(old[k]), float(new[k]), None) for k in columns]


@dataclass(frozen=True)
class Choices:
    """The values of an attribute of which a picture has one.

    Attributes:
        name: the attribute.
        values: its values, in words.
        concepts: for every value the concept and the value that says it: "present", or "absent" of the first step of a
            level for the lowest level.
        now: place of the value that the picture shows most of after the edits.
    """

    name: str
    values: list[str]
    concepts: list[tuple[str, str]]
    now: int


@torch.no_grad()
def choices(session: Session) -> Choices | None:
    """The values that stand beside the held concept; None if it stands alone."""
    explorer, text = session.explorer, session.held
    steps = explorer.bank.concepts[explorer.bank.index(text)].provenance.get("steps") or []
    if text in steps:
        concepts = [(steps[0], "absent"), *((step, "present") for step in steps)]
        values = [f"below '{_value(steps[0])}'", *(_value(step) for step in steps)]
    else:
        others = {edit.concept for edit in session.editor.exclusively(Edit("set", text, "present")).edits}
        members = [each for each in explorer.bank.texts if each in others]
        if len(members) < 2:
            return None
        concepts, values = [(each, "present") for each in members], [_value(each) for each in members]
    places = [reach(session, each) for each in dict.fromkeys(each for each, _ in concepts)]
    shown = [place.share for place in places]
    if text in steps:
        now = max((k + 1 for k, share in enumerate(shown) if share > 0.5), default=0)
    else:
        now = max(range(len(shown)), key=shown.__getitem__)
    group = explorer.bank.concepts[explorer.bank.index(text)].group
    return Choices(group or text.partition(":")[0], values, concepts, now)


def _value(text: str) -> str:
    """The value in "nucleus shape: round"."""
    return text.partition(": ")[2] or text


@torch.no_grad()
def reach(session: Session, concept: str | None = None) -> Reach:
    """Where a concept's value can be moved, and where it is after the edits for all classes.

    Args:
        session: the tab.
        concept: text of the concept; the held one by default.
    """
    text = session.held if concept is None else concept
    explorer, k, x = session.explorer, session.explorer.bank.index(text), session.picture.x[None]
    linear, energies = explorer.bottleneck, explorer.energies
    if linear is None:
        assert energies is not None
        said = float(energies.concept_weight * energies.concept_logits(x)[0, k])
        found, mask = Reach(-8.0, 8.0, said, "log-odds by its own evidence", 0.0, 1.0), 0.0
        named = {"absent": -8.0, "present": 8.0}
    else:
        value, mask, spread = float(linear.activations(x)[0, k]), float(linear.reference[k]), float(linear.spread[k])
        named = dict(zip(LEVELS, levels(linear)[:, k].tolist()))
        if (number := explorer.bank.concepts[k].provenance.get("number")) is not None:
            unit = number["unit"] or "its own numbers"
            step = 1 / number["sd"]
            now = number["mean"] + number["sd"] * value
            found = Reach(
                min(number["low"], now), max(number["high"], now), now, unit, -number["mean"] * step, step, number=True
            )
        elif isinstance(linear.activation, Sigmoid):
            found = Reach(0.0, 1.0, value, "probability", 0.0, 1.0)
        else:
            step = spread if spread > 0 else 1.0
            unit = f"standard deviations from {'zero' if explorer.gated else 'the average picture'}"
            low, high = -4.0, 4.0
            if isinstance(layer := linear.activation, Coded):  # rare parts are many deviations from zero where used
                low = -4.0 if isinstance(layer, SparseCode) and bool(layer.free) else 0.0
                high = max(4.0, 1.5 * named["present"] / step, value / step)
            found = Reach(low, high, (value - mask) / step, unit, mask, step)
    activation = found.activation(found.now)
    for edit in session.here.edits:
        if edit.concept == text and edit.classes is None:
            activation = _after(edit, activation, mask, named)
    now = (activation - found.average) / found.step
    share = (activation - named["absent"]) / max(named["present"] - named["absent"], 1e-12)
    return replace(found, now=min(max(now, found.low), found.high), share=share)


def _after(edit: Edit, activation: float, mask: float, named: dict[str, float]) -> float:
    """An activation after one edit."""
    if edit.op == "mask":
        return mask
    if edit.op == "set":
        return named[edit.value] if isinstance(edit.value, str) else edit.number
    if edit.op == "scale":
        return activation * edit.number
    return activation + edit.number if edit.op == "shift" else activation
