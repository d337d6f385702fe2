"""Pictures small enough to live inside the report: data URIs."""

import base64
import io
import logging
from dataclasses import dataclass

from PIL import Image

from cbm.data.images import Images, NoImage
from cbm.files.without_paths import without_paths

log = logging.getLogger(__name__)

SIDE = 288
"""Longest side in pixels of an embedded picture; it is shown at half of that, sharp on dense screens."""


@dataclass(frozen=True)
class Thumbnail:
    """An embedded picture.

    Attributes:
        name: how the data set calls the picture, without folders of this computer.
        uri: ``data:image/...;base64,...``, or None if the picture could not be read.
        tiny: it has fewer pixels than the place it is shown in, and should be enlarged with its pixels visible.
        why: what is said where there is no picture.
    """

    name: str
    uri: str | None
    tiny: bool = False
    why: str = "picture could not be read"


def thumbnail(images: Images, row: int, side: int = SIDE) -> Thumbnail:
    """The picture at ``row``: small ones as they are (PNG), others scaled down (JPEG).

    Args:
        images: the pictures.
        row: number of the picture.
        side: longest side in pixels.
    """
    name = without_paths(images.names[row])
    try:
        picture = images.open(row, side)
    except NoImage:
        return Thumbnail(name, None, why="only its features are known")
    except Exception as error:  # a missing or broken file makes a decoder raise anything; the report goes on without it
        log.warning("report: picture '%s' cannot be read (%s)", name, type(error).__name__)
        return Thumbnail(name, None)
    uri, tiny = data_uri(picture, side)
    return Thumbnail(name, uri, tiny)


def data_uri(picture: Image.Image, side: int = SIDE) -> tuple[str, bool]:
    """An RGB picture as a data URI, and whether it is tiny; it may be scaled down in place."""
    tiny = max(picture.size) < side // 2
    buffer = io.BytesIO()
    if tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=84, optimize=True)
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", tiny
