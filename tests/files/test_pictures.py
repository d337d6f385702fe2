"""Pictures of every kind become upright RGB with 8 bits, through one function."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image, ImageCms, ImageOps

from cbm.files import pictures
from cbm.files.pictures import ANY, CHANGED, UNKNOWN, look, open_picture, pixels_version, upright_rgb

GREY = (np.arange(48 * 64).reshape(48, 64) % 256).astype(np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, GREY[::-1]], axis=2)
HALF = np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None].repeat(48, axis=0)


def written(picture: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(file: io.BytesIO) -> np.ndarray:
    return np.asarray(open_picture(file))


def grey_of(values: np.ndarray) -> np.ndarray:
    return values[:, :, None].repeat(3, axis=2)


def portable(values: np.ndarray, most: int) -> io.BytesIO:
    """A PGM file of 16 bits whose white is ``most``."""
    scaled = ((values.astype(np.uint32) * most + 127) // 255).astype(">u2")
    return io.BytesIO(b"P5\n%d %d\n%d\n" % (*values.shape[::-1], most) + scaled.tobytes())


DEEP = {
    "png": lambda: written(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "tiff": lambda: written(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "tiff, zero is white": lambda: written(
        Image.fromarray(65535 - GREY.astype(np.uint16) * 257), "TIFF", tiffinfo={0x106: 0}
    ),
    "pgm": lambda: portable(GREY, 65535),
    "pgm of 12 bits": lambda: portable(GREY, 4095),
}


@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP.keys())
def test_sixteen_bits_are_as_their_copy_with_eight(make):
    np.testing.assert_array_equal(pixels(make()), grey_of(GREY))
    assert look(make()) == CHANGED


def test_every_value_of_sixteen_bits_is_divided_by_257():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(upright_rgb(Image.fromarray(values)))[:, :, 0]
    np.testing.assert_array_equal(found, np.round(values / 257))


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_values_without_a_scale_are_refused_with_file_and_mode(tmp_path: Path, kind, mode: str):
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match=rf"depth.tif' holds .*\(mode {mode}\).*8 or 16 bits"):
        open_picture(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match=f"mode {mode}"):
        upright_rgb(Image.fromarray(GREY.astype(kind)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("flag", range(1, 9))
def test_orientations(kind: str, flag: int):
    exif = Image.Exif()
    exif[0x0112] = flag
    options = {"lossless": True} if kind == "WEBP" else {}
    content = written(Image.fromarray(COLOUR), kind, exif=exif, **options).getvalue()
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(pixels(io.BytesIO(content)), np.asarray(turned.convert("RGB")))
    assert look(io.BytesIO(content)) == (CHANGED if flag > 1 else 48 if kind == "JPEG" else ANY)
    opened = upright_rgb(Image.open(io.BytesIO(content)))  # as a caller of predict hands it over
    np.testing.assert_array_equal(np.asarray(upright_rgb(opened)), np.asarray(opened))  # and turned once


@pytest.mark.parametrize("flag", [0, 9, 77])
def test_a_flag_that_means_nothing(flag: int):
    exif = Image.Exif()
    exif[0x0112] = flag
    assert open_picture(written(Image.fromarray(COLOUR), "PNG", exif=exif)).size == (64, 48)


def test_a_flag_behind_the_pixels_of_a_png_file():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = written(Image.fromarray(COLOUR), "PNG", exif=exif).getvalue()
    start = content.index(b"eXIf") - 4
    size = 12 + int.from_bytes(content[start : start + 4], "big")
    end = content.index(b"IEND") - 4
    moved = content[:start] + content[start + size : end] + content[start : start + size] + content[end:]
    assert look(io.BytesIO(moved)) == CHANGED
    assert open_picture(io.BytesIO(moved)).size == (48, 64)


def shown(values: np.ndarray, clear: np.ndarray) -> np.ndarray:
    return np.where(clear[:, :, None], 255, values).astype(np.uint8)


PALETTE = Image.fromarray(COLOUR).quantize(16)
CLEAR = {
    "RGBA": (Image.fromarray(np.dstack([COLOUR, HALF])), "PNG", {}, shown(COLOUR, HALF == 0)),
    "RGBA in WebP": (Image.fromarray(np.dstack([COLOUR, HALF])), "WEBP", {"lossless": True}, shown(COLOUR, HALF == 0)),
    "LA": (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(HALF)]), "PNG", {}, shown(grey_of(GREY), HALF == 0),
    ),
    "grey value": (Image.fromarray(GREY), "PNG", {"transparency": 7}, shown(grey_of(GREY), GREY == 7)),
    "grey value of 16 bits": (
        Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", {"transparency": 7 * 257},
        shown(grey_of(GREY), GREY == 7),
    ),
    "colour": (
        Image.fromarray(COLOUR), "PNG", {"transparency": tuple(COLOUR[3, 3].tolist())},
        shown(COLOUR, (COLOUR[3, 3] == COLOUR).all(axis=2)),
    ),
    "palette": (
        PALETTE, "PNG", {"transparency": 3}, shown(np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE) == 3),
    ),
    "palette in GIF": (
        PALETTE, "GIF", {"transparency": 3}, shown(np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE) == 3),
    ),
    "black of one bit": (Image.fromarray(GREY > 99), "PNG", {"transparency": 0}, np.full((48, 64, 3), 255)),
}  # fmt: skip


@pytest.mark.parametrize(("picture", "kind", "options", "expected"), CLEAR.values(), ids=CLEAR.keys())
def test_what_can_be_seen_through_lies_on_white(picture, kind: str, options: dict, expected: np.ndarray):
    content = written(picture, kind, **options).getvalue()
    np.testing.assert_array_equal(pixels(io.BytesIO(content)), expected)
    assert look(io.BytesIO(content)) == CHANGED


def test_half_transparent_is_half_white():
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert upright_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    assert upright_rgb(half.convert("RGBa")).getpixel((0, 0)) == (127, 127, 127)


def test_modes_that_were_read_before_have_the_same_pixels():
    for picture in (
        Image.fromarray(COLOUR), Image.fromarray(GREY), Image.fromarray(GREY > 99), PALETTE,
        Image.fromarray(COLOUR).convert("CMYK"),
    ):  # fmt: skip
        kind = "TIFF" if picture.mode == "CMYK" else "PNG"
        content = written(picture, kind).getvalue()
        np.testing.assert_array_equal(pixels(io.BytesIO(content)), np.asarray(picture.convert("RGB")))
        assert look(io.BytesIO(content)) == ANY


def test_lab():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    plain = Image.new("RGB", (4, 4), (200, 120, 80))
    found = upright_rgb(ImageCms.profileToProfile(plain, srgb, lab, outputMode="LAB"))
    assert np.abs(np.asarray(found).astype(int) - (200, 120, 80)).max() <= 3


def test_large_jpegs_are_decoded_at_a_fraction():
    slope = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    content = written(slope, "JPEG").getvalue()
    sizes = {least: open_picture(io.BytesIO(content), least).size for least in (None, 1200, 601, 600, 300, 100)}
    assert sizes == {
        None: (1600, 1200), 1200: (1600, 1200), 601: (1600, 1200), 600: (800, 600), 300: (400, 300), 100: (200, 150),
    }  # fmt: skip
    seen = look(io.BytesIO(content))
    assert seen == 1200
    assert [pixels_version(seen, least) is None for least in (None, 601, 600)] == [True, True, False]
    assert open_picture(written(slope, "PNG"), 100).size == (1600, 1200)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "LARGEST", 48 * 64 - 1)
    content = written(Image.fromarray(COLOUR), "PNG").getvalue()
    with pytest.raises(ValueError, match="more than 3,071 pixels: make it smaller first"):
        open_picture(io.BytesIO(content))
    assert look(io.BytesIO(content)) == CHANGED
    assert open_picture(written(Image.fromarray(COLOUR), "JPEG"), 12).size == (16, 12)  # decoded, it is small


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_what_is_no_picture(content: bytes):
    assert look(io.BytesIO(content)) == UNKNOWN
    with pytest.raises(OSError, match="'x.png'"):
        open_picture(io.BytesIO(content), name="x.png")


def test_a_kind_that_needs_a_package_says_which(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "HEIF", False)
    monkeypatch.setattr(pictures, "DICOM", False)
    for content, package in ((b"\0\0\0\x18ftypheic" + bytes(12), "pillow-heif"), (bytes(128) + b"DICM", "pydicom")):
        with pytest.raises(OSError, match=f"'x' is .*needs the {package} package"):
            open_picture(io.BytesIO(content), name="x")
        assert look(io.BytesIO(content)) == UNKNOWN
    missing = pixels_version(UNKNOWN, None)
    monkeypatch.setattr(pictures, "HEIF", True)
    assert pixels_version(UNKNOWN, None) != missing  # tried again once the package is there


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
RARE = {
    "eps": POSTSCRIPT,
    "eps of Windows": b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + len(POSTSCRIPT).to_bytes(4, "little")
    + bytes(20) + POSTSCRIPT,
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(8) + b"\x60\x00" + bytes(4) + b"\x01\x00\x09\x00" + bytes(50),
    "xpm": b"/* XPM */\nstatic char *x[] = {\n\"1 1 1 1\",\n\"a c #ffffff\",\n\"a\"};\n",
    **{kind: kind for kind in ("PCX", "SGI", "TGA", "DIB", "IM", "MSP", "SPIDER", "ICO", "ICNS", "JPEG2000", "QOI")},
}  # fmt: skip


@pytest.mark.parametrize("kind", RARE)
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x"])
def test_formats_that_are_not_listed_are_not_even_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
):
    """Whatever the file is called. A program of PostScript's would be started."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/RAN'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    content = RARE[kind]
    if isinstance(content, str):
        Image.init()
        if kind not in Image.SAVE:
            pytest.skip(f"this Pillow writes no {kind}")
        mode = {"MSP": "1", "SPIDER": "F"}.get(kind, "RGB")
        content = written(Image.new(mode, (32, 32)), kind).getvalue()
    (tmp_path / name).write_bytes(content)
    assert look(tmp_path / name) == UNKNOWN
    for source in (tmp_path / name, io.BytesIO(content)):
        with pytest.raises(OSError, match="cannot identify image file"):
            open_picture(source)
    assert not (tmp_path / "RAN").exists()


