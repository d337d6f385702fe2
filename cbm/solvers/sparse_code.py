"""A picture as a sum of a few words: exact sparse codes over a vocabulary, with a certificate for every picture.

    min_z  1/2 |x - C^T z|^2 + lam * sum_k penalty_k |z_k|        z >= 0, or of either sign

for pictures x [N, D] and words C [K, D]: the problem of SpLiCE (Bhalla et al., "Interpreting CLIP with Sparse Linear
Concept Embeddings", NeurIPS 2024, eq. 1 and 2, whose penalty is twice ours) and, with ``sign="free"``, of Z-CBM
(Yamaguchi et al., "Zero-shot Concept Bottleneck Models", 2025). With ``k`` instead of ``lam`` words are added one by
one (nonnegative orthogonal matching pursuit) until k are in use.

Few words matter to a picture. Every picture has a working set of words: those that correlate most with what is still
unexplained. The small problem on it is solved exactly (`small_lasso.py`), then one pass over the dictionary
(`cbm.kernels.topk_concepts`, never N x K in memory) finds the words that would lower the objective further, and says
how far the optimum can be away. All pictures share the products with the dictionary; finished ones leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.kernels.shapes import check_k, check_matrix, check_vector, compute_dtype
from cbm.kernels.topk import topk_concepts
from cbm.solvers.codes import Codes
from cbm.solvers.small_lasso import SmallLasso, leading, rounding

Sign = Literal["nonnegative", "free"]

_START = 16  # words of the first working set
_ADD = 16  # words that may join it at a pass, or half of those in use if that is more
_MOST_PASSES = 100
_FEW = 250  # pictures on which a penalty is looked for before all of them are
_REFINEMENTS = 2  # passes without a new word, which only make weights more exact
_ROW_BYTES = {"cpu": 2**22, "cuda": 2**28}  # pictures that are solved together
_SET_BYTES = {"cpu": 2**24, "cuda": 2**29}  # their working sets


def sparse_code(
    x: Tensor,
    dictionary: Tensor,
    *,
    lam: float | None = None,
    k: int | None = None,
    sign: Sign = "nonnegative",
    refit: bool = False,
    tol: float = 1e-6,
    allowed: Tensor | None = None,
    penalty: Tensor | None = None,
    chunk: int | None = None,
) -> Codes:
    """Sparse weights of words that sum up to every picture: the optimum for ``lam``, or ``k`` words by pursuit.

    For SpLiCE give centred unit pictures ``normalize(x - mean)`` and centred unit words; then weights times
    ``|x - mean|`` sum up to ``x - mean``. Computed in float32, or float64 if an input is float64.

    Args:
        x: Pictures [N, D] of any floating dtype; upcast and moved to the device of ``dictionary`` in chunks, so x may
            be memory-mapped. A picture of zeros has an empty code.
        dictionary: Words [K, D], in the sense of unit rows; a row of zeros is never used. Of equal rows the first one
            is used.
        lam: Penalty > 0. SpLiCE's is twice as large for the same code; that of scikit-learn's Lasso is ``lam / D``.
        k: Instead of ``lam``: words in use, 1 <= k <= K. The word that correlates most with the residual is added, all
            weights are solved for, words whose weight would fall below zero leave; fewer than k remain where nothing
            correlates with the residual any more. Greedy: not the best k words there are.
        sign: "nonnegative", or "free" for weights of either sign.
        refit: Solve once more without the penalty on the words in use (nonnegative least squares, or least squares
            with "free"), which undoes the shrinkage. ``gap`` and ``violation`` are of the solution before it.
        tol: Duality gap at which a picture is done, >= 0. Float32 reaches about 2e-7 for unit pictures.
        allowed: Which words may be used [K] (bool); None for all.
        penalty: Factors >= 0 on ``lam`` for every word [K]; 0 frees a word, infinity forbids it. Free words are in the
            working set of every picture: meant for a few.
        chunk: Pictures that are solved together; None for as many as a budget of memory allows.

    Returns:
        Codes on the device of x.

    Raises:
        ValueError: If a shape does not fit, an option is out of range, not exactly one of ``lam`` and ``k`` is given,
            or a value is NaN or infinite.

    Example:
        >>> import torch
        >>> from cbm.solvers import sparse_code
        >>> words = torch.eye(4)
        >>> codes = sparse_code(torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.1, 0.0, -0.9, 0.0]]), words, lam=0.2)
        >>> codes.columns
        tensor([[ 2,  0],
                [-1, -1]])
        >>> codes.values
        tensor([[0.6000, 0.4000],
                [0.0000, 0.0000]])
    """
    check_matrix("dictionary", dictionary, columns=check_matrix("x", x).shape[1])
    if (lam is None) == (k is None):
        raise ValueError(f"lam is {lam} and k is {k}; expected exactly one of them")
    if lam is not None and not 0 < lam < float("inf"):
        raise ValueError(f"lam is {lam}; expected > 0 and finite")
    if sign not in ("nonnegative", "free"):
        raise ValueError(f"sign is {sign!r}; expected 'nonnegative' or 'free'")
    if not tol >= 0:
        raise ValueError(f"tol is {tol}; expected >= 0")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected >= 1")
    if k is not None:
        check_k(k, len(dictionary))
        if penalty is not None:
            raise ValueError("penalty is given with k; it weighs lam, a pursuit takes allowed only")
    with torch.no_grad():
        words = _Words.of(dictionary, allowed, penalty, sign == "free", compute_dtype(x, dictionary))
        rows = chunk or max(1, _ROW_BYTES.get(dictionary.device.type, 2**22) // (4 * x.shape[1]))
        parts = []
        for part in x.split(rows):
            block = part.to(dictionary.device, words.dtype)
            _check_finite("x", block)
            solved = _pursue(block, words, k) if lam is None else _lasso(block, words, lam, tol)  # type: ignore[arg-type]
            parts.append(_finish(block, words, solved, refit, x.device))
        return _join(parts)


def penalty_for_count(x: Tensor, dictionary: Tensor, count: float, *, rows: int = 2000) -> float:
    """The ``lam`` at which nonnegative codes have ``count`` words on average, to 1 % or as near as it gets.

    Args:
        x: Pictures [N, D], as for `sparse_code`; of more than ``rows`` evenly spaced ones are taken.
        dictionary: Words [K, D].
        count: Mean number of words in use, > 0.
        rows: Most pictures to look at, >= 1.

    Raises:
        ValueError: If a shape does not fit, ``rows`` or ``count`` is out of range, or no penalty leads to so many
            words.

    Example:
        >>> import torch
        >>> from cbm.solvers import penalty_for_count, sparse_code
        >>> g = torch.Generator().manual_seed(0)
        >>> x, words = (torch.nn.functional.normalize(torch.randn(n, 32, generator=g)) for n in (100, 300))
        >>> lam = penalty_for_count(x, words, 5)
        >>> abs(float(sparse_code(x, words, lam=lam).count.double().mean()) - 5) < 0.1
        True
    """
    check_matrix("dictionary", dictionary, columns=check_matrix("x", x).shape[1])
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected >= 1")
    if not 0 < count <= min(dictionary.shape):
        raise ValueError(f"count is {count}; expected > 0 and at most {min(dictionary.shape)}, the smaller of K and D")
    x = _spread(x, rows)
    highest = float(topk_concepts(x.to(dictionary.device), dictionary, 1)[0].max())
    if not highest > 0:
        raise ValueError(f"count is {count}; no word correlates with a picture")
    lam, power = _approach(_spread(x, _FEW), dictionary, count, highest / 2, 1.5, steps=15)
    lam, power = (lam, power) if len(x) <= _FEW else _approach(x, dictionary, count, lam, power, steps=5)
    if lam < 1e-4 * highest:
        raise ValueError(f"count is {count}; even a penalty of {lam:.1e} leads to fewer words")
    return lam


def _spread(x: Tensor, rows: int) -> Tensor:
    """So many evenly spaced pictures, or all if there are fewer."""
    return x if len(x) <= rows else x[torch.linspace(0, len(x) - 1, rows).long()]


def _approach(x: Tensor, dictionary: Tensor, count: float, lam: float, power: float, steps: int) -> tuple[float, float]:
    """The best of some penalties, each taken from the ones before as if the count fell like ``lam^-power``."""
    best, before = (math.inf, lam), (0.0, lam)
    for _ in range(steps):
        found = float(sparse_code(x, dictionary, lam=lam, tol=1e-5).count.double().mean())
        best = min(best, (abs(found - count), lam))
        if best[0] <= 0.01 * count:
            break
        if before[0] > 0 and found > 0 and found != before[0]:
            power = min(max(math.log(before[0] / found) / math.log(lam / before[1]), 0.5), 8.0)
        before = (found, lam)
        lam *= min(max((found / count) ** (1 / power), 1 / 3), 3.0)
    return best[1], power


@dataclass(frozen=True)
class _Words:
    """The dictionary as the solver sees it: rows divided by their penalties, so that one penalty holds for all.

    Attributes:
        rows: words [K, D] as they were given.
        factor: 1 / penalty of every word [K] in the dtype of the computation, 1 for free words; None for 1.
        free: indices of the words without a penalty [F].
        open: words that a pass may find [K] (bool): neither forbidden nor free; None for all.
        signed: whether weights below zero are allowed.
        dtype: of the computation.
    """

    rows: Tensor
    factor: Tensor | None
    free: Tensor
    open: Tensor | None
    signed: bool
    dtype: torch.dtype

    @classmethod
    def of(
        cls, dictionary: Tensor, allowed: Tensor | None, penalty: Tensor | None, signed: bool, dtype: torch.dtype
    ) -> _Words:
        """From checked arguments of `sparse_code`."""
        size, device = len(dictionary), dictionary.device
        for part in dictionary.split(4096):
            _check_finite("dictionary", part)
        if allowed is not None and (list(allowed.shape) != [size] or allowed.dtype != torch.bool):
            raise ValueError(
                f"allowed has shape {list(allowed.shape)} and dtype {allowed.dtype}; expected bool [{size}]"
            )
        check_vector("penalty", penalty, size)
        allowed = None if allowed is None else allowed.to(device)
        if penalty is None:
            nothing = torch.empty(0, dtype=torch.long, device=device)
            return cls(dictionary, None, nothing, _without_repeats(dictionary, allowed), signed, dtype)
        penalty = penalty.to(device, dtype)
        if not bool((penalty >= 0).all()):
            raise ValueError(f"penalty reaches down to {float(penalty.min())}; expected factors >= 0")
        may = penalty < torch.inf
        may = may if allowed is None else may & allowed
        free = ((penalty == 0) & may).nonzero()[:, 0]
        factor = torch.where(may & (penalty > 0), 1 / penalty, 1.0)
        return cls(dictionary, factor, free, may & (penalty > 0), signed, dtype)

    def take(self, columns: Tensor) -> Tensor:
        """Scaled words at ``columns`` [n, m]: [n, m, D]; whatever comes first for padding."""
        flat = columns.clamp(min=0).flatten()
        found = self.rows.index_select(0, flat).to(self.dtype)
        if self.factor is not None:
            found = found * self.factor[flat, None]
        return found.unflatten(0, columns.shape)

    def best(self, residual: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The words with the largest correlation [n, count], descending, and which they are; -inf and -1 for none.

        If signed, the size of the correlation counts.
        """
        count = min(count, len(self.rows))
        values, columns = topk_concepts(residual, self.rows, count, alpha=self.factor, allowed=self.open)
        if self.signed:
            other = topk_concepts(-residual, self.rows, count, alpha=self.factor, allowed=self.open)
            values, order = torch.cat([values, other[0]], 1).sort(dim=1, descending=True, stable=True)
            columns = torch.cat([columns, other[1]], 1).gather(1, order)
            values, columns = values[:, :count], columns[:, :count]
        return values, columns


