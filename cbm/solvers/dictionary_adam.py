"""Adam for dictionaries: atoms of length 1, a schedule of its own, and dead units that begin anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

FLOOR = 0.1
"""Share of the learning rate at the end."""
NEW_LENGTH = 0.2
"""Length of a new unit's encoder row, as a share of the mean of those that live."""


class Dictionary(Protocol):
    """The attributes that the optimizer needs of a dictionary in training.

    Attributes:
        decoder: atoms ``[K, D]`` of length 1; None if they are no parameters.
        encoder: encoder rows ``[K, D]``.
        offset: offsets ``[K]`` of the units.
        silent: pictures ``[K]`` since a unit last fired.
        replacement: dead units and what they start from ``[R, D]``, or None.
    """

    decoder: torch.nn.Parameter | None
    encoder: torch.nn.Parameter
    offset: torch.nn.Parameter
    silent: Tensor
    replacement: tuple[Tensor, Tensor] | None


class DictionaryAdam(torch.optim.Adam):
    """Adam with a linear warm-up and a cosine to a tenth of the learning rate. The part of an atom's gradient along the
    atom is removed before every step, and the atom has length 1 after it (Bricken et al., "Towards Monosemanticity",
    2023). Dead units that were given pictures to start from do so, with an empty state.

    Args:
        dictionaries: the dictionaries in training.
        parameters: their parameters.
        lr: largest learning rate.
        total: number of steps after which the learning rate stays at a tenth.
        warmup: number of steps until it is largest.
    """

    def __init__(
        self,
        dictionaries: Sequence[Dictionary],
        parameters: Sequence[torch.nn.Parameter],
        *,
        lr: float,
        total: int,
        warmup: int,
    ):
        super().__init__(parameters, lr=lr)
        self.dictionaries, self.most, self.total, self.warmup = dictionaries, lr, total, warmup
        self.param_groups[0]["steps"] = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        group = self.param_groups[0]
        group["lr"] = self.most * schedule(group["steps"], self.total, self.warmup)
        group["steps"] += 1
        atoms = [each.decoder for each in self.dictionaries if each.decoder is not None]
        if closure is None:
            self._project(atoms)
            loss = super().step()
        else:  # Lightning's, which computes the gradients

            def projected() -> Any:
                value = closure()
                self._project(atoms)
                return value

            loss = super().step(projected)
        for each in atoms:
            each.copy_(normalize(each, dim=1))
        for dictionary in self.dictionaries:
            self._begin_anew(dictionary)
        return loss

    @torch.no_grad()  # Adam calls the closure with gradients on: they would remember every step before
    def _project(self, atoms: list[torch.nn.Parameter]) -> None:
        """Remove the part of the atoms' gradients along the atoms."""
        for each in atoms:
            if each.grad is not None:
                each.grad.sub_((each.grad * each).sum(dim=1, keepdim=True) * each)

    def _begin_anew(self, dictionary: Dictionary) -> None:
        """Let dead units start from the pictures that were chosen for them."""
        if dictionary.replacement is None:
            return
        units, pictures = dictionary.replacement
        dictionary.replacement = None
        living = torch.ones_like(dictionary.offset, dtype=torch.bool).index_fill(0, units, False)
        length = dictionary.encoder[living].norm(dim=1).mean() if bool(living.any()) else 1.0
        directions = normalize(pictures, dim=1)
        if dictionary.decoder is not None:
            dictionary.decoder[units] = directions
        dictionary.encoder[units] = directions * NEW_LENGTH * length
        dictionary.offset[units] = 0.0
        dictionary.silent[units] = 0
        for parameter in (dictionary.decoder, dictionary.encoder, dictionary.offset):
            state = {} if parameter is None else self.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key][units] = 0.0


def schedule(step: int, total: int, warmup: int) -> float:
    """The learning rate of a step as a share of the largest.

    >>> [round(schedule(step, 100, 10), 2) for step in (0, 9, 55, 100, 200)]
    [0.1, 0.98, 0.48, 0.1, 0.1]
    """
    part = min(1.0, step / max(total, 1))
    return min(1.0, (step + 1) / max(warmup, 1)) * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * part)))
