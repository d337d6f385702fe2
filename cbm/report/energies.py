"""What telling a model concepts is worth, and what an energy-based one knows about which concepts go together."""

import re
from dataclasses import dataclass

import torch

from cbm.concepts.bank import ConceptBank
from cbm.layers import EnergyBottleneck
from cbm.report.classes import select_classes
from cbm.report.wording import clip
from cbm.solvers.concept_distribution import from_joint

CLASSES, CONCEPTS_IN_MATRIX, PAIRS = 20, 120, 6


@dataclass(frozen=True)
class ToldRow:
    """Accuracy with a share of the concepts set.

    Attributes:
        percent: percentage of the groups that are set.
        accuracy: accuracy of the class.
        others: accuracy of the concepts that were not set; None if all were.
    """

    percent: int
    accuracy: float
    others: float | None


@dataclass(frozen=True)
class Pair:
    """Two concepts of a class, of which one changes what is to be expected of the other.

    Attributes:
        given: the one that is present.
        text: the other.
        probability: p(other | given, class).
        alone: p(other | class).
    """

    given: str
    text: str
    probability: float
    alone: float


@dataclass(frozen=True)
class Energies:
    """Conditional probabilities, for people to look through.

    Attributes:
        classes: M names.
        rows: concept to p(concept | class) and the lift log p(concept | class) / p(concept), one pair per class.
        pairs: for every class those concepts that say most about another one.
    """

    classes: list[str]
    rows: list[tuple[str, list[tuple[float, float]]]]
    pairs: list[list[Pair]]


def told_rows(metrics: dict[str, float]) -> list[ToldRow]:
    """The intervention curve of the test split, from ``metrics.json``."""
    rows = []
    for key in metrics:
        if found := re.fullmatch(r"test/intervention_accuracy_(\d+)", key):
            percent = int(found.group(1))
            rows.append(ToldRow(percent, metrics[key], metrics.get(f"test/intervention_others_{percent}")))
    return sorted(rows, key=lambda row: row.percent)


def describe_energies(
    model: EnergyBottleneck, bank: ConceptBank, classes: list[str], accuracies: torch.Tensor
) -> Energies:
    """p(concept | class) and the strongest pairs within every class, of at most 20 classes and 120 concepts.

    Of more concepts, those whose probability differs most between the classes.
    """
    known = from_joint(model.joint())
    given, lift = known.concept_given_class(), known.lift()
    chosen = select_classes(accuracies, CLASSES)
    columns = list(range(len(bank)))
    if len(bank) > CONCEPTS_IN_MATRIX:
        columns = sorted(given.std(dim=0).topk(CONCEPTS_IN_MATRIX).indices.tolist())
    texts = [clip(text) for text in bank.texts]
    rows = [(texts[k], [(float(given[m, k]), float(lift[m, k])) for m in chosen]) for k in columns]
    group = [c.group for c in bank.concepts]
    alike = torch.tensor([[a is not None and a == b for b in group] for a in group]).fill_diagonal_(True)
    pairs = []
    for m in chosen:
        both = known.pairs_given_class(m)
        change = (both - given[m]).abs().masked_fill(alike | (given[m] < 0.05)[:, None], 0.0).nan_to_num(0.0)
        best = change.flatten().topk(min(PAIRS, change.numel())).indices.tolist()
        found = [divmod(i, len(bank)) for i in best]
        pairs.append([Pair(texts[i], texts[j], float(both[i, j]), float(given[m, j])) for i, j in found])
    return Energies([clip(classes[m]) for m in chosen], rows, pairs)
