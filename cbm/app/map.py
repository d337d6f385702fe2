"""The split as a map: pictures near each other look alike, to the encoder or to the concepts.

Places are the first two principal components (of at most ``SAMPLED`` pictures, at even distances), or UMAP's where
``umap-learn`` is installed. They are sent to the browser as whole numbers of 16 bits: 4 bytes a picture.
"""

import base64
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from cbm.app.explorer import Explorer
from cbm.app.filters import groups, scores_of
from cbm.app.session import Session
from cbm.data.features import spaced
from cbm.errors import UserError, did_you_mean

FEATURES, CONCEPTS, UMAP = "features", "concepts", "features, by UMAP"
CLASS, RIGHT, HELD = "true class", "right or wrong", "the held concept"
SAMPLED = 20_000
"""Pictures from which the components are computed."""
READ = 512
"""Concepts that place pictures, at most: those with the largest importance."""
STEPS = 32_767
"""Steps from the middle of the map to its edge."""
CYCLE = 12
"""Colours of classes; the thirteenth has that of the first."""
LEVELS = 32
"""Shades of a concept's score."""


@dataclass(frozen=True)
class Map:
    """What the browser draws.

    Attributes:
        points: base64 of little-endian int16 ``[N, 2]``.
        colours: base64 of uint8 ``[N]``: which colour every point has.
        scale: ``classes``, ``two`` or ``shades``: what colours there are.
        legend: words for the colours, where they are few; else for both ends.
        labels: base64 of little-endian uint16 ``[N, 2]``: true and predicted class; empty for several labels.
        classes: class names.
        explained: share of the variance that is in the map; None for UMAP.
    """

    points: str
    colours: str
    scale: str
    legend: list[str]
    labels: str
    classes: list[str]
    explained: float | None


def ways_to_place(explorer: Explorer) -> list[str]:
    """By what pictures can be placed."""
    ways = [FEATURES, CONCEPTS] if explorer.bottleneck is not None else [FEATURES]
    return [*ways, UMAP] if find_spec("umap") is not None else ways


def ways_to_colour(explorer: Explorer) -> list[str]:
    """By what pictures can be coloured."""
    ways = [RIGHT] if explorer.many else [CLASS, RIGHT]
    columns = dict.fromkeys(name for name, _ in groups(explorer).values())
    return [*ways, *columns, *([HELD] if explorer.bottleneck is not None else [])]


@lru_cache(maxsize=4)
@torch.no_grad()
def place(explorer: Explorer, by: str) -> tuple[Tensor, float | None]:
    """Where every picture lies, ``[N, 2]`` from -1 to 1, and the share of the variance that this shows.

    Raises:
        UserError: nothing is placed by that.
    """
    if by not in ways_to_place(explorer):
        raise UserError(f"no map by '{by}': {did_you_mean(by, ways_to_place(explorer))}")
    x = explorer.split.x
    if by == CONCEPTS:
        model = explorer.bottleneck
        assert model is not None
        importance = model.importance().abs().amax(dim=0)
        columns = importance.topk(min(READ, len(importance))).indices.sort().values.tolist()
        x = torch.cat([model.scores(part, columns) for part in x.split(8192)])
        x = (x - x.mean(dim=0)) / x.std(dim=0).clamp(min=1e-6)
    if by == UMAP:
        import umap

        points = torch.from_numpy(umap.UMAP(random_state=0, metric="cosine").fit_transform(x.numpy())).float()
        return scaled(points - points.mean(dim=0)), None
    return principal(x)


def principal(x: Tensor) -> tuple[Tensor, float]:
    """The first two principal components of rows ``[N, D]``, scaled to -1 to 1, and their share of the variance.

    Every component points to where its largest entry is positive, so that the map does not flip from run to run.
    """
    some = spaced(x, SAMPLED).double()
    mean = some.mean(dim=0)
    values, vectors = torch.linalg.eigh((some - mean).T @ (some - mean))
    first = vectors[:, -2:].flip(1)
    if first.shape[1] < 2:
        first = torch.cat([first, torch.zeros_like(first)], dim=1)
    largest = first.gather(0, first.abs().argmax(dim=0, keepdim=True))[0]
    first = (first * torch.where(largest < 0, -1.0, 1.0)).float()
    share = float(values[-2:].clamp(min=0).sum() / values.clamp(min=0).sum().clamp(min=1e-30))
    return scaled(torch.cat([(part - mean.float()) @ first for part in x.split(8192)])), share


def scaled(points: Tensor) -> Tensor:
    """Points ``[N, 2]`` in the square from -1 to 1, one thousandth of them at its edges."""
    size = points.abs().flatten().double()
    most = float(size.kthvalue(max(1, round(0.999 * len(size)))).values) if len(size) else 1.0
    return (points / max(most, 1e-12)).clamp(-1, 1)


def coloured(tab: Session, by: str) -> tuple[Tensor, str, list[str]]:
    """The colour ``[N]`` uint8 of every picture, the scale, and what the colours mean.

    Raises:
        UserError: nothing is coloured by that, or no concept is held.
    """
    explorer = tab.explorer
    if by not in ways_to_colour(explorer):
        raise UserError(f"no colours by '{by}': {did_you_mean(by, ways_to_colour(explorer))}")
    y, said = explorer.split.y, explorer.predicted
    if by == CLASS:
        legend = explorer.classes if len(explorer.classes) <= CYCLE else []
        return (y % CYCLE).to(torch.uint8), "classes", legend
    if by == RIGHT:
        wrong = (((y == 1) & ~said) | ((y == 0) & said)).any(dim=1) if explorer.many else said != y
        return wrong.to(torch.uint8), "two", ["right", "wrong"]
    if by == HELD:
        _ = tab.held  # says so if none is
        assert tab.concept is not None
        scores = scores_of(explorer, tab.concept).double()
        away = ((scores - scores.mean()) / scores.std().clamp(min=1e-12)).clamp(-2, 2)
        return ((away + 2) / 4 * (LEVELS - 1)).round().to(torch.uint8), "shades", ["−2 sd", "+2 sd"]
    names = explorer.data.group_names.get(by, [])
    values = torch.from_numpy(explorer.split.groups[by]).clamp(min=-1)
    return torch.where(values < 0, CYCLE, values % CYCLE).to(torch.uint8), "classes", names[:CYCLE]


def draw(tab: Session, by: str, colour: str) -> Map:
    """The map as it is sent.

    Raises:
        UserError: pictures are not placed or coloured by that.
    """
    explorer = tab.explorer
    points, share = place(explorer, by)
    colours, scale, legend = coloured(tab, colour)
    labels = (
        "" if explorer.many else in_base64(torch.stack([explorer.split.y, explorer.predicted], dim=1).to(torch.uint16))
    )
    steps = (points.double() * STEPS).round().to(torch.int16)
    return Map(in_base64(steps), in_base64(colours), scale, legend, labels, explorer.classes, share)


def in_base64(values: Tensor) -> str:
    """The bytes of an array, little-endian, as text."""
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
