"""Which concept to ask about next, as a small network that was trained to know it (IntCEM)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

HIDDEN = (256, 128)
"""Widths between what is read and the scores, as published."""


class LearnedAsking(nn.Module):
    """From the vectors of K concepts, mixed by what is known of them, to a score for each of U questions.

    Espinosa Zarlenga et al., "Learning to Receive Help: Intervention-Aware Concept Embedding Models", NeurIPS 2023
    (psi of IntCEM). Layers are normalised picture by picture, so that an answer does not depend on who else is asked.

    Args:
        member: which concepts a question is about ``[U, K]``, 1 or 0.
        width: width m of a concept's vector.

    Example:
        >>> asks = LearnedAsking(torch.eye(3), width=2)
        >>> asks(torch.zeros(5, 3, 2), torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    member: Tensor

    def __init__(self, member: Tensor, width: int):
        super().__init__()
        self.register_buffer("member", member.float().clone())
        questions, count = member.shape
        widths, layers = (count * (width + 1), *HIDDEN), nn.Sequential()
        for before, after in pairwise(widths):
            layers.extend((nn.Linear(before, after), nn.LayerNorm(after), nn.LeakyReLU()))
        self.layers = layers.append(nn.Linear(widths[-1], questions))

    def forward(self, mixed: Tensor, told: Tensor) -> Tensor:
        """Mixed vectors ``[N, K, m]`` and what was told ``[N, K]`` (1 or 0) to scores ``[N, U]``; the highest is asked
        first."""
        return self.layers(torch.cat([mixed.flatten(1), told], dim=1))


def members(units: Sequence[Sequence[int]], count: int) -> Tensor:
    """Which of ``count`` concepts every question is about ``[U, K]``, 1 or 0.

    Example:
        >>> members([[0, 2], [1]], 3).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    return torch.stack([torch.eye(count)[list(unit)].sum(dim=0) for unit in units])
