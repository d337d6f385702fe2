"""Dropped pictures, between the browser and the moment they are decoded: a folder of this process, never much in it."""

import asyncio
import atexit
import functools
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cbm.files import open_regular
from cbm.files.locks import OPEN_FILES_STAY, LockHeldError, NoLocksError, lock
from cbm.files.names import RESERVED

PREFIX = "cbm-app-"
"""How folders of uploads begin, in the system's folder for temporary files."""
LOCK = "lock"
"""The file in each that its process has locked, as long as it lives."""
EACH, TOTAL, MOST = 50_000_000, 200_000_000, 100
"""Bytes of a picture, bytes and number of all that were not decoded yet."""
MULTIPART = 20_000
"""Bytes that a form may add to its picture."""
WAITING = 60.0
"""Seconds after which a picture that nobody decodes makes place for others."""
FORGOTTEN = 600.0
"""Seconds after which it is removed."""
UNLOCKED = 3600.0
"""Seconds after which a folder whose process was killed before it locked anything is removed."""


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        line: why, in a line.
    """

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


class UploadRefusedError(RefusedError):
    """A file that is not taken."""


class Uploads:
    """A folder of dropped pictures, with a limit on what is in it and on what is on its way.

    Args:
        folder: an empty folder.
        each: bytes that a picture may have.
        total: bytes that all may have.
        most: how many there may be.
    """

    def __init__(self, folder: Path, each: int = EACH, total: int = TOTAL, most: int = MOST):
        self.folder, self.each, self.total, self.most = folder, each, total, most
        self._lock = threading.Lock()
        self._held: dict[Path, tuple[int, float]] = {}  # bytes, and when it came
        self._read: set[Path] = set()  # those that are being decoded
        self._arriving: dict[str, int] = {}

    def holds(self, path: str | Path) -> bool:
        """Whether a picture is here, and nobody has decoded it yet."""
        return Path(path) in self._held

    @property
    def size(self) -> int:
        """Bytes that are here or on their way."""
        return sum(size for size, _ in self._held.values()) + sum(self._arriving.values())

    async def receive(self, headers: Sequence[tuple[bytes, bytes]], body: AsyncIterator[bytes]) -> Path:
        """Take the one file of a form; it is counted while it comes in.

        Args:
            headers: of the request.
            body: of the request.

        Returns:
            Where it is.

        Raises:
            UploadRefusedError: it is too large, there are too many, or it is no form with one file.
        """
        token = secrets.token_hex(16)
        with self._lock:
            self._forget()
            if len(self._held) + len(self._arriving) >= self.most:
                self._make_place()
            if len(self._held) + len(self._arriving) >= self.most:
                raise UploadRefusedError(413, f"{self.most} pictures wait to be read: try again in a moment")
            self._arriving[token] = 0
        try:
            name, file = await one_file(headers, self._counted(token, body))
            with file:
                return await asyncio.to_thread(self._keep, token, name, file)
        finally:
            with self._lock:
                self._arriving.pop(token, None)

    async def _counted(self, token: str, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in body:
            with self._lock:
                size = self._arriving[token] + len(part)
                if size > self.each + MULTIPART:
                    raise UploadRefusedError(
                        413, f"the file is too large: at most {self.each // 1_000_000} MB are read"
                    )
                if self.size + len(part) > self.total:
                    self._make_place(len(part))
                if self.size + len(part) > self.total:
                    raise UploadRefusedError(413, "too many pictures wait to be read: try again in a moment")
                self._arriving[token] = size
            yield part

    def _keep(self, token: str, name: str, file: IO[bytes]) -> Path:
        path = self.folder / token / plain_name(name)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)  # whoever cleans up temporary files may have removed it
            path.parent.mkdir(mode=0o700)
            with path.open("xb") as kept:
                shutil.copyfileobj(file, kept)
                size = kept.tell()
        except OSError as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise UploadRefusedError(507, f"the picture cannot be kept: {error.strerror or error}") from error
        if size > self.each:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise UploadRefusedError(413, f"the file is too large: at most {self.each // 1_000_000} MB are read")
        with self._lock:
            self._held[path] = size, time.monotonic()
        return path

    @contextmanager
    def reading(self, path: str | Path) -> Iterator[Path]:
        """A picture, which is removed when it was decoded.

        Raises:
            FileNotFoundError: it is not here (any more).
        """
        path = Path(path)
        with self._lock:
            if path not in self._held or path in self._read:
                raise FileNotFoundError(path)
            self._read.add(path)
        try:
            yield path
        finally:
            with self._lock:
                self._read.discard(path)
                self._remove(path)

    def _remove(self, path: Path) -> None:
        self._held.pop(path, None)
        shutil.rmtree(path.parent, ignore_errors=True)

    def _forget(self) -> None:
        """Remove what nobody has decoded for long."""
        for path, (_, came) in list(self._held.items()):
            if time.monotonic() - came > FORGOTTEN and path not in self._read:
                self._remove(path)

    def _make_place(self, size: int = 0) -> None:
        """Remove those that wait longest, until ``size`` bytes more have place."""
        for path, (_, came) in list(self._held.items()):
            if self.size + size <= self.total and len(self._held) + len(self._arriving) < self.most:
                return
            if path not in self._read and time.monotonic() - came > WAITING:
                self._remove(path)


async def one_file(headers: Sequence[tuple[bytes, bytes]], body: AsyncIterator[bytes]) -> tuple[str, IO[bytes]]:
    """Name and content of the one file of a form; the content has no name on the disk.

    Raises:
        UploadRefusedError: there is none, or more than that.
    """
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    found = Headers(raw=[(key.lower(), value) for key, value in headers])
    expected = "expected a form (multipart/form-data) with one file"
    if not found.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UploadRefusedError(400, expected)
    stream: Any = body
    try:
        form = await MultiPartParser(found, stream, max_files=1, max_fields=1).parse()
    except (MultiPartException, ValueError, KeyError, AssertionError) as error:
        raise UploadRefusedError(400, expected) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise UploadRefusedError(400, expected)
    return files[0].filename or "", files[0].file


def plain_name(name: str) -> str:
    """What a file is called here, after what somebody calls it: no folder, nothing that cannot be printed, not long."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(c for c in last if c.isprintable() and c not in ':*?"|').strip(" .")
    suffix = PurePosixPath(kept).suffix
    stem = kept.removesuffix(suffix)[:150]
    while len(f"{stem}{suffix}".encode(errors="replace")) > 150:
        stem, suffix = (stem[:-1], suffix) if len(suffix) <= 10 else (stem, suffix[:10])
    kept = f"{stem}{suffix}".encode(errors="replace").decode()
    return f"_{kept}" if kept.partition(".")[0].upper() in RESERVED else kept or "picture"


