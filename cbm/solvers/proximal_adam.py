"""Adam with a proximal step for the l1 norm: weights become exactly zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ProximalAdam(torch.optim.Adam):
    """Adam, followed in groups with ``l1 > 0`` by the proximal step of ``l1 * |w|_1`` in Adam's own metric.

    Adam divides the step of every weight by ``sqrt(v) + eps``; the minimiser of the penalty plus the distance in that
    metric is a soft threshold at ``lr * l1 / (sqrt(v) + eps)``, weight by weight (Yun, Lozano, Yang, "Adaptive proximal
    gradient methods", NeurIPS 2021). A subgradient handed to Adam instead never gives a zero.

    Args:
        groups: parameters, or groups of them with an ``l1``.
        lr: step length.
    """

    def __init__(self, groups: Any, lr: float = 1e-3):
        super().__init__(groups, lr=lr)
        for group in self.param_groups:
            group.setdefault("l1", 0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step of Adam, then the proximal step of the penalty."""
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"] if group["l1"] else ():
                state = self.state[weight]
                if not state:  # no gradient yet
                    continue
                root = (state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))).sqrt()
                weight.copy_(soft_threshold(weight, group["lr"] * group["l1"] / (root + group["eps"])))
        return loss


def soft_threshold(value: Tensor, threshold: Tensor | float) -> Tensor:
    """``sign(v) max(|v| - t, 0)``, the proximal step of the l1 norm."""
    return value.sign() * (value.abs() - threshold).clamp(min=0)
