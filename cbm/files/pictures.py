"""Any picture to upright RGB with 8 bits a channel. Every door of cbm opens its pictures here, so that none differs.

- EXIF: a picture that says that it lies on its side, or is mirrored, is turned first.
- Depth: 16 bits a channel are divided by 257 (65535 is white). Whole numbers of 32 bits and floats have no scale that
  everybody shares, so they are refused.
- Transparency: what can be seen through lies on white.
- DICOM: stored values are rescaled, then windowed (the file's first window; without one, all values that its bits can
  hold), and MONOCHROME1 is inverted.
- A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size (its frequencies are left out, which is
  several times faster), but never at less than three times the size that the encoder reads.
- A picture of more than ``LARGEST`` pixels is refused before it is decoded.

What changes pixels changes ``VERSION``, which is part of a picture's key in the feature store; see ``look``.
"""

import importlib.util
import os
import struct
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from cbm.files.opening import LARGEST_PICTURE, open_to_read
from cbm.files.shipped import install_command

VERSION = 2
"""Of the pixels that a file becomes: 1 until f47ba49 (more than 8 bits clipped, EXIF and transparency ignored)."""
LARGEST = 100_000_000
"""Pixels of a picture that is decoded, at most: 400 MB."""
ENOUGH = 3
"""How many times the encoder's input the shorter side of a JPEG has, at least, that is not decoded in full."""
ANY, CHANGED, UNKNOWN = 0, -1, -2
"""What ``look`` says of pictures that are no JPEG files: read as by version 1; read otherwise; not read here."""

HEIF = importlib.util.find_spec("pillow_heif") is not None
DICOM = importlib.util.find_spec("pydicom") is not None
AVIF = bool(features.check("avif"))
EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"]
    + [".avif"] * AVIF
    + [".heic", ".heif"] * HEIF
    + [".dcm", ".dicom"] * DICOM
)
"""Endings of the files that are read, in lower case. Some need a package that not everybody has."""
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
"""What a picture's content may be, whatever its file is called, in Pillow's words. Others are not even tried: some run
another program (PostScript), some are decoded by code that nobody else uses."""
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".dcm": "pydicom", ".dicom": "pydicom"}
"""The packages that read what Pillow alone does not."""

ORIENTATION, PHOTOMETRIC = 0x0112, 0x0106
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TO_BYTES = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
"""v/257, rounded, of every value of 16 bits."""


