"""Run as a script: cbm where only POSIX is missing, as on Windows; libraries see the system as it is.

Modules of cbm cannot import ``fcntl`` and the like, their ``os`` lacks what Windows' lacks, their ``msvcrt`` locks by
``flock``, and their files can neither be removed nor renamed nor replaced while this process has them open or mapped.
"""

import builtins
import errno
import fcntl
import importlib
import os
import pathlib
import sys
import types

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "posix", "syslog", "readline"}
ATTRIBUTES = {
    "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "sysconf", "fork", "register_at_fork", "getuid", "geteuid",
    "sched_getaffinity", "killpg", "uname", "statvfs", "fchmod", "mkfifo", "getloadavg", "posix_fadvise",
}  # fmt: skip
OPTIONAL = ("cbm.app", "cbm.kernels.gpu")


class HalfOs(types.ModuleType):
    """``os`` without what Windows' ``os`` has not."""

    def __getattr__(self, name: str):
        if name in ATTRIBUTES:
            raise AttributeError(f"module 'os' has no attribute '{name}'")
        return getattr(os, name)


def locking(descriptor: int, mode: int, count: int) -> None:
    assert (mode, count) == (2, 1)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 2**31 - 2, "the lock would keep others from reading the file"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error


def hide() -> None:
    """Hide what Windows has not from modules of cbm that are imported from now on."""
    real, half, windows = builtins.__import__, HalfOs("os"), types.ModuleType("msvcrt")
    windows.locking, windows.LK_NBLCK = locking, 2

    def importer(name, globals=None, locals=None, fromlist=(), level=0):
        if not level and ours(globals or {}):
            if name.partition(".")[0] in MODULES:
                raise ImportError(f"No module named '{name}'")
            if name in ("os", "msvcrt"):
                return half if name == "os" else windows
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = importer
    for method in ("unlink", "replace", "rename"):
        setattr(pathlib.Path, method, refusing(getattr(pathlib.Path, method)))


def ours(scope: dict) -> bool:
    return str(scope.get("__name__", "")).partition(".")[0] == "cbm"


def refusing(method):
    def stay(self, *arguments, **settings):
        if ours(sys._getframe(1).f_globals):
            for path in (self, *arguments):
                if isinstance(path, pathlib.Path) and path.exists() and in_use(path):
                    raise PermissionError(errno.EACCES, "it is open", str(path))
        return method(self, *arguments, **settings)

    return stay


def in_use(path: pathlib.Path) -> bool:
    """Whether this process has a file open or mapped."""
    name = str(path.absolute())
    opened = [os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")]
    maps = pathlib.Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = [line.split(maxsplit=5)[-1].strip() for line in maps]
    return name in opened or name in mapped


def refused(make, error) -> str:
    try:
        make()
    except error as refusal:
        return str(refusal)
    raise AssertionError("not refused")


def files(folder: pathlib.Path) -> None:
    """Whole files, leftovers, and folders."""
    from cbm.files import locked, open_regular, place_new, sweep, write_atomically

    write_atomically(folder / "a.txt", b"old")
    write_atomically(folder / "a.txt", b"new")
    assert (folder / "a.txt").read_bytes() == b"new"
    (folder / ".partial.fresh").touch()
    (folder / ".partial.old").touch()
    os.utime(folder / ".partial.old", (0, 0))
    with (folder / ".partial.held").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.utime(folder / ".partial.held", (0, 0))
        sweep(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".partial.fresh", ".partial.held", "a.txt"]
    with locked(folder), (folder / ".folder.lock").open("rb") as lock:
        refused(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), BlockingIOError)
    with locked(folder):
        pass  # it was given back
    (folder / "link").symlink_to("a.txt")
    assert "a link, not a file" in refused(lambda: open_regular(folder / "link", os.O_RDONLY), OSError)
    assert not place_new(folder / ".partial.fresh", folder / "a.txt")


def busy(folder: pathlib.Path) -> None:
    """A file that somebody else has open for a moment is replaced when they are done."""
    import threading

    from cbm.files import write_atomically

    reader = (folder / "a.txt").open("rb")
    threading.Timer(0.3, reader.close).start()
    write_atomically(folder / "a.txt", b"newest")
    assert (folder / "a.txt").read_bytes() == b"newest"


def runs(folder: pathlib.Path) -> None:
    """A run directory, and a table that is written row by row, belong to one process."""
    from omegaconf import OmegaConf

    from cbm.errors import UserError
    from cbm.files.run_directory import RunDirectory
    from cbm.run.unfinished import unfinished_table

    cfg = OmegaConf.create({"trainer": {}, "run_dir": None})
    first = RunDirectory(folder / "run", cfg)
    assert "another process is writing" in refused(lambda: RunDirectory(folder / "run", cfg), UserError)
    first.finish()
    with unfinished_table(folder / "out.csv") as table:
        refused(unfinished_table(folder / "out.csv").__enter__, UserError)
        table.add([["a", "b"]])
        table.finish(folder / "out.csv")
    assert (folder / "out.csv").read_bytes() == b"a,b\n"
    assert not list(folder.glob("*.partial*[!hd]"))
    assert "is there by now" in refused(unfinished_table(folder / "out.csv").__enter__, UserError)
    assert not (folder / "out.csv.partial").exists()


def store(folder: pathlib.Path) -> None:
    """Shards and their index are read, written and replaced while others are mapped."""
    import numpy as np
    import torch

    import cbm.data.index as index
    from cbm.data.old_store import OldStores

    index.UNLISTED = 1
    for round_ in range(3):
        found = index.FeatureIndex(folder / "features" / "x", OldStores(folder / "features", ("a", "b", "c"), []))
        digests = np.array([[round_, 1], [round_, 2]], np.uint64)
        found.add(digests, {"features": torch.ones(2, 3), "readable": torch.ones(2, dtype=torch.uint8)}, {})
        found.refresh()
        found.save()
    assert len(index.FeatureIndex(found.folder, found.old)._listed) == 6, "the index was not replaced"


def pickles() -> None:
    """What a process that decodes images is given goes through a pickle where processes are not forked."""
    import pickle

    from cbm.config import BUNDLED, EncoderConfig
    from cbm.data.encoding import Pictures, collate
    from cbm.data.images import ImageFiles
    from cbm.encoders import load_encoder
    from cbm.run.sources import _Files

    encoder = load_encoder(EncoderConfig(model=BUNDLED))
    images = ImageFiles(pathlib.Path("a"), ["b.png"])
    for content in (Pictures(images, [0], encoder), _Files(pathlib.Path("a"), encoder), collate):
        pickle.loads(pickle.dumps(content))


def everything(root: pathlib.Path) -> None:
    """Every module can be imported."""
    for path in sorted((root / "cbm").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith(OPTIONAL) and name != "cbm.__main__":
            importlib.import_module(name)


if __name__ == "__main__":
    hide()
    place = pathlib.Path(sys.argv[1])
    files(place)
    busy(place)
    runs(place)
    store(place)
    pickles()
    everything(pathlib.Path(__file__).resolve().parents[2])
    from cbm.files.locks import fcntl as seen

    assert seen is None, "fcntl was not hidden"
    print("all of it works")
