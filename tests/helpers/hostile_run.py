"""A run directory as a stranger may send it: every way in which it may attack, by name.

``ATTACKS[name](run)`` changes a sound copy of a run. What an attack wants is ``RAN`` beside the run (code was run), the
key of the environment in any output, ``victim`` beside the run changed, or an escape sequence on the terminal.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml

KEY = "sk-CANARY-0123456789"
"""What stands in OPENAI_API_KEY of the environment."""
NAME = (
    "=1+1|<script>alert(1)</script><img src=x onerror=alert(2)>[red]\x1b]0;title\x07\x1b[2J\x9b31m $x_{$ \\input{x} `` "
    "*a* ${oc.env:OPENAI_API_KEY} \u202e@everybody"
)
"""What a class or concept may be called."""


class Ran:
    """Makes ``RAN`` beside the run when it is unpickled."""

    def __init__(self, run: Path):
        self.mark = str(run.parent / "RAN")

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def change_yaml(run: Path, change: Callable[[dict[str, Any]], object], name: str = "config.yaml") -> None:
    content = yaml.safe_load((run / name).read_text())
    change(content)
    (run / name).write_text(yaml.safe_dump(content))


def change_json(run: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((run / name).read_text())
    change(content)
    (run / name).write_text(json.dumps(content))


def replace_file(run: Path, name: str, make: Callable[[Path], object]) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    make(run / name)


def hole(file: Path) -> None:
    """A terabyte that takes no space."""
    with file.open("wb") as content:
        content.truncate(1 << 40)


def encoder_with_code(run: Path) -> None:
    folder = run / "encoder"
    shutil.copytree(
        Path(yaml.safe_load((run / "config.yaml").read_text())["encoder"]["model"].removeprefix("local-dir:")), folder
    )
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": str(folder),
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    auto = {"AutoTokenizer": ["own.Own", "own.Own"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": auto}))
    (folder / "own.py").write_text(f"import os; os.mkdir({str(run.parent / 'RAN')!r})")
    change_yaml(run, lambda cfg: cfg["encoder"].update(model=f"local-dir:{folder}"))


def rename_classes(run: Path) -> None:
    change_json(run, "about.json", lambda about: about["classes"].__setitem__(0, NAME))


def rename_concepts(run: Path) -> None:
    def rename(bank: Any) -> None:
        for number, concept in enumerate(bank["concepts"]):
            concept["text"] = f"{NAME} {number}"
        bank["name"] = bank["source"] = NAME

    (run / "bank" / "embeddings.safetensors").unlink(missing_ok=True)
    change_json(run, "bank/bank.json", rename)


def settings_of_another(run: Path) -> None:
    def change(cfg: dict[str, Any]) -> None:
        cfg["method"]["fidelity"] = cfg["dataset"]["name"] = cfg["seed"] = NAME.replace("${oc.env:OPENAI_API_KEY}", "")

    change_yaml(run, change)


def long_header(file: Path) -> None:
    """A tensor that says it has terabytes."""
    header = json.dumps({"concepts": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


ATTACKS: dict[str, Callable[[Path], object]] = {
    "a setting reads the environment": lambda run: change_yaml(
        run, lambda cfg: cfg["logger"].update(project="${oc.env:OPENAI_API_KEY}")
    ),
    "a key reads the environment": lambda run: change_yaml(
        run, lambda cfg: cfg["method"].update({"${oc.env:OPENAI_API_KEY}": 1})
    ),
    "a setting is decoded": lambda run: change_yaml(run, lambda cfg: cfg.update(cache="${oc.decode:'x'}")),
    "the configuration makes objects": lambda run: (run / "config.yaml").write_text(
        (run / "config.yaml").read_text() + f"extra: !!python/object/apply:os.mkdir ['{run.parent / 'RAN'}']\n"
    ),
    "the configuration names a target": lambda run: change_yaml(
        run, lambda cfg: cfg["method"].update(_target_="os.mkdir", path=str(run.parent / "RAN"))
    ),
    "the configuration is a bomb": lambda run: (run / "config.yaml").write_text(
        "a: &a [x, x, x, x]\n" + "".join(f"k{n}: &b{n} [*{'a' if not n else f'b{n - 1}'}, *a]\n" for n in range(40))
    ),
    "the encoder brings code": encoder_with_code,
    "the encoder is a pipe": lambda run: (
        (run / "encoder").mkdir(), os.mkfifo(run / "encoder" / "open_clip_config.json"),
        change_yaml(run, lambda cfg: cfg["encoder"].update(model=f"local-dir:{run / 'encoder'}")),
    ),
    "the method is another": lambda run: change_yaml(run, lambda cfg: cfg["method"].update(name="os.system")),
    "the reader is another": lambda run: change_yaml(run, lambda cfg: cfg["dataset"].update(reader="os.system")),
    "the images are to be drawn elsewhere": lambda run: change_yaml(
        run, lambda cfg: cfg["dataset"].update(root=str(run.parent / "drawn"))
    ),
    "the images would fill the disk": lambda run: change_yaml(
        run, lambda cfg: (cfg["dataset"].update(root="here"), cfg["dataset"]["args"].update(n_train=10**9))
    ),
    "the images are devices": lambda run: change_yaml(run, lambda cfg: cfg["dataset"].update(root="/dev")),
    "the model is pickled": lambda run: torch.save({"x": Ran(run)}, run / "model.safetensors"),
    "the model says it has terabytes": lambda run: replace_file(run, "model.safetensors", long_header),
    "the model names a part to be made": lambda run: replace_file(
        run, "model.safetensors", lambda file: safetensors.torch.save_file(
            {"x": torch.ones(2)}, file, {"cbm": json.dumps({"type": "os.system", "args": ["true"]})}
        )
    ),
    "the embeddings are pickled": lambda run: torch.save(Ran(run), run / "bank" / "embeddings.safetensors"),
    "the predictions are pickled": lambda run: torch.save(Ran(run), run / "predictions.parquet"),
    "the metrics are a hole": lambda run: replace_file(run, "metrics.json", hole),
    "the bank is a hole": lambda run: replace_file(run, "bank/bank.json", hole),
    "the metrics are a pipe": lambda run: replace_file(run, "metrics.json", os.mkfifo),
    "the facts are a device": lambda run: replace_file(run, "about.json", lambda file: file.symlink_to("/dev/zero")),
    "the state is a pipe": lambda run: replace_file(run, "state.json", os.mkfifo),
    "the lock leads out": lambda run: replace_file(run, ".lock", lambda file: file.symlink_to(run.parent / "victim")),
    "the report leads out": lambda run: replace_file(
        run, "report.html", lambda file: file.symlink_to(run.parent / "victim")
    ),
    "the figures lead out": lambda run: (
        shutil.rmtree(run / "figures", ignore_errors=True), (run / "figures").symlink_to(run.parent / "outside"),
    ),
    "leftovers lead out": lambda run: [
        (run / name).symlink_to(run.parent / "victim") for name in (".partial.x", ".partial.folder.x")
    ],
    "classes are called oddly": rename_classes,
    "concepts are called oddly": rename_concepts,
    "settings are called oddly": settings_of_another,
    "metrics are called oddly": lambda run: change_json(
        run, "metrics.json", lambda metrics: metrics.update({NAME: 1.0, f"test/{NAME}": 2.0, "integrity/../x": 3.0})
    ),
    "metrics are no numbers": lambda run: change_json(
        run, "metrics.json", lambda metrics: metrics.update({"test/accuracy": NAME})
    ),
    "metrics are infinite": lambda run: change_json(
        run, "metrics.json", lambda metrics: metrics.update({"test/accuracy": float("inf"), "test/ece": float("nan")})
    ),
    "facts are nested deeply": lambda run: (run / "about.json").write_text('{"a":' * 100_000),
    "the verdict is a page": lambda run: change_json(run, "about.json", lambda about: about.update(verdict=NAME)),
    "answers of people are formulas": lambda run: (run / "labels.csv").write_text(
        f'path,label,split,"{NAME}"\n=1,=2,test,1\n'
    ),
    "edits lead out": lambda run: (run / "edits.yaml").symlink_to("/etc/passwd"),
    "python files lie about": lambda run: [
        (run / name).write_text(f"import os; os.mkdir({str(run.parent / 'RAN')!r})")
        for name in ("torch.py", "sitecustomize.py", "conftest.py", "cbm.py", "yaml.py")
    ],
}  # fmt: skip
"""Name of an attack to what it does to a run."""
HARMLESS = {
    "the report leads out", "leftovers lead out", "the predictions are pickled", "concepts are called oddly",
    "settings are called oddly", "metrics are called oddly", "metrics are infinite", "the verdict is a page",
    "edits lead out", "the configuration names a target", "the method is another", "answers of people are formulas",
    "python files lie about", "the lock leads out",
}  # fmt: skip
"""Attacks that have nothing to attack where text is text and files are regular: commands go on with such a run."""


def hostile_run(sound: Path, place: Path, attack: str) -> Path:
    """A copy of a sound run in ``place``, attacked, with ``victim`` and ``outside`` beside it."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "victim").write_text("precious")
    (place / "outside").mkdir()
    run = place / "received"
    shutil.copytree(sound, run)
    change_json(run, "state.json", lambda state: state.pop("checksums", None))  # a sender leaves them out
    ATTACKS[attack](run)
    return run