def test_every_ending_has_its_format():
    """Nothing that is listed by its ending is refused by its content."""
    kinds = {
        ".jpg": "JPEG",
        ".png": "PNG",
        ".bmp": "BMP",
        ".webp": "WEBP",
        ".gif": "GIF",
        ".tif": "TIFF",
        ".ppm": "PPM",
    }
    kinds |= {".avif": "AVIF"} if pictures.AVIF else {}
    for ending, kind in kinds.items():
        assert ending in pictures.EXTENSIONS
        assert open_picture(written(Image.fromarray(COLOUR), kind)).size == (64, 48)
    assert open_picture(written(Image.fromarray(COLOUR), "MPO")).size == (64, 48)


def test_no_other_door():
    """Whoever opens a picture file does it through ``open_picture``."""
    for file in (PROJECT / "cbm").rglob("*.py"):
        if file.name != "pictures.py":
            assert "Image.open(" not in file.read_text(), file


# ------------------------------------------------------------------------------------------------------------- DICOM


def dicom(values: np.ndarray, photometric: str = "MONOCHROME2", stored: int = 12, **tags) -> io.BytesIO:
    pydicom = pytest.importorskip("pydicom")
    about = pydicom.dataset.FileMetaDataset()
    about.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    about.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    about.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    content = pydicom.dataset.FileDataset(None, {}, file_meta=about, preamble=bytes(128))
    content.Rows, content.Columns = values.shape[:2]
    content.SamplesPerPixel, content.PhotometricInterpretation = (1 if values.ndim == 2 else 3), photometric
    content.BitsAllocated, content.BitsStored, content.HighBit = 8 * values.dtype.itemsize, stored, stored - 1
    content.PixelRepresentation = int(values.dtype.kind == "i")
    content.PixelData = values.tobytes()
    if values.ndim == 3:
        content.PlanarConfiguration = 0
    for tag, value in tags.items():
        setattr(content, tag, value)
    file = io.BytesIO()
    content.save_as(file, enforce_file_format=True)
    return file


