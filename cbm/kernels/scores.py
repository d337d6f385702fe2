"""Concept scores, whole or only the k largest per image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cbm.kernels.shapes import check_k, check_matrix, check_scale, check_vector, compute_dtype

Activation = Literal["identity", "sigmoid", "relu"]
RUN = 64  # scores that are judged by their largest
_ACTIVATIONS = {"identity": lambda scores: scores, "sigmoid": torch.sigmoid, "relu": torch.relu}


def concept_scores(
    x: Tensor,
    concepts: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    activation: Activation = "identity",
) -> Tensor:
    """Activated concept scores ``phi((scale * x T^T - mean) / std)``.

    Differentiable in every tensor argument. Half-precision inputs are upcast and the scores are float32 (float64 if an
    argument is). Scale and standardisation go into the concepts [K, D], so one matrix product writes the scores.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        scale: Factor on the dot products, a number or a 0-d tensor.
        mean: Mean of every scaled score [K], or None for 0.
        std: Standard deviation of every scaled score [K], or None for 1.
        activation: "identity", "sigmoid" or "relu".

    Returns:
        Scores [N, K].

    Raises:
        ValueError: If a shape does not fit or the activation is unknown.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected one of {', '.join(map(repr, _ACTIVATIONS))}")
    check_matrix("x", x)
    k = len(check_matrix("concepts", concepts, columns=x.shape[1]))
    check_scale(scale)
    check_vector("mean", mean, k)
    check_vector("std", std, k)

    dtype = compute_dtype(x, concepts, mean, std)
    with torch.autocast(x.device.type, enabled=False):
        weight = concepts.to(dtype)
        if isinstance(scale, Tensor) or scale != 1.0:
            weight = weight * (scale.to(dtype) if isinstance(scale, Tensor) else scale)
        bias = None if mean is None else -mean.to(dtype)
        if std is not None:
            std = std.to(dtype)
            weight = weight / std[:, None]
            bias = None if bias is None else bias / std
        return _ACTIVATIONS[activation](torch.nn.functional.linear(x.to(dtype), weight, bias))


def topk_concepts(x: Tensor, concepts: Tensor, k: int, *, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """The k concepts with the largest dot product for every image, streaming over the concepts.

    Exact and deterministic: equal scores are ordered by concept index, the lower index first. Never holds more than a
    few megabytes of scores on a CPU, whatever N and K. A NaN score counts as -inf.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        k: How many concepts to keep, 1 <= k <= K.
        chunk: Concepts per step, >= 1. Does not change the result.

    Returns:
        Values [N, k] in descending order and their concept indices [N, k] (int64). The values are differentiable in
        ``x`` and ``concepts``; the choice of concepts is not.

    Raises:
        ValueError: If a shape does not fit, or ``k`` or ``chunk`` is out of range.
    """
    check_matrix("x", x)
    count = len(check_matrix("concepts", concepts, columns=x.shape[1]))
    check_k(k, count)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected >= 1")
    dtype = compute_dtype(x, concepts)

    with torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():
            values, indices = _stream(x.to(dtype), concepts, k, max(chunk, k))
        if torch.is_grad_enabled() and (x.requires_grad or concepts.requires_grad):
            values = torch.einsum("nd,nkd->nk", x.to(dtype), concepts.to(dtype)[indices])
        return values, indices


def _stream(x: Tensor, concepts: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Running top-k of all rows [N, k], one chunk of concepts after the other, upcast once each.

    A tile of scores stays in a CPU's cache. Of all tiles but the first, only the runs of RUN scores are looked into
    whose largest beats the row's k-th best: the deeper into the concepts, the fewer, and the rest of the work is the
    matrix product. What is kept has a lower index than the chunk at hand, so of ties it stays.
    """
    rows = max(64, (2**26 if x.is_cuda else 2**21) // chunk)  # 8 MB of float32 scores
    values, indices = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.long, device=x.device)
    tile = x.new_empty(min(rows, len(x)) * min(chunk, len(concepts)))
    for start in range(0, len(concepts), chunk):
        part = concepts[start : start + chunk].to(x.dtype).T
        for best, ids, block in zip(values.split(rows), indices.split(rows), x.split(rows)):
            shape = (len(block), part.shape[1])
            scores = torch.mm(block, part, out=tile[: shape[0] * shape[1]].view(shape))
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
