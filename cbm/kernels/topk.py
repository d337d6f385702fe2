"""The k largest scores of every picture, streaming over the concepts: no N x K matrix, whatever the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cbm.kernels.backend import MOST_PICKS, Backend, kernel_operands, kernel_vector, use_triton
from cbm.kernels.shapes import (
    check_k,
    check_matrix,
    check_row_factors,
    check_vector,
    compute_dtype,
    scaled_alpha,
)

RUN = 64  # scores that are judged by their largest


def topk_concepts(
    x: Tensor,
    concepts: Tensor,
    k: int,
    *,
    inv_norm: Tensor | None = None,
    scale: float | Tensor = 1.0,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    allowed: Tensor | None = None,
    threshold: float | None = None,
    chunk: int = 4096,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """The k concepts with the largest score ``scale * inv_norm_n * alpha_k * (x_n . t_k) + beta_k`` of every picture.

    Exact and deterministic: equal scores are ordered by concept index, the lower index first. Never holds more than a
    few megabytes of scores on a CPU, whatever N and K; on a GPU none of half precision, and of float32 a chunk within
    ``cbm.kernels.chunks.CHUNK_BYTES``. A NaN score counts as -inf.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        k: How many concepts to keep, 1 <= k <= K.
        inv_norm: A factor on every row [N], such as 1 / |x|; None for 1.
        scale: Factor on the dot products, a number or a 0-d tensor.
        alpha: Factor on every concept's score [K]; None for 1.
        beta: Added to every concept's score [K]; None for 0.
        allowed: Which concepts may be chosen [K] (bool); None for all.
        threshold: The smallest score that may be chosen; None for any.
        chunk: Concepts per step on a CPU, >= 1. Does not change the result.
        backend: "auto", "torch" or "triton".

    Returns:
        Values [N, k] in descending order and their concept indices [N, k] (int64). Where a picture has fewer than k
        concepts that are allowed and reach the threshold, the rest is -inf and -1. The values are differentiable in
        every tensor; the choice of concepts is not.

    Raises:
        ValueError: If a shape does not fit, ``k`` or ``chunk`` is out of range, or the backend cannot take the tensors.
    """
    count = len(check_matrix("concepts", concepts, columns=check_matrix("x", x).shape[1]))
    check_k(k, count)
    check_row_factors("inv_norm", inv_norm, len(x))
    alpha = scaled_alpha(scale, alpha, concepts)
    check_vector("beta", beta, count)
    if allowed is not None and (list(allowed.shape) != [count] or allowed.dtype != torch.bool):
        raise ValueError(f"allowed has shape {list(allowed.shape)} and dtype {allowed.dtype}; expected bool [{count}]")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected >= 1")
    beyond = f"k is {k}" if k > MOST_PICKS else ""
    triton = use_triton(backend, x, concepts, inv_norm, alpha, beta, beyond=beyond)

    shifts = beta
    if allowed is not None:
        zero = torch.zeros(count, dtype=compute_dtype(x, concepts), device=concepts.device) if beta is None else beta
        shifts = zero.masked_fill(~allowed, -torch.inf)
    values, indices = torch.ops.cbm.topk_concepts(
        *(None if t is None else t.detach() for t in (x, concepts, inv_norm, alpha, shifts)), k, max(chunk, k), triton
    )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, concepts, alpha, beta)):
        if any(t is not None and t.requires_grad for t in (inv_norm, alpha)):
            chosen = torch.einsum("nd,nkd->nk", x.to(values.dtype), concepts.to(values.dtype)[indices])
            chosen = chosen if inv_norm is None else chosen * inv_norm[:, None]
            chosen = chosen if alpha is None else chosen * alpha[indices]
            chosen = chosen if beta is None else chosen + beta[indices]
        else:
            chosen = _Chosen.apply(x, concepts, inv_norm, alpha, beta, values, indices)
        values = chosen if allowed is None else chosen.masked_fill(values == -torch.inf, -torch.inf)
    if allowed is None and threshold is None:
        return values, indices
    dropped = values == -torch.inf if threshold is None else (values < threshold) | (values == -torch.inf)
    return values.masked_fill(dropped, -torch.inf), indices.masked_fill(dropped, -1)


class _Chosen(torch.autograd.Function):
    """The values that were found, with the gradients of the features, the concepts and ``beta``.

    Both products of the backward pass touch the k chosen concepts of a picture only: ``N k D`` instead of ``N K D``,
    and no ``[N, k, D]`` tensor is written.
    """

    @staticmethod
    def forward(ctx, x, concepts, inv_norm, alpha, beta, values, indices):
        ctx.save_for_backward(x, concepts, inv_norm, alpha, indices)
        ctx.beta = None if beta is None else beta.dtype
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, concepts, inv_norm, alpha, indices = ctx.saved_tensors
        weights = gradient if inv_norm is None else gradient * inv_norm[:, None]
        weights = weights if alpha is None else weights * alpha.detach()[indices]
        weights = weights.to(gradient.dtype)
        found: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            table = concepts.to(weights.dtype)
            found[0] = embedding_bag(indices, table, per_sample_weights=weights, mode="sum").to(x.dtype)
        if ctx.needs_input_grad[1]:
            found[1] = sums_by_choice(x.to(weights.dtype), indices, weights, len(concepts)).to(concepts.dtype)
        if ctx.needs_input_grad[4]:
            total = gradient.new_zeros(len(concepts)).index_add_(0, indices.flatten(), gradient.flatten())
            found[4] = total.to(ctx.beta)
        return tuple(found)


def sums_by_choice(x: Tensor, indices: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """The sum of the rows of x [N, D] that chose each of ``count`` concepts, [count, D]: deterministic.

    Args:
        x: Rows [N, D].
        indices: Concepts that every row chose [N, k]; -1 for none.
        weights: Factor on every choice [N, k]; None for 1.
        count: How many concepts there are.
    """
    flat, order = indices.flatten().sort(stable=True)
    starts = torch.searchsorted(flat, torch.arange(count, device=flat.device))
    order = order[int((flat < 0).sum()) :]
    starts = starts - (len(flat) - len(order))
    rows = order // max(indices.shape[1], 1)
    each = None if weights is None else weights.flatten()[order].to(x.dtype)
    return embedding_bag(rows, x, starts, per_sample_weights=each, mode="sum")


@torch.library.custom_op("cbm::topk_concepts", mutates_args=())
def _topk(
    x: Tensor, concepts: Tensor, inv_norm: Tensor | None, alpha: Tensor | None, beta: Tensor | None, k: int,
    chunk: int, triton: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if triton:
        from cbm.kernels.gpu import topk as gpu

        vectors = kernel_vector(inv_norm), kernel_vector(alpha), kernel_vector(beta)
        values, indices, _ = gpu.topk(*kernel_operands(x, concepts), k, *vectors)
        return values, indices
    dtype = compute_dtype(x, concepts, alpha, beta)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(dtype) if inv_norm is None else x.to(dtype) * inv_norm.to(dtype)[:, None]
        return _stream(x, concepts, alpha, beta, k, chunk)


@_topk.register_fake
def _(x, concepts, inv_norm, alpha, beta, k, chunk, triton):
    values = x.new_empty(len(x), k, dtype=torch.float32 if triton else compute_dtype(x, concepts, alpha, beta))
    return values, x.new_empty(len(x), k, dtype=torch.long)


def _stream(
    x: Tensor, concepts: Tensor, alpha: Tensor | None, beta: Tensor | None, k: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Running top-k of all rows [N, k], one chunk of concepts after the other, upcast once each.

    A tile of scores stays in a CPU's cache. Of all tiles but the first, only the runs of RUN scores are looked into
    whose largest beats the row's k-th best: the deeper into the concepts, the fewer, and the rest of the work is the
    matrix product. What is kept has a lower index than the chunk at hand, so of ties it stays.
    """
    rows = max(64, (2**26 if x.is_cuda else 2**21) // chunk)  # 8 MB of float32 scores
    values, indices = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.long, device=x.device)
    tile = x.new_empty(min(rows, len(x)) * min(chunk, len(concepts)))
    for start in range(0, len(concepts), chunk):
        part = concepts[start : start + chunk].to(x.dtype)
        part = part.T if alpha is None else (part * alpha[start : start + chunk, None]).T
        for best, ids, block in zip(values.split(rows), indices.split(rows), x.split(rows)):
            shape = (len(block), part.shape[1])
            scores = tile[: shape[0] * shape[1]].view(shape)
            if beta is None:
                torch.mm(block, part, out=scores)
            else:
                torch.addmm(beta[start : start + chunk].to(x.dtype), block, part, out=scores)
            if start == 0:
                first = ordered_topk(scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), k)
                best.copy_(first[0])
                ids.copy_(first[1])
            else:
                _merge(best, ids, scores, start)
    return values, indices


