"""Images in tar files (WebDataset), for pools too large for folders.

A tar file is indexed once: where each image's bytes begin and end, and its label. The index is kept in the cache by
the file's path, size and times. Images are then read in any order straight from the tar files; nothing is
unpacked, so that a path inside one means nothing but a name.
"""

import hashlib
import io
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image
from rich.progress import track

from cbm.data.dataset import ImageDataset, Split, class_index
from cbm.data.fingerprints import UNREADABLE, derived
from cbm.data.images import ImageFiles, Images, list_names
from cbm.data.lists import passed_over
from cbm.data.readers import SPLIT_ALIASES, SPLITS, reader
from cbm.errors import UserError
from cbm.files import write_atomically
from cbm.files.names import as_text, one_form
from cbm.files.opening import LARGEST_HEADER, LARGEST_PICTURE, Limited, open_to_read
from cbm.files.parsing import parse_json, read_text
from cbm.files.pictures import EXTENSIONS, UNKNOWN, look, open_picture

log = logging.getLogger(__name__)

LABELS = ("cls", "json", "txt")
JSON_KEYS = ("label", "cls", "class")
SLOW = 64  # tar files from which on indexing shows its progress
LABEL = 1 << 20  # bytes of a label, at most
LARGE = 1 << 30  # bytes of a tar file from which on indexing it is said
INDEX = pa.schema([("name", pa.string()), ("start", pa.int64()), ("size", pa.int64()), ("label", pa.string())])
MEMBERS = pa.schema([("start", pa.int64()), ("content", pa.string()), ("look", pa.int32())])
OTHERS = b"others"  # in the metadata of the index: endings that are not read, counted


class ImageTars:
    """Images in tar files.

    Attributes:
        root: the folder of the tar files.
        tars: T tar files, as paths from the root.
        names: ``TAR/MEMBER`` of every image.
        places: ``[N, 3]`` int64: number of the tar file, first byte, count of bytes.
    """

    def __init__(self, root: Path, tars: Sequence[str], names: Sequence[str], places: np.ndarray):
        self.root = Path(root)
        self.tars = list(tars)
        self.names = list(names)
        self.places = places

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int, least: int | None = None) -> Image.Image:
        """The image as upright RGB; raises what Pillow or the file system raises."""
        tar, start, size = self.places[row].tolist()
        if size > LARGEST_PICTURE:
            raise ValueError(f"'{self.names[row]}' has {size:,} bytes, more than a picture may have")
        with open_to_read(self.root / self.tars[tar]) as file:
            file.seek(start)
            content = file.read(size)
        return open_picture(io.BytesIO(content), least, self.names[row])

    def take(self, rows: Sequence[int]) -> "ImageTars":
        """The images at ``rows``."""
        return ImageTars(self.root, self.tars, [self.names[row] for row in rows], self.places[np.asarray(rows, int)])

    def fingerprints(self, cache: Path) -> list[str]:
        """Fingerprints of the images: the hash of the tar file (kept in ``cache``) and the position in it."""
        self._members(cache)  # reads a new tar file once, for all that is asked about it
        used = np.unique(self.places[:, 0]).tolist()
        hashes = dict(zip(used, ImageFiles(self.root, [self.tars[tar] for tar in used]).fingerprints(cache)))
        return [derived(hashes[tar], start, size) for tar, start, size in self.places.tolist()]

    def contents(self, cache: Path) -> list[str]:
        """Hash of every image's bytes, which are the same in another place of the tar file, or in another one."""
        return self._members(cache)[0]

    def looks(self, cache: Path) -> np.ndarray:
        """How every image is read."""
        return self._members(cache)[1]

    def _members(self, cache: Path) -> tuple[list[str], np.ndarray]:
        contents, looks = [""] * len(self), np.full(len(self), UNKNOWN, np.int32)
        for tar in np.unique(self.places[:, 0]).tolist():
            table = _looked_at(self.root / self.tars[tar], cache)
            if table is None:
                continue
            at = {start: row for row, start in enumerate(table["start"].to_pylist())}
            content, seen = table["content"].to_pylist(), table["look"].to_pylist()
            for row in np.flatnonzero(self.places[:, 0] == tar).tolist():
                if (place := at.get(int(self.places[row, 1]))) is not None:
                    contents[row], looks[row] = content[place], seen[place]
        return [content or f"{UNREADABLE}gone" for content in contents], looks


def read_pool(folder: Path, cache: Path) -> Images:
    """All images below a folder, at any depth: in tar files if there are any, else as files."""
    tars = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
    return open_tars(folder, tars, cache)[0] if tars else ImageFiles(folder, list_names(folder))


