"""The directory of a run: what it is called, whether it is free, finished or interrupted, and what it holds."""

import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cbm.errors import UserError, did_you_mean
from cbm.files import write_atomically

NOT_PART_OF_A_RUN = ("run_dir", "cache", "overwrite", "report", "logger")
"""Settings that do not change what is trained: the same run may go on with others."""


def settings_hash(cfg: DictConfig) -> str:
    """Eight digits that stand for everything that decides what is trained."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key not in NOT_PART_OF_A_RUN}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in ("progress", "checkpoint_seconds")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


class RunDirectory:
    """A run directory, claimed by this process until it ends.

    Args:
        path: the directory (see ``choose_run_directory``), made if it is not there.
        cfg: the configuration, written to ``config.yaml``.

    Attributes:
        path: the directory.
        resumed: it held an interrupted run of the same settings, which goes on.

    Raises:
        UserError: another process is writing there, or it cannot be made.
    """

    def __init__(self, path: Path, cfg: DictConfig):
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot make run directory '{path}': {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is writing to run directory '{path}'") from error
        self.resumed = (path / "state.json").is_file()
        write_atomically(path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
        self.write_json("state.json", {"settings": settings_hash(cfg), "finished": False})

    def finish(self) -> None:
        """Mark the run as finished; what was kept for resuming goes."""
        state = json.loads((self.path / "state.json").read_text())
        self.write_json("state.json", {**state, "finished": True})
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def write_json(self, name: str, content: Any) -> None:
        """Write ``content`` to the file ``name``."""
        write_atomically(self.path / name, json.dumps(content, indent=1, ensure_ascii=False).encode())


def choose_run_directory(cfg: DictConfig) -> Path:
    """Where a new run goes, or where an interrupted one of the same settings goes on.

    With no ``run_dir`` the name is runs/METHOD-DATASET-HASH of the settings; if that is finished, -2, -3 ... follow.

    Raises:
        UserError: ``run_dir`` holds a finished run, a run with other settings, or something that is no run.
    """
    code = settings_hash(cfg)
    if cfg.run_dir is None:
        stem = Path("runs") / f"{cfg.method.name}-{cfg.dataset.name}-{code}"
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
    """Where a finished run of the same settings is, under ``run_dir`` or the name it would get; None if nowhere."""
    code = settings_hash(cfg)
    path = Path("runs") / f"{cfg.method.name}-{cfg.dataset.name}-{code}" if cfg.run_dir is None else Path(cfg.run_dir)
    if _state(path, code) != "finished":
        return None
    return path if json.loads((path / "state.json").read_text())["settings"] == code else None


def _state(path: Path, code: str) -> str:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return "free"
    file = path / "state.json"
    if not file.is_file():
        # a kill between making the directory and writing its state leaves no more than these
        return "free" if path.is_dir() and {p.name for p in path.iterdir()} <= {".lock", "config.yaml"} else "foreign"
    state = json.loads(file.read_text())
    if state["finished"]:
        return "finished"
    return "interrupted" if state["settings"] == code else "other"


def open_run(path: Path) -> tuple[Path, DictConfig]:
    """The directory and configuration of a finished run.

    Raises:
        UserError: there is no such run (with the nearest names), or it is not finished.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no run in '{path}' {did_you_mean(path.name, siblings)}".rstrip())
    if not (path / "metrics.json").is_file():
        raise UserError(f"run '{path}' is not finished: run its train.py command again, it goes on where it stopped")
    return path, OmegaConf.create((path / "config.yaml").read_text())  # type: ignore[return-value]
