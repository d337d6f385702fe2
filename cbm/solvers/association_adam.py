"""Adam for row-stochastic heads, from the gradient of their class vectors alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from cbm.kernels import association_adam_


class RowStochasticHead(Protocol):
    """The attributes that the optimizer needs of a head.

    Attributes:
        logits: parameter W ``[C, K]``.
        pending: class vectors ``[C, D]`` with their gradient, log-sum-exps ``[C]`` and concepts ``[K, D]`` for every
            pass through the head since the last step. None if the head's logits have a gradient as usual.
    """

    logits: torch.nn.Parameter
    pending: list[tuple[Tensor, Tensor, Tensor]] | None


class AssociationAdam(torch.optim.Adam):
    """Adam that makes the ``[C, K]`` gradient of a head's logits tile by tile as it uses it up (``cbm.kernels``).

    The head hands out its class vectors as leaves; their gradients ``[C, D]`` add up over micro-batches, and are what
    processes exchange: K / D times less than the gradient of the logits. The state is that of ``torch.optim.Adam``.

    Args:
        head: head whose logits are trained this way.
        others: parameters that Adam trains as usual.
        lr: learning rate.
    """

    def __init__(self, head: RowStochasticHead, others: Iterable[torch.nn.Parameter], lr: float):
        super().__init__([head.logits, *(p for p in others if p is not head.logits)], lr=lr)
        self.head = head
        head.pending = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step on the head's logits and on the other parameters."""
        loss = super().step(closure)  # passes over the logits: they have no gradient of their own
        pending, self.head.pending = self.head.pending or [], []
        gradients = [vectors.grad for vectors, *_ in pending if vectors.grad is not None]
        if not gradients:
            return loss
        upstream = torch.stack(gradients).sum(dim=0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(upstream)
            upstream /= torch.distributed.get_world_size()
        logits, group = self.head.logits, self.param_groups[0]
        state = self.state[logits]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(logits), torch.zeros_like(logits)
        state["step"] += 1
        vectors, lse, concepts = pending[0]  # the same in every pass: the logits have not changed
        association_adam_(
            logits,
            state["exp_avg"],
            state["exp_avg_sq"],
            upstream,
            vectors,
            lse,
            concepts,
            int(state["step"]),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
        )
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; class vectors whose backward pass is still to come are kept."""
        super().zero_grad(set_to_none)
        self.head.pending = [each for each in self.head.pending or [] if each[0].grad is None]