def open_tars(root: Path, tars: Sequence[str], cache: Path) -> tuple[ImageTars, list[str | None]]:
    """The images of tar files, and what their labels say (None without one)."""
    names: list[str] = []
    labels: list[str | None] = []
    places = [np.empty((0, 3), dtype=np.int64)]
    for number, tar in enumerate(track(tars, "indexing tar files", transient=True, disable=len(tars) < SLOW)):
        index = _index(root / tar, cache)
        members = index["name"].to_pylist()
        counted = Counter(member.removeprefix("./") for member in members)
        if twice := [member for member, count in counted.items() if count > 1]:
            raise UserError(
                f"'{root / tar}' holds {len(twice):,} picture(s) twice under one name, first '{twice[0]}' (was it "
                "appended to?): write it again, so that names are unique"
            )
        names += [f"{tar}/{member}" for member in members]
        labels += index["label"].to_pylist()
        start, size = index["start"].to_numpy(), index["size"].to_numpy()
        places.append(np.stack([np.full(len(start), number), start, size], axis=1))
    return ImageTars(root, tars, names, np.concatenate(places)), labels


def _index(tar: Path, cache: Path) -> pa.Table:
    """Name, first byte, size and label of every image of a tar file: from the cache, or read and kept there."""
    return _kept(tar, cache, "", INDEX, lambda: _read_index(tar), "indexing '%s' (once)")


def _looked_at(tar: Path, cache: Path) -> pa.Table | None:
    """First byte, content hash and look of every image of a tar file; None if it is not there any more."""
    try:
        index = _index(tar, cache)
        return _kept(tar, cache, "-members", MEMBERS, lambda: _read_members(tar, index, cache), "reading '%s' (once)")
    except OSError:
        return None


def _kept(
    tar: Path, cache: Path, ending: str, schema: pa.Schema, make: Callable[[], pa.Table], saying: str
) -> pa.Table:
    """A table about a tar file as it is now: from the cache, or made and kept there."""
    stat = tar.stat()
    changed = f"{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
    key = hashlib.sha256(f"{tar.absolute()}|{changed}".encode()).hexdigest()[:24]
    file = cache / "tars" / f"{key}{ending}.parquet"
    if file.is_file():
        with suppress(pa.ArrowException, OSError):
            table = pyarrow.parquet.read_table(file)
            table.validate(full=True)  # text that is none
            empty = [name for name in table.column_names if name != "label" and table[name].null_count]
            if table.schema.equals(schema) and not empty:
                return table
        log.warning("'%s' is damaged: it is made again from '%s'", file, tar)
    if stat.st_size > LARGE:
        log.info(saying, tar)
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table := make(), buffer)
    write_atomically(file, buffer.getvalue().to_pybytes())
    return table


def _read_members(tar: Path, index: pa.Table, cache: Path) -> pa.Table:
    """Read a tar file once: what its images are, and the hash of the whole, which is remembered like any file's."""
    whole, contents, looks, at = hashlib.blake2b(digest_size=16), [], [], 0
    starts = index["start"].to_pylist()
    with open_to_read(tar) as file:

        def skip(count: int) -> None:
            while count and (block := file.read(min(count, 1 << 20))):
                whole.update(block)
                count -= len(block)

        for start, size in zip(starts, index["size"].to_pylist()):
            skip(start - at)
            at = start + size
            if size > LARGEST_PICTURE:  # which is not opened
                contents.append(f"{UNREADABLE}ValueError")
                looks.append(UNKNOWN)
                skip(size)
                continue
            content = file.read(size)
            whole.update(content)
            contents.append(hashlib.blake2b(content, digest_size=16).hexdigest())
            looks.append(look(io.BytesIO(content)))
        skip(tar.stat().st_size - at)
    ImageFiles(tar.parent, [tar.name]).remember(cache, [whole.hexdigest()])
    return pa.table({"start": starts, "content": contents, "look": looks}, schema=MEMBERS)


def _read_index(tar: Path) -> pa.Table:
    pictures: list[tuple[str, str, int, int]] = []  # key, name, first byte, size
    said: dict[str, dict[str, str]] = {}
    others: Counter[str] = Counter()
    try:
        with open_to_read(tar) as file, tarfile.open(fileobj=Limited(file, LARGEST_HEADER), mode="r:") as archive:
            for member in iter(archive.next, None):
                archive.members.clear()  # type: ignore[attr-defined]  # a million of them are a gigabyte
                key, ending = _key(member.name)
                if member.size < 0:
                    raise UserError(f"'{tar}': '{member.name}' has {member.size:,} bytes")
                if not member.isreg() or member.issparse() or member.name.rpartition("/")[2].startswith("."):
                    continue
                if f".{ending}" in EXTENSIONS:
                    pictures.append((key, member.name, member.offset_data, member.size))
                elif ending in LABELS:
                    if member.size > LABEL:
                        raise UserError(f"'{tar}': the label '{member.name}' has {member.size:,} bytes")
                    content = archive.extractfile(member)
                    assert content is not None
                    label = content.read().decode("utf-8", errors="replace").strip()
                    if said.setdefault(key, {}).setdefault(ending, label) != label:
                        raise UserError(f"'{tar}' holds '{member.name}' twice, with different labels: write it again")
                else:
                    others[f".{ending}" if ending else ""] += 1
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the parser raise
        raise UserError(f"'{tar}' is no tar file or is cut off after {len(pictures)} picture(s): {error}") from error
    with open_to_read(tar) as file:
        file.seek(-min(tarfile.BLOCKSIZE, tar.stat().st_size), 2)
        if any(file.read()):
            raise UserError(f"'{tar}' is cut off after {len(pictures)} picture(s): it lacks the end of a tar file")
    labels = [_label(tar, name, said.get(key, {})) for key, name, _, _ in pictures]
    columns = {
        "name": [as_text(name) for _, name, _, _ in pictures],
        "start": [start for _, _, start, _ in pictures],
        "size": [size for _, _, _, size in pictures],
        "label": labels,
    }
    return pa.table(columns, schema=INDEX.with_metadata({OTHERS: json.dumps(others)}))


