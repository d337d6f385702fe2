"""Facts about every class: its accuracy, the class it is confused with, its concepts."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.layers import ConceptBottleneck
from cbm.metrics import class_accuracies, top_concepts
from cbm.report.wording import clip


@dataclass(frozen=True)
class ClassConcept:
    """A concept as one class uses it.

    Attributes:
        text: the concept.
        importance: how much one standard deviation of its score adds to the class's logit.
        weight: how much one unit of its activation adds to the class's logit.
        owned: whether the bank names this class as an owner.
        owners: the owning classes; empty if the bank names none.
        auroc: AUROC of its score on images with labels of the concept; None if there are none.
    """

    text: str
    importance: float
    weight: float
    owned: bool
    owners: tuple[str, ...]
    auroc: float | None


@dataclass(frozen=True)
class ClassFacts:
    """One class on the test split.

    Attributes:
        name: name of the class.
        count: number of test images.
        accuracy: share of them classified correctly; None without images.
        confused_with: class that they are most often confused with, or None.
        confused: number of images that are.
        concepts: the most important ones, in order.
        own_share: share of the class's importance that lies on concepts it owns; None if the bank has no owners.
    """

    name: str
    count: int
    accuracy: float | None
    confused_with: str | None
    confused: int
    concepts: list[ClassConcept] = field(default_factory=list)
    own_share: float | None = None

    @property
    def largest(self) -> float:
        """Length of the longest bar."""
        return max([abs(c.importance) for c in self.concepts] + [1e-12])


def select_classes(accuracies: Tensor, limit: int) -> list[int]:
    """All classes if they are at most ``limit``, else the worst and the best half of that number, in class order."""
    if len(accuracies) <= limit:
        return list(range(len(accuracies)))
    order = accuracies.argsort(stable=True)
    order = order[~accuracies[order].isnan()]
    worst, best = order[: limit // 2], order[len(order) - limit // 2 :]
    return sorted(set(worst.tolist()) | set(best.tolist()))


class ConceptUse:
    """Which concepts each class of a model uses most.

    Args:
        model: with K concepts.
        bank: those concepts.
        names: C class names.
        aurocs: column to AUROC against the ground truth.
        count: concepts per class.
    """

    @torch.no_grad()
    def __init__(
        self, model: ConceptBottleneck, bank: ConceptBank, names: list[str], aurocs: dict[int, float], count: int = 8
    ):
        self.bank, self.aurocs = bank, aurocs
        self.top = top_concepts(model, count)
        self.importance, self.weights, self.owners = model.importance(), model.weights(), bank.owners(names)

    def of(self, label: int) -> list[ClassConcept]:
        """The most important concepts of a class; those of no importance are left out."""
        columns = [k for k in self.top[label].tolist() if self.importance[label, k] != 0]
        return [
            ClassConcept(
                text=clip(self.bank.concepts[k].text),
                importance=float(self.importance[label, k]),
                weight=float(self.weights[label, k]),
                owned=bool(self.owners[label, k]),
                owners=tuple(clip(name) for name in self.bank.concepts[k].classes),
                auroc=self.aurocs.get(k),
            )
            for k in columns
        ]

    def own_share(self, label: int) -> float | None:
        """Share of a class's importance that lies on concepts it owns; None if no class owns any."""
        if not self.owners.any():
            return None
        size = self.importance[label].abs().double()
        return float(size[self.owners[label]].sum() / size.sum().clamp(min=1e-300))


def describe_classes(
    names: list[str], predicted: Tensor, labels: Tensor, use: ConceptUse | None, limit: int = 40
) -> list[ClassFacts]:
    """Facts about the classes shown in detail.

    Args:
        names: C class names.
        predicted: ``[N]`` predicted classes of the test pictures.
        labels: ``[N]`` true ones.
        use: the concepts of every class, or None for a model without concepts.
        limit: how many classes (see ``select_classes``).
    """
    accuracies = class_accuracies(predicted, labels, len(names))
    facts = []
    for label in select_classes(accuracies, limit):
        mine = predicted[labels == label]
        taken_for = torch.bincount(mine[mine != label], minlength=len(names))
        confused = int(taken_for.max())
        facts.append(
            ClassFacts(
                name=clip(names[label]),
                count=len(mine),
                accuracy=float(accuracies[label]) if len(mine) else None,
                confused_with=clip(names[int(taken_for.argmax())]) if confused else None,
                confused=confused,
                concepts=[] if use is None else use.of(label),
                own_share=None if use is None else use.own_share(label),
            )
        )
    return facts
