"""Interventions as changes of low rank: telling a concept moves the logits by its change times its row of votes.

logits + (a' - a) A^T            of m told concepts: 2mC FLOP a picture, where the head would cost 2KC
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.backend import Backend, use_triton
from cbm.kernels.shapes import check_matrix, may_read

_MOST_CLASSES = 4096  # whose logits a kernel keeps in registers
_LOGITS = 2**16  # that stay in a CPU's cache


def override_logits(logits: Tensor, columns: Tensor, change: Tensor, votes: Tensor) -> Tensor:
    """Logits after m concepts of every picture are set to other activations, exact for a linear head.

    Args:
        logits: Before ``[N, C]``.
        columns: Which concepts ``[N, m]`` (int64), each at most once in a row; -1 for none.
        change: New activation minus old ``[N, m]``.
        votes: What a unit of every concept adds to the logits ``[K, C]``: the head's weights, transposed.

    Returns:
        ``[N, C]``. Differentiable in logits, change and votes.

    Raises:
        ValueError: If a shape does not fit.
    """
    n, c = check_matrix("logits", logits).shape
    check_matrix("votes", votes, columns=c)
    if columns.shape != change.shape or columns.ndim != 2 or len(columns) != n:
        raise ValueError(
            f"columns has shape {list(columns.shape)} and change {list(change.shape)}; expected both [{n}, m]"
        )
    told = columns >= 0
    added = torch.nn.functional.embedding_bag(
        columns.clamp(min=0), votes, per_sample_weights=torch.where(told, change, 0).to(votes.dtype), mode="sum"
    )
    return logits + added


def intervene(
    logits: Tensor,
    order: Tensor,
    change: Tensor,
    votes: Tensor,
    y: Tensor,
    *,
    return_target: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Accuracy while concepts are told one after the other, under several policies at once.

    No ``[N, M, C]`` is formed: the logits of a picture are updated by one row of votes per answer.

    Args:
        logits: Before any answer ``[N, C]``.
        order: The concept told at every step ``[P, N, M]`` (int64) under each of P policies; -1 for none left. A
            concept is told at most once.
        change: New activation minus old ``[P, N, M]``.
        votes: What a unit of every concept adds to the logits ``[K, C]``.
        y: Classes ``[N]`` (int64).
        return_target: Also return the logit of every picture's class.
        backend: "auto", "torch" or "triton".

    Returns:
        Accuracy after 0, 1, .., M answers ``[P, M + 1]`` (float64; of equal logits the lower class is predicted, and
        a picture with a NaN logit is wrong), and the logits of the true class ``[P, N, M + 1]``, or None.

    Raises:
        ValueError: If a shape does not fit, or the backend cannot take the tensors.
    """
    n, c = check_matrix("logits", logits).shape
    k = len(check_matrix("votes", votes, columns=c))
    if order.ndim != 3 or order.shape != change.shape or order.shape[1] != n:
        raise ValueError(f"order has shape {list(order.shape)} and change {list(change.shape)}; expected [P, {n}, M]")
    if list(y.shape) != [n]:
        raise ValueError(f"y has shape {list(y.shape)}; expected [{n}]")
    if y.dtype != torch.int64 or order.dtype != torch.int64:
        raise ValueError(f"y has dtype {y.dtype} and order {order.dtype}; expected both int64")
    if may_read(order) and order.numel() and int(order.max()) >= k:
        raise ValueError(f"order has concept {int(order.max())}; expected at most {k - 1}, the last row of votes")
    triton = use_triton(backend, logits, change, votes, beyond=f"there are {c} classes" if c > _MOST_CLASSES else "")
    right, target = torch.ops.cbm.intervene(logits, order, change, votes, y, return_target, triton)
    return right.double().mean(1), target if return_target else None


@torch.library.custom_op("cbm::intervene", mutates_args=())
def _intervene(
    logits: Tensor, order: Tensor, change: Tensor, votes: Tensor, y: Tensor, target: bool, triton: bool
) -> tuple[Tensor, Tensor]:
    if triton:
        from cbm.kernels.gpu import interventions as gpu

        right, own = gpu.intervene(
            logits.float().contiguous(), order.contiguous(), change.float().contiguous(), votes.contiguous(),
            y.contiguous(), target,
        )  # fmt: skip
        return right, logits.new_empty(0) if own is None else own
    policies, n, m = order.shape
    votes = votes.to(logits.dtype)
    right = torch.empty(policies, n, m + 1, dtype=torch.int8, device=logits.device)
    own = logits.new_empty(policies, n, m + 1) if target else logits.new_empty(0)
    told = order >= 0
    order, change = order.clamp(min=0), torch.where(told, change, 0).to(logits.dtype)
    size = max(64, _LOGITS // logits.shape[1])
    for policy in range(policies):
        for start in range(0, n, size):
            rows = slice(start, start + size)
            now, label = logits[rows].clone(), y[rows]
            steps, changes = order[policy, rows].T.contiguous(), change[policy, rows].T.contiguous()[..., None]
            told_votes = torch.empty_like(now)
            for step in range(m + 1):
                if step:
                    torch.index_select(votes, 0, steps[step - 1], out=told_votes)
                    now.addcmul_(told_votes, changes[step - 1])
                right[policy, rows, step] = _is_largest(now, label, told_votes)
                if target:
                    own[policy, rows, step] = now.gather(1, label[:, None])[:, 0]
    return right, own


def _is_largest(logits: Tensor, label: Tensor, scratch: Tensor) -> Tensor:
    """Whether ``argmax`` of every row is its label ``[n]``, for a fraction of what ``argmax`` costs on a CPU."""
    largest = logits.amax(1, keepdim=True)
    if float(torch.eq(logits, largest, out=scratch).sum()) != len(logits):  # ties, or NaN
        return (logits.argmax(1) == label) & ~logits.isnan().any(1)
    return logits.gather(1, label[:, None])[:, 0] == largest[:, 0]


@_intervene.register_fake
def _(logits, order, change, votes, y, target, triton):
    policies, n, m = order.shape
    right = order.new_empty(policies, n, m + 1, dtype=torch.int8)
    dtype = torch.float32 if triton and target else logits.dtype
    return right, logits.new_empty(policies, n, m + 1, dtype=dtype) if target else logits.new_empty(0)
