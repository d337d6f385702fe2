"""The sparse final layer of post-hoc and label-free bottlenecks: few concepts per class, chosen by validation."""

import logging
from dataclasses import dataclass

from torch import Tensor

from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.kernels import class_logits, score_moments
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.solvers import LinearScores, SparsePoint, elastic_net_path
from cbm.solvers.elastic_net import Link

log = logging.getLogger(__name__)

PATIENCE = 8  # points of the path


@dataclass
class SparseHeadConfig:
    """Settings of the elastic-net head."""

    l1_ratio: float = 0.99
    """Share of the l1 norm in the penalty"""
    lam: float | None = None
    """Penalty; null: the one with the sparsest head within one standard error of the best validation accuracy"""
    n_lambdas: int = 50
    """Number of penalties on the path"""
    max_nec: float = 30.0
    """Number of concepts per class at which the path ends"""
    tol: float = 1e-4
    """Relative duality gap at which a solve stops"""


def check_sparse_head(config: SparseHeadConfig) -> None:
    """Check the settings.

    Raises:
        UserError: a number is out of range.
    """
    for name, value, fits, expected in (
        ("l1_ratio", config.l1_ratio, 0 < config.l1_ratio <= 1, "a number in (0, 1]"),
        ("lam", config.lam, config.lam is None or config.lam > 0, "a number > 0, or null"),
        ("n_lambdas", config.n_lambdas, config.n_lambdas >= 2, "2 or more"),
        ("max_nec", config.max_nec, config.max_nec > 0, "a number > 0"),
        ("tol", config.tol, 0 < config.tol < 1, "a number between 0 and 1"),
    ):
        if not fits:
            raise UserError(f"method.{name}={value}: expected {expected}")


def fit_sparse_head(
    data: FeatureData,
    directions: Tensor,
    config: SparseHeadConfig,
    *,
    std: Tensor | None = None,
    link: Link = "softmax",
) -> ConceptBottleneck:
    """Solve the elastic-net path on the training scores and keep one point of it.

    Args:
        data: encoded splits.
        directions: concept directions ``[K, D]``; the scores are ``x . direction``.
        config: settings of the head.
        std: unit ``[K]`` of every score; by default its standard deviation over the training images.
        link: ``softmax``, or ``ova`` for one logistic loss per class.

    Returns:
        The bottleneck with a ``LinearHead`` in units of the raw scores.
    """
    mean, spread = score_moments(data.train.x, directions)
    scores = LinearScores(data.train.x, directions, mean=mean, std=spread if std is None else std)
    accuracy: list[float] = []

    def past_best(newest: list[SparsePoint]) -> bool:
        """Note the validation accuracy; the path may end when it was higher ``PATIENCE`` points ago and all since."""
        logits = class_logits(data.val.x, *scores.vectors(newest[0].weight(), newest[0].bias))
        right = logits.argmax(dim=1) == data.val.y
        accuracy.append(float(right.double().mean()))
        return accuracy.index(max(accuracy)) < len(accuracy) - PATIENCE

    path = elastic_net_path(
        scores,
        data.train.y,
        num_classes=len(data.classes),
        l1_ratio=config.l1_ratio,
        link=link,
        lambdas=None if config.lam is None else [config.lam],
        n_lambdas=config.n_lambdas,
        lambda_ratio=1e-3,
        max_nec=config.max_nec,
        tol=config.tol,
        until=past_best,
    )
    chosen = sparsest_good(accuracy, len(data.val))
    point = path.points[chosen]
    log.info(
        "sparse head: penalty %.2e, %.1f concepts per class, validation accuracy %.4f (point %d of %d; "
        "duality gap %.0e, KKT residual %.0e)",
        point.lam,
        point.nec,
        accuracy[chosen],
        chosen + 1,
        len(path.points),
        max(point.gap, 0),
        point.kkt,
    )
    weight, bias = scores.on_raw(point.weight(), point.bias)
    return ConceptBottleneck(directions, LinearHead(weight, bias), reference=mean, spread=spread)


def sparsest_good(accuracy: list[float], count: int) -> int:
    """The first accuracy (the path goes from sparse to dense) within one standard error of the best.

    Args:
        accuracy: validation accuracy of every point of the path.
        count: number of validation images.
    """
    best = max(accuracy)
    error = (best * (1 - best) / count) ** 0.5
    return next(i for i, value in enumerate(accuracy) if value >= best - error)
