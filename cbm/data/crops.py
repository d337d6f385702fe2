"""Parts of pictures as pictures of their own: the cells of grids, for concepts that are regions.

Concepts made of regions (Prasse et al., "DCBM: Data-Efficient Visual Concept Bottleneck Models", 2024) are clusters of
encoded segments. Here a segment is a cell of a grid laid over the picture, 2 x 2 and 3 x 3 by default: 13 of them a
picture, which need no segmentation model. Every crop is known to the feature store by its picture and its cell, so it
is encoded once. A few dozen pictures per class are enough; 13 times a whole large set takes 13 times its encoding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cbm.data.encoded import Encoding, encode_images
from cbm.data.features import CropFeatures
from cbm.data.fingerprints import derived
from cbm.data.given import GivenImages
from cbm.data.images import Images
from cbm.encoders.base import Encoder
from cbm.errors import UserError

GRIDS = (2, 3)
MOST = 8
"""Cells along a side of a grid, at most: smaller ones show no more than a texture."""
DECODED = 3
"""A picture is decoded at so many times the size that a crop needs, or at as many as its grid has cells along a side if
that is more: the same for the usual grids, so that all their cells are cut from one picture."""


class Crops:
    """The cells of grids over N pictures, as M pictures (``cbm.data.images.Images``), those of a picture together.

    A picture is opened once for all its crops that are asked for in a row, by each process that opens some. Of JPEG
    files, 13 crops each, to the input of an encoder, that takes half the time of opening them anew where they have
    500 x 375 pixels, and a fifth where they have 2000 x 1500 (one core; opening alone: a ninth).

    Args:
        images: N pictures of any kind.
        grids: cells along a side of each grid, 2 to 8.

    Attributes:
        images: the pictures.
        image: row of the picture ``[M]`` of every crop.
        grid: cells along a side ``[M]`` of its grid.
        cell: which of them it is ``[M]``, from 0, row by row from the upper left.
        names: ``PICTURE#2x2:1`` for the upper left of 2 x 2 cells, which count from 1.

    Raises:
        UserError: only features of the pictures are known, or a grid is none.

    Example:
        >>> from cbm.data.images import ImageArray
        >>> picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
        >>> crops = Crops(ImageArray(picture, ["a.png"]), grids=(2,))
        >>> crops.names, crops.box[3].tolist(), crops.open(3).size
        (['a.png#2x2:1', 'a.png#2x2:2', 'a.png#2x2:3', 'a.png#2x2:4'], [0.5, 0.5, 1.0, 1.0], (2, 2))
    """

    def __init__(self, images: Images, grids: Sequence[int] = GRIDS):
        if isinstance(images, GivenImages):
            if images.shown is None:
                raise UserError(
                    "crops need the pictures, but only features are given: dataset.args.images=FOLDER says where the "
                    "pictures are, and encoder=NAME what encodes their crops"
                )
            images = images.shown
        sides = sorted(set(grids))
        if not sides or not all(isinstance(side, int) and 2 <= side <= MOST for side in sides):
            raise UserError(f"grids of crops are {list(grids)}: expected numbers of 2 to {MOST}, such as 2 and 3")
        grid = np.concatenate([np.full(side * side, side) for side in sides])
        cell = np.concatenate([np.arange(side * side) for side in sides])
        self._set(
            images,
            np.repeat(np.arange(len(images)), len(grid)),
            np.tile(grid, len(images)),
            np.tile(cell, len(images)),
        )

    def _set(self, images: Images, image: np.ndarray, grid: np.ndarray, cell: np.ndarray) -> None:
        self.images, self.image, self.grid, self.cell = images, image, grid, cell
        cells = [f"#{side}x{side}:{number + 1}" for side, number in zip(grid.tolist(), cell.tolist())]
        self.names = [f"{images.names[row]}{which}" for row, which in zip(image.tolist(), cells)]
        self._opened: tuple[tuple[int, int | None], Image.Image] | None = None

    def __getstate__(self) -> dict:
        """What another process needs to know: not the picture that is open in this one."""
        return self.__dict__ | {"_opened": None}

    def __len__(self) -> int:
        return len(self.image)

    @property
    def box(self) -> np.ndarray:
        """Where each lies in its picture, ``[M, 4]``: left, top, right and bottom as shares of width and height."""
        row, column = np.divmod(self.cell, self.grid)
        return np.stack([column, row, column + 1, row + 1], axis=1) / self.grid[:, None]

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The crop as upright RGB; raises what its picture raises.

        Args:
            row: which crop.
            least: pixels along the shorter side of the crop that suffice.

        Raises:
            ValueError: the picture has fewer pixels along a side than the grid has cells.
        """
        side = int(self.grid[row])
        wanted = None if least is None else least * max(DECODED, side)
        key = (int(self.image[row]), wanted)
        opened = self._opened
        if opened is None or opened[0] != key:
            self._opened = None  # the last one is not kept beside the next
            self._opened = opened = (key, self.images.open(*key))
        picture = opened[1]
        if min(picture.size) < side:
            raise ValueError(f"{picture.width} x {picture.height} pixels are too few for {side} x {side} cells")
        down, across = divmod(int(self.cell[row]), side)
        left, right = (picture.width * place // side for place in (across, across + 1))
        top, bottom = (picture.height * place // side for place in (down, down + 1))
        return picture.crop((left, top, right, bottom))

    def take(self, rows: Sequence[int]) -> "Crops":
        """The crops at ``rows``."""
        at, taken = np.asarray(rows, np.int64), Crops.__new__(Crops)
        taken._set(self.images, self.image[at], self.grid[at], self.cell[at])
        return taken

    def fingerprints(self, cache: Path) -> list[str]:
        """What tells every crop from all others: the fingerprint of its picture, and its cell."""
        return self._derived(self.images.fingerprints(cache))

    def contents(self, cache: Path) -> list[str]:
        """The same from the hash of the picture's bytes: crops of copies are equal."""
        return self._derived(self.images.contents(cache))

    def _derived(self, keys: list[str]) -> list[str]:
        cells = zip(self.image.tolist(), self.grid.tolist(), self.cell.tolist())
        return [derived(keys[row], f"crop {side}x{side}:{number + 1}") for row, side, number in cells]

    def looks(self, cache: Path) -> np.ndarray:
        """How every crop is read: a JPEG picture's shorter side is as long to a crop as a part of it is.

        So that whether it is decoded at a fraction of its size follows from the size that the encoder needs.
        """
        looks = self.images.looks(cache)[self.image]
        return np.where(looks > 0, looks // np.maximum(DECODED, self.grid), looks).astype(np.int32)


def encode_crops(
    images: Images, encoder: Encoder | None, settings: Encoding, label: str, grids: Sequence[int] = GRIDS
) -> CropFeatures:
    """Features of the crops of pictures, from the store or encoded now.

    Args:
        images: N pictures of any kind.
        encoder: the frozen encoder.
        settings: how they are encoded.
        label: name of the crops in messages and progress bars.
        grids: cells along a side of each grid.

    Raises:
        UserError: there are no pictures or no encoder, a grid is none, or no crop can be encoded.
    """
    crops = Crops(images, grids)
    stored = encode_images(crops, encoder, settings, label)
    rows = np.flatnonzero(stored.readable)
    taken = crops if len(rows) == len(crops) else crops.take(rows.tolist())
    return CropFeatures(stored.unit_rows(rows, taken.names), taken.image, taken.box, taken.names, taken)
