"""Dictionaries that need no training: clusters, sums, random directions, parts of pictures, and files of others."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cbm.data.features import FeatureData, mean_feature
from cbm.errors import UserError
from cbm.files.dictionaries import Dictionary, read_dictionary
from cbm.kernels import topk_concepts
from cbm.layers import SparseCode, UnitCode
from cbm.metrics.dictionaries import directions_like
from cbm.metrics.reader import centre
from cbm.solvers import Codes, medoids, semi_nmf, spherical_kmeans

log = logging.getLogger(__name__)

UNITS = 16
"""Units of an image, if nothing says how many."""
ROWS = 20_000
"""Training images that semi-NMF and the covariance are taken from, at most."""
MANY_ROWS = 200_000
"""Training images, or parts of them, that clusters are made of, at most."""
SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 28.0, 50.0)
"""Lengths of features at which a file's dictionary is tried that does not say its own."""


class Found(nn.Module):
    """A dictionary of the training images, before it has names and a head.

    Args:
        directions: directions ``[K, D]`` that scores are taken with.
        atoms: atoms ``[K, D]``.
        layer: what makes codes of scores; None if the head reads the scores.
        crops: the part of a picture (its name and its box) that each unit is the centre of, if they are parts.
    """

    directions: Tensor
    atoms: Tensor

    def __init__(
        self,
        directions: Tensor,
        atoms: Tensor,
        layer: UnitCode | SparseCode | None,
        crops: list[tuple[str, list[float]]] | None = None,
    ):
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("atoms", atoms)
        self.layer, self.crops = layer, crops

    def take(self, columns: Tensor) -> "Found":
        """The units at ``columns``."""
        layer = self.layer
        if isinstance(layer, UnitCode):
            layer = layer.take(columns)
        elif isinstance(layer, SparseCode):
            layer = _matching_pursuit(len(columns), layer.mean, int(layer.k))
        return Found(self.directions[columns], self.atoms[columns], layer)

    def coded(self, k: int, mean: Tensor) -> "Found":
        """The same atoms, used by sparse codes of exactly k of them that begin at ``mean`` ``[D]``."""
        return Found(self.atoms, self.atoms, _matching_pursuit(len(self.atoms), mean, k), self.crops)


def _matching_pursuit(count: int, mean: Tensor, k: int) -> SparseCode:
    """Codes of exactly k of ``count`` atoms."""
    zeros = torch.zeros(count)
    return SparseCode(zeros, mean, zeros, 0.0, min(k, count), free=False, refit=False, radius=0)


def clusters(kind: str, data: FeatureData, size: int, mean: Tensor, seed: int) -> Found:
    """Directions that the head reads cosines with: ``kmeans``, ``semi_nmf`` or ``crops``.

    Args:
        kind: how they are found.
        data: encoded splits; ``crops`` needs ``data.crops``.
        size: number of units K.
        mean: mean feature ``[D]`` of the training images.
        seed: random seed.

    Raises:
        UserError: there are no images to cut parts of.
    """
    x, shown = data.train.x, None
    if kind == "semi_nmf":
        atoms = semi_nmf(centre(some_rows(x, ROWS, seed).float(), mean), size, seed=seed)[0]
    elif kind == "kmeans":
        atoms = spherical_kmeans(centre(some_rows(x, MANY_ROWS, seed).float(), mean), size, seed=seed)[0]
    else:
        atoms, shown = crop_centres(data, size, seed)
    return Found(atoms, atoms, None, shown)


def from_file(file: Path, x: Tensor, mean: Tensor, k: int | None, code: bool) -> Found:
    """The dictionary of a file, as units of features of length 1.

    Args:
        file: the file, or a folder with one.
        x: features ``[N, D]`` of the training images.
        mean: their mean ``[D]``, from which atoms without an encoder and without a mean are seen.
        k: units of an image; None as the file says.
        code: whether the units are used by sparse codes over their atoms.

    Raises:
        UserError: the file cannot be read, or is of features of another width.
    """
    given = read_dictionary(file, x.shape[1])
    few_units, kept = k or UNITS, k or given.k or 0
    few = some_rows(x, 2000, 0).float()
    scales = SCALES if given.scale is None else (given.scale,)
    if given.encoder is None:
        atoms = normalize(given.atoms.float(), dim=1)
        means = [given.mean / scale for scale in scales] if bool(given.mean.any()) else [mean]
        made = [strongest_scores(atoms, mean, few_units, few) for mean in means]
    else:
        made = [_units_of(given, scale, kept) for scale in scales]
    if code:
        made = [found.coded(few_units, start_of(found)) for found in made]
    fits = [_explained(found, few) for found in made]
    best = max(range(len(made)), key=lambda i: fits[i])
    at = f", at {scales[best]:g} times their length of 1 (the file does not say at which)"
    log.info("'%s': %d units (%s) explain %.0f %% of what the training images differ in%s",
             file, len(given), given.source, 100 * fits[best],
             "" if given.scale is not None or len(made) == 1 else at)  # fmt: skip
    if fits[best] < 0.1:
        log.warning("'%s': its units say nearly nothing of these images: it was made of other features (another "
                    "encoder, layer, or patches instead of whole images)", file)  # fmt: skip
    return made[best]


