"""The source card: features of the domain that a model was trained for, kept for later corrections.

It is written with every run, from validation images (the model is too certain about training images), and holds their
features in half precision, so that no image of the source domain is needed again.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cbm.editing.domains.concept_head import ConceptHead
from cbm.editing.domains.guard import balanced_weights
from cbm.errors import UserError
from cbm.files.tensors import read_tensors, write_tensors

PER_CLASS = 200
ROWS = 50_000  # of all classes: 77 MB at 768 dimensions
RESAMPLES = 1000


@dataclass(frozen=True)
class SourceCard:
    """Labelled images of the source domain.

    Attributes:
        x: features ``[M, D]``, at most 200 per class and 50,000 in total.
        y: class indices ``[M]``.
    """

    x: Tensor
    y: Tensor

    def save(self, path: Path) -> None:
        """Write ``source_card.safetensors``."""
        write_tensors(path, {"x": self.x.half(), "y": self.y})


def source_card(x: Tensor, y: Tensor, num_classes: int, seed: int = 0) -> SourceCard:
    """Make the source card from up to 200 images of every class, drawn at random.

    Args:
        x: features ``[N, D]``.
        y: class indices ``[N]``.
        num_classes: number of classes C.
        seed: random seed for the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    count = min(PER_CLASS, max(ROWS // num_classes, 2))
    rows = torch.cat([order[y[order] == c][:count] for c in y.unique()])
    return SourceCard(x[rows], y[rows])


def load_source_card(path: Path) -> SourceCard:
    """Read what ``SourceCard.save`` wrote.

    Raises:
        UserError: the file is missing (the run is older than source cards), or damaged.
    """
    try:
        tensors, _ = read_tensors(path)
        x, y = tensors["x"].float(), tensors["y"].long()
    except FileNotFoundError as error:
        raise UserError(f"no source card '{path}': train the run again, it is written at the end") from error
    except KeyError as error:
        raise UserError(f"'{path}' is no source card: it has no tensor {error}") from error
    if x.dim() != 2 or y.shape != x.shape[:1]:
        raise UserError(f"'{path}' is no source card: features {list(x.shape)} and classes {list(y.shape)}")
    if not x.isfinite().all():
        raise UserError(f"'{path}' is damaged: it holds NaN or infinite features")
    return SourceCard(x, y)


@dataclass(frozen=True)
class SourceStatistics:
    """Statistics of one model's concepts in the source domain.

    Attributes:
        mean: mean activations ``[C, K]`` by class.
        std: standard deviations ``[C, K]`` by class.
        a: activations ``[M, K]``.
        y: class indices ``[M]``.
        factor: factor on the logits that calibrates them.
    """

    mean: Tensor
    std: Tensor
    a: Tensor
    y: Tensor
    factor: float

    @property
    def reference(self) -> Tensor:
        """Mean activations ``[K]`` over the classes."""
        return self.mean.mean(dim=0)

    @property
    def scale(self) -> Tensor:
        """Units ``[C, K]`` of deviations: a class's standard deviation plus a tenth of the pooled one."""
        return self.std + 0.1 * self.std.square().mean(dim=0).sqrt()


@torch.no_grad()
def source_statistics(a: Tensor, y: Tensor, head: ConceptHead) -> SourceStatistics:
    """Statistics of a model's concepts in the source domain.

    Args:
        a: activations ``[M, K]``.
        y: class indices ``[M]``.
        head: head that decides from the activations.

    Raises:
        UserError: a class has fewer than two images.
    """
    a = a.double()
    z = head(a)
    means, stds = [], []
    for c in range(z.shape[1]):
        own = a[y == c]
        if len(own) < 2:
            raise UserError(f"class {c} has {len(own)} pictures in the source domain; a source card needs two or more")
        means.append(own.mean(dim=0))
        stds.append(own.std(dim=0))
    gap = z.topk(2, dim=1).values.diff().neg().median().clamp(min=1e-12)
    grid = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64) / gap
    losses = [float(torch.nn.functional.cross_entropy(factor * z, y)) for factor in grid]
    return SourceStatistics(torch.stack(means), torch.stack(stds), a, y, float(grid[losses.index(min(losses))]))


def effect_at_home(before: Tensor, after: Tensor, y: Tensor) -> tuple[float, float, tuple[float, float]]:
    """What a correction does at home: balanced accuracy before and after, and a 95 % interval of the change.

    Args:
        before: whether each image of the source card ``[M]`` is classified correctly by the model as it was.
        after: the same of the corrected model.
        y: class indices ``[M]``.
    """
    share = balanced_weights(y)
    change = share * (after.double() - before.double())
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(change), (RESAMPLES, len(change)), generator=generator)
    low, high = change[drawn].sum(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float((share * before).sum()), float((share * after).sum()), (low, high)