def _merge(values: Tensor, indices: Tensor, scores: Tensor, start: int) -> None:
    """Put those scores [n, chunk] of concepts ``start``, ``start`` + 1, ... in place that beat a row's k-th best."""
    k = values.shape[1]
    if ragged := -scores.shape[1] % RUN:
        scores = torch.nn.functional.pad(scores, (0, ragged), value=-torch.inf)
    highest = scores.unflatten(1, (-1, RUN)).amax(2)  # [n, runs]
    if highest.isnan().any():
        scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        highest = scores.unflatten(1, (-1, RUN)).amax(2)
    row, column = (highest > values[:, -1:]).nonzero(as_tuple=True)
    if not len(row):
        return
    found = scores.unflatten(1, (-1, RUN))[row, column]  # [hits, RUN]
    hit, place = (found > values[row, -1:]).nonzero(as_tuple=True)  # in the order of rows, then of concepts
    row, column, value = row[hit], column[hit] * RUN + place, found[hit, place]
    count = torch.bincount(row, minlength=len(scores))
    some = count.nonzero()[:, 0]
    width = int(count.max())
    if width > 8 * k:  # as where every chunk beats the one before: a sort of so many would cost more
        new_values, new_indices = ordered_topk(scores[some], min(k, scores.shape[1]))
        new_indices = new_indices + start
    else:
        slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        new_values = values.new_full((len(scores), width), -torch.inf)
        new_indices = torch.zeros_like(new_values, dtype=torch.long)
        new_values[row, slot], new_indices[row, slot] = value, column + start
        new_values, new_indices = new_values[some], new_indices[some]
    merged, order = torch.cat([values[some], new_values], 1).sort(dim=1, descending=True, stable=True)
    values[some] = merged[:, :k]
    indices[some] = torch.cat([indices[some], new_indices], 1).gather(1, order[:, :k])


def ordered_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``scores.topk(k)`` with ties broken by the lower index, in the choice and in the order."""
    indices = scores.topk(k, 1, sorted=False).indices.sort(1).values
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    tied = (scores >= values[:, -1:]).sum(1) > k  # ties across the boundary: topk chose among them at will
    if tied.any():
        tied_values, tied_indices = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = tied_values[:, :k], tied_indices[:, :k]
    return values, indices