def open_picture(source: str | Path | IO[bytes], least: int | None = None, name: str | None = None) -> Image.Image:
    """A picture file as upright RGB.

    Args:
        source: a path, or an open file at its beginning.
        least: pixels along the shorter side that suffice: a JPEG of twice as many or more is decoded at a fraction
            of its size. None for all pixels.
        name: what the picture is called in messages; by default its path.

    Raises:
        OSError: a format that is not read, or a damaged file: whatever its decoder raised.
        ValueError: values without a known scale, or more than ``LARGEST`` pixels.
        PIL.Image.DecompressionBombError: far more than ``LARGEST`` pixels.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("LA", (4, 2), (0, 0)).save(file, "PNG")     # black, but nothing of it can be seen
        >>> open_picture(file).getpixel((0, 0))
        (255, 255, 255)
    """
    if isinstance(source, str | Path):
        with open_to_read(source) as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST_PICTURE:
                raise ValueError(f"'{name or source}' has {size:,} bytes, more than a picture may have")
            return open_picture(file, least, name or str(source))
    name = name or str(getattr(source, "name", "picture"))
    try:
        return _opened(source, least, name)
    except (OSError, ValueError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:  # a broken file can make a decoder raise anything
        raise OSError(f"'{name}' is damaged: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _opened(source: IO[bytes], least: int | None, name: str) -> Image.Image:
    """``open_picture`` for an open file; raises what its decoder raises."""
    if _is_dicom(source, name):
        return _open_dicom(source, name)
    source.seek(0)
    try:
        opened = Image.open(source, formats=_formats())
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{_too_large(name)} ({error})") from error
    except UnidentifiedImageError as error:
        said = _needs_plugin(source, name) or f"cannot identify image file '{name}'"
        raise UnidentifiedImageError(said) from error
    with opened:
        if least is not None and opened.format in ("JPEG", "MPO"):
            opened.draft(None, (least, least))
        return upright_rgb(opened, name)


def upright_rgb(picture: Image.Image, name: str = "picture") -> Image.Image:
    """A picture of any mode as upright RGB; what is RGB already is copied. Twice is as good as once.

    Args:
        picture: as Pillow opened or made it.
        name: what it is called in messages.

    Raises:
        ValueError: values without a known scale, or more than ``LARGEST`` pixels.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> upright_rgb(Image.fromarray(np.full((1, 1), 257 * 7, np.uint16))).getpixel((0, 0))
        (7, 7, 7)
    """
    if picture.width * picture.height > LARGEST:
        raise ValueError(_too_large(name))
    picture.load()
    flat = _eight_bits(picture, name)
    if flat.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in flat.info:
        flat = _on_white(flat)
    rgb = flat if flat.mode == "RGB" and flat is not picture else None
    rgb = rgb or (_from_lab(flat) if flat.mode == "LAB" else flat.convert("RGB"))
    turn = TURNS.get(_orientation(picture))
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}  # or the next one would turn it again
    return rgb


def look(source: Path | IO[bytes]) -> int:
    """How a file is read, compared with version 1, from its header; no pixel is decoded.

    Returns:
        ``ANY``: with the same pixels. A positive number: with the same pixels where it is decoded in full; it is the
        shorter side of an upright JPEG with 8 bits. ``CHANGED``: with other pixels. ``UNKNOWN``: not at all.
    """
    if isinstance(source, Path):
        with open_to_read(source) as file:
            return look(file)
    try:
        if _is_dicom(source, str(getattr(source, "name", ""))):
            return CHANGED if DICOM else UNKNOWN
        source.seek(0)
        with Image.open(source, formats=_formats()) as opened:
            plain = opened.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and "transparency" not in opened.info
            # a PNG file's own method decodes the whole picture, to see what stands behind it
            turned = _orientation(opened, Image.Image.getexif) != 1 or (
                opened.format == "PNG" and _notes_behind(source)
            )
            if not plain or turned or opened.width * opened.height > LARGEST:
                return CHANGED
            return min(opened.size) if opened.format in ("JPEG", "MPO") else ANY
    except Image.DecompressionBombError:
        return CHANGED
    except Exception:  # a broken file can make a parser raise anything
        return UNKNOWN


def pixels_version(seen: int, least: int | None) -> str | None:
    """What a picture's key in the feature store needs beside its content; None where version 1 read the same pixels.

    Args:
        seen: what ``look`` says of the picture.
        least: as for ``open_picture``.

    Example:
        >>> [pixels_version(seen, least=448) for seen in (0, 600, 3000, -1)]
        [None, None, 'pixels 2', 'pixels 2']
    """
    if seen == UNKNOWN:  # another day, with another package, it may be read
        return f"pixels {VERSION} heif {HEIF} dicom {DICOM} avif {AVIF}"
    drafted = seen > 0 and least is not None and seen // least >= 2
    return f"pixels {VERSION}" if drafted or seen == CHANGED else None


def _orientation(picture: Image.Image, read: Any = None) -> int:
    try:
        said = (read or type(picture).getexif)(picture).get(ORIENTATION, 1)
        return said if said in TURNS else 1
    except Exception:  # damaged EXIF makes its parser raise anything; the picture is none the worse
        return 1


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """The same picture with 8 bits a channel; others are left as they are."""
    deep = picture.mode.startswith("I;16")
    if picture.mode == "I" and picture.format in ("PNG", "PPM"):  # Pillow's mode for 16 bits there
        deep = True
    if not deep:
        if picture.mode in ("I", "F") or picture.mode.startswith(("I;", "F;")):
            kind = "floats" if picture.mode[0] == "F" else "whole numbers of 32 bits"
            raise ValueError(
                f"'{name}' holds {kind} (mode {picture.mode}), which have no common scale: expected 8 or 16 bits a "
                "channel (65535 is white)"
            )
        return picture
    values = np.asarray(picture).clip(0, 65535).astype(np.uint16, copy=False)
    if picture.format == "TIFF" and getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # zero is white
        values = 65535 - values
    if "transparency" in picture.info and isinstance(clear := picture.info["transparency"], int):
        alpha = np.where(values == clear, np.uint8(0), np.uint8(255))
        return Image.merge("LA", [Image.fromarray(TO_BYTES[values]), Image.fromarray(alpha)])
    return Image.fromarray(TO_BYTES[values])


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    clear = picture.info.get("transparency")
    if picture.mode == "1":
        picture = picture.convert("L")
        picture.info["transparency"] = 255 if clear else 0
    elif picture.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits; Pillow keeps 8
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    seen = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = Image.new("RGB", seen.size, "white")
    white.paste(seen, mask=seen)
    return white


def _from_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
    assert found is not None
    return found


def _too_large(name: str) -> str:
    return f"'{name}' has more than {LARGEST:,} pixels: make it smaller first"


def _notes_behind(file: IO[bytes]) -> bool:
    """Whether a PNG file says something (perhaps how to turn it) behind its pixels."""
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        pixels = pixels or kind == b"IDAT"
        if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        if kind == b"IEND":
            break
        file.seek(size + 4, 1)
    return False


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are read here: those of ``FORMATS`` that this Pillow knows."""
    Image.init()
    if HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _needs_plugin(file: IO[bytes], name: str) -> str | None:
    """What to install, if this is a picture of a kind that a package would read."""
    file.seek(0)
    brand = file.read(12)[4:]
    if (
        not HEIF
        and brand[:4] == b"ftyp"
        and brand[4:] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    ):
        return f"'{name}' is HEIC, which needs the pillow-heif package: {install_command('heic')}"
    return None


def _is_dicom(file: IO[bytes], name: str) -> bool:
    file.seek(0)
    return file.read(132)[128:] == b"DICM" or Path(name).suffix.lower() in (".dcm", ".dicom")


def _open_dicom(file: IO[bytes], name: str) -> Image.Image:
    if not DICOM:
        raise OSError(f"'{name}' is DICOM, which needs the pydicom package: {install_command('dicom')}")
    from cbm.files.dicom import read_dicom

    file.seek(0)
    return upright_rgb(Image.fromarray(read_dicom(file, name, LARGEST)), name)
