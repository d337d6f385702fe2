"""One door to a finished run: whatever is asked of it, the encoder must be the one it was trained with, and the labels
stand in the order of the model's classes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from birds_run import small
from conftest import PROJECT, one_line

import cbm
from cbm.data import encoded

SETTINGS = [*small("birds_spurious"), "report=false", "controls=false", "nec=[]", "encoder.num_workers=0"]
SETTINGS += ["trainer.progress=false", "dataset=birds_spurious"]
CACHE = small()[1].removeprefix("cache=")
ROOT = small()[0].removeprefix("dataset.root=")
DOORS = ["eval", "report", "adapt", "intervene", "probes", "spurious", "leak", "split", "explorer", "app"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Holds an encoder folder, a run of a bottleneck and one of a probe, for all tests of this file."""
    folder = tmp_path_factory.mktemp("door")
    shutil.copytree(PROJECT / "cbm" / "encoders" / "tiny_clip", folder / "encoder")
    return folder


@pytest.fixture
def runs(place: Path, command) -> Path:
    for name, method in (("one", "posthoc"), ("probe", "linear_probe")):
        if not (place / name).is_dir():
            own = [f"method={method}", f"encoder.model=local-dir:{place / 'encoder'}", f"run_dir={place / name}"]
            status, errors = command("train", *SETTINGS, *own)
            assert status == 0, errors
    return place


@pytest.fixture
def ask(runs: Path, command, module, capsys):
    """Ask a run something by one of its doors: (exit status, what was written to stderr, numbers)."""

    def answer(door: str) -> tuple[int, str, object]:
        run = runs / ("probe" if door == "probes" else "one")
        if door == "eval":
            status, errors = command("eval", f"run={run}", f"cache={CACHE}", "output=out.json")
            return status, errors, Path("out.json").read_text() if status == 0 else None
        if door in ("split", "explorer"):
            try:
                return 0, "", _looked_at(door, run)
            except cbm.UserError as error:
                return 2, f"error: {error}\n", None
        arguments = {
            "adapt": ["birds_shift", "--editors=recentre", "--shots=1", f"--root={ROOT}"],
            "intervene": ["--policies=random"],
            "probes": ["--policies=random"],
        }
        name = "intervene" if door == "probes" else door
        status, shown, errors = module(name, str(run), *arguments.get(door, []), f"--cache={CACHE}")
        return status, errors, shown

    return answer


def _looked_at(door: str, run: Path) -> object:
    if door == "split":
        split = cbm.load(run).split("test", cache=CACHE)
        return torch.cat([split.x, split.y[:, None].float()], dim=1)
    from cbm.app import Explorer

    explorer = Explorer(run, Path(CACHE))
    return explorer.headline[1]


@pytest.mark.parametrize("door", [door for door in DOORS if door != "app"])
def test_another_order_of_classes_is_put_right(door: str, ask, monkeypatch: pytest.MonkeyPatch):
    status, errors, before = ask(door)
    assert status == 0, errors
    original = encoded.read_dataset

    def turned(*arguments, **options):
        dataset = original(*arguments, **options)
        last = len(dataset.classes) - 1
        splits = {name: replace(split, labels=last - split.labels) for name, split in dataset.splits.items()}
        return replace(dataset, classes=dataset.classes[::-1], splits=splits)

    monkeypatch.setattr(encoded, "read_dataset", turned)
    status, errors, after = ask(door)
    assert status == 0, errors
    assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


def test_other_weights_behind_the_same_name_are_refused_by_all(ask, runs: Path):
    """The last test of this file: the encoder is another one from here on."""
    file = runs / "encoder" / "open_clip_model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(name for name, value in weights.items() if value.is_floating_point() and value.ndim > 1)
    weights[name] = weights[name] + 0.02
    safetensors.torch.save_file(weights, file)
    said = set()
    for door in DOORS:
        status, errors, _ = ask(door)
        line = one_line((status, errors))
        assert "has other weights than when" in line, f"{door}: {line}"
        said.add(line.replace("/probe'", "/one'"))
    assert len(said) == 1, said