SLOPE = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_dicom_without_a_window_uses_all_its_bits():
    found = pixels(dicom(SLOPE))[:, :, 0]
    np.testing.assert_array_equal(found, np.round(SLOPE.astype(float) * 255 / 4095))
    np.testing.assert_array_equal(pixels(dicom(SLOPE, "MONOCHROME1"))[:, :, 0], 255 - found)
    np.testing.assert_array_equal(pixels(dicom(SLOPE.astype(np.int16) - 2048))[:, :, 0], found)


@pytest.mark.parametrize(
    "tags",
    [
        dict(WindowCenter=1000, WindowWidth=500),
        dict(WindowCenter=[-24, 3], WindowWidth=[500, 9], RescaleSlope=1, RescaleIntercept=-1024),
        dict(WindowCenter=2000, WindowWidth=999, RescaleSlope=2, RescaleIntercept=0),
    ],
)
def test_dicom_windows_act_on_rescaled_values(tags: dict):
    found = pixels(dicom(SLOPE, **tags))[:, :, 0].ravel()
    assert found[740] == 0
    assert found[1260] == 255
    assert abs(int(found[1000]) - 128) <= 1


def test_dicom_in_colour_and_damaged():
    np.testing.assert_array_equal(pixels(dicom(COLOUR, "RGB", 8)), COLOUR)
    assert look(dicom(SLOPE)) == CHANGED
    with pytest.raises(OSError, match="'x.dcm' is a DICOM file without a picture"):
        open_picture(io.BytesIO(bytes(128) + b"DICMxx"), name="x.dcm")


