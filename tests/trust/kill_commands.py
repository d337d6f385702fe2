"""``python tests/trust/kill_commands.py ROUNDS SEED [WRITER ...]``: what else writes is killed, and started again.

As ``kill_rounds.py``, which does so with training: the libraries are imported once, and every command is a fork of this
process. It is killed at a random moment, or by itself just before its n-th change of a file or folder, so that the
moments between two writes are met as often as long computations are. After each kill what a writer promises must hold;
when it has ended, everything must be as after one that nobody disturbed, with nothing left over.
"""

import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OPENAI_API_KEY": ""}
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import lightning.pytorch  # noqa: F401
import open_clip  # noqa: F401
from conftest import COLOURS, PROJECT, paint
from hand_made_run import write_run
from llm_server import Server

import cbm
import cbm.report
import cbm.run.label
import cbm.run.name
import cbm.run.predict
from cbm.commands import main as commands
from cbm.concepts import load_bank
from cbm.concepts.units import units_of
from cbm.data.concept_answers import read_concept_answers
from cbm.editing import Edit, EditSet, load_edits
from cbm.files import PARTIAL
from cbm.files.cache import read_cache
from cbm.files.run_directory import verify_run

CHANGES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink"}
"""What Python says before it changes a folder; files that are opened to be written come to it."""
SETTINGS = [
    "dataset=folder", "dataset.root=pictures", "concepts=bank.json", "nec=[]", "controls=false", "report=none",
    "encoder.num_workers=0", "trainer.progress=false", "method.max_epochs=3",
]  # fmt: skip
FOUND = [
    "method=discovered", "dataset=folder", "dataset.root=pictures", "concepts=bank.json", "nec=[]", "controls=false",
    "report=none", "encoder.num_workers=0", "trainer.progress=false", "method.size=8", "method.passes=12", "method.k=2",
    "method.start=data", "trainer.checkpoint_seconds=0",
]  # fmt: skip


@dataclass
class Writer:
    """A command that writes.

    Attributes:
        run: does it, in the folder.
        check: raises an ``AssertionError`` if something is lost or half there after a kill; the log is there, too.
        outcome: all that it leaves but times.
        ended: whether it has ended, so that it is not to be started again.
    """

    run: Callable[[], object]
    outcome: Callable[[], dict[str, Any]]
    check: Callable[[], object] = field(default=lambda: None)
    ended: Callable[[], bool] = field(default=lambda: False)


def command(*words: str) -> Callable[[], None]:
    """``python -m cbm WORDS``."""

    def run() -> None:
        sys.argv = ["cbm", *words]
        commands.main()

    return run


def contents(folder: str, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in without
    }


def absent_or(file: str, look: Callable[[Path], object]) -> Callable[[], None]:
    """What is there under its name can be used."""
    return lambda: look(Path(file)) if Path(file).exists() else None


def use(run: Path) -> None:
    """A run opens, and its files are those that it says."""
    verify_run(run)
    model = cbm.load(run)
    assert model.bank is None or len(model.bank) > 0


# ----------------------------------------------------------------------------------------------------- the writers


def save_model() -> None:
    cbm.load("hand").save("saved")


def whole_removal(model: Path) -> None:
    """No model without the removals that it stands for."""
    use(model.parent)
    assert len(load_edits(model.parent / "edits.yaml").edits) > 0


def save_edits() -> None:
    for value in range(30):
        EditSet((Edit("set", "concept 1", float(value)), *[Edit("remove", f"concept {n}") for n in range(2, 9)])).save(
            Path("edits.yaml")
        )


def sound_edits(file: Path) -> None:
    edits = load_edits(file).edits
    assert len(edits) == 8
    assert edits[0].value in range(30)


def answer() -> None:
    sys.stdin = io.StringIO("y\n" * 100)
    command("label", "trained", "--pairs", "12", "--split", "test", "--cache", "cache", "--who", "ana")()


def answers() -> list[tuple[str, str, bool | None]]:
    found = read_concept_answers(Path("trained/labels.csv"))
    assert all(each.who == "ana" for each in found)
    return [(each.path, each.concept, each.shown) for each in found]