# ----------------------------------------------------------------------------------------------- the folder itself


class OwnFolder:
    """A folder that only this user can read and that this process has locked; removed by ``close``.

    Args:
        parent: where it is; by default the system's folder for temporary files.
    """

    def __init__(self, parent: Path | None = None):
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        sweep_folders(parent)
        self._process = os.getpid()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # 0700
            with suppress(FileNotFoundError):  # swept by another process before there was a lock
                self._file = (self.path / LOCK).open("xb")
                with suppress(NoLocksError, LockHeldError):
                    lock(self._file, wait=True)
                if (self.path / LOCK).exists():
                    return
                self._file.close()

    def close(self) -> None:
        """Remove it; in a process that was forked from its own, leave it."""
        if os.getpid() != self._process:
            return
        if OPEN_FILES_STAY:
            self._file.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._file.close()


def sweep_folders(parent: Path) -> None:
    """Remove the folders of processes that are gone: ours, and not locked."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, NoLocksError, LockHeldError):  # gone, in use, or not ours
            state = folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or (hasattr(os, "getuid") and state.st_uid != os.getuid()):
                continue
            try:
                with open(folder / LOCK, "rb", opener=open_regular) as file:
                    lock(file)
                    if not OPEN_FILES_STAY:
                        shutil.rmtree(folder, ignore_errors=True)
                if OPEN_FILES_STAY:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:
                if time.time() - state.st_mtime > UNLOCKED:
                    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def own_uploads() -> Uploads:
    """The dropped pictures of this process, whose folder is removed when it ends.

    Gradio is told that its files are there too; it asks when the page is made, and again for every file.
    """
    folder = OwnFolder()
    atexit.register(folder.close)
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
    return Uploads(folder.path)
