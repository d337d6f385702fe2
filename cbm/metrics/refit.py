"""Refit deletion: what a deletion curve hides, because another concept says the same.

A deletion curve holds a concept at its mean and leaves the head as it is. Decisions that change then hung on this
concept in this head. Whether they need it is another question: the sparse head is solved anew without the concept, with
as many concepts per class. What changes when it is held, and does not when the head may replace it, was redundant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.data.features import FeatureSplit
from cbm.kernels import class_logits, class_vectors, concept_scores
from cbm.layers import ConceptBottleneck, UnitCode
from cbm.metrics.nec import SparseHead, linear_part, solve_heads
from cbm.solvers import LinearScores


@dataclass(frozen=True)
class RefitDeletion:
    """What happens without some concepts, at an equal number of concepts per class.

    Attributes:
        columns: the concepts.
        held: share of the decisions that change when they are held at their mean.
        refit: share that changes when the head is solved anew without them.
        accuracy: accuracy with them, held at their mean, and solved anew.
    """

    columns: tuple[int, ...]
    held: float
    refit: float
    accuracy: tuple[float, float, float]


@torch.no_grad()
def refit_deletion(
    model: ConceptBottleneck, train: FeatureSplit, test: FeatureSplit, num_classes: int,
    deleted: Sequence[Sequence[int]], target: int = 5,
) -> list[RefitDeletion]:  # fmt: skip
    """Delete concepts from a sparse head, once as it is and once solved anew.

    Args:
        model: a bottleneck that names one class; its own head and residual are ignored.
        train: pictures on which heads are solved.
        test: pictures whose decisions count.
        num_classes: number of classes C.
        deleted: sets of columns that are deleted together, a concept alone or with what says the same.
        target: concepts per class of every head.

    Raises:
        ValueError: the concepts are units that were found, whose codes change with the set, or a set leaves fewer than
            two concepts.
    """
    if isinstance(model.activation, UnitCode):
        raise ValueError("codes of found units depend on the set of units: expected a bottleneck of directions")
    seen, concepts = linear_part(model, train.x)
    test_seen, _ = linear_part(model, test.x)

    def solved(columns: Tensor) -> tuple[SparseHead, Tensor]:
        head = solve_heads(LinearScores(seen, concepts[columns]), train.y, num_classes, [target])[0]
        return head, class_logits(test_seen, *class_vectors(concepts[columns], head.weight, bias=head.bias))

    def right(logits: Tensor) -> float:
        return float((logits.argmax(dim=1) == test.y).double().mean())

    head, logits = solved(torch.arange(len(concepts)))
    decided = logits.argmax(dim=1)
    found = []
    for columns in deleted:
        kept = torch.ones(len(concepts), dtype=torch.bool)
        kept[list(columns)] = False
        if int(kept.sum()) < 2:
            raise ValueError(f"{int(kept.sum())} of {len(concepts)} concepts are left: expected two or more")
        away = concept_scores(test_seen, concepts[~kept]) - concept_scores(seen, concepts[~kept]).mean(dim=0)
        held = logits - away @ head.weight[:, ~kept].T
        again = solved(kept.nonzero().flatten())[1]
        of_held, of_again = (float((each.argmax(dim=1) != decided).double().mean()) for each in (held, again))
        accuracy = right(logits), right(held), right(again)
        found.append(RefitDeletion(tuple(columns), of_held, of_again, accuracy))
    return found
