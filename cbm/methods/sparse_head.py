"""The sparse final layer of post-hoc and label-free bottlenecks: few concepts per class, chosen by validation."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.data.features import FeatureData
from cbm.errors import UserError
from cbm.files.names import quoted
from cbm.kernels import class_logits, class_vectors, score_moments
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.methods.base import link_of, one_of
from cbm.metrics import class_accuracies
from cbm.metrics.groups import group_index
from cbm.solvers import LinearScores, SparsePoint, elastic_net_path, label_paths
from cbm.solvers.elastic_net import Link

log = logging.getLogger(__name__)

PATIENCE = 8  # points of the path
SELECT = ("balanced", "worst_group")


@dataclass
class SparseHeadConfig:
    """Settings of the elastic-net head."""

    l1_ratio: float = 0.99
    """Share of the l1 norm in the penalty"""
    lam: float | None = None
    """Penalty; null: the one with the sparsest head within one standard error of the best balanced validation accuracy
    (mean over the classes), never a head without concepts"""
    select: str = "balanced"
    """What chooses the penalty on the validation images: balanced (see lam) | worst_group (the best accuracy of the
    worst group of dataset.args.groups)"""
    n_lambdas: int = 50
    """Number of penalties on the path"""
    max_nec: float = 30.0
    """Number of concepts per class at which the path ends"""
    tol: float = 1e-4
    """Relative duality gap at which a solve stops"""


def check_sparse_head(config: SparseHeadConfig, lam: str = "lam") -> None:
    """Check the settings.

    Args:
        config: the settings.
        lam: what the method calls the penalty.

    Raises:
        UserError: a number is out of range.
    """
    one_of("method.select", config.select, SELECT)
    for name, value, fits, expected in (
        ("l1_ratio", config.l1_ratio, 0 < config.l1_ratio <= 1, "a number in (0, 1]"),
        (lam, config.lam, config.lam is None or config.lam > 0, "a number > 0, or null"),
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
    allowed: Tensor | None = None,
) -> ConceptBottleneck:
    """Solve the elastic-net path on the training scores and keep one point of it.

    Args:
        data: encoded splits.
        directions: concept directions ``[K, D]``; the scores are ``x . direction``.
        config: settings of the head.
        std: unit ``[K]`` of every score; by default its standard deviation over the training images.
        link: ``softmax``, or ``ova`` for one logistic loss per class.
        allowed: concepts ``[L, K]`` bool that the head of each of several labels may read; all by default.

    Returns:
        The bottleneck with a ``LinearHead`` in units of the raw scores.
    """
    mean, spread = score_moments(data.train.x, directions)
    scores = LinearScores(data.train.x, directions, mean=mean, std=spread if std is None else std)

    def classify(weight: Tensor, bias: Tensor) -> Tensor:
        return class_logits(data.val.x, *class_vectors(directions, weight, bias=bias))

    head = solve_sparse_head(scores, data, config, classify, link=link, allowed=allowed)
    return ConceptBottleneck(directions, head, reference=mean, spread=spread, link=link_of(data))


def solve_sparse_head(
    scores: LinearScores,
    data: FeatureData,
    config: SparseHeadConfig,
    classify: Callable[[Tensor, Tensor], Tensor],
    *,
    link: Link = "softmax",
    allowed: Tensor | None = None,
) -> LinearHead:
    """Solve the elastic-net path on any scores of the training images and keep the point that validation chooses.

    Args:
        scores: scores of the training images.
        data: encoded splits.
        config: settings of the head.
        classify: from weights ``[C, K]`` and biases ``[C]`` of the raw scores to logits of the validation images.
        link: ``softmax``, or ``ova`` for one logistic loss per class.
        allowed: concepts ``[L, K]`` bool that the head of each of several labels may read; all by default.

    Returns:
        The head, in units of the raw scores.
    """
    if data.many:
        if config.select == "worst_group":
            raise UserError("method.select=worst_group is for one class per picture: expected method.select=balanced")
        return _solve_labels(scores, data, config, classify, allowed)
    accuracy: list[float] = []
    balanced: list[float] = []
    by_group = config.select == "worst_group"
    of_groups = worst_group_of(data) if by_group else None
    chance = 0.0 if by_group else 1 / len(data.val.y.unique())

    def past_best(newest: list[SparsePoint]) -> bool:
        """Note the validation accuracy; the path may end when it was higher ``PATIENCE`` points ago and all since.

        Not while every image gets the same class: then the path has not begun.
        """
        logits = classify(*scores.on_raw(newest[0].weight(), newest[0].bias))
        balanced.append(float(class_accuracies(logits.argmax(dim=1), data.val.y, len(data.classes)).nanmean()))
        accuracy.append(balanced[-1] if of_groups is None else of_groups(logits))
        best = max(accuracy)
        return best > chance + 1e-6 and accuracy.index(best) < len(accuracy) - PATIENCE

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
    counts = [len(point.index) for point in path.points]
    if by_group:  # the worst group has few images: within a standard error lies nearly the whole path
        chosen = max(range(len(counts)), key=lambda i: (counts[i] > 0, accuracy[i], balanced[i], -i))
    else:
        chosen = sparsest_good(accuracy, informative_images(data.val.y), counts, chance)
    point = path.points[chosen]
    kind = "validation accuracy of the worst group" if by_group else "balanced validation accuracy"
    _say(point, f"{kind} {accuracy[chosen]:.4f}", f"point {chosen + 1} of {len(path.points)}")
    return LinearHead(*scores.on_raw(point.weight(), point.bias))


def worst_group_of(data: FeatureData) -> Callable[[Tensor], float]:
    """From logits ``[V, C]`` of the validation images to the accuracy of their worst group: a class with a value of a
    column of groups, of at least ten images.

    Raises:
        UserError: no class has two such groups in a column: then the groups are the classes once more.
    """
    found = group_index(data.val)
    of_class = Counter((column, label) for column, label, _ in found)
    if max(of_class.values(), default=0) < 2:
        what = "no class has two groups of ten validation images each" if data.val.groups else "it knows no groups"
        raise UserError(
            f"method.select=worst_group: the data set must have a column of groups (dataset.args.groups=[NAME]) with "
            f"validation images of rare ones too, and {what}: expected method.select=balanced"
        )
    groups = list(found.values())

    def quality(logits: Tensor) -> float:
        right = (logits.argmax(dim=1) == data.val.y).numpy()
        return min(float(right[rows].mean()) for rows in groups)

    return quality


def _solve_labels(
    scores: LinearScores,
    data: FeatureData,
    config: SparseHeadConfig,
    classify: Callable[[Tensor, Tensor], Tensor],
    allowed: Tensor | None,
) -> LinearHead:
    """A few concepts for every label: of each path the sparsest point within one standard error of the best validation
    loss, never one without concepts if there is another.

    The loss, not average precision or F1: with 20 positives their error is near a tenth.
    """
    check_certain(data)
    paths = label_paths(
        scores,
        data.train.y,
        l1_ratio=config.l1_ratio,
        lambdas=None if config.lam is None else [config.lam],
        n_lambdas=config.n_lambdas,
        lambda_ratio=1e-3,
        max_nec=config.max_nec,
        tol=config.tol,
        allowed=allowed,
    )
    chosen = []
    for label, path in enumerate(paths):
        known = ~data.val.y[:, label].isnan()
        weights, biases = (
            torch.cat([point.weight() for point in path.points]),
            torch.cat([point.bias for point in path.points]),
        )
        logits = classify(*scores.on_raw(weights, biases))[known]
        target = data.val.y[known, label, None].expand_as(logits)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        chosen.append(path.points[sparsest_by_loss(losses, [len(point.index) for point in path.points])])
    counts = [len(point.index) for point in chosen]
    if bare := [data.classes[label] for label, count in enumerate(counts) if not count]:
        log.warning("sparse head: no concept has a weight for %s: the same answer for every image", quoted(bare))
    log.info("sparse heads of %d labels: %d to %d concepts each, %.1f on average (duality gap %.0e, KKT residual %.0e)",
             len(chosen), min(counts), max(counts), sum(counts) / len(counts), max(p.gap for p in chosen),
             max(p.kkt for p in chosen))  # fmt: skip
    weight, bias = torch.cat([point.weight() for point in chosen]), torch.cat([point.bias for point in chosen])
    return LinearHead(*scores.on_raw(weight, bias))


def check_certain(data: FeatureData) -> None:
    """Check that every known label is yes or no.

    Raises:
        UserError: unknown ones were made probabilities.
    """
    known = data.train.y[~data.train.y.isnan()]
    if bool(((known != 0) & (known != 1)).any()):
        raise UserError(
            "dataset.args.unknown=soft makes probabilities of unknown labels, and a sparse head is solved for yes and "
            "no: say ignore, absent or present"
        )


def sparsest_by_loss(losses: Tensor, weights: Sequence[int]) -> int:
    """The first point of a path within one standard error of the lowest mean loss, one with concepts if there is any.

    Args:
        losses: losses ``[V, P]`` of the validation images at every point, from sparse to dense.
        weights: number of weights of every point.

    >>> sparsest_by_loss(torch.tensor([[1.0, 0.6, 0.4, 0.3], [1.0, 0.6, 0.5, 0.5]]), [0, 1, 3, 9])
    2
    """
    points = [i for i, count in enumerate(weights) if count] or list(range(len(weights)))
    if not len(losses):
        return points[-1]
    means = losses.double().mean(dim=0)
    best = min(points, key=lambda i: float(means[i]))
    error = float(losses[:, best].double().std()) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    return next(i for i in points if float(means[i]) <= float(means[best]) + error)


def _say(point: SparsePoint, accuracy: str, place: str) -> None:
    """One line about the head that was chosen; another if it has no weight."""
    if not len(point.index):
        log.warning("sparse head: no concept has a weight at penalty %.2e: every image gets the same class; "
                    "choose a smaller method.lam", point.lam)  # fmt: skip
    log.info("sparse head: penalty %.2e, %.1f concepts per class, %s (%s; "
             "duality gap %.0e, KKT residual %.0e)",
             point.lam, point.nec, accuracy, place, max(point.gap, 0), point.kkt)  # fmt: skip


def sparsest_good(
    accuracy: Sequence[float], count: float, weights: Sequence[int] | None = None, chance: float = 0.0
) -> int:
    """The sparsest head within one standard error of the best validation accuracy.

    A head without concepts is never chosen if there is another, nor one that is within one standard error of naming a
    single class if there is a better one. If no head of the path can be told from the best one, one line says so.

    Args:
        accuracy: validation accuracy of every point of the path, from sparse to dense.
        count: number of validation images (``informative_images`` for a balanced accuracy).
        weights: number of weights of every point; by default none is without.
        chance: accuracy of naming a single class.

    >>> sparsest_good([0.5, 0.6, 0.89, 0.9], 100, [0, 1, 4, 9], chance=0.5)
    2
    """
    weights = [1] * len(accuracy) if weights is None else weights
    points = [i for i, number in enumerate(weights) if number] or list(range(len(accuracy)))
    best = max(accuracy[i] for i in points)
    error = (best * (1 - best) / count) ** 0.5
    worst = min(accuracy[i] for i in points)
    if len(points) > 1 and worst >= best - error and best < 1:
        log.warning("sparse head: the validation images cannot tell the %d heads of the path apart (accuracy %.3f to "
                    "%.3f, standard error %.3f): the choice is nearly arbitrary",
                    len(points), worst, best, error)  # fmt: skip
    least = max(best - error, min(chance + error, best))
    return next(i for i in points if accuracy[i] >= least)


def informative_images(labels: Tensor) -> float:
    """Number of images in classes of equal size that would tell as much about a balanced accuracy; labels ``[V]``.

    >>> informative_images(torch.tensor([0] * 10 + [1] * 10)), informative_images(torch.tensor([0] * 18 + [1] * 2))
    (20.0, 7.2)
    """
    sizes = torch.bincount(labels)
    sizes = sizes[sizes > 0].double()
    return round(len(sizes) ** 2 / float((1 / sizes).sum()), 6)
