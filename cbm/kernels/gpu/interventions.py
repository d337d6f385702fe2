"""Interventions in a given order: the logits of a picture stay in registers while its concepts are told."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import launched_on


@triton.jit(do_not_specialize=["N", "M"])
def intervene_kernel(
    LOGITS, ORDER, CHANGE, VOTES, Y, RIGHT, TARGET, N, M, K, C, WANT_TARGET: tl.constexpr, BC: tl.constexpr
):
    """One picture under one policy per program.

    A concept or label that does not exist makes the logits or the target NaN: nothing is read beside the matrices.
    """
    picture, policy = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    classes = tl.arange(0, BC)
    mask = classes < C
    logits = tl.load(LOGITS + picture * C + classes, mask=mask, other=-float("inf"))
    label = tl.load(Y + picture)
    first = (policy * N + picture) * M
    out = (policy * N + picture) * (M + 1)
    for step in range(0, M + 1):
        if step > 0:
            column = tl.load(ORDER + first + step - 1)
            change = tl.load(CHANGE + first + step - 1)
            told = (column >= 0) & (column < K)
            row = tl.load(VOTES + tl.where(told, column, 0) * C + classes, mask=mask, other=0.0).to(tl.float32)
            logits += tl.where(told, change, 0.0) * row
            logits = tl.where(column < K, logits, float("nan"))
        best = tl.argmax(tl.where(mask, logits, -float("inf")), 0)
        sound = tl.sum(tl.where(mask & (logits != logits), 1, 0), 0) == 0
        tl.store(RIGHT + out + step, ((best == label) & sound).to(tl.int8))
        if WANT_TARGET:
            own = tl.sum(tl.where(classes == label, logits, 0.0), 0)
            tl.store(TARGET + out + step, tl.where((label >= 0) & (label < C), own, float("nan")))


def intervene(logits: Tensor, order: Tensor, change: Tensor, votes: Tensor, y: Tensor, target: bool):
    """Whether every picture is right after 0, .., M answers [P, N, M + 1] (int8), and the logit of its class."""
    policies, n, m = order.shape
    c = logits.shape[1]
    right = torch.empty(policies, n, m + 1, dtype=torch.int8, device=logits.device)
    own = torch.empty(policies, n, m + 1, dtype=torch.float32, device=logits.device) if target else None
    with launched_on(logits):
        intervene_kernel[(n, policies)](
            logits,
            order,
            change,
            votes,
            y,
            right,
            own,
            n,
            m,
            len(votes),
            c,
            target,
            triton.next_power_of_2(c),
            enable_fp_fusion=True,
        )
    return right, own
