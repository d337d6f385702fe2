"""A picture in every format that is read, with its metadata, and how cbm looks at it and opens it."""

import io
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, features
from trust.readable import Readable, picture, tree

from cbm.data.crops import Crops
from cbm.data.images import ImageFiles
from cbm.errors import UserError
from cbm.files import pictures
from cbm.files.pictures import CHANGED, UNKNOWN, look, open_picture
from cbm.trained.model import open_image

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
DEEP = COLOUR[..., 0].astype(np.uint16) * 257
CLEAR = np.concatenate([COLOUR, COLOUR[..., :1]], axis=2)


def written(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    shown = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    shown.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(turned: int = 6) -> Image.Exif:
    said = Image.Exif()
    said[0x0112], said[0x010E] = turned, "a bird"
    return said


def noted() -> PngImagePlugin.PngInfo:
    """Text that is compressed, plain, and in another language."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a bird" * 20, zip=True)
    notes.add_itxt("Title", "un oiseau", "fr", "Titre", zip=True)
    notes.add_text("Author", "nobody")
    return notes


def profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def dicom(transfer: str = "1.2.840.10008.1.2.1", frames: int = 1, **tags) -> bytes:
    import pydicom

    about = pydicom.dataset.FileMetaDataset()
    about.TransferSyntaxUID = pydicom.uid.UID(transfer)
    about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    content = pydicom.dataset.FileDataset(None, {}, file_meta=about, preamble=bytes(128))
    content.Rows, content.Columns = DEEP.shape
    content.SamplesPerPixel, content.PhotometricInterpretation = 1, "MONOCHROME2"
    content.BitsAllocated, content.BitsStored, content.HighBit, content.PixelRepresentation = 16, 12, 11, 0
    content.PixelData = (DEEP // 16).tobytes() * frames
    if frames > 1:
        content.NumberOfFrames = frames
    for tag, value in tags.items():
        setattr(content, tag, value)
    if transfer == "1.2.840.10008.1.2.5":  # run lengths
        about.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        content.compress(pydicom.uid.RLELossless)
    buffer = io.BytesIO()
    content.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def see(file: Path) -> None:
    """``look`` never raises; what opens a picture returns upright RGB or raises what it says; crops likewise."""
    seen = look(file)
    assert seen >= UNKNOWN
    assert look(io.BytesIO(file.read_bytes())) in (seen, CHANGED, UNKNOWN)  # DICOM may be known by its ending alone
    for least in (None, 4):
        with suppress(UserError):
            shown = open_image(file, least)
            assert shown.mode == "RGB"
            assert shown.width * shown.height <= pictures.LARGEST
    images = ImageFiles(file.parent, [file.name])
    crops = Crops(images, (2,))
    for row in (0, 3):
        with suppress(OSError, ValueError, *PILLOWS):
            assert crops.open(row, 4).mode == "RGB"
    open_picture(file)


PILLOWS = (Image.DecompressionBombError, SyntaxError)
"""What Pillow raises besides OSErrors and ValueErrors, and says so."""


def opened(file: Path) -> None:
    try:
        see(file)
    except (OSError, ValueError, *PILLOWS):
        raise UserError("this picture cannot be read") from None


def kind(name: str, make: Callable[[], bytes]) -> Readable:
    return Readable(lambda root: tree(**{name: make()})(root), lambda root: opened(root / name), (name,))


PICTURES: dict[str, Readable] = {
    "picture, JPEG": kind("a.jpg", lambda: written(COLOUR, "JPEG", exif=exif(), icc_profile=profile())),
    "picture, JPEG, progressive": kind("a.jpg", lambda: written(COLOUR, "JPEG", progressive=True, comment=b"a bird")),
    "picture, JPEG, CMYK": kind("a.jpg", lambda: written(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")),
    "picture, JPEG, several": kind("a.jpg", lambda: written(
        Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[Image.fromarray(COLOUR)])),
    "picture, PNG": kind("a.png", lambda: written(
        COLOUR, "PNG", pnginfo=noted(), exif=exif(3), icc_profile=profile())),
    "picture, PNG, 16 bits": kind("a.png", lambda: written(DEEP, "PNG")),
    "picture, PNG, palette": kind("a.png", lambda: written(
        Image.fromarray(COLOUR).quantize(8), "PNG", transparency=b"\0\1\2")),
    "picture, PNG, moving": kind("a.png", lambda: written(
        Image.fromarray(COLOUR), "PNG", save_all=True, append_images=[Image.fromarray(COLOUR[::-1].copy())])),
    "picture, PNG, told behind": kind("a.png", lambda: behind(picture())),
    "picture, TIFF": kind("a.tif", lambda: written(COLOUR, "TIFF", exif=exif(8))),
    "picture, TIFF, LZW": kind("a.tiff", lambda: written(DEEP, "TIFF", compression="tiff_lzw")),
    "picture, TIFF, deflated": kind("a.tiff", lambda: written(CLEAR, "TIFF", compression="tiff_adobe_deflate")),
    "picture, TIFF, JPEG": kind("a.tiff", lambda: written(COLOUR, "TIFF", compression="jpeg")),
    "picture, TIFF, fax": kind("a.tiff", lambda: written(
        Image.fromarray(COLOUR).convert("1"), "TIFF", compression="group4")),
    "picture, TIFF, several": kind("a.tiff", lambda: written(
        Image.fromarray(COLOUR), "TIFF", save_all=True, append_images=[Image.fromarray(COLOUR)])),
    "picture, WEBP": kind("a.webp", lambda: written(COLOUR, "WEBP", exif=exif(), icc_profile=profile())),
    "picture, WEBP, lossless": kind("a.webp", lambda: written(CLEAR, "WEBP", lossless=True)),
    "picture, GIF": kind("a.gif", lambda: written(
        Image.fromarray(COLOUR), "GIF", save_all=True, append_images=[Image.fromarray(COLOUR[::-1].copy())])),
    "picture, BMP": kind("a.bmp", lambda: written(COLOUR, "BMP")),
    "picture, BMP, palette": kind("a.bmp", lambda: written(Image.fromarray(COLOUR).quantize(8), "BMP")),
    "picture, PPM": kind("a.ppm", lambda: written(COLOUR, "PPM")),
    "picture, PGM, 16 bits": kind("a.ppm", lambda: b"P5\n16 12\n4095\n" + (DEEP // 16).astype(">u2").tobytes()),
    "picture, PGM, in words": kind("a.ppm", lambda: b"P2\n# a bird\n4 2\n255\n0 1 2 3\n4 5 6 255\n"),
}  # fmt: skip
if features.check("avif"):
    PICTURES["picture, AVIF"] = kind("a.avif", lambda: written(COLOUR, "AVIF", exif=exif()))
if pictures.HEIF:

    def heif() -> bytes:
        import pillow_heif

        pillow_heif.register_heif_opener()
        return written(COLOUR, "HEIF")

    PICTURES["picture, HEIC"] = kind("a.heic", heif)
if pictures.DICOM:
    PICTURES |= {
        "picture, DICOM": kind("a.dcm", lambda: dicom(WindowCenter=[1000, 3], WindowWidth=[500, 9], RescaleSlope=2)),
        "picture, DICOM, implicit": kind("a.dcm", lambda: dicom("1.2.840.10008.1.2")),
        "picture, DICOM, deflated": kind("a.dcm", lambda: dicom("1.2.840.10008.1.2.1.99")),
        "picture, DICOM, run lengths": kind("a.dcm", lambda: dicom("1.2.840.10008.1.2.5")),
        "picture, DICOM, several": kind("a.dcm", lambda: dicom(frames=3)),
    }


def behind(png: bytes) -> bytes:
    """A PNG file that says how to turn it behind its pixels."""
    said = exif(3).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + said
    note = len(said).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    end = png.rindex(b"IEND") - 4
    return png[:end] + note + png[end:]
