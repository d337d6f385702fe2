"""The door: what is said first, what is not imported before, usage errors, JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT

import cbm
from cbm.commands import main as door
from cbm.commands.training import near

HEAVY = {"torch", "lightning", "torchmetrics", "transformers", "open_clip", "torchvision", "sklearn", "scipy", "gradio",
         "matplotlib", "pandas", "hydra", "typer", "rich", "numpy"}  # fmt: skip


def test_every_command_says_what_it_does():
    """Also those of groups; a new command without a first line is found here."""
    from cbm.commands import tree

    known = set(tree.command_names(None)) - {"concepts"}
    known |= {f"{group} {name}" for group in ("concepts", "datasets") for name in tree.command_names(group)}
    assert set(door.BEGINS) == known


@pytest.mark.parametrize(
    "words", [["train", "method=labo"], ["app", "runs/x"], ["datasets", "check", "birds"], ["plan", "N=1"]]
)
def test_the_first_line_comes_before_anything_heavy(words: list[str]):
    """Stopped where the commands would be imported: the line is out, and nothing but the standard library is loaded."""
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cbm.commands.tree':\n"
        "            print(sorted({m.split('.')[0] for m in sys.modules}))\n"
        "            sys.stdout.flush(); import os; os._exit(0)\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"sys.argv = ['cbm', *{words!r}]\n"
        "from cbm.commands.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"cbm {words[0]}")
    assert len(done.stderr.splitlines()) == 1
    assert not HEAVY & set(json.loads(done.stdout.replace("'", '"')))


def test_other_processes_and_completions_say_nothing(module, monkeypatch: pytest.MonkeyPatch):
    assert module("datasets")[2].splitlines()[0] == "cbm datasets: reading the cards"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "cbm datasets" not in module("datasets")[2]
    monkeypatch.delenv("LOCAL_RANK")
    assert module("datasets", "--quiet")[2] == module("-q", "datasets")[2] == ""


def test_version(module):
    for typed in (["--version"], ["-q", "--version"], ["--version", "doctor"]):
        assert module(*typed) == (0, f"cbm {cbm.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "error: no command 'trian': did you mean 'train'?"),
        (["datasets", "chek"], "error: no command 'chek': did you mean 'check'?"),
        (["cache", "remov"], "error: no command 'remov': did you mean 'remove'?"),
        (["train", "--foo"], "error: unrecognized arguments: --foo (cbm train --help says more)"),
        (["train", "--cfg"], "error: argument --cfg/-c: expected one argument (cbm train --help says more)"),
        (["report"], "error: missing argument 'run' (cbm report --help says more)"),
        (["report", "--nope", "x"], "error: no such option: --nope (cbm report --help says more)"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], line: str, module):
    status, printed, errors = module(*arguments)
    assert (status, printed) == (2, "")
    assert errors.splitlines()[-1] == line
    assert "usage" not in errors.lower()


def test_help_names_training_and_is_not_raw(module):
    status, printed, errors = module("--help")
    assert (status, errors) == (0, "")
    assert all(name in printed for name in ("train", "eval", "--install-completion", "--quiet", "--version"))
    assert "``" not in module("concepts", "v2c", "--help")[1]
    assert module("-h")[1] == printed
    assert "--near-duplicates" in module("datasets", "check", "-h")[1]
    assert module("train", "--help")[1].startswith("Train a concept bottleneck model: cbm train ")


def test_hydra_sees_what_follows_train(module, monkeypatch: pytest.MonkeyPatch):
    """Options with one and two dashes, in their order, and sys.argv as it was typed while the task runs."""
    from cbm.commands import launch

    seen = []
    monkeypatch.setitem(launch.TASKS, "train", lambda cfg: seen.append((cfg.method.name, cfg.seed, list(sys.argv))))
    typed = ("train", "-cn", "train", "method=posthoc", "--config-dir", str(PROJECT / "configs"), "seed=3")
    assert module(*typed)[0] == 0
    assert seen == [("posthoc", 3, ["cbm", *typed])]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("meth", ["method="]),
        ("method=post", ["method=posthoc"]),
        ("run", ["run=", "run_dir="]),
        ("seed=", []),
        ("zz", []),
    ],
)
def test_completion(typed: str, found: list[str]):
    assert near(typed) == found


@pytest.mark.parametrize(
    ("words", "place", "found"),
    [
        ("cbm train method=la", "2", "method=label_free method=labo"),
        ("cbm\ntrain\nmethod\n=\nla", "4", "label_free labo"),  # bash ends words at =
        ("cbm\ntrain\nteacher\n=", "3", "resnet18 rn50 siglip_b16 tiny_clip vit_b16 vit_b32 vit_l14"),
        ("cbm\ntrain\nrun_dir\n=", "3", ""),
    ],
)
def test_a_shell_is_told_the_choices(words: str, place: str, found: str):
    environment = os.environ | {"_CBM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    code = "import sys; sys.argv = ['cbm']; from cbm.commands.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=PROJECT, check=False
    )
    assert done.stdout.split() == found.split()


@pytest.mark.skipif(os.name != "posix", reason="closes streams in a shell")
@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [
        (">&-", 0, "cbm datasets: reading the cards\n"),
        (">&- <&- 2>&-", 0, ""),
        (
            "> /dev/full",
            2,
            "cbm datasets: reading the cards\nerror: cannot write the output: No space left on device\n",
        ),
    ],
)
def test_output_that_nobody_can_read(streams: str, status: int, said: str):
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = subprocess.run(
        f'"{sys.executable}" -m cbm datasets {streams}', shell=True, capture_output=True, text=True, cwd=PROJECT,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, said)


def test_a_package_that_is_missing(module, monkeypatch: pytest.MonkeyPatch):
    from cbm.commands import launch

    monkeypatch.setitem(launch.TASKS, "train", lambda cfg: __import__("no_such_package"))
    status, _, errors = module("train")
    assert (status, errors.splitlines()[1:]) == (
        2, ["error: No module named 'no_such_package', which cbm needs: cbm doctor says what is not installed"]
    )  # fmt: skip


def test_ctrl_c_while_libraries_are_loaded():
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cbm.commands.tree':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['cbm', 'doctor']\n"
        "from cbm.commands.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert (done.returncode, done.stderr) == (130, "cbm doctor: looking at this installation\nerror: interrupted\n")


def test_tables_as_json(module):
    status, printed, _ = module("datasets", "--json")
    cards = {card["name"]: card for card in json.loads(printed)}
    assert status == 0
    assert cards["cub"]["counts"]["classes"] == 200
    assert json.loads(module("datasets", "show", "cub", "--json")[1])["reader"] == "cub"
    plan = json.loads(module("plan", "N=1000", "K=100", "hardware=h100", "--json")[1])
    assert plan["machine"]["name"] == "h100"
    assert sum(stage["flop"] for stage in plan["stages"]) > 0


def test_json_holds_no_number_that_is_none(capsys: pytest.CaptureFixture):
    from cbm.commands.shared import show

    show(None, {"a": float("nan"), "b": [1, float("inf")], "c": Path("x"), "d": None, "e": True}, True)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, None], "c": "x", "d": None, "e": True}


def test_before_images_are_read_only_torch_is_heavy(tmp_path: Path):
    """What training imports before its data set is read: less than once more what torch takes, in the same process."""
    code = (
        "import sys\n"
        "import cbm.run\n"
        "def stop(cfg):\n"
        "    print(sorted({m.split('.')[0] for m in sys.modules} | {m for m in sys.modules if m == 'torch._dynamo'}))\n"
        "    sys.stdout.flush(); import os; os._exit(0)\n"
        "sys.modules['cbm.run.train'].read_training_images = stop\n"
        "sys.argv = ['cbm', 'train', 'run_dir=x']\n"
        "from cbm.commands.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    late = {
        "lightning", "pytorch_lightning", "torchmetrics", "transformers", "open_clip", "torchvision", "timm", "sklearn",
        "scipy", "matplotlib", "pandas", "gradio", "wandb", "torch._dynamo",
    }  # fmt: skip
    assert not late & loaded
    own, torch = 0, 0
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and "[us]" not in line:
            alone, together, name = line.removeprefix("import time:").split("|")
            own += int(alone)
            torch = int(together) if name.strip() == "torch" else torch
    assert torch > 0
    assert own <= 2 * torch


def test_first_line_in_time():
    """Measured from the start of the process; generous, because other processes may be at work."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cbm", "app", "nothing"], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("cbm app: ")
    first = time.perf_counter() - began
    process.communicate()
    assert process.returncode == 2
    assert time.perf_counter() - began > first


