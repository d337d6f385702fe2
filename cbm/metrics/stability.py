"""Do two runs name the same concepts? Overlap of the most important concepts of every class across seeds."""

from itertools import combinations

import torch
from torch import Tensor
from torchmetrics import Metric


class TopConceptStability(Metric):
    """Mean Jaccard overlap of the concepts that several runs name for the same classes or images.

    ``|A and B| / |A or B|`` for every row and every pair of runs: 1 if all runs name the same concepts, in any order.
    """

    higher_is_better = True
    full_state_update = False
    runs: list[list[frozenset[str]]]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("runs", [], dist_reduce_fx=None)

    def update(self, named: list[list[str]]) -> None:
        """Add one run: the concepts that it names for each row (class or image); every run has the same rows."""
        if self.runs and len(named) != len(self.runs[0]):
            raise ValueError(f"{len(named)} rows; the runs before have {len(self.runs[0])}")
        self.runs.append([frozenset(row) for row in named])

    def compute(self) -> Tensor:
        """The mean overlap; NaN if there is only one run."""
        overlaps = [
            len(a & b) / len(a | b)
            for first, second in combinations(self.runs, 2)
            for a, b in zip(first, second)
            if a | b
        ]
        return torch.tensor(overlaps, dtype=torch.float64).mean() if overlaps else torch.tensor(float("nan"))
