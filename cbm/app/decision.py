"""What is decided about one picture and by which concepts, before and after the edits."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cbm.app.concepts import find_concepts
from cbm.app.explorer import Explorer
from cbm.app.gallery import class_index
from cbm.app.session import Session
from cbm.editing import Edit, EditedEnergies, EditSet, logit_change
from cbm.editing.apply import levels
from cbm.editing.edits import LEVELS
from cbm.layers import Coded, ConceptBottleneck, EnergyBottleneck, Sigmoid, SparseCode
from cbm.report.explanations import SumOfWords, sums_of_words
from cbm.report.units import part_name

CLASSES, FOR, AGAINST, FOUND = 6, 8, 6, 12


@dataclass(frozen=True)
class ClassShare:
    """A class and its probability.

    Attributes:
        name: name of the class.
        before: probability without edits.
        after: probability with the edits.
        true: whether this is the true class of the picture.
        decided: whether this is the predicted class.
        explained: whether the bars explain the logit of this class.
    """

    name: str
    before: float
    after: float
    true: bool
    decided: bool
    explained: bool


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
    """

    column: int
    text: str
    before: float
    after: float
    level: float | None
    edited: bool
    held: bool


@dataclass(frozen=True)
class Decision:
    """The picture's decision.

    Attributes:
        called: predicted class after the edits.
        was: predicted class without edits.
        true: true class, or None if it is not known.
        classes: the most probable classes.
        explained: class that the bars explain.
        bars: the largest bars: contributions for linear heads, probabilities for energies; empty without concepts.
        base: logit of the average picture (linear heads).
        others: sum of the contributions of all concepts without a bar.
        others_count: number of these concepts.
        outside: part of the logit that bypasses the concepts (a residual).
        total: the logit.
        words: the picture as a sum of words; None without a sparse code.
    """

    called: str
    was: str
    true: str | None
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
        return max([max(abs(bar.before), abs(bar.after)) for bar in self.bars] + [1e-12])


@dataclass(frozen=True)
class Reach:
    """The range of values that a concept can be set to.

    Attributes:
        low: lowest value.
        high: highest value.
        now: value on this picture after the edits.
        unit: name of the unit of these values.
        average: average value, at which the concept says nothing.
        step: change of the activation per unit.
    """

    low: float
    high: float
    now: float
    unit: str
    average: float
    step: float

    def activation(self, value: float) -> float:
        """The activation for a value, as ``set`` expects it."""
        return self.average + self.step * value


@torch.no_grad()
def decide(session: Session) -> Decision:
    """What is decided about the session's picture."""
    explorer, picture = session.explorer, session.picture
    plain = explorer.model.predict_features(picture.x[None]).logits[0]
    logits = session.logits()
    before, after = plain.softmax(dim=0), logits.softmax(dim=0)
    was, called = int(plain.argmax()), int(logits.argmax())
    explained = called if session.why is None else class_index(explorer, session.why)
    shown = after.topk(min(CLASSES, len(after))).indices.tolist()
    shown += [c for c in dict.fromkeys([was, picture.label, explained]) if c is not None and c not in shown]
    classes = [
        ClassShare(
            explorer.classes[c], float(before[c]), float(after[c]), c == picture.label, c == called, c == explained
        )
        for c in sorted(shown, key=lambda c: -float(after[c]))
    ]
    true = None if picture.label is None else explorer.classes[picture.label]
    found = Decision(explorer.classes[called], explorer.classes[was], true, classes, explorer.classes[explained], [])
    if explorer.bottleneck is not None:
        return _explain(session, explorer.bottleneck, found, explained, logits)
    if explorer.energies is not None:
        old, new = believed(session, explorer.energies)
        columns = _most(new, new - old, session, explorer)
        return replace(found, bars=[_bar(session, k, float(old[k]), float(new[k]), None) for k in columns])
    return found


def _explain(session: Session, model: ConceptBottleneck, found: Decision, c: int, logits: Tensor) -> Decision:
    """The logit of a class as a sum of bars."""
    old, new, level = contributions(session, model, c)
    order = new.argsort(descending=True, stable=True).tolist()
    explorer = session.explorer
    visible = float(new.abs().max()) / 50  # bars shorter than 1/50 of the longest are not shown
    columns = [k for k in order[:FOR] if new[k] > visible]
    columns += [k for k in order[::-1][:AGAINST] if new[k] < -visible][::-1]
    edited = [explorer.bank.index(text) for text in dict.fromkeys(e.concept for e in session.here.edits)]
    columns += [k for k in edited[-FOUND:] if k not in columns]
    columns += [session.concept] if session.concept is not None and session.concept not in columns else []
    rest = new.clone()
    rest[columns] = 0.0
    base, total = float(model.base()[c]), float(logits[c])
    part = part_name(explorer.bank)
    return replace(
        found,
        bars=[_bar(session, k, float(old[k]), float(new[k]), float(level[k])) for k in columns],
        base=base,
        others=float(rest.sum()),
        others_count=int((rest != 0).sum()),
        outside=total - base - float(new.sum()),
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


def _bar(session: Session, column: int, before: float, after: float, level: float | None) -> Bar:
    text = session.explorer.bank.texts[column]
    edited = any(edit.concept == text for edit in session.here.edits)
    known = level if level is not None and math.isfinite(level) and not edited else None
    return Bar(column, text, before, after, known, edited, column == session.concept)


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


@torch.no_grad()
def reach(session: Session) -> Reach:
    """Where the held concept's value can be moved, and where it is after the edits for all classes."""
    explorer, k, x = session.explorer, session.explorer.bank.index(session.held), session.picture.x[None]
    linear, energies = explorer.bottleneck, explorer.energies
    if linear is None:
        assert energies is not None
        said = float(energies.concept_weight * energies.concept_logits(x)[0, k])
        found, mask = Reach(-8.0, 8.0, said, "log-odds by its own evidence", 0.0, 1.0), 0.0
        named = {"absent": -8.0, "present": 8.0}
    else:
        value, mask, spread = float(linear.activations(x)[0, k]), float(linear.reference[k]), float(linear.spread[k])
        named = dict(zip(LEVELS, levels(linear)[:, k].tolist()))
        if isinstance(linear.activation, Sigmoid):
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
        if edit.concept == session.held and edit.classes is None:
            activation = _after(edit, activation, mask, named)
    now = (activation - found.average) / found.step
    return replace(found, now=min(max(now, found.low), found.high))


def _after(edit: Edit, activation: float, mask: float, named: dict[str, float]) -> float:
    """An activation after one edit."""
    if edit.op == "mask":
        return mask
    if edit.op == "set":
        return named[edit.value] if isinstance(edit.value, str) else edit.number
    if edit.op == "scale":
        return activation * edit.number
    return activation + edit.number if edit.op == "shift" else activation
