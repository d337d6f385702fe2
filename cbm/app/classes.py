"""What there is to know about a class: its concepts after the edits, what it is taken for, its pictures."""

from dataclasses import dataclass

import torch

from cbm.app.gallery import Tile, class_index, tile
from cbm.app.session import Session
from cbm.layers import ConceptBottleneck
from cbm.solvers.concept_distribution import from_joint

CONCEPTS, AGAINST, CONFUSIONS, PICTURES = 16, 6, 6, 6


@dataclass(frozen=True)
class ClassConcept:
    """A concept as a class uses it.

    Attributes:
        column: column of the concept in the bank.
        text: text of the concept.
        before: how much one standard deviation of it adds to the class's logit without edits; for energies, the lift
            log p(concept | class) / p(concept).
        after: the same with the edits of all pictures.
        owned: whether the bank names this class as an owner.
    """

    column: int
    text: str
    before: float
    after: float
    owned: bool


@dataclass(frozen=True)
class ClassPage:
    """One class.

    Attributes:
        name: name of the class.
        count: number of its pictures in the split.
        before: share of them classified correctly without edits; None without pictures.
        after: share of them classified correctly with the edits.
        concepts: the most important concepts.
        taken_for: other classes with the number of this class's pictures that are classified as them, after the edits.
        mistaken: other classes with the number of their pictures that are classified as this class.
        right: examples of correct decisions.
        wrong: examples of mistakes.
    """

    name: str
    count: int
    before: float | None
    after: float | None
    concepts: list[ClassConcept]
    taken_for: list[tuple[str, int]]
    mistaken: list[tuple[str, int]]
    right: list[Tile]
    wrong: list[Tile]

    @property
    def largest(self) -> float:
        """Length of the longest bar."""
        return max([max(abs(c.before), abs(c.after)) for c in self.concepts] + [1e-12])


@torch.no_grad()
def describe_class(session: Session, name: str) -> ClassPage:
    """A class with the session's edits.

    Raises:
        UserError: there is no such class.
    """
    explorer, c = session.explorer, class_index(session.explorer, name)
    y, count = explorer.split.y, len(explorer.classes)
    called = session.compare().after.argmax(dim=1) if len(session.edits) else explorer.predicted
    own = y == c
    shares = [
        float((each[own] == c).double().mean()) if bool(own.any()) else None for each in (explorer.predicted, called)
    ]
    away = torch.bincount(called[own & (called != c)], minlength=count)
    here = torch.bincount(y[~own & (called == c)], minlength=count)
    right, wrong = (rows.nonzero()[:PICTURES, 0].tolist() for rows in (own & (called == c), own & (called != c)))
    return ClassPage(
        name,
        int(own.sum()),
        shares[0],
        shares[1],
        class_concepts(session, c),
        _most(away, explorer.classes),
        _most(here, explorer.classes),
        [tile(explorer, row, called=called) for row in right],
        [tile(explorer, row, called=called) for row in wrong],
    )


@torch.no_grad()
def class_concepts(session: Session, c: int) -> list[ClassConcept]:
    """The concepts that class c uses most before or after the edits; none in a model without."""
    explorer = session.explorer
    if explorer.energies is not None:
        lift = from_joint(explorer.energies.joint()).lift()[c]
        order = lift.argsort(descending=True, stable=True).tolist()
        columns = list(dict.fromkeys([*order[: CONCEPTS - AGAINST], *order[-AGAINST:]]))
        values = [(float(lift[k]), float(lift[k])) for k in columns]
    elif explorer.bottleneck is not None:
        edited = session.editor.as_model()
        assert isinstance(edited, ConceptBottleneck)
        old, new = explorer.bottleneck.importance()[c], edited.importance()[c]
        size = torch.maximum(old.abs(), new.abs())
        columns = size.topk(min(CONCEPTS, len(size))).indices.tolist()
        if session.concept is not None and session.concept not in columns:
            columns.append(session.concept)
        values = [(float(old[k]), float(new[k])) for k in columns]
    else:
        return []
    name, bank = explorer.classes[c], explorer.bank
    rows = zip(columns, values)
    return [ClassConcept(k, bank.texts[k], old, new, name in bank.concepts[k].classes) for k, (old, new) in rows]


def _most(counts: torch.Tensor, classes: list[str]) -> list[tuple[str, int]]:
    best = counts.topk(min(CONFUSIONS, len(counts))).indices.tolist()
    return [(classes[c], int(counts[c])) for c in best if counts[c] > 0]
