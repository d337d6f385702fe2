"""Features are said to be of an encoder: is it so? Where the images are there, a few are encoded to see."""

import logging
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cbm.data.dataset import ImageDataset, Split
from cbm.data.encoding import preprocessed
from cbm.data.features import unit_norm
from cbm.encoders.base import Encoder
from cbm.errors import UserError

log = logging.getLogger(__name__)

LOOKED_AT = 8
"""Images that are encoded."""
LEAST = 0.95
"""Cosine from which on features are of this encoder: other ways of decoding stay at .99 (docs/datasets.md)."""


def check_claim(dataset: ImageDataset, encoder: Encoder | None) -> None:
    """See whether given features are of the encoder that the user names; without images that is believed, and said.

    Args:
        dataset: the data set; images that are still to be encoded are not looked at.
        encoder: the encoder that is named, or None.

    Raises:
        UserError: the features are of another width, or of something else.
    """
    split: Split = next(iter(dataset.splits.values()))
    if encoder is None or split.features is None:
        return
    if split.features.dim != encoder.dim:
        raise UserError(
            f"the features of '{dataset.name}' have {split.features.dim} dimensions, those of encoder '{encoder.id}' "
            f"{encoder.dim}: name the encoder that made them, or none (encoder=auto)"
        )
    rows = np.unique(np.linspace(0, len(split) - 1, 4 * LOOKED_AT).astype(int))
    rows = rows[split.features.take(rows).readable]
    found: dict[int, Tensor] = {}
    for row in rows.tolist():  # one that is not here, or broken, is passed over
        picture = preprocessed(
            partial(split.images.open, row, encoder.least), encoder.preprocess, split.images.names[row]
        )
        if isinstance(picture, Tensor) and len(found) < LOOKED_AT:
            found[row] = picture
    if not found:
        log.warning(
            "the features are taken to be of encoder '%s', as you say: there are no images to compare", encoder.id
        )
        return
    names = [split.images.names[row] for row in found]
    given = split.features.unit_rows(np.array(list(found)), names)
    made = unit_norm(encoder.encode_images(torch.stack(list(found.values()))), names)
    cosines = F.cosine_similarity(given.float(), made)
    worst = int(cosines.argmin())
    if cosines[worst] < LEAST:
        raise UserError(
            f"the features of '{dataset.name}' are not those of encoder '{encoder.id}': for "
            f"'{names[worst]}' their cosine is {float(cosines[worst]):.3f}; name the encoder that "
            "made them, or none (encoder=auto)"
        )
    log.info("the features are those of encoder '%s': cosine %.4f or more for %d images", encoder.id,
             float(cosines[worst]), len(names))  # fmt: skip
