"""Corrections in closed form: the mean put back, of concepts or of features, and a refit that stays near the old head.

None is trained. A shift of a domain's mean, in features or in activations, is undone by adding the difference of the
class-balanced means (labelled images of the domain against those of the source). ``unlabelled_shift`` finds it without
labels: the model's own class probabilities say which images are of which class, at first and after the shift, a few
times over. ``shrunk_refit`` is the first step of
a penalised logistic regression that starts at the model's own head, with the bound of Böhning (Annals of the Institute
of Statistical Mathematics, 1992) on its curvature: one linear system of K + 1 unknowns. With a large penalty the head
stays as it is.
"""

import copy

import torch
from torch import Tensor

from cbm.editing.domains.guard import balanced_weights
from cbm.editing.domains.source_card import SourceStatistics
from cbm.layers import ConceptBottleneck, Embedded, SparseCode
from cbm.layers.probe import LinearProbe

ROUNDS = 5  # of beliefs about unlabelled images
LEAST_MASS = 0.02  # of the images
FREE = 0.1  # penalty of a class's bias, as a share of that of its weights


def mean_shift(values: Tensor, y: Tensor, home: Tensor) -> Tensor:
    """What is to be added so that the class-balanced mean is that of the source domain, ``[K]``.

    Args:
        values: activations or features ``[n, K]`` of labelled images.
        y: class indices ``[n]``; classes may be absent, and then do not count.
        home: means ``[C, K]`` by class in the source domain.
    """
    present = y.unique()
    means = torch.stack([values[y == c].double().mean(dim=0) for c in present])
    return (home[present].double() - means).mean(dim=0)


@torch.no_grad()
def unlabelled_shift(model: ConceptBottleneck, x: Tensor, source: SourceStatistics, home: Tensor) -> Tensor:
    """What is to be added to the features of unlabelled images so that their mean is that of the source, ``[D]``.

    Images count for a class as far as the model, moved by what was found so far, believes them to be of it; so the
    classes' proportions may be others than at home. Classes with less than 2 % of the images do not count.

    Args:
        model: a bottleneck whose concepts are directions in the features.
        x: features ``[N, D]`` of images of the other domain.
        source: statistics of the source domain, which hold the factor that calibrates the logits.
        home: mean features ``[C, D]`` by class in the source domain.
    """
    values, by = x.double(), torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(ROUNDS):
        moved = recentred_features(model, by)
        assert moved is not None
        belief = (source.factor * moved.logits(x).double()).softmax(dim=1)
        mass = belief.sum(dim=0)
        there = mass > LEAST_MASS * len(x)
        by = (home[there].double() - (belief.T @ values)[there] / mass[there, None]).mean(dim=0)
    return by


def class_means(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Mean features ``[C, D]`` by class, float64; every class needs an image."""
    return torch.stack([x[y == c].double().mean(dim=0) for c in range(classes)])


@torch.no_grad()
def recentred_concepts(model: ConceptBottleneck, by: Tensor) -> ConceptBottleneck:
    """A copy of the model in which ``by`` ``[K]`` is added to the activations before the head reads them."""
    return model.with_weights(model.weights(), model.biases() + model.weights() @ by.float())


@torch.no_grad()
def recentred_features(model: ConceptBottleneck, by: Tensor) -> ConceptBottleneck | None:
    """A copy of the model that reads ``x + by`` for features x.

    It is the shift of every concept's score by its direction's share of ``by`` ``[D]``; a linear residual moves along.
    None for models whose concepts are no directions in the features (concept embeddings, sparse codes).
    """
    if isinstance(model.activation, Embedded | SparseCode) or not isinstance(model.residual, LinearProbe | None):
        return None
    by = by.float()
    shifts = model.concepts @ by
    if model.activation is None:
        moved = recentred_concepts(model, shifts)
    else:
        moved = copy.deepcopy(model)
        assert moved.activation is not None
        moved.activation.offset -= shifts
    if isinstance(model.residual, LinearProbe):
        moved.residual = copy.deepcopy(model.residual)
        moved.residual.bias.add_(model.residual.matrix @ by)
    return moved


@torch.no_grad()
def shrunk_refit(model: ConceptBottleneck, x: Tensor, y: Tensor, source: SourceStatistics, penalty: float
                 ) -> ConceptBottleneck:  # fmt: skip
    """A copy of the model whose head moves towards labelled images, and away from itself only as far as they say.

    With calibrated logits z = factor (a W^T + b), standardised activations u and class-balanced weights v, it solves

        ( 1/2 U^T diag(v) U + penalty I ) Theta = U^T diag(v) (Y - softmax(z))

    Args:
        model: a bottleneck; a residual stays as it is.
        x: features ``[n, D]`` of labelled images.
        y: class indices ``[n]``.
        source: statistics of the source domain: the units of the activations, and the factor.
        penalty: strength of the penalty on the change of a weight, per standard deviation of its concept.
    """
    a = model.activations(x).double()
    centre, spread = source.reference, source.a.std(dim=0)
    spread = spread.clamp(min=1e-6 * float(spread.max()))
    u = torch.cat([(a - centre) / spread, a.new_ones(len(a), 1)], dim=1)
    share = balanced_weights(y)[:, None]
    ridge = torch.full((u.shape[1],), penalty, dtype=torch.float64)
    ridge[-1] *= FREE
    wrong = torch.nn.functional.one_hot(y, len(source.mean)) - (source.factor * model.logits(x).double()).softmax(dim=1)
    if len(u) < u.shape[1]:  # the same by the images: fewer unknowns
        eased = u.T / ridge[:, None]
        theta = eased @ torch.linalg.solve(0.5 * u @ eased + torch.diag(1 / share[:, 0]), wrong) / source.factor
    else:
        theta = torch.linalg.solve(0.5 * u.T @ (share * u) + torch.diag(ridge), u.T @ (share * wrong)) / source.factor
    change = theta[:-1].T / spread
    return model.with_weights(model.weights() + change.float(), model.biases() + (theta[-1] - change @ centre).float())
