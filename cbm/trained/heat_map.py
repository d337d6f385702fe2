"""Where an image shows a concept: a heat map of its score.

covering    a window is painted over with the image's mean colour and moved over the image: the map shows by how much
            the concept's score falls. Works with any encoder and any score, and is true by construction.
            Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
positions   the map shows the score of every position of the encoder's last feature map
            (``cbm.encoders.positions``). It takes one pass, but a position of a deep network has seen its surroundings
            too.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from cbm.encoders.base import Encoder
from cbm.errors import UserError, did_you_mean
from cbm.files.pictures import upright_rgb
from cbm.layers import ConceptBottleneck, EnergyBottleneck, require_concepts

METHODS = ("covering", "positions")
CELLS, WINDOW = 8, 2  # cells along a side; a window covers 2 x 2 of them
FINE = 7  # positions along a side, from which on they are told apart well enough
RED, BLUE = (214, 39, 40), (31, 119, 180)


@dataclass(frozen=True)
class HeatMap:
    """Where an image shows a concept.

    Attributes:
        values: the map ``[h, w]`` in units of the concept's score. For covering, how much the score falls without this
            part; for positions, how much the score of this position is above the average. Negative values count
            against the concept.
        method: "covering" or "positions".
        picture: the cropped and scaled image that the encoder sees.
    """

    values: Tensor
    method: str
    picture: Image.Image

    def overlay(self, side: int = 320) -> Image.Image:
        """The image with the map over it: red for the concept, blue against it, the strongest part most opaque.

        Args:
            side: width in pixels.
        """
        size = (side, round(side * self.picture.height / self.picture.width))
        smooth = interpolate(self.values[None, None].float(), size[::-1], mode="bicubic", align_corners=False)[0, 0]
        strength = (smooth / smooth.abs().max().clamp(min=1e-12)).numpy()[:, :, None]
        opacity = 0.75 * np.abs(strength)
        grey = np.asarray(self.picture.resize(size, Image.Resampling.BICUBIC), np.float32)
        colour = np.where(strength > 0, np.array(RED, np.float32), np.array(BLUE, np.float32))
        return Image.fromarray((grey * (1 - opacity) + colour * opacity).clip(0, 255).astype(np.uint8))


def heat_map(
    encoder: Encoder, model: nn.Module, column: int, picture: Image.Image, method: str | None = None
) -> HeatMap:
    """Where an image shows a concept.

    Args:
        encoder: encoder of the model.
        model: a concept bottleneck, or energies.
        column: column of the concept in the bank.
        picture: the image.
        method: "covering" or "positions"; by default positions if the encoder has 7 x 7 of them or more and the
            score is linear in the features, else covering.

    Raises:
        UserError: an unknown method, one that this model or encoder does not support, or a model without concepts.
    """
    bottleneck = require_concepts(model)
    if method not in (None, *METHODS):
        raise UserError(f"unknown heat map '{method}': {did_you_mean(str(method), METHODS)}")
    picture = upright_rgb(picture)
    pixels, seen = encoder.preprocess(picture), encoder.seen(picture)
    if method != "covering":
        places = encoder.encode_positions(pixels[None]) if isinstance(bottleneck, ConceptBottleneck) else None
        if places is not None and (method is not None or min(places.shape[2:]) >= FINE):
            found = concept_score(bottleneck, column, places[0].flatten(1).T).view(places.shape[2:])
            return HeatMap(found - found.mean(), "positions", seen)
        if method is not None:
            raise UserError(
                f"encoder '{encoder.id}' and this model have no score for every position: use method='covering'"
            )
    covered = cover(pixels)
    scores = concept_score(bottleneck, column, encoder.encode_images(torch.cat([pixels[None], covered])))
    return HeatMap(spread_over_cells(scores[0] - scores[1:]), "covering", seen)


@torch.no_grad()
def concept_score(model: ConceptBottleneck | EnergyBottleneck, column: int, features: Tensor) -> Tensor:
    """A concept's scores ``[N]``; for energies, the log-odds from its own evidence.

    Args:
        model: a concept bottleneck, or energies.
        column: column of the concept in the bank.
        features: raw features ``[N, D]``.
    """
    x = normalize(features, dim=1)
    if isinstance(model, EnergyBottleneck):
        return model.concept_logits(x)[:, column]
    return model.scores(x, [column])[:, 0]


def cover(pixels: Tensor) -> Tensor:
    """Copies of an image ``[3, H, W]``, each with one window painted over; ``[P, 3, H, W]``.

    The windows overlap by one cell and reach over the border by one, in reading order: P = 9 x 9.
    """
    colour = pixels.mean(dim=(1, 2), keepdim=True)
    edges = [[round(max(i, 0) * side / CELLS) for i in range(1 - WINDOW, CELLS + WINDOW)] for side in pixels.shape[1:]]
    copies = []
    for i in range(CELLS + WINDOW - 1):
        for j in range(CELLS + WINDOW - 1):
            copy = pixels.clone()
            copy[:, edges[0][i] : edges[0][i + WINDOW], edges[1][j] : edges[1][j + WINDOW]] = colour
            copies.append(copy)
    return torch.stack(copies)


def spread_over_cells(falls: Tensor) -> Tensor:
    """Falls of the score per window ``[P]`` as the mean over the windows that cover each cell ``[h, w]``."""
    side = CELLS + WINDOW - 1
    return nn.functional.avg_pool2d(falls.view(1, 1, side, side), WINDOW, stride=1)[0, 0]