def start_of(found: Found) -> Tensor:
    """The feature ``[D]`` that a dictionary gives an image on which no unit fires.

    Raises:
        ValueError: its scores are read as they are.
    """
    if found.layer is None:
        raise ValueError("a dictionary whose scores are read has no start")
    return found.layer.mean


def crop_centres(data: FeatureData, size: int, seed: int) -> tuple[Tensor, list[tuple[str, list[float]]]]:
    """Centres ``[K, D]`` of parts of the training images, and the part nearest to each: the concept's picture.

    Raises:
        UserError: there are no images.
    """
    if data.crops is None:
        raise UserError("method.dictionary=crops needs the training images themselves, and features that were made "
                        "elsewhere have none: choose kmeans")  # fmt: skip
    chosen = torch.randperm(len(data.crops), generator=torch.Generator().manual_seed(seed))[:MANY_ROWS].sort().values
    parts = centre(data.crops.x[chosen].float(), mean_feature(data.crops.x))
    centres, nearest, _ = spherical_kmeans(parts, min(size, len(parts) // 2), seed=seed)
    rows = medoids(parts, centres, nearest)
    centres, rows = centres[rows >= 0], chosen[rows[rows >= 0]]
    crops = data.crops
    return centres, [(crops.names[row].rpartition("#")[0], crops.box[row].tolist()) for row in rows.tolist()]


def _units_of(given: Dictionary, scale: float, k: int) -> Found:
    """Units that read features of length 1 as a file's dictionary reads them at ``scale`` times that length."""
    assert given.encoder is not None
    bias = given.atoms.new_zeros(len(given)) if given.encoder_bias is None else given.encoder_bias
    offset = -bias / scale
    if given.subtracts:
        offset = offset + given.encoder @ given.mean / scale
    threshold = torch.zeros_like(offset) if given.threshold is None else given.threshold.clamp(min=0) / scale
    zeros = torch.zeros_like(offset)
    layer = UnitCode(offset, given.mean / scale, zeros, given.atoms, k, threshold)
    return Found(given.encoder, normalize(given.atoms, dim=1), layer)


def _explained(found: Found, x: Tensor) -> float:
    """Share of the variance of images that the units say."""
    assert found.layer is not None
    said = found.layer.mean + found.layer.code(x, found.directions).reconstruct(found.layer.parts(found.directions))
    return 1 - float((x - said).square().sum() / (x - x.mean(dim=0)).square().sum())


def nearest_units(x: Tensor, atoms: Tensor, mean: Tensor, k: int) -> Codes:
    """The k atoms ``[K, D]`` whose cosine with each image, seen from the mean, is largest."""
    values, columns = topk_concepts(x, atoms, min(k, len(atoms)), beta=-(atoms @ mean))
    unknown = torch.full((len(x),), torch.nan, dtype=torch.float64)
    return Codes(values, columns, unknown, unknown, passes=1)


def random_units(data: FeatureData, count: int, k: int, seed: int) -> Found:
    """Directions drawn with the covariance of the training images, of which the k strongest fire."""
    x, mean = data.train.x, mean_feature(data.train.x)
    atoms = directions_like(torch.cov(centre(some_rows(x, ROWS, 0).float(), mean).T), count, seed)
    return strongest_scores(atoms, mean, k, x)


def strongest_scores(atoms: Tensor, mean: Tensor, k: int, x: Tensor) -> Found:
    """Atoms without an encoder: the k with the largest cosines fire, each so strongly that together they come as near
    to the training images as one factor can bring them."""
    layer = UnitCode(atoms @ mean, mean, torch.zeros(len(atoms)), atoms, min(k, len(atoms)))
    away = some_rows(x, 2000, 0).float() - mean
    said = layer.code(away + mean, atoms).reconstruct(atoms)
    layer.atoms *= float((away * said).sum() / said.square().sum().clamp(min=1e-12))
    return Found(atoms, atoms, layer)


def some_rows(x: Tensor, most: int, seed: int) -> Tensor:
    """``x``, or some of its rows."""
    if len(x) <= most:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most].sort().values]
