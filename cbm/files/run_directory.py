"""The directory of a run: its name, its state (free, finished or interrupted), and its contents."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cbm.errors import UserError, did_you_mean
from cbm.files import PARTIAL, open_regular, open_to_read, write_atomically
from cbm.files.loading import interpolation_in
from cbm.files.locks import LockHeldError, NoLocksError, lock
from cbm.files.names import file_name
from cbm.files.opening import cannot_read
from cbm.files.parsing import read_json, read_yaml

NOT_PART_OF_A_RUN = ("run_dir", "cache", "overwrite", "report", "logger")
"""Settings that do not change what is trained: the same run may go on with others."""
READ_BACK = ("config.yaml", "metrics.json", "about.json", "bank/bank.json")
"""What later commands read of a finished run, beside files that carry their own checksum."""
PREDICTIONS = "predictions.parquet"
"""What was decided about every test image (``cbm.files.predictions``); a run may be without."""
SECTIONS = ("dataset", "encoder", "teacher", "concepts", "method", "trainer", "logger", "evidence")
"""Groups of settings in ``config.yaml``."""
OPTIONAL = ("encoder", "teacher")
"""Those that may be null."""
FOLDERS = ("bank", "checkpoints", "eval", "figures", "wandb")
"""What is written into below a run directory."""


def settings_hash(cfg: DictConfig) -> str:
    """Eight digits that stand for everything that decides what is trained.

    Raises:
        UserError: a setting that ``read_config`` would refuse.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    if key := interpolation_in(settings):
        raise UserError(f"'{key}' contains '${{', which a written configuration cannot keep: say it in other words")
    settings = {key: value for key, value in settings.items() if key not in NOT_PART_OF_A_RUN}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in ("progress", "checkpoint_seconds")}
    if settings["trainer"].get("threads") is None:  # runs of before do not say it
        settings["trainer"].pop("threads", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


class RunDirectory:
    """A run directory, claimed by this process until it ends.

    Args:
        path: the directory (see ``choose_run_directory``), made if it is not there.
        cfg: the configuration, written to ``config.yaml``.

    Attributes:
        path: the directory.
        resumed: whether the directory held an interrupted run of the same settings, which is continued.

    Raises:
        UserError: another process is writing there, or it cannot be made.
    """

    def __init__(self, path: Path, cfg: DictConfig):
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make run directory '{path}': {error.strerror}") from error
        check_files(path)
        try:
            self._lock = open(path / ".lock", "ab", opener=open_regular)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write to run directory '{path}': '.lock': {error.strerror}") from error
        try:
            with suppress(NoLocksError):
                lock(self._lock)
        except LockHeldError as error:
            raise UserError(f"another process is writing to run directory '{path}'") from error
        self.resumed = (path / "state.json").is_file()
        write_atomically(path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
        self.settings = settings_hash(cfg)
        self.write_json("state.json", {"settings": self.settings, "finished": False})

    def finish(self) -> None:
        """Mark the run as finished, with the checksums of what is read back; what was kept for resuming goes."""
        names = (*READ_BACK, PREDICTIONS)
        checksums = {name: _checksum(self.path / name) for name in names if (self.path / name).is_file()}
        self.write_json("state.json", {"settings": self.settings, "finished": True, "checksums": checksums})
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def write_json(self, name: str, content: Any) -> None:
        """Write ``content`` to the file ``name``."""
        write_atomically(self.path / name, json.dumps(content, indent=1, ensure_ascii=False).encode())


def choose_run_directory(cfg: DictConfig) -> Path:
    """The directory for a new run, or of an interrupted run with the same settings.

    With no ``run_dir`` the name is runs/METHOD-DATASET-HASH of the settings; if that is finished, -2, -3 ... follow.

    Raises:
        UserError: ``run_dir`` holds a finished run, a run with other settings, or other files.
    """
    code = settings_hash(cfg)
    if cfg.run_dir is None:
        stem = Path("runs") / file_name(f"{cfg.method.name}-{cfg.dataset.name}-{code}")
        number = 1
        while _state(path := stem if number == 1 else stem.with_name(f"{stem.name}-{number}"), code) == "finished":
            number += 1
    else:
        path = Path(cfg.run_dir)
    state = _state(path, code)
    if state == "finished":
        if not cfg.overwrite:
            raise UserError(
                f"run directory '{path}' exists and holds a finished run: choose another run_dir, "
                "or say overwrite=true to move it aside"
            )
        number = 1
        while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
            number += 1
        path.rename(aside)
        state = "free"
    if state == "foreign":
        raise UserError(f"run_dir='{path}' exists and is not a run of cbm: choose another")
    if state == "other":
        raise UserError(
            f"run directory '{path}' holds an interrupted run with other settings: choose another run_dir, "
            f"or the settings in '{path / 'config.yaml'}' to go on with it"
        )
    return path


def finished_run(cfg: DictConfig) -> Path | None:
    """The directory of a finished run with the same settings, under ``run_dir`` or its default name; None without."""
    code = settings_hash(cfg)
    name = file_name(f"{cfg.method.name}-{cfg.dataset.name}-{code}")
    path = Path("runs") / name if cfg.run_dir is None else Path(cfg.run_dir)
    if _state(path, code) != "finished":
        return None
    return path if _read_state(path / "state.json")["settings"] == code else None


def _state(path: Path, code: str) -> str:
    try:
        return _state_of(path, code)
    except OSError as error:
        raise cannot_read(path, error) from error


def _state_of(path: Path, code: str) -> str:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return "free"
    file = path / "state.json"
    if not file.is_file():
        if not path.is_dir():
            return "foreign"
        # a kill between making the directory and writing its state leaves no more than these
        names = {p.name for p in path.iterdir() if not p.name.startswith(PARTIAL)}
        return "free" if names <= {".lock", "config.yaml"} else "foreign"
    state = _read_state(file)
    if state["finished"]:
        return "finished"
    return "interrupted" if state["settings"] == code else "other"


def _read_state(file: Path) -> dict[str, Any]:
    state = read_json(file)
    if not isinstance(state, dict) or not isinstance(state.get("finished"), bool) or "settings" not in state:
        raise UserError(f"'{file}' is damaged: it does not say whether the run is finished")
    if not isinstance(state.get("checksums", {}), dict):
        raise UserError(f"'{file}' is damaged: its checksums are {json.dumps(state['checksums'])[:60]}")
    return state


def _checksum(file: Path) -> str:
    try:
        with open_to_read(file) as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise cannot_read(file, error) from error


def open_run(path: Path) -> tuple[Path, DictConfig]:
    """The directory and configuration of a finished run.

    Raises:
        UserError: there is no such run (with the nearest names), it is not finished, or it is damaged.
    """
    path = Path(path)
    try:
        there, finished = (path / "config.yaml").is_file(), (path / "metrics.json").is_file()
    except OSError as error:  # a folder that this user may not enter
        raise cannot_read(path, error) from error
    if not there:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no run in '{path}': {did_you_mean(path.name, siblings)}")
    if not finished:
        raise UserError(f"run '{path}' is not finished: run its train.py command again, it goes on where it stopped")
    verify_run(path)
    return path, read_config(path)


def verify_run(path: Path, names: tuple[str, ...] = READ_BACK) -> None:
    """Raise a ``UserError`` if one of the files is not as the run left it, or not a file."""
    check_files(path)
    state = _read_state(path / "state.json") if (path / "state.json").is_file() else {}
    checksums = state.get("checksums", {})
    for name in names:
        if name in checksums and not (path / name).is_file():
            raise UserError(f"'{path / name}' is missing: restore it or train again")
        if name in checksums and _checksum(path / name) not in _good(checksums[name]):
            raise UserError(
                f"'{path / name}' is not as the run left it: restore it or train again (or, if it was changed on "
                "purpose, take its line out of state.json)"
            )


def _good(checksum: Any) -> list[Any]:
    """The checksums that a file may have: two while it is being replaced."""
    return checksum if isinstance(checksum, list) else [checksum]


def replace_kept(path: Path, name: str, content: bytes) -> None:
    """Replace a file of a finished run that is read back, so that the run opens whenever this is interrupted: first
    both contents are right, then the file is written, then only the new one is.

    Args:
        path: the run directory, which the caller has locked.
        name: name of the file there.
        content: its new content.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    file, state_file = path / name, path / "state.json"
    state = _read_state(state_file) if state_file.is_file() else {}
    if name not in state.get("checksums", {}):
        write_atomically(file, content)
        return
    new = hashlib.blake2b(content, digest_size=16).hexdigest()
    for good in ([_checksum(file), new], new):
        state["checksums"][name] = good
        write_atomically(state_file, json.dumps(state, indent=1, ensure_ascii=False).encode())
        if isinstance(good, list):
            write_atomically(file, content)


def check_files(path: Path) -> None:
    """Raise a ``UserError`` if a run directory holds what would be waited for, or leads elsewhere what is written.

    That is anything but files and folders (a pipe, a device, a link to one), and links in place of the folders that
    runs write into. Links to files may stay: they are read, and replaced when they are written.
    """
    try:
        for entry in sorted(path.iterdir()):
            ours = entry.name in FOLDERS
            below = os.walk(entry) if ours and entry.name != "wandb" and not entry.is_symlink() else ()
            inside = [Path(folder) / name for folder, folders, names in below for name in (*folders, *names)]
            for found in (entry, *inside):
                if found.exists() and not found.is_file() and not found.is_dir():
                    raise UserError(f"'{found}' is neither a file nor a folder: remove it")
                if ours and found.is_symlink() and not found.is_file():
                    raise UserError(f"'{found}' is a link to another place, where nothing is written: remove it")
                if ours and found is entry and not found.is_dir():
                    raise UserError(f"'{found}' is not a folder: remove it")
    except OSError as error:
        raise UserError(f"cannot read run directory '{path}': {error.strerror}") from error


def read_config(path: Path) -> DictConfig:
    """The configuration of a run. It was resolved when it was written: ``${...}`` in it is somebody else's.

    Raises:
        UserError: ``config.yaml`` cannot be read, or would read an environment variable or another setting.
    """
    file = path / "config.yaml"
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is not the configuration of a run")
    for name in SECTIONS:
        if not isinstance(content.get(name, {}), dict) and (content[name] is not None or name not in OPTIONAL):
            raise UserError(f"'{file}' is not the configuration of a run: '{name}' holds no settings")
    if key := interpolation_in(content):
        raise UserError(f"'{file}': '{key}' contains '${{', which no run writes: it was changed, write out its value")
    try:
        return OmegaConf.create(content)
    except Exception as error:  # OmegaConf lets its parser's errors through
        raise UserError(f"'{file}' cannot be read: {' '.join(str(error).split())[:200]}") from error


def read_metrics(path: Path) -> dict[str, float]:
    """The numbers of a run.

    Raises:
        UserError: ``metrics.json`` cannot be read.
    """
    metrics = read_json(path / "metrics.json")
    if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
        raise UserError(f"'{path / 'metrics.json'}' is damaged: expected names and numbers")
    return metrics


def read_about(path: Path) -> dict[str, Any]:
    """What ``about.json`` of a run says: ``classes``, ``encoder``, ...

    Raises:
        UserError: it cannot be read.
    """
    about = read_json(path / "about.json")
    if not isinstance(about, dict) or not _is_list_of_names(about.get("classes")) or not _has_encoder(about):
        raise UserError(f"'{path / 'about.json'}' is damaged: expected the classes and the encoder of a run")
    wanted = {"changes": list, "verdict": str, "integrity": dict}
    for name, kind in wanted.items():
        if not isinstance(about.get(name), kind | None):
            raise UserError(f"'{path / 'about.json'}' is damaged: '{name}' is no {kind.__name__}")
    return about


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _has_encoder(about: dict[str, Any]) -> bool:
    """Whether it is said what made the features (None: nobody knows); what else is said of it is of its type."""
    encoder = about.get("encoder")
    if "encoder" not in about or not _is_count(about.get("dim", 1)):
        return False
    if encoder is None:
        return True
    if not isinstance(encoder, dict):
        return False
    named = all(isinstance(name, str) and name for name in (encoder.get("fingerprint"), encoder.get("id", "?")))
    scale = encoder.get("logit_scale", 1)
    scaled = isinstance(scale, int | float) and not isinstance(scale, bool) and abs(scale) < float("inf")
    return named and scaled and _is_count(encoder.get("dim", 1))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def seed_of(said: object) -> int:
    """The random seed that a run's settings say; 0 if somebody wrote something else there.

    >>> seed_of(3), seed_of("three")
    (3, 0)
    """
    return said if isinstance(said, int) and said >= 0 else 0
