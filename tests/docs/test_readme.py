"""Every command of the README and of the guides works, offline, on a small birds set."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from birds_run import QUICK, shared_folder, small
from conftest import COLOURS, PROJECT, paint

import cbm
from cbm.methods import METHODS

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line.rpartition("&& .venv/bin/")[2] for block in BLOCKS for line in block.strip().splitlines()]
LINES = [line.replace("cbm train ", "python train.py ") for line in LINES]
COMMANDS = [line for line in LINES if line.startswith("python ") and not line.endswith("pytest")]
GUIDES = "".join(file.read_text() for file in sorted((PROJECT / "docs" / "guides").glob("*.md")))
NOT_HERE = ("encoder.pretrained=openai", "ORG/NAME", "/path/to/model")  # encoders to be downloaded, or the reader's own
COMMANDS += [
    line
    for block in re.findall(r"```bash\n(.*?)```", GUIDES, re.DOTALL)
    for line in block.strip().splitlines()
    if line not in COMMANDS and not any(name in line for name in NOT_HERE)
]
WHOLE = ("run_dir=", "experiment=", "report=", "logger=", "method.residual", "method.objective", "method.training")
"""What is trained with its report and its controls here. The others are methods as they come, of which
``tests/run/test_mapped.py`` makes both (of ``energy``, ``tests/methods/test_energy.py``)."""
SETUP = [line for block in BLOCKS for line in block.strip().splitlines() if line.startswith("python3 -m venv")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(12):
            paint(folder / "images" / name / f"{i}.png", colour, 50 * c + i)
    generator, labels = np.random.default_rng(0), np.arange(60) % 3
    centres, words = generator.normal(size=(3, 16)), [f"word {i}" for i in range(12)]
    x = {split: centres[labels] + 0.3 * generator.normal(size=(60, 16)) for split in ("train", "test")}
    named = {"y_train": labels, "y_test": labels, "classes": list(COLOURS)}
    np.savez(folder / "features.npz", X_train=x["train"], X_test=x["test"], **named)
    np.savez(folder / "words.npz", names=words, vectors=generator.normal(size=(12, 16)))
    return folder


def adapted(command: str, workspace: Path) -> list[str]:
    """The command's arguments, made small: the reader's placeholder folder, an encoder that is here, few pictures."""
    arguments = shlex.split(command)[1:]
    arguments = [a.replace("/path/to/images", str(workspace / "images")) for a in arguments]
    arguments = ["encoder=tiny_clip" if a.startswith("encoder=") else a for a in arguments]
    arguments = [a.replace("timm:resnet18", "timm:test_resnet") for a in arguments]  # timm's smallest
    if arguments[0] == "train.py":
        name = next((a.removeprefix("dataset=") for a in arguments if a.startswith("dataset=")), "birds")
        if name.startswith("birds"):
            arguments += [a for a in small(name) if a.partition("=")[0] not in {b.partition("=")[0] for b in arguments}]
        else:
            arguments.append(f"cache={shared_folder() / 'cache'}")
        method = next((a.removeprefix("method=") for a in arguments if a.startswith("method=")), "labo")
        short = METHODS[method].trains and hasattr(METHODS[method].Config, "max_epochs")
        arguments += [q for q in QUICK if short or not q.startswith("method.")]
        arguments += ["method.passes=3"] * (method == "discovered")
        arguments = ["method.max_epochs=3" if a in QUICK and a.startswith("method.") else a for a in arguments]
        arguments = ["shots=4" if a == "shots=16" else a for a in arguments]
        if not any(word in command for word in WHOLE):
            arguments += ["controls=false", "report=none"]
    if arguments[0] == "eval.py":
        if edits := next((a.removeprefix("edits=") for a in arguments if a.startswith("edits=")), None):
            save_edits(Path(edits))
        arguments.append(f"cache={shared_folder() / 'cache'}")
        arguments += small()[:1] + small()[2:] if any(a.startswith("dataset=") for a in arguments) else []
    return [b for a in arguments for b in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]


def save_edits(path: Path) -> None:
    """What the reader saves in the explorer."""
    editor = cbm.Editor(cbm.load(path.parent))
    editor.remove("sky in background")
    editor.save(path)


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line: str, workspace: Path, command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workspace)
    arguments = adapted(line, workspace)
    if arguments[0] in ("train.py", "eval.py"):
        status, errors = command(arguments[0].removesuffix(".py"), *arguments[1:])
    else:
        import cbm.__main__

        if "app" in arguments:  # the page is opened, and closed at once
            pytest.importorskip("gradio")
            monkeypatch.setattr("gradio.Blocks.block_thread", lambda blocks: blocks.close())
        if {"birds", "report", "app", "label"} & set(arguments):
            arguments += ["--cache", str(shared_folder() / "cache")]
        monkeypatch.setattr(sys, "argv", ["cbm", *arguments[2:]])
        with pytest.raises(SystemExit) as stop:
            cbm.__main__.main()
        status, errors = int(stop.value.code or 0), ""
    assert status == 0, errors


@pytest.fixture(autouse=True)
def small_eval_cards(monkeypatch: pytest.MonkeyPatch):
    """Commands that name a card get it small: its full size is not needed to see that they work."""
    from birds_run import COUNTS

    import cbm.config

    original = cbm.config.load_card

    def small_card(name: str):
        card = original(name)
        if name.startswith("birds"):
            card.args.update(COUNTS)
            card.root = str(shared_folder() / "birds")
        return card

    monkeypatch.setattr(cbm.config, "load_card", small_card)


def test_python_example(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """After the commands above: runs/first is there."""
    monkeypatch.chdir(workspace)
    picture = next((shared_folder() / "birds").rglob("*.png"))
    (workspace / "bird.png").write_bytes(picture.read_bytes())
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile("\n".join(code), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    assert (workspace / "edits.yaml").is_file()


def test_there_are_two_set_up_commands():
    assert len(SETUP) == 2
    assert ".venv/bin/cbm train" in SETUP[0]
    assert SETUP[1].endswith("pytest")


def test_links_and_names_in_the_readme_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target
    from cbm import config

    for group, names in re.findall(r"`(method|dataset|encoder)=` \| (.*?) \|", README):
        assert sorted(re.findall(r"`([\w]+)`", names)) == config.choices(group)
