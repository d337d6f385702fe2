"""Concepts that have values: a number in a unit, a level of a scale, or one of several words.

Images of which the true value is not known (NaN) are left out, and every measure says how many were known. A
*prediction* that is NaN is not left out, it makes the measure NaN: a model cannot gain by not answering.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Measured(NamedTuple):
    """A number and what it rests on.

    Attributes:
        value: the number; NaN where it is not defined.
        known: number of images of which the true value is known.
    """

    value: float
    known: int


def r2(predicted: Tensor, true: Tensor, train_mean: float) -> Measured:
    """Share of the squared deviation from the training mean that a prediction explains.

    The mean is that of the *training* images, which a model can know (Shi et al., J. Chem. Inf. Comput. Sci. 2001), so
    predicting it for every image is 0 whatever images are measured. Where their own mean is another one, to know only
    that is worth more than 0 (Schüürmann et al., J. Chem. Inf. Model. 2008).

    Args:
        predicted: predicted numbers ``[N]``.
        true: true numbers ``[N]``, NaN if unknown.
        train_mean: mean of the true numbers of the training images.

    Returns:
        1 for perfect predictions, below 0 for worse than the mean; not defined if every known number is the mean.

    Example:
        >>> r2(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 3.0, float("nan")]), 2.0)
        Measured(value=0.5, known=2)
    """
    predicted, true = _known(predicted, true)
    whole = float((true - train_mean).square().sum())
    return Measured(1 - float((predicted - true).square().sum()) / whole if whole > 0 else math.nan, len(true))


def mae(predicted: Tensor, true: Tensor) -> Measured:
    """Mean absolute error, in the unit of the concept.

    Args:
        predicted: predicted numbers ``[N]``.
        true: true numbers ``[N]``, NaN if unknown.

    Example:
        >>> mae(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 3.0, float("nan")]))
        Measured(value=0.5, known=2)
    """
    predicted, true = _known(predicted, true)
    return Measured(float((predicted - true).abs().mean()), len(true))


def concordance(predicted: Tensor, true: Tensor) -> Measured:
    """How often, of two images with different values, the one with the larger value is predicted to have it.

    Equal predictions count one half; pairs of equal truth do not count (Harrell et al., JAMA 1982). It is 1/2 for a
    constant and the AUROC where there are two values. Only the order of the predictions matters, so it can be measured
    where they have no unit. Pairs are counted by sorting (Knight, J. Am. Stat. Assoc. 1966), N log N.

    Args:
        predicted: scores ``[N]`` in any unit.
        true: true numbers or levels ``[N]``, NaN if unknown.

    Returns:
        The share of the pairs; not defined if all known values are equal.

    Example:
        >>> concordance(torch.tensor([0.1, 0.1, 0.7, 0.0]), torch.tensor([1.0, 2.0, 3.0, float("nan")]))
        Measured(value=0.8333333333333334, known=3)
    """
    from scipy.stats import kendalltau

    predicted, true = _known(predicted, true)
    pairs = len(true) * (len(true) - 1) // 2
    unequal, apart = (pairs - _equal_pairs(each) for each in (true, predicted))
    if not unequal or bool(predicted.isnan().any()):
        return Measured(math.nan, len(true))
    lead = 0  # pairs in the right order minus pairs in the wrong one
    if apart:
        tau = kendalltau(predicted.numpy(), true.numpy()).statistic
        lead = round(float(tau) * math.sqrt(unequal) * math.sqrt(apart))
    return Measured((unequal + lead) / (2 * unequal), len(true))


def quadratic_kappa(predicted: Tensor, true: Tensor) -> Measured:
    """Cohen's kappa of levels with quadratic weights (Psychological Bulletin 1968).

    One minus the mean squared distance of prediction and truth, as a share of what it would be if they had nothing to
    do with each other.

    Args:
        predicted: predicted levels ``[N]``, 0 to V - 1.
        true: true levels ``[N]``, NaN if unknown.

    Returns:
        1 for perfect agreement, 0 for that of chance; not defined if all levels are one and the same.

    Example:
        >>> levels = torch.tensor([0.0, 1.0, 2.0])
        >>> quadratic_kappa(levels, levels), quadratic_kappa(torch.ones(3), levels).value
        (Measured(value=1.0, known=3), 0.0)
    """
    predicted, true = _known(predicted, true)
    if not len(true):
        return Measured(math.nan, 0)
    by_chance = predicted.var(correction=0) + true.var(correction=0) + (predicted.mean() - true.mean()).square()
    return Measured(1 - float((predicted - true).square().mean() / by_chance), len(true))  # 0/0 is NaN


def off_by_one(predicted: Tensor, true: Tensor) -> Measured:
    """Share of the images whose level is predicted rightly or as a neighbouring one.

    Args:
        predicted: predicted levels ``[N]``, 0 to V - 1.
        true: true levels ``[N]``, NaN if unknown.

    Example:
        >>> off_by_one(torch.tensor([0, 1, 2, 2]), torch.tensor([0.0, 2.0, 0.0, float("nan")]))
        Measured(value=0.6666666666666666, known=3)
    """
    predicted, true = _known(predicted, true)
    return Measured(_share((predicted - true).abs() <= 1, predicted), len(true))


def value_accuracy(predicted: Tensor, true: Tensor) -> Measured:
    """Share of the images whose value is predicted rightly.

    Args:
        predicted: numbers ``[N]`` of the predicted values, 0 to V - 1.
        true: numbers ``[N]`` of the true values, NaN if unknown.

    Example:
        >>> value_accuracy(torch.tensor([0, 1, 2]), torch.tensor([0.0, 2.0, float("nan")]))
        Measured(value=0.5, known=2)
    """
    predicted, true = _known(predicted, true)
    return Measured(_share(predicted == true, predicted), len(true))


def value_f1_macro(predicted: Tensor, true: Tensor) -> Measured:
    """Mean over the values of the F1 of each against the others.

    Values that no known image has do not count, as for labels; to predict one costs the value that was missed.

    Args:
        predicted: numbers ``[N]`` of the predicted values, 0 to V - 1.
        true: numbers ``[N]`` of the true values, NaN if unknown.

    Example:
        >>> value_f1_macro(torch.tensor([0, 0, 1]), torch.tensor([0.0, 1.0, 1.0])).value
        0.6666666666666666
    """
    predicted, true = _known(predicted, true)
    if not len(true) or bool(predicted.isnan().any()):
        return Measured(math.nan, len(true))
    values, numbers = torch.cat([true, predicted]).unique(return_inverse=True)
    truth, said = numbers[: len(true)], numbers[len(true) :]
    count = len(values)
    there, named = (torch.bincount(each, minlength=count) for each in (truth, said))
    hit = torch.bincount(truth[truth == said], minlength=count)
    return Measured(float((2 * hit.double() / (there + named))[there > 0].mean()), len(true))


def _known(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Both where the truth is known, in double precision on the CPU."""
    rows = ~true.isnan()
    return predicted[rows].detach().double().cpu(), true[rows].detach().double().cpu()


def _equal_pairs(values: Tensor) -> int:
    """Number of pairs of equal values ``[n]``."""
    counts = values.unique(return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _share(holds: Tensor, predicted: Tensor) -> float:
    """Share of the images for which something holds; NaN if there are none, or one has no prediction."""
    return math.nan if bool(predicted.isnan().any()) else float(holds.double().mean())