def test_python_files_of_the_working_folder_are_no_part_of_it(tmp_path: Path):
    """``python -m`` puts the working folder first, where a received folder may hold a ``yaml.py``."""
    names = {"torch", "typer", "rich", "yaml", "omegaconf", "numpy", "sitecustomize", "usercustomize", "conftest"}
    of_python = {"json", "csv", "logging", "argparse", "hashlib", "difflib", "tempfile", "socket", "random", "copy"}
    for name in names | of_python:  # what runpy itself imports is run before ours begins: ``cbm`` has no such folder
        (tmp_path / f"{name}.py").write_text(f"open('RAN', 'a').write('{name} ')")
    result = subprocess.run(
        [sys.executable, "-m", "cbm", "datasets", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert '"birds"' in result.stdout
    assert not (tmp_path / "RAN").exists(), (tmp_path / "RAN").read_text()


def test_an_error_of_the_file_system_is_one_line(module, monkeypatch: pytest.MonkeyPatch):
    """Whatever door it comes through, and whatever the file is called."""
    from cbm.commands import tree

    def refuse(*args):
        raise PermissionError(13, "Permission denied", b"a\x1b[31m\xff.json")

    monkeypatch.setattr(tree, "run", refuse)
    status, _, errors = module("--quiet", "datasets")
    assert status == 2
    assert errors.splitlines() == ["error: cannot use 'a\ufffd[31m\\udcff.json': Permission denied"]


def test_class_names_from_a_pipe_are_not_waited_for(module, tmp_path: Path):
    os.mkfifo(tmp_path / "names.txt")
    status, _, errors = module(
        "concepts", "llm", "--classes", "names.txt", "--superclass", "bird", "--model", "m", "--out", "bank"
    )
    assert status == 2
    assert "not a regular file" in errors
