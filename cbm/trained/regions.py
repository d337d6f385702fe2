"""Does a heat map show where a score comes from? Parts of the picture are deleted, those the map calls strongest first.

Petsiuk et al., "RISE", BMVC 2018, in patches. What is put in the place of a part is a picture too, of which the encoder
thinks something, so three fills are tried: a blurred copy, the mean colour of training pictures, and what surrounds the
part. Where they disagree in sign nothing is decided. Beside the map's own patches stand as many random ones, and those
of another concept's map: any hole in a picture moves a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, normalize, pad
from torchvision.transforms.functional import gaussian_blur

from cbm.encoders.base import Encoder
from cbm.files.pictures import upright_rgb
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.trained.heat_map import concept_score, heat_map

FILLS = ("blur", "colour", "border")
"""What stands in place of a part: a blurred copy (a tenth of the side), a colour, or what surrounds it."""
SHARES = (0.05, 0.1, 0.2)
"""Shares of the patches that are deleted."""
CHOICES = ("own", "random", "other")
"""Patches that are deleted: the strongest of the concept's map, random ones, the strongest of another concept's."""
UNDECIDED = "not decided"


@dataclass(frozen=True)
class RegionDeletion:
    """What deleting parts of one picture does, by ``FILLS``, ``SHARES`` and ``CHOICES``.

    Attributes:
        score: fall of the concept's score ``[3, 3, 3]``, in standard deviations.
        logit: fall of the logit of the decided class ``[3, 3, 3]``.
    """

    score: Tensor
    logit: Tensor


@dataclass(frozen=True)
class RegionRow:
    """What several pictures say about a share of the patches against a control.

    Attributes:
        share: share of the patches.
        control: ``random`` or ``other``.
        more: by how much more the score falls by the concept's own patches, mean, by name of the fill.
        wins: share of the pictures in which it falls more, by name of the fill.
        logit: by how much more the logit of the decided class falls, mean, by name of the fill.
        verdict: whether the score falls ``more`` or ``less``; ``not decided`` where the fills disagree in sign.
    """

    share: float
    control: str
    more: dict[str, float]
    wins: dict[str, float]
    logit: dict[str, float]
    verdict: str


def fill(pixels: Tensor, region: Tensor, kind: str, colour: Tensor) -> Tensor:
    """A picture ``[3, H, W]`` with something else in a region.

    Args:
        pixels: the picture as the encoder sees it.
        region: what is deleted ``[H, W]`` bool.
        kind: one of ``FILLS``.
        colour: mean colour ``[3]`` of training pictures.

    Raises:
        ValueError: an unknown fill, or a region without border that is to be filled from its border.

    Example:
        >>> pixels, region = torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.bool)
        >>> pixels[:, 1:3, 1:3] = region[1:3, 1:3] = True
        >>> [float(fill(pixels, region, kind, torch.full((3,), 0.5)).max()) for kind in ("colour", "border")]
        [0.5, 0.0]
    """
    if kind == "blur":
        sigma = max(pixels.shape[1:]) / 10
        reach = min(round(3 * sigma), min(pixels.shape[1:]) - 1)
        other = gaussian_blur(pixels, [2 * reach + 1] * 2, [sigma] * 2)
    elif kind == "colour":
        other = colour[:, None, None].expand_as(pixels)
    elif kind == "border":
        other = _from_border(pixels, region)
    else:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(FILLS)}")
    return torch.where(region, other, pixels)


def _from_border(pixels: Tensor, region: Tensor) -> Tensor:
    """Pixels of the region as means of their known neighbours, from its border inwards, ring by ring."""
    if bool(region.all()):
        raise ValueError("the region is the whole picture: expected one with a border")
    known, values = (~region).to(pixels)[None], torch.where(region, 0.0, pixels)
    while bool((known == 0).any()):
        count = avg_pool2d(pad(known, (1, 1, 1, 1)), 3, stride=1)
        total = avg_pool2d(pad(values, (1, 1, 1, 1)), 3, stride=1)
        ring = (known == 0) & (count > 0)
        values = torch.where(ring, total / count.clamp(min=1e-12), values)
        known = torch.where(ring, 1.0, known)
    return values


def strongest(values: Tensor, share: float) -> Tensor:
    """The patches of largest value ``[h, w]`` bool, ``share`` of them and at least one.

    Example:
        >>> strongest(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), 0.5).tolist()
        [[False, False], [True, True]]
    """
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().topk(max(1, round(share * values.numel()))).indices] = True
    return chosen.view(values.shape)


@torch.no_grad()
def delete_regions(
    encoder: Encoder, model: ConceptBottleneck, column: int, other: int, picture: Image.Image, colour: Tensor, *,
    spread: float, seed: int = 0,
) -> RegionDeletion:  # fmt: skip
    """Delete the patches of a picture that a concept's heat map calls strongest, random ones, and another map's.

    Args:
        encoder: encoder of the model.
        model: a concept bottleneck.
        column: the concept.
        other: another concept, whose map is a control.
        picture: the image.
        colour: mean colour ``[3]`` of training pictures as the encoder sees them.
        spread: standard deviation of the concept's score over training pictures.
        seed: random seed of the random patches.
    """
    pixels = encoder.preprocess(upright_rgb(picture))
    own, aside = (heat_map(encoder, model, k, picture).values for k in (column, other))
    drawn = torch.rand(own.shape, generator=torch.Generator().manual_seed(seed))
    maps = {"own": own, "random": drawn, "other": aside}
    copies = [pixels]
    for kind in FILLS:
        for share in SHARES:
            for choice in CHOICES:
                patches = strongest(maps[choice], share)
                region = interpolate(patches[None, None].float(), tuple(pixels.shape[1:]), mode="nearest")[0, 0] > 0
                copies.append(fill(pixels, region, kind, colour))
    features = encoder.encode_images(torch.stack(copies))
    scores = concept_score(model, column, features) / spread
    logits = predict_logits(model, normalize(features, dim=1))
    logits = logits[:, int(logits[0].argmax())]
    shape = len(FILLS), len(SHARES), len(CHOICES)
    return RegionDeletion((scores[0] - scores[1:]).view(shape), (logits[0] - logits[1:]).view(shape))


def compare_regions(found: Sequence[RegionDeletion]) -> list[RegionRow]:
    """What several pictures say, a row for every share and control.

    Args:
        found: one ``delete_regions`` per picture.
    """
    score, logit = (torch.stack(each).double() for each in zip(*((one.score, one.logit) for one in found)))
    rows = []
    for s, share in enumerate(SHARES):
        for c, control in enumerate(CHOICES[1:], start=1):
            lead = score[:, :, s, 0] - score[:, :, s, c]  # of every picture and fill
            more, of_class = lead.mean(dim=0), (logit[:, :, s, 0] - logit[:, :, s, c]).mean(dim=0)
            verdict = "more" if bool((more > 0).all()) else "less" if bool((more < 0).all()) else UNDECIDED
            wins = (lead > 0).double().mean(dim=0)
            by_fill = [dict(zip(FILLS, each.tolist())) for each in (more, wins, of_class)]
            rows.append(RegionRow(share, control, by_fill[0], by_fill[1], by_fill[2], verdict))
    return rows
