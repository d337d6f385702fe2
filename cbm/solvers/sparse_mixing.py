"""The l1-penalised mixing layer of a bottleneck whose head is given: a convex problem, solved with a certificate.

    min_W  1/N sum_n CE(H W s_n + b, y_n) + lam / K sum_jk |W_jk|          W [K, K], scores s_n = Q x_n - offset

(l1-CBM: Semenov et al., 2024, arXiv 2404.03323). Accelerated proximal gradient steps (Beck and Teboulle, SIAM J.
Imaging Sci. 2009) in float64, restarted when they go against the gradient, their length found by testing the quadratic
bound now and then. Only class vectors ``H W Q`` ``[C, D]`` meet the images: no
``[N, K]`` matrix is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.kernels.shapes import check_labels, check_matrix, check_vector
from cbm.solvers.proximal_adam import soft_threshold

_ROWS = 16384  # pictures per partial product
_CHECK = 10  # steps between two looks at the optimality conditions
_TEST = 4  # steps between two tests of the curvature


@dataclass(frozen=True)
class SparseMixing:
    """A solution and its certificate.

    Attributes:
        weight: mixing layer W ``[K, K]``.
        loss: mean cross-entropy.
        lam_max: smallest penalty at which W = 0 is optimal, ``K max |grad CE(0)|``.
        kkt: largest violation of the optimality conditions, as a share of the penalty ``lam / K``.
        steps: number of steps taken.
    """

    weight: Tensor
    loss: float
    lam_max: float
    kkt: float
    steps: int


@torch.no_grad()
def solve_mixing(
    x: Tensor,
    y: Tensor,
    concepts: Tensor,
    head: Tensor,
    *,
    lam: float | None = None,
    lam_share: float | None = None,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    start: Tensor | None = None,
    tol: float = 1e-3,
    max_steps: int = 2000,
) -> SparseMixing:
    """Solve for W with fixed head and bias.

    Args:
        x: Features ``[N, D]``.
        y: Classes ``[N]``, int64.
        concepts: Q ``[K, D]``.
        head: H ``[C, K]``.
        lam: Penalty, > 0. Exactly one of ``lam`` and ``lam_share`` is given.
        lam_share: The same in units of the smallest penalty at which W = 0.
        offset: Offset ``[K]`` that is subtracted from the scores; zeros by default.
        bias: b ``[C]``; zeros by default.
        start: W to start from; zeros by default.
        tol: KKT residual at which to stop.
        max_steps: Largest number of steps; the certificate tells how near the optimum they came.

    Raises:
        ValueError: If a shape does not fit, or not exactly one positive penalty is given.
    """
    check_matrix("x", x)
    k = len(check_matrix("concepts", concepts, columns=x.shape[1]))
    classes = len(check_matrix("head", head, columns=k))
    check_labels(y, len(x), classes)
    check_vector("offset", offset, k)
    check_vector("bias", bias, classes)
    given = [value for value in (lam, lam_share) if value is not None]
    if len(given) != 1 or not given[0] > 0:
        raise ValueError(f"lam is {lam} and lam_share {lam_share}; expected one of them, > 0")
    concepts, head = concepts.double(), head.double()
    offset = concepts.new_zeros(k) if offset is None else offset.double()
    bias = concepts.new_zeros(classes) if bias is None else bias.double()

    def slope(weight: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy and its gradient ``[K, K]``."""
        mixed = head @ weight
        loss, errors = _errors(x, y, mixed @ concepts, bias - mixed @ offset)
        back = errors[:, :-1] @ concepts.T - torch.outer(errors[:, -1], offset)  # [C, K] mean of (p - onehot) s^T
        return loss, head.T @ back

    zero = concepts.new_zeros(k, k)
    largest = k * float(slope(zero)[1].abs().max())
    penalty = (lam if lam is not None else largest * float(lam_share or 0.0)) / k
    steepest = _lipschitz(x, concepts, offset, head)
    curvature = steepest / 16  # softmaxes that are sure of their class are flatter than the bound
    weight = point = zero if start is None else start.to(zero).clone()
    momentum, taken = 1.0, 0
    while True:
        if taken % _CHECK == 0:
            loss, gradient = slope(weight)
            apart = torch.where(weight != 0, (gradient + penalty * weight.sign()).abs(), gradient.abs() - penalty)
            kkt = float(apart.max().clamp(min=0)) / penalty
            if kkt <= tol or taken >= max_steps:
                return SparseMixing(weight.to(x), loss, largest, kkt, taken)
        height, gradient = slope(point)
        while True:
            new = soft_threshold(point - gradient / curvature, penalty / curvature)
            if taken % _TEST or curvature >= steepest:
                break
            change = new - point
            ahead = slope(new)[0] - height - float((gradient * change).sum())
            needed = 2 * ahead / max(float(change.square().sum()), 1e-300)
            if needed <= curvature or abs(ahead) < 1e-12 * height:
                curvature = max(0.8 * curvature, min(1.2 * needed, curvature))
                break
            curvature = min(1.2 * needed, steepest)
        if float(((point - new) * (new - weight)).sum()) > 0:
            momentum, point = 1.0, new
        else:
            faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            point, momentum = new + (momentum - 1) / faster * (new - weight), faster
        weight, taken = new, taken + 1


def _errors(x: Tensor, y: Tensor, vectors: Tensor, bias: Tensor) -> tuple[float, Tensor]:
    """Mean cross-entropy, and the means ``[C, D + 1]`` over images of ``(p - onehot)`` times ``[x, 1]``."""
    total = 0.0
    sums = torch.zeros(len(vectors), x.shape[1] + 1, dtype=vectors.dtype, device=vectors.device)
    for rows, labels in zip(x.split(_ROWS), y.split(_ROWS)):
        rows = rows.to(vectors)
        log_p = torch.nn.functional.linear(rows, vectors, bias).log_softmax(dim=1)
        total -= float(log_p.gather(1, labels[:, None]).double().sum())
        error = log_p.exp_()
        error[torch.arange(len(labels)), labels] -= 1
        sums[:, :-1] += error.T @ rows
        sums[:, -1] += error.sum(dim=0)
    return total / len(x), sums / len(x)


def _lipschitz(x: Tensor, concepts: Tensor, offset: Tensor, head: Tensor) -> float:
    """A bound on the curvature: ``1/2 |H|^2 max eigenvalue of mean s s^T`` (the softmax's Hessian is at most 1/2)."""
    second, mean = (x.new_zeros(shape, dtype=torch.float64) for shape in ([x.shape[1]] * 2, [x.shape[1]]))
    for rows in x.split(_ROWS):
        rows = rows.double()
        second, mean = second + rows.T @ rows, mean + rows.sum(dim=0)
    q, m = concepts.double(), offset.double()
    # [Q, -offset] M [Q, -offset]^T with M the second moments of [x, 1] has the eigenvalues of root^T root
    moments = torch.cat([torch.cat([second, mean[:, None]], 1), torch.cat([mean, mean.new_tensor([len(x)])])[None]])
    values, vectors = torch.linalg.eigh(moments / len(x))
    root = torch.cat([q, -m[:, None]], dim=1) @ (vectors * values.clamp(min=0).sqrt())
    return 0.5 * float(torch.linalg.matrix_norm(head.double(), 2) ** 2 * torch.linalg.matrix_norm(root, 2) ** 2)
