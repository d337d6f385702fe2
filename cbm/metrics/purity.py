"""Is a concept's score about its own concept, and about nothing else? Purity of learned concepts against known ones.

These metrics were published in forms that a model without any fault does not pass: what they are depends on the number
of pictures, and one of them is .48 for pure noise. Here each is cross-fitted and adjusted for chance, so that a score
that knows nothing has 0 and a perfect one has what its name promises; the published form is said beside it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, spaced
from cbm.layers import ConceptBottleneck
from cbm.metrics.information import binned
from cbm.metrics.leakage import CONCEPTS, labelled_columns, scores_of
from cbm.metrics.multilabel import auroc
from cbm.metrics.truth import auroc_matrix
from cbm.solvers import LinearScores, elastic_net_paths, fit_labels

FOLDS = 5
IMAGES = 2000
"""Pictures on which impurity is measured in a run, at most: at even distances."""
DRAWS = 10
"""Permutations of the scores."""
BETAS = tuple(step / 20 for step in range(20))
"""Correlations below which a score counts as far from a concept's own niche: 0, .05, ... .95."""
TAU = 0.95


def purity_matrix(scores: Tensor, truth: Tensor, seed: int = 0) -> Tensor:
    """How well score k tells concept j: AUROC ``[K, J]``, float64, NaN where that is not defined.

    The direction in which a score speaks for a concept is learned on four fifths of the pictures and used on the rest
    (Espinosa Zarlenga et al., "Towards Robust Metrics for Concept Representation Evaluation", AAAI 2023, train a
    network on one split of the pictures instead).

    Args:
        scores: scores ``[N, K]``.
        truth: labels ``[N, J]``: 1, 0, or NaN if unknown.
        seed: random seed of the folds.

    Example:
        >>> truth = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]]).repeat(10, 1)
        >>> purity_matrix(torch.stack([-truth[:, 0], truth[:, 1]], dim=1), truth).diagonal().tolist()
        [1.0, 1.0]
    """
    fold = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed)) % FOLDS
    total = torch.zeros(scores.shape[1], truth.shape[1], dtype=torch.float64)
    folds = torch.zeros_like(total)
    for part in range(FOLDS):
        learned, _ = auroc_matrix(scores[fold != part], truth[fold != part])
        seen, _ = auroc_matrix(scores[fold == part], truth[fold == part])
        seen = torch.where(learned >= 0.5, seen, 1 - seen)
        there = ~seen.isnan() & ~learned.isnan()
        total += seen.nan_to_num() * there
        folds += there
    return total / folds