def no_answer_lost() -> None:
    """Whoever was asked the next question had answered those before."""
    asked = max(
        (int(line[1:].split("/")[0]) for line in Path("log").read_text().splitlines() if line[:1] == "["), default=1
    )
    assert asked - 1 <= len(answers()) <= 12
    verify_run(Path("trained"))


def rename_unit() -> None:
    command("name", "found", "--unit", first_unit(), "--as", "spotted wing", "--cache", "cache")()


def first_unit() -> str:
    return Path("unit").read_text()


def unit_names() -> list[str]:
    return load_bank(Path("found/bank")).texts


def sound_names() -> None:
    use(Path("found"))
    texts, units = unit_names(), units_of(load_bank(Path("found/bank")))
    assert units is not None
    assert len(set(texts)) == len(texts)
    assert texts[0] in (first_unit(), "spotted wing")


def whole_bank(folder: Path) -> None:
    assert len(load_bank(folder)) > 0
    json.loads((folder / "generation.json").read_text())


def whole_page(page: Path) -> None:
    assert page.read_text().rstrip().endswith("</html>")


def found_run() -> dict[str, Any]:
    metrics = json.loads(Path("again/metrics.json").read_text())
    verify_run(Path("again"))
    return {
        "metrics": {key: value for key, value in metrics.items() if not key.startswith(("time/", "memory/"))},
        **{name: Path("again", name).read_bytes() for name in ("model.safetensors", "dictionary.safetensors")},
        "names": load_bank(Path("again/bank")).texts,
        "files": sorted(str(path) for path in Path("again").rglob("*") if "checkpoints" not in path.parts),
    }


def has_ended() -> bool:
    state = Path("again/state.json")
    return state.is_file() and json.loads(state.read_text())["finished"]


def listed() -> list[str]:
    return [entry.name for entry in read_cache(Path("cache"))]


def whole_or_gone() -> None:
    """A removed entry is there with every file, or is none."""
    for entry in read_cache(Path("cache")):
        assert entry.kind == "removed" or entry.count, entry


def remove_features() -> None:
    """All features, and what an interrupted removal has left of them."""
    names = [name for name in listed() if name.startswith(("features", ".removed"))]
    command("cache", "remove", *names, "--yes", "--cache", "cache")()


PREDICT = [
    "predict",
    "trained",
    "pictures",
    "--out",
    "p.csv",
    "--html",
    "p.html",
    "--workers",
    "0",
    "--batch-size",
    "7",
]
V2C = ["concepts", "v2c", "folder", "--root", "pictures", "--vocabulary", "words.txt", "--out", "book",
       "--pictures", "9", "--cache", "cache"]  # fmt: skip
