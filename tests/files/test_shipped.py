"""Where things are looked for: the working folder, then what comes with cbm; and what an extra is installed by."""

import os
import tomllib
from pathlib import Path

import pytest
from conftest import PROJECT, one_line, paint

from cbm import config
from cbm.files import shipped


def test_the_name_for_pip_is_the_projects():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == shipped.DISTRIBUTION
    assert project["scripts"] == {"cbm": "cbm.commands.main:main"}
    inside = [entry for extra in project["optional-dependencies"].values() for entry in extra if "[" in entry]
    assert all(entry.startswith((f"{shipped.DISTRIBUTION}[", "mkdocstrings[")) for entry in inside)


def test_paths_of_the_working_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.resolve_path("concepts/birds.json") == PROJECT / "concepts" / "birds.json"
    assert shipped.resolve_path("cbm/encoders/tiny_clip") == PROJECT / "cbm" / "encoders" / "tiny_clip"
    assert shipped.resolve_path("nothing/here") == Path("nothing/here")
    (tmp_path / "concepts").mkdir()
    (tmp_path / "concepts" / "birds.json").write_text("{}")
    assert shipped.resolve_path("concepts/birds.json") == Path("concepts/birds.json")
    assert config.bank_files()["birds"] == Path("concepts/birds.json")
    assert config.bank_files()["wbc"] == PROJECT / "concepts" / "wbc.json"


def test_names_without_folders():
    assert shipped.relative_name(PROJECT / "concepts" / "birds.json") == "concepts/birds.json"
    assert shipped.relative_name(PROJECT / "cbm" / "encoders" / "tiny_clip") == "cbm/encoders/tiny_clip"
    assert shipped.relative_name(Path("/home/somebody/bank.json")) == "bank.json"


@pytest.fixture
def working_folder(tmp_path: Path) -> Path:
    """A folder with a card, a bank and an encoder of its own, and YAML of something else in ``datasets/``."""
    for name, colour in {"red": (220, 40, 40), "blue": (40, 60, 220)}.items():
        for i in range(12):
            paint(tmp_path / "images" / name / f"{i}.png", colour, i + 50 * len(name))
    files = {
        "datasets/mine.yaml": "name: mine\nreader: folder\nroot: images\n",
        "datasets/cifar10.yaml": "name: cifar10\nreader: folder\nroot: images\n",
        "datasets/coco.yaml": "path: ../coco\nnames: {0: person}\n",
        "datasets/imagenet.yaml": "path: ../imagenet\ntrain: images\n",
        "datasets/broken.yaml": "a: [\n",
        "concepts/words.json": '{"red": ["red surface", "warm colour"], "blue": ["blue surface", "cold colour"]}',
        "concepts/other.json": '{"version": 2, "tool": []}',
        "configs/encoder/mine.yaml": "model: local-dir:cbm/encoders/tiny_clip\nbatch_size: 8\n",
        "configs/train.yaml": "lr: 0.1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_cards_banks_and_choices_of_the_working_folder(working_folder: Path, command):
    quick = ("controls=false", "nec=[]", "report=false", "encoder.num_workers=0", "trainer=cpu", "method=posthoc")
    assert command("train", "dataset=mine", "encoder=mine", "concepts=words", "run_dir=run", *quick) == (0, _any())
    cfg = (working_folder / "run" / "config.yaml").read_text()
    assert "source: concepts/words.json" in cfg
    assert "batch_size: 8" in cfg
    assert {"mine", "birds"} <= set(config.card_names())
    assert not {"coco", "broken"} & set(config.card_names())
    assert config.load_card("cifar10").reader == "folder"  # the working folder's own
    assert config.load_card("imagenet").reader == "imagenet"  # what another program calls so is no card
    assert "imagenet" in config.card_names()


def test_the_bank_for_the_classes_is_found_among_strange_files(working_folder: Path, command):
    status, errors = command(
        "train", "dataset=mine", "run_dir=run", "controls=false", "nec=[]", "report=false", "encoder.num_workers=0",
        "trainer=cpu", "method=posthoc",
    )  # fmt: skip
    assert status == 0, errors
    assert "words.json has phrases for all 2 classes" in errors
    assert "passed over 'concepts/other.json'" in errors


def test_a_broken_card_is_named(working_folder: Path, command, module):
    assert "broken" in one_line(command("train", "dataset=broken"))
    assert "is not YAML" in module("datasets", "show", "broken")[2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_special_files_are_no_cards_banks_or_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pipe would be waited at for ever."""
    monkeypatch.chdir(tmp_path)
    for folder, ending in (("datasets", ".yaml"), ("concepts", ".json"), ("configs/encoder", ".yaml")):
        (tmp_path / folder / f"folder{ending}").mkdir(parents=True)
        os.mkfifo(tmp_path / folder / f"pipe{ending}")
        (tmp_path / folder / f"circle{ending}").symlink_to(f"circle{ending}")
        (tmp_path / folder / f"nowhere{ending}").symlink_to("nowhere")
    for group in ("dataset", "concepts", "encoder"):
        assert not {"pipe", "circle", "nowhere"} & set(config.choices(group))
    assert config.load_card("folder").reader == "folder"  # the shipped one


def test_a_broken_choice_is_named_and_harms_no_other(working_folder: Path, command, module):
    (working_folder / "configs" / "encoder" / "broken.yaml").write_text("a: [\n")
    assert command("train", "encoder=mine", "--cfg", "job")[0] == 0
    for said in (command("train", "encoder=broken"), command("train", "teacher=broken", "method=label_free")):
        assert "configs/encoder/broken.yaml is not YAML" in one_line(said)
    assert "configs/encoder/broken.yaml is not YAML" in module("encode", "birds", "--encoder", "broken")[2]


def test_configs_of_another_program_replace_nothing(working_folder: Path, command):
    """Many programs that use Hydra have a ``trainer: default``; the same files count for every command."""
    for name in ("trainer/default", "encoder/tiny_clip"):
        (working_folder / "configs" / name).parent.mkdir(exist_ok=True)
        (working_folder / "configs" / f"{name}.yaml").write_text("_target_: lightning.Trainer\n")
    status, errors = command("train", "encoder=tiny_clip", "--cfg", "job")
    assert status == 0
    assert "configs/encoder/tiny_clip.yaml, configs/trainer/default.yaml" in errors.replace("\\", "/")
    assert "model" in config.read_choice("encoder", "tiny_clip")


def test_how_a_run_is_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert shipped.script_command("train") == "python train.py"
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    assert shipped.script_command("train") == "cbm train"


class _any:
    def __eq__(self, other: object) -> bool:
        return True


def test_how_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shipped, "find_spec", lambda name: True)
    monkeypatch.chdir(PROJECT)
    assert shipped.install_command("app") == "pip install -e '.[app]' -c constraints.txt"
    monkeypatch.chdir(tmp_path)
    assert shipped.install_command("app") == f"pip install -e '{PROJECT}[app]' -c '{PROJECT / 'constraints.txt'}'"
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    assert shipped.install_command("app") == "pip install 'clip-concept-bottleneck[app]'"
    monkeypatch.setattr(shipped, "find_spec", lambda name: None)
    assert shipped.install_command("app") == "uv pip install 'clip-concept-bottleneck[app]'"
