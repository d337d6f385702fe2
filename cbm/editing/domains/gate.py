"""Is this image from the other domain? A linear gate on features, with a bound on its errors in the source domain.

The direction between the two domains' means, in units of their variances, is fitted on one half of the source images;
the threshold is an order statistic of the other half, so that a fresh source image passes with a probability of at
most alpha (split conformal prediction; Vovk et al., 2005). Edits behind the gate lower the expected accuracy in the
source domain by at most alpha.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cbm.errors import UserError
from cbm.files.tensors import read_tensors, write_tensors

BATCHES = 1000  # of source pictures, drawn to calibrate a gate of batches


@dataclass(frozen=True)
class Gate:
    """Selects the images that look like another domain.

    Attributes:
        direction: direction ``[D]`` between the two domains.
        threshold: value that ``x . direction`` must exceed.
        alpha: largest share of source images that pass.
        batch: number of consecutive images that are judged together by their mean; 1 judges every image alone.
    """

    direction: Tensor
    threshold: float
    alpha: float
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
        threshold, alpha, batch = float(about["threshold"]), float(about["alpha"]), int(about["batch"])
        if tensors["direction"].dim() != 1 or batch < 1:
            raise ValueError
        return Gate(tensors["direction"], threshold, alpha, batch)
    except (FileNotFoundError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"cannot read a gate from '{path}' ({type(error).__name__}); expected gate.safetensors"
        ) from error


def fit_gate(source: Tensor, target: Tensor, *, alpha: float = 0.05, batch: int = 1, seed: int = 0) -> Gate:
    """Fit a gate between the source domain and another domain.

    With fewer than about 1 / alpha source images for calibration, no image passes.

    Args:
        source: features ``[M, D]`` of images of the source domain.
        target: features ``[n, D]`` of images of the other domain.
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
    fitted, held = source[order[::2]], source[order[1::2]]
    spread = 0.5 * fitted.var(dim=0)
    spread = spread + spread.mean().clamp(min=1e-12)
    direction = (target.mean(dim=0) - fitted.mean(dim=0)) / spread
    scores = held @ direction
    if batch > 1:
        scores = scores[torch.randint(len(scores), (BATCHES, batch), generator=generator)].mean(dim=1)
    rank = math.ceil((len(scores) + 1) * (1 - alpha))
    threshold = float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf
    return Gate(direction, threshold, alpha, batch)
