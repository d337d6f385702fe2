"""DICOM files as they are meant to be looked at: rescaled, windowed, and with white where white belongs."""

from typing import IO, Any

import numpy as np


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

    try:
        content = pydicom.dcmread(file, force=True)
        if int(content.get("Rows", 0)) * int(content.get("Columns", 0)) > largest:
            raise ValueError(f"'{name}' has more than {largest:,} pixels: make it smaller first")
        if "PixelData" not in content:
            raise OSError(f"'{name}' is a DICOM file without a picture")
        pixels = content.pixel_array
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise OSError(f"'{name}' cannot be read as DICOM: {type(error).__name__}: {error}") from error
    frames = int(content.get("NumberOfFrames") or 1)
    pixels = pixels[0] if frames > 1 else pixels
    kind = str(content.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind.startswith("MONOCHROME"):
        grey = _grey(pixels, content)
        return 255 - grey if kind == "MONOCHROME1" else grey
    return _colour(pixels, content, kind)


def _grey(pixels: np.ndarray, content: Any) -> np.ndarray:
    """Stored values ``[H, W]`` to 0..255."""
    slope, shift = float(content.get("RescaleSlope", 1)), float(content.get("RescaleIntercept", 0))
    values = pixels.astype(np.float32) * slope + shift
    centre, width = _first(content.get("WindowCenter")), _first(content.get("WindowWidth"))
    form = str(content.get("VOILUTFunction", "LINEAR") or "LINEAR")
    if centre is None or width is None or width < 1:
        bits = int(content.get("BitsStored", 8))
        low = -(2 ** (bits - 1)) if int(content.get("PixelRepresentation", 0)) else 0
        ends = sorted((low * slope + shift, (low + 2**bits - 1) * slope + shift))
        share = (values - ends[0]) / max(ends[1] - ends[0], 1e-12)
    elif form == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif form == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    else:  # PS3.3 C.11.2.1.2
        share = (values - (centre - 0.5)) / max(width - 1, 1e-12) + 0.5
    return (share.clip(0, 1) * 255).round().astype(np.uint8)


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