def _key(member: str) -> tuple[str, str]:
    """``a/0001.seg.png`` is the part ``seg.png`` of the sample ``a/0001``."""
    folder, slash, file = member.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _label(tar: Path, picture: str, parts: dict[str, str]) -> str | None:
    if "json" in parts and "cls" not in parts:
        content = parse_json(parts["json"], f"'{tar}': the JSON beside '{picture}'")
        for key in JSON_KEYS if isinstance(content, dict) else ():
            if key in content:
                return str(content[key])
    return parts.get("cls", parts.get("txt"))


@reader("webdataset")
def read_webdataset(name: str, root: Path, cache: Path) -> ImageDataset:
    """``ROOT/{train,val,test}/*.tar`` or ``ROOT/*.tar`` (a split's name may be part of a file's: ``val-0001.tar``).

    A sample is ``KEY.jpg`` and ``KEY.cls`` (or a ``label``, ``cls`` or ``class`` in ``KEY.json``, or ``KEY.txt``): a
    class name, or a number that a line of ``ROOT/classnames.txt`` names, counted from 0.
    """
    tars = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar")) if root.is_dir() else []
    if not tars:
        raise UserError(f"data set '{name}': no tar files in '{root}'; expected {root}/*.tar or {root}/train/*.tar")
    by_split: dict[str, list[str]] = {}
    for tar in tars:
        by_split.setdefault(_split_of(tar), []).append(tar)
    read = {split: open_tars(root, by_split[split], cache) for split in SPLITS if split in by_split}
    labels = {split: _all_labelled(name, images, said) for split, (images, said) in read.items()}
    classes, index = _classes(name, root, labels)
    splits = {split: Split(images, class_index(labels[split], index)) for split, (images, _) in read.items()}
    others: Counter[str] = Counter()
    for tar in tars:
        said = (_index(root / tar, cache).schema.metadata or {}).get(OTHERS, b"{}")
        with suppress(ValueError, TypeError, RecursionError):  # damaged: it is said nowhere
            others.update({str(ending): int(count) for ending, count in dict(json.loads(said)).items()})
    return ImageDataset(name, classes, splits, doubts=passed_over(others))


def _split_of(tar: str) -> str:
    for word in re.split(r"[^a-z]+", tar.lower().removesuffix(".tar")):
        if (split := SPLIT_ALIASES.get(word, word)) in SPLITS:
            return split
    return "train"


def _all_labelled(name: str, images: ImageTars, said: list[str | None]) -> list[str]:
    labels = [one_form(label) for label in said if label]
    if len(labels) < len(said):
        first = images.names[[bool(label) for label in said].index(False)]
        raise UserError(
            f"data set '{name}': {len(said) - len(labels):,} of {len(said):,} pictures have no label (KEY.cls or "
            f"KEY.json), first '{first}'; without labels they can be a pool: python -m cbm concepts v2c --pool"
        )
    return labels


def _classes(name: str, root: Path, labels: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Class names, and what the labels call them."""
    found = sorted({label for part in labels.values() for label in part})
    if not all(label.isdecimal() for label in found):
        if len(found) > sum(map(len, labels.values())) // 2:
            raise UserError(
                f"data set '{name}': {len(found):,} different labels, such as '{found[0][:60]}': are they captions? "
                "A pool needs no labels: python -m cbm concepts v2c --pool"
            )
        return found, found
    listed = root / "classnames.txt"
    if not listed.is_file():
        log.warning("%s: no '%s': classes are called by their numbers", name, listed)
        found.sort(key=lambda label: (len(label), label))
        return [f"class {label}" for label in found], found
    classes = [one_form(line) for line in read_text(listed).splitlines() if line.strip()]
    numbers = [str(number) for number in range(len(classes))]
    if beyond := sorted(set(found) - set(numbers)):
        raise UserError(f"data set '{name}': label {beyond[0]}, but '{listed}' names {len(classes)} classes (0 first)")
    return classes, numbers
