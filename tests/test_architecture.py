"""Imports go down only, and the rooms that run on a bare GPU machine need nothing but torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

FLOORS = {
    0: ["errors", "files", "network", "parsing", "tensor_files", "config", "run_directory"],
    1: ["kernels", "solvers", "encoders"],
    2: ["data", "concepts", "layers", "losses", "metrics"],
    3: ["module", "evaluation", "tracking"],
    4: ["methods", "editing"],
    5: [
        "app",
        "heat_map",
        "report",
        "run",
        "inputs",
        "codebook",
        "spurious",
        "trained",
        "hub",
        "export",
        "estimator",
        "editor",
        "interventions",
        "planning",
        "adaptation",
        "correction",
        "vision_expert",
        "cli",
        "__main__",
        "__init__",
    ],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
FILES = sorted((PROJECT / "cbm").rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PROJECT / "cbm").parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "cbm"}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_imports_go_down(file: Path):
    for name in imported(file):
        parts = name.split(".")
        if parts[0] == "cbm" and len(parts) > 1 and parts[1] in FLOOR:
            assert FLOOR[parts[1]] <= FLOOR[room_of(file)], f"{file.name} imports {name} from a floor above"


@pytest.mark.parametrize("room", ["kernels", "solvers"])
def test_bare_rooms_import_only_torch_and_numpy(room: str):
    allowed = {"torch", "triton", "numpy", "cbm"} | set(sys.stdlib_module_names)
    for file in (PROJECT / "cbm" / room).rglob("*.py"):
        for name in imported(file):
            assert name.split(".")[0] in allowed, f"{file.name} imports {name}"
            if name.startswith("cbm."):
                assert name.split(".")[1] in ("kernels", "solvers")
                assert room == "solvers" or name.split(".")[1] == "kernels"


OPTIONAL = [
    "openai", "pydantic", "tenacity", "wandb", "wordfreq", "lemminflect", "better_profanity", "gradio", "onnx",
    "onnxscript",
]  # fmt: skip
NEED_AN_EXTRA = ("cbm.concepts.llm.", "cbm.concepts.llm.vision", "cbm.app.")


def test_everything_but_the_extras_works_without_their_packages():
    """A plain install has none of them: what imports one at the top would fail for a command that never uses it."""
    modules = [".".join(file.relative_to(PROJECT).with_suffix("").parts) for file in FILES]
    core = [name for name in modules if not name.startswith(NEED_AN_EXTRA) and "gpu" not in name]
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in OPTIONAL)
    code = f"import importlib, sys\n{blocked}\nfor name in {core!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
