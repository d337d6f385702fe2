"""Is this image from the other domain? A linear gate on features, with a bound on its errors in the source domain.

The direction is Fisher's linear discriminant between the two domains (shrunk covariance), fitted on one half of the
source images. The other half sets the threshold, by one of two rules: it is an order statistic, so that a fresh source
image passes with a probability of at most alpha (split conformal prediction; Vovk et al., 2005), and edits behind the
gate lower the expected accuracy in the source domain by at most alpha; or it is the lowest at which the edits cost
these images no more than 0.005 of balanced accuracy, which lets more images pass where the edits do little harm.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cbm.errors import UserError
from cbm.files.tensors import read_tensors, write_tensors

BATCHES = 1000  # of source pictures, drawn to calibrate a gate of batches
SHRUNK = 0.1  # share of the mean variance in the covariance
ALLOWED_LOSS = 0.005  # of balanced accuracy at home, where edits may reach pictures from there


@dataclass(frozen=True)
class Gate:
    """Selects the images that look like another domain.

    Attributes:
        direction: direction ``[D]`` between the two domains.
        threshold: value that ``x . direction`` must exceed.
        alpha: largest share of source images that pass; None if what edits cost them sets the threshold.
        batch: number of consecutive images that are judged together by their mean; 1 judges every image alone.
    """

    direction: Tensor
    threshold: float
    alpha: float | None
    batch: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Which images pass, ``[N]`` bool, by their features ``[N, D]``."""
        score = x.double() @ self.direction.to(x.device)
        parts = [part.mean().expand(len(part)) for part in score.split(self.batch)]
        return (torch.cat(parts) if parts else score) > self.threshold

    def save(self, path: Path) -> None:
        """Write ``gate.safetensors``."""
        about = {"threshold": self.threshold, "alpha": self.alpha, "batch": self.batch}
        write_tensors(path, {"direction": self.direction}, about)


def load_gate(path: Path) -> Gate:
    """Read what ``Gate.save`` wrote.

    Raises:
        UserError: the file is missing, damaged, or not a gate.
    """
    try:
        tensors, about = read_tensors(path)
        threshold, batch = float(about["threshold"]), int(about["batch"])
        alpha = None if about["alpha"] is None else float(about["alpha"])
        if tensors["direction"].dim() != 1 or batch < 1:
            raise ValueError
        return Gate(tensors["direction"], threshold, alpha, batch)
    except (FileNotFoundError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"cannot read a gate from '{path}' ({type(error).__name__}); expected gate.safetensors"
        ) from error


def fit_gate(
    source: Tensor,
    target: Tensor,
    *,
    labels: tuple[Tensor, Tensor] | None = None,
    harm: Tensor | None = None,
    alpha: float = 0.05,
    batch: int = 1,
    seed: int = 0,
) -> Gate:
    """Fit a gate between the source domain and another domain.

    With fewer than about 1 / alpha source images for calibration, no image passes (unless ``harm`` is given).

    Args:
        source: features ``[M, D]`` of images of the source domain.
        target: features ``[n, D]`` of images of the other domain.
        labels: class indices ``[M]`` and ``[n]`` of these images: what differs between classes then does not count as a
            difference between domains.
        harm: what every source image ``[M]`` loses in balanced accuracy if it is edited (negative: it gains). If it is
            given, it sets the threshold, not alpha, and every image is judged alone.
        alpha: largest share of source images that may pass.
        batch: number of images that are judged together.
        seed: random seed for the division of the source images, and for the batches.

    Raises:
        UserError: alpha is not between 0 and 1, or there are fewer than four source images.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha}: expected a share between 0 and 1")
    if len(source) < 4:
        raise UserError(f"{len(source)} source pictures; a gate needs four or more")
    source, target = source.double(), target.double()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(source), generator=generator)
    fitted, held = order[::2], order[1::2]
    direction = discriminant(source[fitted], target, None if labels is None else (labels[0][fitted], labels[1]))
    scores = source[held] @ direction
    if harm is not None:
        ranked = scores.sort(descending=True)
        cost = (harm.double()[held] * (len(source) / len(held)))[ranked.indices].cumsum(dim=0)
        beyond = (cost > ALLOWED_LOSS).nonzero()
        threshold = float(ranked.values[int(beyond[0])]) if len(beyond) else -math.inf
        return Gate(direction, threshold, None)
    if batch > 1:
        scores = scores[torch.randint(len(scores), (BATCHES, batch), generator=generator)].mean(dim=1)
    rank = math.ceil((len(scores) + 1) * (1 - alpha))
    threshold = float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf
    return Gate(direction, threshold, alpha, batch)


def discriminant(source: Tensor, target: Tensor, labels: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Fisher's discriminant ``[D]`` between two domains: the shrunk covariance's inverse times the difference of means.

    Args:
        source: features ``[M, D]``, float64.
        target: features ``[n, D]``, float64.
        labels: their class indices; if given, means are those of the classes of ``target``, all weighing the same, and
            the covariance is that within classes.
    """
    centred, gap = source - source.mean(dim=0), target.mean(dim=0) - source.mean(dim=0)
    if labels is not None:
        own, other = labels
        both = [c for c in other.unique().tolist() if bool((own == c).any())]
        means = {c: source[own == c].mean(dim=0) for c in own.unique().tolist()}
        centred = source - torch.stack([means[c] for c in own.tolist()])
        if both:
            gap = torch.stack([target[other == c].mean(dim=0) - means[c] for c in both]).mean(dim=0)
    covariance = centred.T @ centred / max(len(centred) - 1, 1)
    average = float(covariance.diagonal().mean())
    identity = torch.eye(len(covariance), dtype=torch.float64)
    return torch.linalg.solve((1 - SHRUNK) * covariance + max(SHRUNK * average, 1e-12) * identity, gap)