def test_heic():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    assert open_picture(written(Image.fromarray(COLOUR), "HEIF")).size == (64, 48)


def test_a_deflated_dicom_file_stays_small(monkeypatch: pytest.MonkeyPatch):
    from cbm.files import dicom as reader

    pydicom = pytest.importorskip("pydicom")
    content = pydicom.dcmread(io.BytesIO(dicom(SLOPE).getvalue()))
    content.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    content.save_as(file := io.BytesIO(), enforce_file_format=True)
    np.testing.assert_array_equal(pixels(file), pixels(dicom(SLOPE)))
    monkeypatch.setattr(reader, "LARGEST_PICTURE", 4000)
    with pytest.raises(ValueError, match=r"compressed and has more bytes than a picture may have"):
        open_picture(file)


def test_of_many_dicom_frames_one_is_unpacked(monkeypatch: pytest.MonkeyPatch):
    pydicom = pytest.importorskip("pydicom")
    content = pydicom.dcmread(io.BytesIO(dicom(SLOPE).getvalue()))
    content.compress(pydicom.uid.RLELossless)
    (frame,) = pydicom.encaps.generate_frames(content.PixelData)
    content.PixelData = pydicom.encaps.encapsulate([frame, b"no frame at all "])
    content.NumberOfFrames = 2
    content.save_as(file := io.BytesIO(), enforce_file_format=True)
    np.testing.assert_array_equal(pixels(file), pixels(dicom(SLOPE)))


@pytest.mark.parametrize(
    "error", [RuntimeError("Not\nimplemented"), SyntaxError("no"), struct.error("x"), IndexError()]
)
def test_whatever_a_decoder_raises(error: Exception, monkeypatch: pytest.MonkeyPatch):
    """AVIF raises RuntimeErrors, PNG SyntaxErrors: those who open pictures need not know."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match=f"'x.avif' is damaged: (struct.)?{type(error).__name__}") as raised:
        open_picture(io.BytesIO(b"x"), name="x.avif")
    assert "\n" not in str(raised.value)
