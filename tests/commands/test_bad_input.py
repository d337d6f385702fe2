"""Every kind of bad input, through the command line: one clear line, status 2, nothing lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from birds_run import QUICK, small
from conftest import COLOURS, PROJECT, one_line, paint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            paint(tmp_path / "images" / name / f"{i}.png", colour, 50 * c + i)
    return tmp_path / "images"


def on(folder: Path) -> list[str]:
    return ["dataset=folder", f"dataset.root={folder}", f"cache={folder.parent / 'cache'}", *QUICK, "report=false"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=labbo"], "unknown method 'labbo': did you mean 'labo'"),
        (["dataset=bird"], "unknown dataset 'bird': did you mean 'birds'"),
        (["encoder=vit_b23"], "unknown encoder 'vit_b23': did you mean 'vit_b32'"),
        (["encoder=null"], "encoder=null: say encoder=auto"),
        (["concepts=cifar"], "unknown concepts 'cifar': did you mean 'cifar10'"),
        (["dataset.rot=x"], "unknown setting 'dataset.rot': did you mean 'dataset.root'"),
        (["method.lrr=1"], "unknown setting 'method.lrr': did you mean 'method.lr'"),
        (["shot=4"], "unknown setting 'shot': did you mean 'shots'"),
        (["seed=abc"], "seed: "),
        (["seed=-1"], "seed=-1: expected 0 or more"),
        (["method.lr=fast"], "method.lr: "),
        (["method.fidelity=papper"], "did you mean 'paper'"),
        (["method=sparse", "method.objective=gumble"], "method.objective=gumble: did you mean 'gumbel'"),
        (["method=sparse", "method.k=100000"], "method.k=100000: bank"),
        (["method=sparse", "method.mixing=identity"], "method.mixing=identity is not trained"),
        (["concepts.control=randm"], "concepts.control=randm: did you mean 'random'"),
        (["shots=0"], "shots=0: expected"),
        (["dataset.on_error=explode", "report=false"], "dataset.on_error=explode: choose one of fail, skip"),
        (["encoder.store_dtype=int8"], "encoder.store_dtype=int8: "),
        (["encoder.precision=fp8"], "encoder.precision=fp8: "),
        (["dataset.args.n_trian=4"], "unknown setting 'dataset.args.n_trian'"),
        (["dataset.args.variant=bird"], "did you mean"),
        (["encoder.device=cuda"], "sees no GPU"),
    ],
)
def test_settings(command, arguments: list[str], message: str):
    import torch

    if torch.cuda.is_available() and "encoder.device=cuda" in arguments:
        pytest.skip("there is a GPU here")
    given = {a.partition("=")[0] for a in arguments}
    rest = (
        [a for a in [*small(), *QUICK] if a.partition("=")[0] not in given] if "dataset=bird" not in arguments else []
    )
    rest = [a for a in rest if not (arguments == ["method=labbo"] and a.startswith("method."))]
    assert message in one_line(command("train", *arguments, *rest))
    assert not Path("runs").exists() or not any(Path("runs").rglob("metrics.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["encoder.model=ViT-B-33", "encoder.pretrained=openai"],
            "unknown encoder 'ViT-B-33': did you mean 'ViT-B-32'",
        ),
        (["encoder.model=ViT-B-32", "encoder.pretrained=opnai"], "did you mean 'openai'"),
        (["encoder.model=ViT-B-32"], "needs encoder.pretrained=TAG"),
        (["encoder.model=local-dir:nowhere"], "no open_clip_config.json in 'nowhere'"),
        (["encoder.model=timm:resnet19"], "unknown timm model 'resnet19': did you mean 'resnet18'"),
        (["encoder.model=torchvision:resnet19"], "unknown torchvision model 'resnet19'"),
        (["encoder.model=tim:resnet18"], "unknown prefix 'tim:', did you mean 'timm'"),
        (["encoder.model=timm:resnet18", "encoder.pretrained=random"], "reads images only, but text was asked of it"),
        (["encoder.model=timm:resnet18", "encoder.pretrained=random", "method=cms"], "reads images only"),
        (["encoder.model=hf-hub:no/such-model"], "are not on this machine and cannot be downloaded"),
    ],
)
def test_encoders(command, folder: Path, arguments: list[str], message: str):
    rest = [a for a in on(folder) if not (a.startswith("method.") and "method=cms" in arguments)]
    assert message in one_line(command("train", *rest, *arguments))


def test_weights_that_cannot_be_downloaded(command, folder: Path, monkeypatch: pytest.MonkeyPatch):
    import open_clip

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", refuse)
    line = one_line(command("train", *on(folder), "encoder=vit_b32"))
    assert "cannot be downloaded" in line
    assert "local-dir:PATH" in line


def test_folders(command, folder: Path, tmp_path: Path):
    assert "no folder" in one_line(command("train", *on(tmp_path / "image")))
    assert "did you mean 'images'" in one_line(command("train", *on(tmp_path / "image")))
    assert "say dataset.root=" in one_line(command("train", "dataset=folder"))
    shutil.rmtree(folder / "red")
    (folder / "red").mkdir()
    status, errors = command("train", *on(folder))
    assert "1 folder(s) without images are passed over: 'red'" in errors
    shutil.rmtree(folder / "red")
    shutil.rmtree(folder / "blue")
    assert "two classes or more" in one_line(command("train", *on(folder)))


def test_broken_pictures_are_reported_and_skipped_or_fatal(command, folder: Path):
    (folder / "red" / "3.png").write_bytes(b"")
    arguments = [a for a in on(folder) if not a.startswith("method.")]
    status, errors = command("train", *arguments, "method=zero_shot", "run_dir=a")
    assert status == 0, errors
    said = "images could not be read and is skipped: 'red/3.png' (because of "
    assert errors.count(said) == errors.count("red/3.png") == 1
    counts = json.loads(Path("a/metrics.json").read_text())
    assert counts["data/n_train"] + counts["data/n_val"] + counts["data/n_test"] == 29
    line = one_line(command("train", *arguments, "method=zero_shot", "dataset.on_error=fail"))
    assert "cannot be read, first 'red/3.png'" in line
    for file in (folder / "red").iterdir():
        file.write_bytes(b"")
    assert "no training images for class 'red'" in one_line(command("train", *arguments, "method=zero_shot"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\nimages/red/0.png,x\n", "no column 'path'"),
        ("path,label\nimages/red/0.png,x\nimages/red/none.png,y\n", "not there, first: 'images/red/none.png'"),
        ("path,label\nimages/red/0.png,x\n", "two classes or more"),
    ],
)
def test_tables(command, folder: Path, tmp_path: Path, table: str, message: str):
    (tmp_path / "t.csv").write_text(table)
    assert message in one_line(command("train", "dataset=csv", f"dataset.root={tmp_path / 't.csv'}", "report=false"))


def test_banks(command, folder: Path, tmp_path: Path):
    bank = tmp_path / "bank.json"
    assert "no concept bank" in one_line(command("train", *on(folder), f"concepts={bank}"))
    bank.write_text(json.dumps({"read": ["warm"], "green": ["grass"], "blue": ["sea"]}))
    line = one_line(command("train", *on(folder), f"concepts={bank}"))
    assert "no phrases for class 'red'" in line
    assert "did you mean 'read'" in line
    bank.write_text('{"red": ["warm"')
    assert "is not JSON" in one_line(command("train", *on(folder), f"concepts={bank}"))
    bank.write_text(json.dumps({"red": ["red colour"], "green": ["grass"], "blue": ["sea water"]}))
    assert "no phrase is left for class 'red'" in one_line(command("train", *on(folder), f"concepts={bank}"))


def test_bank_from_another_embedding_space(command, folder: Path, tmp_path: Path):
    from dataclasses import replace

    import torch

    from cbm.concepts import merge_duplicates

    phrases = merge_duplicates(
        "b", "b", [("warm", ("red",), None), ("grass", ("green",), None), ("sea", ("blue",), None)]
    )
    replace(phrases, embeddings=torch.eye(3), encoder="another").save(tmp_path / "bank")
    line = one_line(command("train", *on(folder), f"concepts={tmp_path / 'bank'}/bank.json"))
    assert "embedding space of another encoder (another" in line


def test_more_shots_than_pictures(command, folder: Path):
    line = one_line(command("train", *on(folder), "shots=50"))
    assert "shots=50 is more than there is" in line
    assert "largest possible value is 7" in line


def test_nan_features(command, folder: Path, tmp_path: Path):
    import safetensors.torch

    broken = tmp_path / "broken_clip"
    shutil.copytree(PROJECT / "cbm" / "encoders" / "tiny_clip", broken)
    weights = safetensors.torch.load_file(broken / "open_clip_model.safetensors")
    name = next(n for n in weights if n.startswith("visual") and weights[n].ndim > 1)
    weights[name][:] = float("nan")
    safetensors.torch.save_file(weights, broken / "open_clip_model.safetensors")
    line = one_line(command("train", *on(folder), f"encoder.model=local-dir:{broken}"))
    assert "NaN or infinite features, first for image" in line


def test_run_directories(command, folder: Path, tmp_path: Path):
    arguments = [a for a in on(folder) if not a.startswith("method.")] + ["method=zero_shot", "run_dir=here"]
    assert command("train", *arguments)[0] == 0
    before = Path("here/metrics.json").read_bytes()
    assert "holds a finished run" in one_line(command("train", *arguments))
    assert Path("here/metrics.json").read_bytes() == before
    assert command("train", *arguments, "overwrite=true")[0] == 0
    assert Path("here.old-1/metrics.json").read_bytes() == before
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("precious")
    assert "is not a run of cbm" in one_line(command("train", *arguments[:-1], "run_dir=mine"))
    Path("begun").mkdir()
    Path("begun/state.json").write_text(json.dumps({"settings": "00000000", "finished": False}))
    assert "interrupted run with other settings" in one_line(command("train", *arguments[:-1], "run_dir=begun"))
    assert "no run in 'hare': did you mean 'here'" in one_line(command("eval", "run=hare"))
    assert "is not finished" in one_line(unfinished(command))
    assert "split=tset: did you mean 'test'" in one_line(command("eval", "run=here", "split=tset"))
    assert "unknown dataset 'bird'" in one_line(command("eval", "run=here", "dataset=bird"))
    assert "which run? say run=" in one_line(command("eval"))
    assert "'dataset.root' belongs to a dataset: say dataset=..." in one_line(
        command("eval", "run=here", "dataset.root=x")
    )


def unfinished(command):
    Path("half").mkdir()
    Path("half/config.yaml").write_text("seed: 0\n")
    return command("eval", "run=half")


def test_a_full_disk(folder: Path, tmp_path: Path):
    """The kernel refuses to let any file grow past 40 kB: features cannot be written; one line, and no half file."""
    arguments = [a for a in on(folder) if not a.startswith("method.")] + ["method=linear_probe", "run_dir=full"]
    arguments += ["encoder.model=timm:resnet18", "encoder.pretrained=random"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    result = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *arguments], cwd=tmp_path, capture_output=True, text=True,
        preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    assert "no space left for" in one_line((result.returncode, result.stderr))
    assert not list((tmp_path / "cache" / "features").rglob("*.safetensors"))
    assert not [p for p in (tmp_path / "cache").rglob(".*") if p.is_file()]


def test_a_package_that_is_not_installed(command, folder: Path, monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else original(name, *a))
    assert "needs the wandb package" in one_line(command("train", *on(folder), "logger=wandb"))


def test_commands_of_the_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    import cbm.__main__

    for arguments, message in (
        (["concepts", "lint", "nothing.json"], "no concept bank 'nothing.json'"),
        (["encode", "bird"], "unknown dataset 'bird': did you mean 'birds'"),
        (["compare", str(tmp_path / "none")], "none"),
    ):
        monkeypatch.setattr(sys, "argv", ["cbm", *arguments])
        with pytest.raises(SystemExit) as stop:
            cbm.__main__.main()
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
