"""What the tests share: small pictures, an encoder that needs no weights, and the command line in this process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

PROJECT = Path(__file__).resolve().parents[1]
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 60, 220)}


def paint(path: Path, colour: tuple[int, int, int], seed: int, size: int = 24) -> None:
    """A noisy square of one colour."""
    noise = np.random.default_rng(seed).normal(0, 25, (size, size, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


SLOW_FILES = (
    "kernels/test_interpreter.py", "docs/test_readme.py", "run/test_run.py", "methods/test_sparse.py",
    "run/test_distributed.py", "run/test_sweep.py", "run/test_concept_sources.py", "methods/test_energy.py",
    "run/test_mapped.py", "commands/test_wheel.py", "data/test_encoding.py", "trust/test_two_processes.py",
    "run/test_predict.py", "trust/test_kill.py", "editing/domains/test_attribution.py", "commands/test_main.py",
    "commands/test_bad_input.py", "run/test_correct.py", "run/test_one_door.py", "app/test_session.py",
    "run/test_adapt.py", "run/test_tracking.py", "solvers/test_energy.py", "test_architecture.py",
)  # fmt: skip
"""The slowest first: whatever begins last has one process work while the others have nothing left to do."""


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist begins with the files that have the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = PROJECT / "tests"
    place = {tests / name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def everything_is_said_again():
    """Every test is a process of its own to what is said once per process, and to what commands do to the log."""
    from cbm.files.console import warn_once

    warn_once.cache_clear()
    log = logging.getLogger("cbm")
    log.propagate = True
    log.setLevel(logging.INFO)


@pytest.fixture
def colour_folder(tmp_path: Path) -> Path:
    """Class-per-folder pictures: three colours, 20 each."""
    root = tmp_path / "colours"
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(20):
            paint(root / name / f"{i:02d}.png", colour, seed=100 * c + i)
    return root


def one_line(result: tuple[int, str]) -> str:
    """The message of a run that must have failed with one line."""
    status, errors = result
    lines = [line for line in errors.splitlines() if line.strip()]
    assert status == 2, errors
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert lines[-1].startswith("error: "), errors
    assert "Traceback" not in errors
    return lines[-1]


class PixelEncoder:
    """Builds a real ``Encoder`` whose features are a fixed random projection of an 8x8 picture."""

    def __new__(cls, dim: int = 16, seed: int = 0):
        from torchvision import transforms

        from cbm.encoders.base import Encoder

        class _Pixels(Encoder):
            def image_features(self, pictures):
                return self.model(pictures.flatten(1))

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = torch.nn.Linear(192, dim)
        preprocess = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
        return _Pixels("pixels", model, preprocess)


@pytest.fixture
def pixel_encoder():
    return PixelEncoder()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Run ``python -m cbm`` in this process, from an empty folder: returns (exit status, stdout, stderr)."""
    from cbm.commands import main as commands
    from cbm.commands import shared

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared.out, "width", 160, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        import logging

        logging.getLogger("cbm").handlers.clear()
        monkeypatch.setattr(sys, "argv", ["cbm", *arguments])
        try:
            commands.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Run train.py or eval.py in this process, from an empty folder: returns (exit status, what it wrote to stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> tuple[int, str]:
        import logging
        import runpy

        logging.getLogger("cbm").handlers.clear()
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        try:
            runpy.run_path(str(PROJECT / f"{script}.py"), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err

    return run
