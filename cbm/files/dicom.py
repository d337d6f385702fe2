"""DICOM files as they are meant to be looked at: rescaled, windowed, and with white where white belongs."""

import zlib
from typing import IO, Any, BinaryIO, cast

import numpy as np

from cbm.files.opening import LARGEST_PICTURE


def read_dicom(file: IO[bytes], name: str, largest: int) -> np.ndarray:
    """The (first) picture of a DICOM file, ``[H, W]`` or ``[H, W, 3]`` uint8.

    Grey values are rescaled (RescaleSlope, RescaleIntercept) and windowed by the first window of the file; without one,
    all values that its bits can hold lie between black and white. MONOCHROME1 is inverted.

    Args:
        file: an open file at its beginning.
        name: what the picture is called in messages.
        largest: pixels that a picture may have.

    Raises:
        OSError: the file holds no picture, or one that cannot be decoded with the packages that are installed.
        ValueError: it has too many pixels.
    """
    import pydicom
    from pydicom.pixels import pixel_array

    try:
        _check_deflated(file, name)
        content = pydicom.dcmread(file, force=True)
        if int(content.get("Rows", 0)) * int(content.get("Columns", 0)) * _values(content) > largest:
            raise ValueError(f"'{name}' has more than {largest:,} pixels: make it smaller first")
        if "PixelData" not in content:
            raise OSError(f"'{name}' is a DICOM file without a picture")
        pixels = pixel_array(content, index=0)  # of a thousand frames the others are not unpacked
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise OSError(f"'{name}' cannot be read as DICOM: {type(error).__name__}: {error}") from error
    kind = str(content.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind.startswith("MONOCHROME"):
        grey = _grey(pixels, content)
        return 255 - grey if kind == "MONOCHROME1" else grey
    return _colour(pixels, content, kind)


def _values(content: Any) -> float:
    """Numbers of a pixel, beyond the three of a usual colour picture, as so many more pixels."""
    return max(1.0, int(content.get("SamplesPerPixel", 1)) / 3)


def _check_deflated(file: IO[bytes], name: str) -> None:
    """Whether a file that is compressed as a whole is no larger than a picture may be; it is left at its beginning.

    Raises:
        ValueError: it is.
        Exception: whatever a damaged file makes the parser raise.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    opened = cast(BinaryIO, file)
    read_preamble(opened, True)
    about = read_dataset(opened, False, True, stop_when=lambda tag, kind, length: tag.group != 2)
    if about.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        decoder, packed, count = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
        while packed and not decoder.eof:
            count += len(decoder.decompress(packed, 1 << 20))
            packed = decoder.unconsumed_tail
            if count > LARGEST_PICTURE:
                raise ValueError(f"'{name}' is compressed and has more bytes than a picture may have")
    file.seek(0)


def _grey(pixels: np.ndarray, content: Any) -> np.ndarray:
    """Stored values ``[H, W]`` to 0..255."""
    slope, shift = float(content.get("RescaleSlope", 1)), float(content.get("RescaleIntercept", 0))
    values = pixels.astype(np.float32)  # changed in place from here on: a picture may have 100 million of them
    values *= slope
    values += shift
    centre, width = _first(content.get("WindowCenter")), _first(content.get("WindowWidth"))
    form = str(content.get("VOILUTFunction", "LINEAR") or "LINEAR")
    if centre is None or width is None or width < 1:
        bits = int(content.get("BitsStored", 8))
        low = -(2 ** (bits - 1)) if int(content.get("PixelRepresentation", 0)) else 0
        ends = sorted((low * slope + shift, (low + 2**bits - 1) * slope + shift))
        values -= ends[0]
        values /= max(ends[1] - ends[0], 1e-12)
    elif form == "SIGMOID":
        values = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif form == "LINEAR_EXACT":
        values -= centre
        values /= width
        values += 0.5
    else:  # PS3.3 C.11.2.1.2
        values -= centre - 0.5
        values /= max(width - 1, 1e-12)
        values += 0.5
    np.clip(values, 0, 1, out=values)
    values *= 255
    return np.round(values, out=values).astype(np.uint8)


def _colour(pixels: np.ndarray, content: Any, kind: str) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, convert_color_space

    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, content)
        bits = 16 if pixels.dtype.itemsize == 2 else 8
    else:
        pixels = convert_color_space(pixels, kind, "RGB") if kind.startswith("YBR_FULL") else pixels
        bits = int(content.get("BitsStored", 8))
    return pixels if bits == 8 else (pixels.astype(np.uint32) * 255 // (2**bits - 1)).astype(np.uint8)


def _first(value: Any) -> float | None:
    """A number, or the first of several."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
