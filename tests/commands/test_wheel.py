"""The wheel, in a fresh environment and an empty folder, without the checkout: train, eval, app, export."""

import os
import subprocess
import sys
import sysconfig
import threading
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from birds_run import QUICK
from conftest import PROJECT

ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the project's backend, as ``pip wheel . --no-deps`` does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder beside an environment that has the wheel, and the packages it needs from this environment.

    The packages are linked and not installed anew, which would take minutes; the checkout is not among them, because
    ``.pth`` files count in the environment's own folder only.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "work").mkdir()
    return folder


def cbm(place: Path, *arguments: str) -> str:
    """Run the console script in the empty folder; returns what it said."""
    command = [str(place / "env" / "bin" / "cbm"), *arguments]
    done = subprocess.run(
        command, cwd=place / "work", capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_what_is_in_it(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, patterns in {
        "configs": ["**/*.yaml"],
        "datasets": ["*.yaml"],
        "concepts": ["*.*", "prompts/*.yaml"],
    }.items():
        files = [file for pattern in patterns for file in (PROJECT / folder).glob(pattern) if file.is_file()]
        assert files
        assert {f"cbm/shipped/{file.relative_to(PROJECT).as_posix()}" for file in files} <= names
    tracked = subprocess.run(["git", "ls-files", "cbm"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert set(tracked.stdout.split()) <= names
    first = {name.split("/")[0] for name in names}
    assert first == {"cbm", wheel.name.split("-py3")[0] + ".dist-info"}  # nothing beside the package


def test_nothing_comes_from_the_checkout(place: Path):
    code = "import cbm, cbm.config; print(cbm.__file__, cbm.config.CONFIGS)"
    python = str(place / "env" / "bin" / "python")
    done = subprocess.run(
        [python, "-c", code], cwd=place / "work", capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert str(PROJECT) not in done.stdout
    assert done.stdout.count(str(place / "env")) == 2


def test_the_journey(place: Path):
    """As somebody without the checkout goes it."""
    birds = [f"dataset.args.{name}={count}" for name, count in (("n_train", 8), ("n_val", 4), ("n_test", 4))]
    cbm(place, "train", "run_dir=runs/first", "controls=false", *birds, *QUICK)
    work = place / "work"
    assert (work / "runs" / "first" / "report.html").is_file()
    assert (work / "datasets" / "birds").is_dir()  # drawn here, not into the environment
    assert "accuracy" in cbm(place, "eval", "run=runs/first", "split=val")
    assert "0 added" in cbm(place, "concepts", "diff", "concepts/birds.json", "concepts/birds.json")
    cbm(place, "export", "runs/first", "--out", "first.pt2")
    assert (work / "first.pt2").stat().st_size > 0


def test_the_explorer_opens(place: Path):
    """After the journey: the page is served, then the process is ended."""
    pytest.importorskip("gradio")
    command = [str(place / "env" / "bin" / "cbm"), "app", "runs/first"]
    process = subprocess.Popen(command, cwd=place / "work", stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    limit = threading.Timer(240, process.kill)
    limit.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "is open at http://127.0.0.1:" in line, line
        with urllib.request.urlopen(line.split()[-1]) as page:
            assert page.status == 200
    finally:
        limit.cancel()
        process.kill()
        process.wait()


@pytest.mark.parametrize("installed", [True, False])
def test_a_script_beside_the_checkout_gets_the_package(installed: bool, tmp_path: Path):
    """A checkout named ``cbm`` must not hide the package from its parent folder, nor if nothing is installed."""
    for name in ("__init__.py", "cbm", "concepts", "configs", "datasets"):
        (tmp_path / "cbm").mkdir(exist_ok=True)
        (tmp_path / "cbm" / name).symlink_to(PROJECT / name)
    (tmp_path / "script.py").write_text(
        "import cbm, cbm.config\nprint(cbm.__version__, 'birds' in cbm.config.card_names())\n"
    )
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONSAFEPATH"}
    if not installed:  # the packages that cbm needs, but no .pth files
        command.insert(1, "-S")
        environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == (f"{cbm_version()} True\n", "")


def cbm_version() -> str:
    import cbm

    return cbm.__version__