class _Found:
    """Codes of a block of pictures as they are finished: the columns in use, their weights, and the certificates."""

    def __init__(self, x: Tensor):
        self.rows: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.values: list[Tensor] = []
        self.gap = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.violation = torch.zeros_like(self.gap)
        self.passes = 0

    def put(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Note the codes of some pictures; whatever has no weight is dropped."""
        if len(rows):
            columns, values = _pack(values != 0, columns, values)
            self.rows.append(rows)
            self.columns.append(columns)
            self.values.append(values)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Columns and weights of all pictures of the block, padded to the longest, in the order of the pictures."""
        order = torch.cat(self.rows).argsort()
        return _stack(self.columns, -1)[order], _stack(self.values, 0)[order]


def _lasso(x: Tensor, words: _Words, lam: float, tol: float) -> _Found:
    """Working sets, solved exactly, grow until every picture is within ``tol`` of the optimum of the whole problem."""
    found, size = _Found(x), x.double().norm(dim=1)
    slack = rounding(x.dtype) * size.clamp(min=1)
    values, columns = words.best(x, _START)
    columns = columns.masked_fill(~(values > 0), -1)
    if len(words.free):
        columns = torch.cat([words.free.expand(len(x), -1), columns], dim=1)
    rows = torch.arange(len(x), device=x.device)
    found.passes = 1
    if not len(words.free):  # the empty code is the optimum, exactly
        empty = ~(values[:, 0] > lam)
        found.put(rows[empty], columns[empty, :0], x.new_zeros(int(empty.sum()), 0))
        rows, columns = rows[~empty], columns[~empty]
    z, idle = torch.zeros_like(columns, dtype=x.dtype), torch.zeros_like(rows)
    while len(rows):
        cold = found.passes == 1
        z, residual = _solve_sets(x[rows], columns, z, words, lam, cold)
        most = int((z != 0).sum(dim=1).max())
        values, candidates = words.best(residual, max(_ADD, most // 2))
        found.passes += 1
        gap, violation = _certificate(x[rows], residual, z, columns, values[:, 0], words, lam)
        found.gap[rows], found.violation[rows] = gap, violation
        known = (candidates[:, :, None] == columns[:, None, :]).any(dim=2)
        above = (values - lam > slack[rows, None]) & (candidates >= 0)
        fresh = above & ~known
        room = ((z != 0).sum(dim=1) // 2).clamp(min=_ADD)
        fresh &= fresh.cumsum(dim=1) <= room[:, None]
        idle = (idle + 1).masked_fill(fresh.any(dim=1), 0)
        done = (gap <= tol) | (idle > _REFINEMENTS)
        if found.passes > _MOST_PASSES:
            done = torch.ones_like(done)
        found.put(rows[done], columns[done], z[done])
        rows, columns, z, idle = rows[~done], columns[~done], z[~done], idle[~done]
        fresh, candidates = fresh[~done], candidates[~done]
        stays = torch.cat([(z != 0) | torch.isin(columns, words.free), fresh], dim=1)
        columns = torch.cat([columns, candidates], dim=1)
        z = F.pad(z, (0, candidates.shape[1]))
        if len(rows):
            columns, z = _pack(stays, columns, z)
    return found


def _pursue(x: Tensor, words: _Words, k: int) -> _Found:
    """Nonnegative orthogonal matching pursuit: one more word per pass, least squares on those in use."""
    found = _Found(x)
    found.gap.fill_(torch.nan)
    nothing = 4 * torch.finfo(x.dtype).eps * x.double().norm(dim=1)
    rows, residual = torch.arange(len(x), device=x.device), x
    columns = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    z = x.new_empty(len(x), 0)
    while len(rows):
        values, best = words.best(residual, 1)
        found.passes += 1
        found.violation[rows] = values[:, 0].double().clamp(min=0)
        full = (z != 0).sum(dim=1) >= k
        ended = full | ~(values[:, 0] > nothing[rows]) | (columns == best).any(dim=1)
        if found.passes > 8 * k + 8:
            ended = torch.ones_like(ended)
        found.put(rows[ended], columns[ended], z[ended])
        rows, columns, z, best = rows[~ended], columns[~ended], z[~ended], best[~ended]
        if not len(rows):
            break
        ahead = (words.take(best)[:, 0] * residual[~ended]).sum(dim=1, keepdim=True)  # a guess on the right side of 0
        columns, z = torch.cat([columns, best], dim=1), torch.cat([z, ahead], dim=1)
        z, residual = _solve_sets(x[rows], columns, z, words, 0.0, cold=False)
        columns, z = _pack(z != 0, columns, z)
    return found


def _solve_sets(x: Tensor, columns: Tensor, z: Tensor, words: _Words, lam: float, cold: bool) -> tuple[Tensor, Tensor]:
    """The optimum on the working sets ``columns`` [n, m] of pictures x [n, D], from z: weights and residuals.

    Sets of like size are solved together. ``cold``: z says nothing yet.
    """
    z, residual = z.clone(), torch.empty_like(x)
    for part, width in _alike(columns, x.shape[1]):
        own = columns[part, :width]
        atoms = words.take(own)
        cost = torch.full_like(atoms[:, :, 0], lam)
        if len(words.free):
            cost.masked_fill_(torch.isin(own, words.free), 0.0)
        cost.masked_fill_(own < 0, torch.inf)
        gram, guess = torch.bmm(atoms, atoms.mT), z[part, :width, None]
        left = x[part, :, None] - torch.bmm(atoms.mT, guess)
        pull = torch.bmm(gram, guess) + torch.bmm(atoms, left)  # b, so that the gradient at the guess is exact
        problem = SmallLasso(gram, pull[:, :, 0], cost, words.signed)
        guess = guess[:, :, 0]
        weights = problem.solve(problem.descend(guess) if cold else guess)
        z[part, :width] = weights
        residual[part] = x[part] - torch.bmm(atoms.mT, weights[:, :, None])[:, :, 0]
    return z, residual


def _alike(columns: Tensor, wide: int) -> Iterator[tuple[Tensor, int]]:
    """Rows whose working sets fill a budget of memory together, and the size of the largest; the widest first."""
    sizes, order = (columns >= 0).sum(dim=1).sort(descending=True, stable=True)
    budget, start = _SET_BYTES.get(columns.device.type, 2**24) // 4, 0
    while start < len(order):
        width = max(1, int(sizes[start]))
        stop = start + max(1, budget // (width * wide + 4 * width * width))
        yield order[start:stop], width
        start = stop


def _certificate(
    x: Tensor, residual: Tensor, z: Tensor, columns: Tensor, highest: Tensor, words: _Words, lam: float
) -> tuple[Tensor, Tensor]:
    """Duality gap and violation [n] in float64: the residual, scaled until no word exceeds ``lam``, is a dual point."""
    exact, weight = residual.double(), z.double().abs()
    own, shared = exact.square().sum(dim=1), (x.double() * exact).sum(dim=1)
    highest = highest.double()
    scale = torch.minimum(shared / own.clamp(min=1e-30), lam / highest.clamp(min=1e-30)).clamp(min=0)  # else infeasible
    dual = scale * shared - 0.5 * scale.square() * own
    violation = (highest - lam).clamp(min=0)
    if not len(words.free):
        return 0.5 * own + lam * weight.sum(dim=1) - dual, violation
    paid = weight.masked_fill(torch.isin(columns, words.free), 0.0)
    excess = exact @ words.rows[words.free].double().T  # 0 at the optimum, and at most 0 for a word that is not used
    excess = (excess.abs() if words.signed else excess.clamp(min=0)).amax(dim=1)
    gap = 0.5 * own + lam * paid.sum(dim=1) - dual + excess * weight.sum(dim=1)
    return gap, torch.maximum(violation, excess)


def _finish(
    x: Tensor, words: _Words, found: _Found, refit: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """The fields of `Codes` for a block of pictures: refitted if wanted, in the units of the dictionary, sorted."""
    columns, values = found.padded()
    if refit and columns.shape[1]:
        values = _solve_sets(x, columns, values, words, 0.0, cold=False)[0]
        columns = columns.masked_fill(values == 0, -1)
    if words.factor is not None:
        values = values * words.factor[columns.clamp(min=0)]
    order = values.abs().argsort(dim=1, descending=True, stable=True)
    columns, values = columns.gather(1, order), values.gather(1, order)
    return values.to(device), columns.to(device), found.gap.to(device), found.violation.to(device), found.passes


def _join(parts: list[tuple[Tensor, Tensor, Tensor, Tensor, int]]) -> Codes:
    """Blocks of pictures put together, as narrow as the longest code."""
    values, columns, gaps, violations, passes = zip(*parts)
    width = max(int((each >= 0).sum(dim=1).max()) for each in columns)
    return Codes(
        _stack([each[:, :width] for each in values], 0),
        _stack([each[:, :width] for each in columns], -1),
        torch.cat(gaps),
        torch.cat(violations),
        max(passes),
    )


def _pack(stays: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The entries that stay, moved to the left and padded to the longest row."""
    width = int(stays.sum(dim=1).max())
    order, kept = leading(stays, width)
    return columns.gather(1, order).masked_fill(~kept, -1), values.gather(1, order).masked_fill(~kept, 0)


def _stack(blocks: list[Tensor], fill: int) -> Tensor:
    """Blocks [n_i, m_i] below each other, padded on the right."""
    width = max(block.shape[1] for block in blocks)
    full = blocks[0].new_full((sum(len(block) for block in blocks), width), fill)
    start = 0
    for block in blocks:
        full[start : start + len(block), : block.shape[1]] = block
        start += len(block)
    return full


def _without_repeats(dictionary: Tensor, allowed: Tensor | None) -> Tensor | None:
    """``allowed`` without the words that equal an earlier one bit by bit: what they share could be split at will."""
    may = torch.arange(len(dictionary), device=dictionary.device) if allowed is None else allowed.nonzero()[:, 0]
    if len(may) < 2:
        return allowed
    key, order = dictionary[may, 0].sort(stable=True)
    same = key[1:] == key[:-1]
    alike = may[order[F.pad(same, (1, 0)) | F.pad(same, (0, 1))]].sort().values  # words that share their first number
    if not len(alike):
        return allowed
    group = dictionary[alike].unique(dim=0, return_inverse=True)[1]
    group, order = group.sort(stable=True)
    repeats = alike[order[1:][group[1:] == group[:-1]]]
    if not len(repeats):
        return allowed
    allowed = torch.ones(len(dictionary), dtype=torch.bool, device=dictionary.device) if allowed is None else allowed
    return allowed.index_fill(0, repeats, False)


def _check_finite(name: str, value: Tensor) -> None:
    total = value.sum(dtype=torch.float32 if value.dtype != torch.float64 else None)  # quick, and mostly enough
    if not bool(total.isfinite()) and not bool(value.isfinite().all()):
        raise ValueError(f"{name} has a NaN or infinite value; expected finite values")
