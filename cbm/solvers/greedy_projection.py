"""Words that span the pictures: chosen one by one to leave as little as possible unexplained.

With P the projection on the words chosen so far, the next one is that which lowers ``mean |(I - P) x|^2`` most: the
selection of PCBM-ReD ("Partially Shared Concept Bottleneck by Representation Decomposition", 2026). What is left of
word i is ``b_i = (I - P) c_i``, and it would lower the error by ``b_i^T S b_i / |b_i|^2``, where S is the second moment
of the pictures. All that is needed is updated in O(M D) per step, whatever the number of pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbm.kernels.shapes import check_matrix, compute_dtype


def greedy_projection(moment: Tensor, candidates: Tensor, count: int, *, tol: float = 0.01) -> tuple[Tensor, Tensor]:
    """Choose up to ``count`` candidates whose span holds as much of the pictures' energy as greedy choice can find.

    Args:
        moment: Second moment S = X^T X / N of the pictures [D, D], symmetric; times any number, which does not matter.
            Centre the pictures first, or the first picks model the mean picture.
        candidates: Words [M, D], in the sense of unit rows.
        count: How many to choose, 1 <= count <= M.
        tol: Candidates of which the span leaves less than this share of their squared length are passed over, in
            (0, 1).

    Returns:
        Indices of the chosen candidates [m] (int64) in the order they were chosen, of equal gains the lower index
        first, and the share of the energy that the first, the first two, ... of them span [m] (float64). m is smaller
        than ``count`` where nothing is left: no candidate points out of the span, or no energy outside of it.

    Raises:
        ValueError: If a shape does not fit, ``count`` or ``tol`` is out of range, or a value is NaN or infinite.

    Example:
        >>> import torch
        >>> from cbm.solvers import greedy_projection
        >>> chosen, share = greedy_projection(torch.diag(torch.tensor([1.0, 4.0, 3.0])), torch.eye(3), 2)
        >>> chosen, share
        (tensor([1, 2]), tensor([0.5000, 0.8750], dtype=torch.float64))
    """
    wide = check_matrix("candidates", candidates).shape[1]
    check_matrix("moment", moment, rows=wide, columns=wide)
    if not 1 <= count <= len(candidates):
        raise ValueError(f"count is {count}; expected 1 <= count <= {len(candidates)}, the number of candidates")
    if not 0 < tol < 1:
        raise ValueError(f"tol is {tol}; expected > 0 and < 1")
    for name, value in (("moment", moment), ("candidates", candidates)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} has a NaN or infinite value; expected finite values")
    with torch.no_grad():
        dtype = compute_dtype(moment, candidates)
        second = moment.to(candidates.device, dtype)
        left = candidates.to(dtype, copy=True)  # what the span leaves of every candidate
        total = float(second.diagonal().double().sum())
        energy = ((left @ second) * left).sum(dim=1).double()  # b^T S b
        length = left.square().sum(dim=1).double()
        least, nothing = tol * length, 1e-6 * abs(total)
        open_ = length > 0
        chosen: list[int] = []
        shares: list[float] = []
        while len(chosen) < count:
            gain = torch.where(open_ & (length > least), energy / length.clamp(min=1e-30), -torch.inf)
            best = int(gain.argmax())
            if not float(gain[best]) > nothing:
                break
            direction = left[best] / left[best].norm()
            pulled = second @ direction
            own = float(direction @ pulled)
            along, cross = (left @ direction).double(), (left @ pulled).double()
            energy += along.square() * own - 2 * along * cross
            length -= along.square()
            left.addr_(along.to(dtype), direction, alpha=-1)
            open_[best] = False
            chosen.append(best)
            shares.append((shares[-1] if shares else 0.0) + own / total)
    indices = torch.tensor(chosen, dtype=torch.long, device=candidates.device)
    return indices, torch.tensor(shares, dtype=torch.float64, device=candidates.device)
