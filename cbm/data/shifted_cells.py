"""``wbcatt_shift``: the cells of WBCAtt as another laboratory would show them, for editing at test time.

Another stain has more or less of its dyes and another balance of colours; another camera has another response,
sharpness and size of pixels. All images are changed alike, and each a little on its own (seeded by its name, so that
order and splits do not matter). The amounts were chosen by looking at the cells, before any model was measured.

Colours are changed in HSV: one turn of the hue moves purple towards red and pink towards yellow, which is what another
balance of a stain's two dyes and another white balance do, while white stays white. Separate strengths of the dyes
(optical density) would need the vectors of the dyes, which nobody has measured for these slides. HSV of eight bits
rounds: a colour that is not turned comes back up to seven grey values away (0.6 on average), so without any change the
pixels do not go through it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from cbm.data.blood_cells import read_wbcatt
from cbm.data.dataset import ImageDataset
from cbm.data.fingerprints import derived
from cbm.data.images import ImageFiles
from cbm.data.readers import reader
from cbm.errors import UserError
from cbm.files.pictures import ANY

VERSION = 1
"""Of ``Shift.apply``: features of changed images are not those of another version."""

AMOUNTS = ("hue", "saturation", "gamma", "blur", "scale")


@dataclass(frozen=True)
class Shift:
    """Another stain and camera.

    Attributes:
        hue: turn of the hue, as a share of the circle.
        saturation: factor on the saturation, in octaves (-1: half).
        gamma: exponent of the brightness, in octaves (1: its square, darker).
        blur: deviation of a Gaussian blur, as a share of the shorter side.
        scale: magnification about the middle, in octaves.
        own: deviation of an image's own part, as a share of each amount.
        seed: random seed for the images' own parts.
    """

    hue: float = 0.04
    saturation: float = -0.45
    gamma: float = 0.35
    blur: float = 0.006
    scale: float = 0.2
    own: float = 0.25
    seed: int = 0

    def stronger(self, strength: float) -> "Shift":
        """The same with all amounts multiplied."""
        amounts: dict[str, Any] = {key: strength * getattr(self, key) for key in AMOUNTS}
        return replace(self, **amounts)

    def of(self, name: str) -> "Shift":
        """The shift of one image: that of all, and its own part."""
        seed = hashlib.blake2b(f"{self.seed}|{name}".encode(errors="surrogateescape"), digest_size=8).digest()
        drawn = 1 + self.own * np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(5).clip(-2, 2)
        amounts: dict[str, Any] = {key: float(getattr(self, key) * factor) for key, factor in zip(AMOUNTS, drawn)}
        return replace(self, **amounts, own=0.0)

    def apply(self, picture: Image.Image) -> Image.Image:
        """The changed image, RGB of the same size; without any amount the image itself."""
        if self.hue or self.saturation:
            hue, saturation, value = picture.convert("HSV").split()
            levels = np.arange(256)
            hue = hue.point(((levels + round(256 * self.hue)) % 256).tolist())
            saturation = saturation.point((levels * 2**self.saturation).round().clip(0, 255).astype(int).tolist())
            picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        if self.gamma:
            table = (255 * (np.arange(256) / 255) ** (2**self.gamma)).round().astype(int).tolist()
            picture = picture.point(3 * table)
        width, height = picture.size
        if self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(abs(self.blur) * min(width, height)))
        if self.scale:
            half_x, half_y = width / 2 / 2**self.scale, height / 2 / 2**self.scale
            box = (width / 2 - half_x, height / 2 - half_y, width / 2 + half_x, height / 2 + half_y)
            picture = picture.transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)
        return picture


class ShiftedFiles(ImageFiles):
    """Images in files, changed when they are read.

    Attributes:
        shift: the change.
    """

    def __init__(self, root: Path, names: Sequence[str], shift: Shift):
        super().__init__(root, names)
        self.shift = shift

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The changed image as RGB, from all pixels of the file."""
        return self.shift.of(self.names[row]).apply(super().open(row))

    def take(self, rows: Sequence[int]) -> "ShiftedFiles":
        """The images at ``rows``."""
        return ShiftedFiles(self.root, [self.names[row] for row in rows], self.shift)

    def fingerprints(self, cache: Path) -> list[str]:
        """Of the file, the name (on which an image's own part depends), and the change."""
        how = f"shifted {VERSION} {self.shift}"
        return [derived(key, name, how) for key, name in zip(super().fingerprints(cache), self.names)]

    def contents(self, cache: Path) -> list[str]:
        """Hashes of the files: copies are copies however they are changed."""
        return super().fingerprints(cache)

    def looks(self, cache: Path) -> np.ndarray:
        """How every file is read, always in full."""
        return super().looks(cache).clip(max=ANY)


@reader("wbcatt_shift")
def read_wbcatt_shift(
    name: str,
    root: Path,
    annotations: str = ".",
    seed: int = 0,
    strength: float = 1.0,
    task: str = "cells",
    labels: list[str] | None = None,
) -> ImageDataset:
    """WBCAtt through another stain and camera: the published validation and test images, none for training.

    Args:
        name: name of the data set.
        root: as for ``wbcatt``.
        annotations: as for ``wbcatt``.
        seed: random seed for the images' own parts.
        strength: factor on all changes; 0 changes nothing.
        task: as for ``wbcatt``.
        labels: as for ``wbcatt``.

    Raises:
        UserError: as for ``wbcatt``, or a strength that is no change at a time (above 2, below 0).
    """
    if not 0 <= strength <= 2:
        raise UserError(f"dataset.args.strength={strength:g}: expected a factor from 0 (no change) to 2")
    cells, shift = read_wbcatt(name, root, annotations, task, labels), Shift(seed=seed).stronger(strength)
    splits = {}
    for split in ("val", "test"):
        part = cells.splits[split]
        assert isinstance(part.images, ImageFiles)
        splits[split] = replace(part, images=ShiftedFiles(part.images.root, part.images.names, shift))
    return replace(cells, splits=splits)
