"""The loss of concepts that are learned from labels: yes or no, one of several values, levels, numbers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus


@dataclass(frozen=True)
class ConceptLayout:
    """Which of K columns belong together.

    Attributes:
        exclusive: columns of the values of each categorical attribute.
        ordered: columns of the steps of each ordinal attribute ("mild or more", "severe"), the lowest first.
        numbers: columns of numbers.
    """

    exclusive: list[list[int]] = field(default_factory=list)
    ordered: list[list[int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether every column is a yes or no of its own."""
        return not (self.exclusive or self.ordered or self.numbers)

    def single(self, count: int) -> list[int]:
        """The columns of ``count`` that are a yes or no of their own."""
        taken = {k for columns in (*self.exclusive, *self.ordered, self.numbers) for k in columns}
        return [k for k in range(count) if k not in taken]


def concept_layout_loss(logits: Tensor, targets: Tensor, layout: ConceptLayout) -> Tensor:
    """Mean over the attributes of the mean loss over the known images: every attribute counts once.

    Cross-entropy of yes and no, and of values that exclude each other; of an ordinal attribute the mean over its steps;
    of a number half the squared error (in standard deviations).

    Args:
        logits: logits ``[B, K]``; of numbers the predictions.
        targets: labels ``[B, K]``: 1, 0, a number in standard deviations, or NaN if unknown.
        layout: which columns belong together.

    >>> layout = ConceptLayout(numbers=[1])
    >>> concept_layout_loss(torch.zeros(1, 2), torch.tensor([[float("nan"), 2.0]]), layout)
    tensor(2.)
    """
    known = ~targets.isnan()
    losses = []
    for columns in ([k] for k in layout.single(logits.shape[1])):
        losses += _yes_or_no(logits[:, columns], targets[:, columns], known[:, columns])
    for columns in layout.ordered:
        losses += _yes_or_no(logits[:, columns], targets[:, columns], known[:, columns])
    for columns in layout.exclusive:
        told = known[:, columns].all(dim=1) & (targets[:, columns].nan_to_num().sum(dim=1) == 1)
        if bool(told.any()):
            losses.append(cross_entropy(logits[told][:, columns], targets[told][:, columns].argmax(dim=1)))
    for k in layout.numbers:
        if bool(known[:, k].any()):
            losses.append(0.5 * (logits[:, k] - targets[:, k])[known[:, k]].square().mean())
    return torch.stack(losses).mean() if losses else logits.sum() * 0.0


def _yes_or_no(logits: Tensor, targets: Tensor, known: Tensor) -> list[Tensor]:
    """The mean cross-entropy of the known entries, in a list; an empty one if there are none."""
    return [binary_cross_entropy_with_logits(logits[known], targets[known])] if bool(known.any()) else []


def ordered_heads(weight: Tensor, bias: Tensor, layout: ConceptLayout) -> tuple[Tensor, Tensor]:
    """Heads under which an ordinal attribute's steps never become likelier: one direction, thresholds that rise.

    Args:
        weight: weights ``[K, D]``, of which those of the lowest step count for all steps.
        bias: biases ``[K]``: that of the lowest step, and how far apart the next ones are (through softplus).
        layout: which columns belong together.
    """
    if not layout.ordered:
        return weight, bias
    weight, bias = weight.clone(), bias.clone()
    for columns in layout.ordered:
        weight[columns] = weight[columns[0]].expand(len(columns), -1)
        down = torch.cat([bias.new_zeros(1), softplus(bias[columns[1:]])]).cumsum(0)
        bias[columns] = bias[columns[0]] - down
    return weight, bias
