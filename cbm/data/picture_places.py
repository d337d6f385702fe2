"""Where the images of a split lie, as a table of them says it: files as they are, others as copies beside the table."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

from cbm.data.given import GivenImages
from cbm.data.images import ImageFiles, Images, NoImage
from cbm.errors import UserError
from cbm.files import write_in_parts
from cbm.files.names import file_name


class PicturePlaces:
    """Paths of images, seen from the folder of a table.

    Args:
        images: N images.
        table: the table, which need not exist.

    Raises:
        UserError: only features are known.
    """

    def __init__(self, images: Images, table: Path):
        shown = images.shown if isinstance(images, GivenImages) else None
        self.images, self.table = shown or images, table
        if len(images):
            _unless_none(lambda: images.open(0), images.names[0])

    def path(self, row: int) -> str:
        """Path of an image, with forward slashes: of its file, or of the copy that ``show`` makes."""
        name = self.images.names[row]
        if not isinstance(self.images, ImageFiles):
            key = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
            return f"{self.table.stem}_images/{file_name(name)[-80:]}-{key}.png"
        file = (self.images.root / name).absolute()
        try:
            return Path(os.path.relpath(file, self.table.parent.absolute())).as_posix()
        except ValueError:  # another drive of Windows
            return file.as_posix()

    def show(self, row: int) -> Path:
        """The file of an image; it is copied beside the table if it lies in an archive or in memory.

        Raises:
            UserError: it cannot be read any more, or not be copied.
        """
        name = self.images.names[row]
        if isinstance(self.images, ImageFiles):
            return self.images.root / name
        file = self.table.parent / self.path(row)
        if not file.is_file():
            _unless_none(lambda: _copy(self.images, row, file), name)
        return file


def _copy(images: Images, row: int, file: Path) -> None:
    content = io.BytesIO()
    images.open(row).save(content, "PNG")
    write_in_parts(file.parent, [content.getvalue()], lambda: file.name)


def _unless_none(act: Callable[[], object], name: str) -> None:
    """Do something with an image.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        act()
    except NoImage as error:
        raise UserError(f"there is nothing to look at: {error}") from error
    except UserError:
        raise
    except Exception as error:  # a missing or broken file makes a decoder raise anything
        raise UserError(f"image '{name}' cannot be read any more ({type(error).__name__})") from error
