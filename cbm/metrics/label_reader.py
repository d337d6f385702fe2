"""Reader AUROC: could somebody who reads only the few words that an image gets say which labels it has?

``cbm.metrics.reader`` for labels that do not exclude each other: what the words say of a label ranks the images, and
the mean AUROC of the labels takes the place of accuracy. Nothing is trained.

    reader AUROC = mean_l AUROC of (Z A)_l for y_l            Z [N, K] codes, A [K, L] what the names say of the labels
"""

import numpy as np
import torch
from torch import Tensor

from cbm.metrics.exchange import LEVEL, WAYS, ways_to_deal
from cbm.metrics.multilabel import auroc, auroc_macro_interval
from cbm.metrics.reader import Reading
from cbm.solvers import Codes


def labels_by_owners(owners: Tensor) -> Tensor:
    """What names say of labels, where every phrase was written for some of them: 1 for these, ``[K, L]``.

    Not centred, as of classes: a word for one label is no word against the others.

    Args:
        owners: which label owns which concept, ``[L, K]`` bool.
    """
    return owners.T.float()


def read_labels(
    words: Codes,
    says: Tensor,
    y: Tensor,
    by: str,
    *,
    subjects: np.ndarray | None = None,
    draws: int = 199,
    seed: int = 0,
) -> Reading | None:
    """Reader AUROC with its permutation null, as ``cbm.metrics.reader.read``.

    Args:
        words: the few words of N images.
        says: what the names say of the labels, ``[K, L]``.
        y: labels ``[N, L]``: 1, 0, or NaN if unknown.
        by: who reads, for the table.
        subjects: subject ``[N]`` of each image, whose images are not independent; None if every image is its own.
        draws: permutations of the rows of ``says``.
        seed: random seed of the permutations.

    Returns:
        The reading, whose accuracies are AUROCs; None if no label is scored on these images.

    Example:
        >>> y = torch.eye(8).repeat(25, 1)
        >>> words = Codes(torch.ones(200, 1), y.argmax(dim=1)[:, None], *torch.zeros(2, 200), 1)  # one word an image
        >>> found = read_labels(words, torch.eye(8), y, "owners")
        >>> found.accuracy, round(found.null, 1), found.p
        (1.0, 0.5, 0.005)
    """
    generator = torch.Generator().manual_seed(seed)
    ranked = words.reconstruct(says)
    value = float(auroc(ranked, y).nanmean())
    if value != value:  # no label is scored
        return None
    orders = (torch.randperm(len(says), generator=generator) for _ in range(draws))
    null = torch.stack([auroc(words.reconstruct(says[order]), y).nanmean() for order in orders])
    low, high = auroc_macro_interval(ranked, y, subjects)
    untestable = ""
    if ways_to_deal(says) < WAYS:
        untestable = f"{len(says)} concept(s) can be dealt out in too few ways"
    elif (1 + int((null >= 1 - 1e-6).sum())) / (1 + draws) >= LEVEL:
        untestable = f"{len(y)} image(s) are too few: exchanged names read them without a mistake as well"
    as_good = int((null >= value - 1e-6).sum())
    return Reading(
        by, value, low, high, float(null.mean()), float(null.std()), float(null.max()),
        (1 + as_good) / (1 + draws), draws, len(y), untestable,
    )  # fmt: skip
