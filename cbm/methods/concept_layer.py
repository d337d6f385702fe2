"""A logistic regression per concept, from whatever labels are known: the concept layer of methods that solve it."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cbm.data.features import FeatureData
from cbm.kernels import feature_moments
from cbm.solvers import fit_labels

PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties l2 of the concepts, of which the validation pictures choose one."""
UNCHOSEN = 0.01
"""The penalty where nothing is known of validation pictures."""


def learn_concepts(data: FeatureData, labels: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Directions ``[K, D]`` whose scores are the log-odds of concepts up to a constant, and the penalty that the
    validation pictures chose.

    Args:
        data: encoded splits.
        labels: labels ``[N, K]`` of ``train`` and ``val``: 1, 0, or NaN if unknown.
    """
    mean, std = feature_moments(data.train.x)
    std = std.clamp(min=1e-6)
    known = ~labels["val"].isnan()
    penalties = list(PENALTIES) if bool(known.any()) else [UNCHOSEN]
    fits = fit_labels((data.train.x.float() - mean) / std, labels["train"], l2=penalties, tol=1e-4)
    losses = [0.0]
    if len(fits) > 1:
        z = (data.val.x.float() - mean) / std
        losses = [
            float(binary_cross_entropy_with_logits((z @ weight.T + bias)[known], labels["val"][known]))
            for weight, bias in fits
        ]
    best = losses.index(min(losses))
    return fits[best][0] / std, penalties[best]


def out_of_fold(data: FeatureData, labels: dict[str, Tensor], folds: int) -> Tensor:
    """Probabilities ``[N, K]`` of the training pictures' concepts, each from regressions on pictures of other folds.

    Args:
        data: encoded splits; pictures of one subject are in one fold.
        labels: labels ``[N, K]`` of ``train`` and ``val``: 1, 0, or NaN if unknown.
        folds: number of folds.
    """
    _, penalty = learn_concepts(data, labels)
    mean, std = feature_moments(data.train.x)
    z = (data.train.x.float() - mean) / std.clamp(min=1e-6)
    names = np.arange(len(z)) if data.train.subjects is None else np.unique(data.train.subjects, return_inverse=True)[1]
    order = torch.randperm(int(names.max()) + 1, generator=torch.Generator().manual_seed(data.seed))
    fold = (order % folds)[torch.from_numpy(names)]
    found = labels["train"].nanmean(dim=0).expand(len(z), -1).clone()  # stays where no other fold knows the concept
    for number in range(folds):
        rest, own = fold != number, fold == number
        known = ~labels["train"][rest].isnan().all(dim=0)
        ((weight, bias),) = fit_labels(z[rest], labels["train"][rest][:, known], l2=[penalty], tol=1e-4)
        found[own.nonzero(), known.nonzero().flatten()] = (z[own] @ weight.T + bias).sigmoid()
    return found