LLM = ["concepts", "llm", "--classes", "classes.txt", "--out", "said", "--model", "m", "--cache", "cache/llm"]
WRITERS = {
    "model.save": Writer(
        save_model, lambda: contents("saved"), absent_or("saved", use), lambda: Path("saved").exists()
    ),
    "rebalance": Writer(
        command("rebalance", "trained", "--concept", "re warm", "--cache", "cache", "--out", "balanced"),
        lambda: contents("balanced"), absent_or("balanced/model.safetensors", whole_removal),
        lambda: Path("balanced").exists(),
    ),
    "edits": Writer(save_edits, lambda: contents(".", without=("log",)), absent_or("edits.yaml", sound_edits)),
    "predict": Writer(
        command(*PREDICT), lambda: {name: Path(name).read_bytes() for name in ("p.csv", "p.html")},
        absent_or("p.html", whole_page), lambda: Path("p.csv").exists(),
    ),
    "label": Writer(answer, lambda: {"answers": answers()}, no_answer_lost),
    "name": Writer(
        rename_unit, lambda: {"names": unit_names()}, sound_names, lambda: unit_names()[0] == "spotted wing"
    ),
    "report": Writer(
        command("report", "trained", "--cache", "cache"), lambda: {"there": Path("trained/report.html").is_file()},
        lambda: (use(Path("trained")), absent_or("trained/report.html", whole_page)()),
    ),
    "cache remove": Writer(remove_features, lambda: {"left": listed()}, whole_or_gone, lambda: not any(
        name.startswith(("features", ".removed")) for name in listed())),
    "v2c": Writer(
        command(*V2C), lambda: contents("book", without=("generation.json",)), absent_or("book", whole_bank),
        lambda: Path("book").exists(),
    ),
    "llm": Writer(
        lambda: command(*LLM, "--base-url", Path("address").read_text())(),
        lambda: contents("said", without=("generation.json",)), absent_or("said", whole_bank),
        lambda: Path("said").exists(),
    ),
    "discovered": Writer(command("train", *FOUND, "run_dir=again"), found_run, ended=has_ended),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the rounds


def start(folder: Path, run: Callable[[], object], last: int | None = None) -> int:
    """Start a command in ``folder``, which kills itself before its change number ``last``; returns its process id."""
    if pid := os.fork():
        return pid
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (folder / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "tmp")
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    status = 1
    try:
        run()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        if last is None:
            (folder / "count").write_text(str(count))
        os._exit(status)


def finish(folder: Path, run: Callable[[], object]) -> tuple[float, int]:
    """Run to the end; returns the seconds it took, and how many changes it made."""
    began = time.monotonic()
    _, status = os.waitpid(start(folder, run), 0)
    assert status == 0, (folder / "log").read_text()[-3000:]
    return time.monotonic() - began, int((folder / "count").read_text())


def kill_rounds(root: Path, rounds: int, seed: int, names: list[str]) -> None:
    """Raise an ``AssertionError`` at the first thing that is lost, half there, or there twice."""
    generator = random.Random(seed)
    base = root / "base"
    prepare(base)
    for name in names:
        writer = WRITERS[name]
        whole = root / f"{name}-whole"
        shutil.copytree(base, whole)
        duration, changes = finish(whole, writer.run)
        os.chdir(whole)
        expected = writer.outcome()
        for number in range(1, rounds + 1):
            folder, killed = root / f"{name}-{number}", []
            shutil.copytree(base, folder)
            os.chdir(folder)
            for _ in range(generator.randint(1, 2)):
                at, last = generator.uniform(0, duration), None
                if generator.random() < 0.6:
                    last = generator.randint(1, changes + 1)
                pid = start(folder, writer.run, last)
                if last is None:
                    time.sleep(at)
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed.append(f"after {at:.2f} s" if last is None else f"before change {last} of {changes}")
                (folder / "log").touch()
                writer.check()
                if writer.ended():
                    break
            if not writer.ended():
                finish(folder, writer.run)
                left = [str(path) for path in Path().rglob(f"{PARTIAL}*")]
                assert not left, (name, number, killed, left)
            writer.check()
            found = writer.outcome()
            for key, value in expected.items():
                assert found.get(key) == value, (name, number, killed, key, value, found.get(key))
            assert set(found) == set(expected), (name, number, killed, set(found) ^ set(expected))
            print(f"{name}, round {number}: killed {' and '.join(killed)}, nothing lost", flush=True)
            os.chdir(root)
            shutil.rmtree(folder)
        os.chdir(root)
        shutil.rmtree(whole)


def prepare(base: Path) -> None:
    """Pictures, a hand-made run, a trained one, one of found concepts, and the cache of all."""
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(32):
            paint(base / "pictures" / name / f"{i:02d}.png", colour, seed=100 * c + i)
    phrases = {name: [f"{name[:-1]} {word}" for word in ("warm", "cold", "plain")] for name in COLOURS}
    (base / "bank.json").write_text(json.dumps(phrases))
    (base / "words.txt").write_text("\n".join(f"{a} {b}" for a in ("red", "blue", "warm") for b in ("sky", "leaf")))
    (base / "classes.txt").write_text("cat\ndog\nowl\n")
    (base / "address").write_text(Server().url)
    write_run(base / "hand")
    finish(base, command("train", "method=posthoc", *SETTINGS, "run_dir=trained"))
    finish(base, command("train", *FOUND, "run_dir=found"))
    (base / "unit").write_text(load_bank(base / "found" / "bank").texts[0])
    (base / "log").unlink()


if __name__ == "__main__":
    assert PROJECT
    with tempfile.TemporaryDirectory() as scratch:
        kill_rounds(Path(scratch).resolve(), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(WRITERS))
        os.chdir("/")
