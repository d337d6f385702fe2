"""What there is to know about a class: its concepts after the edits, what it is taken for, its pictures."""

from dataclasses import dataclass

import torch

from cbm.app.filters import class_index
from cbm.app.gallery import Tile, tile
from cbm.app.session import Session
from cbm.layers import ConceptBottleneck, decide
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
    """One class, or one label.

    Attributes:
        name: name of the class.
        count: number of its pictures in the split.
        before: share of them classified correctly without edits; None without pictures.
        after: share of them classified correctly with the edits.
        others: of a label, its known pictures without it, and the share of them left alone without and with the edits
            (None without such pictures); None of a class.
        concepts: the most important concepts.
        taken_for: other classes with the number of this class's pictures that are classified as them, after the edits;
            of a label, other labels that pictures which miss it are wrongly said to have.
        mistaken: other classes with the number of their pictures that are classified as this class; of a label, the
            labels that pictures have which are wrongly said to have this one.
        right: examples of correct decisions.
        wrong: examples of mistakes; of a label, of those that are missed.
        invented: of a label, examples that are wrongly said to have it.
    """

    name: str
    count: int
    before: float | None
    after: float | None
    others: tuple[int, float | None, float | None] | None
    concepts: list[ClassConcept]
    taken_for: list[tuple[str, int]]
    mistaken: list[tuple[str, int]]
    right: list[Tile]
    wrong: list[Tile]
    invented: list[Tile]

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
    called = explorer.predicted
    if len(session.edits):
        called = decide(explorer.model.model, session.compare().after)
    if explorer.many:
        return _describe_label(session, c, called)
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
        None,
        class_concepts(session, c),
        _most(away, explorer.classes),
        _most(here, explorer.classes),
        [tile(explorer, row, called=called) for row in right],
        [tile(explorer, row, called=called) for row in wrong],
        [],
    )


def _describe_label(session: Session, label: int, called: torch.Tensor) -> ClassPage:
    """A label of which ``called`` ``[N, L]`` says where it is."""
    explorer, said = session.explorer, called[:, label]
    y = explorer.split.y
    there, absent = y[:, label] == 1, y[:, label] == 0
    decided = [explorer.predicted[:, label], said]
    found = [float(each[there].double().mean()) if bool(there.any()) else None for each in decided]
    left = [float((~each[absent]).double().mean()) if bool(absent.any()) else None for each in decided]
    missed, invented = there & ~said, absent & said
    return ClassPage(
        explorer.classes[label],
        int(there.sum()),
        found[0],
        found[1],
        (int(absent.sum()), left[0], left[1]),
        class_concepts(session, label),
        _most((called & (y == 0))[missed].sum(dim=0), explorer.classes),
        _most((y == 1)[invented].sum(dim=0), explorer.classes),
        *(
            [tile(explorer, row, called=called) for row in rows.nonzero()[:PICTURES, 0].tolist()]
            for rows in (there & said, missed, invented)
        ),
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