def oracle_impurity(scores: Tensor, truth: Tensor, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Oracle impurity score: how much more scores tell of each other's concepts than these tell of each other.

    ``|A - O|_F / (K / 2)`` of the purity matrices of the scores and of the true concepts, in its square minus what
    scores have that say nothing but their own concept: the mean over permutations of each score among the pictures
    with the same answer. 0 is pure. Without that a pure model has .11, .07, .03 on 200, 500, 2,000 pictures, and as
    published, by a network and with one split of the pictures, .24, .15, .08.

    Args:
        scores: scores ``[N, K]``.
        truth: labels ``[N, K]`` of the same concepts: 1, 0, or NaN if unknown.
        draws: permutations.
        seed: random seed.

    Returns:
        The impurity, 0 or more; NaN if no two concepts have both labels.
    """
    oracle = purity_matrix(truth, truth, seed).fill_diagonal_(1.0)
    generator = torch.Generator().manual_seed(seed)
    found = _squared_distance(purity_matrix(scores, truth, seed), oracle)
    pure = [
        _squared_distance(purity_matrix(_exchanged(scores, truth, generator), truth, seed), oracle)
        for _ in range(draws)
    ]
    return math.sqrt(max(0.0, found - sum(pure) / draws)) if found == found else math.nan


def niche_impurity(scores: Tensor, truth: Tensor, seed: int = 0) -> float:
    """Niche impurity score: how well concepts are told by the scores that have little to do with each.

    All scores together predict every concept by logistic regression. Its own score, and those that correlate with it by
    more than beta, are then held at their mean, and the AUROC of what is left, averaged over beta, is brought to 0 for
    guessing and 1 for perfect. As published (a network, zero instead of the mean, no adjustment, own scores where they
    are noisy) a pure model has about .48.

    Args:
        scores: scores ``[N, K]``.
        truth: labels ``[N, K]`` of the same concepts: 1, 0, or NaN if unknown.
        seed: random seed of the folds.
    """
    z = _standardised(scores)
    near = _correlations(z, truth).abs().fill_diagonal_(math.inf)
    fold = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed)) % FOLDS
    areas = []
    for part in range(FOLDS):
        away, here = fold != part, fold == part
        known = ~truth[away].isnan().all(dim=0)
        ((weight, _),) = fit_labels(z[away], truth[away][:, known], l2=[0.01], tol=1e-4)
        curve = []
        for beta in BETAS:
            kept = weight * (near[:, known] <= beta).T
            curve.append(auroc(z[here] @ kept.T, truth[here][:, known]).nanmean())
        areas.append(torch.trapezoid(torch.stack(curve), torch.tensor(BETAS, dtype=torch.float64)))
    return float((torch.stack(areas).nanmean() / BETAS[-1] - 0.5) / 0.5)


def alignment_score(scores: Tensor, truth: Tensor) -> float:
    """Concept alignment score: whether pictures with near scores have the same answer, mean over the concepts.

    The scores of a concept are divided into bins of as many pictures each, ten numbers of bins from 2 to sqrt(N). What
    these say of the answer, beyond what bins drawn at random would seem to say, is divided by what perfect scores would
    say. Pure noise has 0 and perfect scores have 1. As published (clusters up to the number of pictures, no adjustment)
    noise has .48.

    Args:
        scores: scores ``[N, K]``.
        truth: labels ``[N, K]``: 1, 0, or NaN if unknown.
    """
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    found = []
    for score, label in zip(scores.double().numpy().T, truth.double().numpy().T):
        known = ~np.isnan(label)
        answer, values = label[known].astype(np.int64), score[known]
        if len(np.unique(answer)) < 2:
            continue
        most = max(2, math.isqrt(len(answer)))
        ordered = answer + 0.5 * np.arange(len(answer)) / len(answer)  # what perfect scores make of so many bins
        counts = sorted({round(2 + (most - 2) * step / 9) for step in range(10)})
        shares = []
        for count in counts:
            bins = binned(values, count)
            table = contingency_matrix(answer, bins, sparse=True)
            chance = expected_mutual_information(table, len(answer))
            best = mutual_info_score(answer, binned(ordered, count)) - chance
            shares.append(min(1.0, (mutual_info_score(answer, bins) - chance) / max(best, 1e-12)))
        found.append(float(np.mean(shares)))
    return float(np.mean(found)) if found else math.nan


@dataclass(frozen=True)
class Disentanglement:
    """Disentanglement, completeness and informativeness of scores (Eastwood and Williams, ICLR 2018).

    Attributes:
        disentanglement: 1 if every score is used for one concept, 0 if it is used for all alike.
        completeness: 1 if every concept is told by one score, 0 if all are needed alike.
        informativeness: how well they tell the concepts: mean AUROC on pictures that were not learned from.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def disentanglement(scores: Tensor, truth: Tensor, *, draws: int = 3, seed: int = 0) -> Disentanglement:
    """``Disentanglement`` by sparse logistic regressions of every concept on all scores, with certificates.

    A sparse head on pure noise picks a few scores too, so the first two are 0 for what scores of other pictures get
    (exchanged at random, mean of some draws) and 1 for perfect.

    Args:
        scores: scores ``[N, K]``, K at least 2.
        truth: labels ``[N, J]`` of yes and no, all known, J at least 2.
        draws: exchanges.
        seed: random seed of the exchanges, and of the pictures that are held out (a fifth).

    Example:
        >>> truth = (torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        >>> found = disentanglement(truth * 2 - 1, truth)
        >>> round(found.disentanglement, 2), round(found.completeness, 2), found.informativeness
        (1.0, 1.0, 1.0)
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.randperm(len(scores), generator=generator) % FOLDS == 0
    weight, informativeness = _sparse_heads(scores, truth, held)
    seen = torch.tensor(_concentration(weight.T)), torch.tensor(_concentration(weight))
    null = torch.zeros(2, dtype=torch.float64)
    for _ in range(draws):
        moved, _ = _sparse_heads(scores[torch.randperm(len(scores), generator=generator)], truth, held)
        null += torch.tensor([_concentration(moved.T), _concentration(moved)]) / draws
    adjusted = [float((value - chance) / (1 - chance).clamp(min=1e-9)) for value, chance in zip(seen, null)]
    return Disentanglement(adjusted[0], adjusted[1], informativeness)


@torch.no_grad()
def contribution_counts(model: ConceptBottleneck, x: Tensor, tau: float = TAU) -> dict[str, float]:
    """Number of contributing concepts: the fewest whose contributions make up a share of all, mean over the pictures.

    ``ncc`` is that of the predicted class, ``ncc_all`` the mean over all classes, as it was published. A contribution
    is counted from the concept's reference value, as everywhere. It is not the number of effective concepts (NEC),
    which counts weights: the two never share a column.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        tau: share of the sum of the absolute contributions.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau is {tau}; expected a share above 0, up to 1")
    weights = model.weights()
    own, every = 0.0, 0.0
    for part in x.split(max(1, 2_000_000 // max(weights.numel(), 1))):
        moved = model.activations(part) - model.reference
        counts = fewest((moved[:, None, :] * weights).abs(), tau).double()
        own += float(counts.gather(1, model(part).argmax(dim=1)[:, None]).sum())
        every += float(counts.mean(dim=1).sum())
    return {"ncc": own / len(x), "ncc_all": every / len(x)}


@torch.no_grad()
def quality_metrics(
    model: torch.nn.Module, bank: ConceptBank | None, data: FeatureData, name: str = "test", seed: int = 0
) -> dict[str, float]:
    """Purity of the concepts that the data set labels, with keys ``purity/...``: ``ois`` on ``ois_n`` pictures, and
    ``ncc`` and ``ncc_all``. Nothing of a model without a linear head, nor where fewer than two concepts have labels.

    Args:
        model: a bottleneck.
        bank: the concepts of its columns.
        data: encoded splits.
        name: name of the split.
        seed: random seed.
    """
    split = data.splits[name]
    pairs = labelled_columns(bank, data, split)
    if len(pairs) < 2 or not isinstance(model, ConceptBottleneck) or split.concepts is None:
        return {}
    few = split.take(spaced(torch.arange(len(split)), IMAGES).numpy())
    assert few.concepts is not None
    plain = [pair for pair in pairs if set(few.concepts[:, pair[1]].nan_to_num().unique().tolist()) <= {0.0, 1.0}]
    plain = [plain[i] for i in spaced(torch.arange(len(plain)), CONCEPTS).tolist()]
    values: dict[str, float] = {}
    if len(plain) > 1:
        columns, numbers = ([pair[i] for pair in plain] for i in (0, 1))
        impurity = oracle_impurity(scores_of(model, few.x, columns), few.concepts[:, numbers], seed=seed)
        values |= {} if math.isnan(impurity) else {"ois": impurity, "ois_n": float(len(few))}
    at_most = max(20, min(1000, 50_000_000 // max(model.weights().numel(), 1)))
    values |= contribution_counts(model, spaced(split.x, at_most))
    return {f"purity/{key}": value for key, value in values.items()}


def fewest(sizes: Tensor, tau: float) -> Tensor:
    """How many of the largest numbers ``[..., K]`` >= 0 make up the share ``tau`` of their sum, ``[...]`` int64.

    >>> fewest(torch.tensor([[4.0, 1, 5, 0], [0, 0, 0, 0]]), 0.9).tolist(), fewest(torch.tensor([4.0, 1, 5, 0]), 1.0)
    ([2, 0], tensor(3))
    """
    ordered = sizes.double().sort(dim=-1, descending=True).values
    before = ordered.cumsum(dim=-1) - ordered
    total = ordered.sum(dim=-1, keepdim=True)
    return ((before < tau * total * (1 - 1e-12)) & (ordered > 0)).sum(dim=-1)


# ------------------------------------------------------------------------------------------------------------ in pieces


def _squared_distance(one: Tensor, oracle: Tensor) -> float:
    """``(|A - O|_F / (K / 2))^2`` over the entries that are defined; NaN if there are none beside the diagonal."""
    known = ~one.isnan() & ~oracle.isnan()
    if not bool((known & ~torch.eye(len(known), dtype=torch.bool)).any()):
        return math.nan
    return float((one - oracle)[known].square().mean()) * 4


def _exchanged(scores: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """The scores, each permuted among the pictures with the same answer to its own concept."""
    moved = scores.clone()
    for k in range(scores.shape[1]):
        for value in (0.0, 1.0):
            rows = (truth[:, k] == value).nonzero().flatten()
            keys = torch.rand(len(rows), generator=generator)
            moved[rows, k] = scores[rows[keys.argsort()], k]
    return moved


def _standardised(scores: Tensor) -> Tensor:
    spread = scores.float().std(dim=0)
    return (scores.float() - scores.float().mean(dim=0)) / torch.where(spread > 1e-9, spread, 1.0)


def _correlations(z: Tensor, truth: Tensor) -> Tensor:
    """Correlations ``[K, J]`` of standardised scores with labels, over the pictures where a label is known."""
    known = (~truth.isnan()).float()
    label = truth.nan_to_num() - (truth.nan_to_num().sum(dim=0) / known.sum(dim=0).clamp(min=1)) * known
    label = label * known
    above = z.T @ label - (z.T @ known) / known.sum(dim=0).clamp(min=1) * label.sum(dim=0)
    spread = (z.square().T @ known).sqrt() * label.square().sum(dim=0).sqrt()
    return above / spread.clamp(min=1e-12)


def _sparse_heads(scores: Tensor, truth: Tensor, held: Tensor) -> tuple[Tensor, float]:
    """Sizes ``[J, K]`` of the weights of sparse logistic regressions, and their mean AUROC on the pictures held out."""
    linear = LinearScores(scores[~held].float())
    y = truth[~held].T.contiguous().long()
    paths = elastic_net_paths(linear, y, num_classes=1, link="binary", n_lambdas=8, lambda_ratio=1 / 20)
    weight = torch.cat([path.points[-1].weight() for path in paths]).double()
    logits = (scores[held].double() - linear.mean) * linear.inverse_std @ weight.T
    return weight.abs(), float(auroc(logits, truth[held]).nanmean())


def _concentration(sizes: Tensor) -> float:
    """How far every row of sizes >= 0 ``[R, M]`` is in one place: 1 minus its entropy as a share of that of equal ones,
    mean by the sums of the rows."""
    total = sizes.sum(dim=1)
    shares = sizes / total.clamp(min=1e-30)[:, None]
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum(dim=1) / math.log(sizes.shape[1])
    return float(((1 - entropy) * total).sum() / total.sum().clamp(min=1e-30))
