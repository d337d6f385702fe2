"""Imports go down only, and the rooms that run on a bare GPU machine need nothing but torch."""

import ast
import importlib.metadata as metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT / "scripts"))
import import_graph as graph

FLOORS = [
    ["errors", "kernels"],
    ["files", "solvers"],
    ["config", "encoders", "layers", "losses"],
    ["data"],
    ["concepts", "training"],
    ["editing", "metrics"],
    ["methods", "report"],
    ["trained"],
    ["app", "editor", "estimator", "run"],
    ["__init__", "commands"],
    ["__main__"],
]
"""The house, from the ground up. A room (a package, or a loose module of ``cbm/``) imports rooms of strictly lower
floors, and itself."""
LOOSE = {"__init__", "__main__", "config", "editor", "errors", "estimator"}
"""Modules that may lie beside the packages: none holds domain logic."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((PROJECT / "cbm").rglob("*.py"))
KNOWN = graph.modules(PROJECT)


@pytest.mark.parametrize("module", KNOWN)
def test_imports_go_down(module: str):
    own = graph.room(module)
    for target in graph.imports(KNOWN[module], KNOWN):
        assert graph.room(target) == own or FLOOR[graph.room(target)] < FLOOR[own], f"{module} imports {target}"


def test_no_circle_of_files():
    assert graph.circles(graph.file_edges(PROJECT)) == []


def test_no_loose_module_with_domain_logic():
    assert {file.stem for file in (PROJECT / "cbm").glob("*.py")} == LOOSE
    for name in ("__main__", "editor", "estimator"):
        tree = ast.parse((PROJECT / "cbm" / f"{name}.py").read_text())
        kinds = {type(node) for node in tree.body}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.For, ast.While}, f"cbm/{name}.py does something itself"


def test_the_house_is_as_small_as_it_was_drawn():
    arrows = graph.arrows(PROJECT)
    rooms = {graph.room(module) for module in KNOWN}
    assert rooms == set(FLOOR)
    assert len(rooms) <= 26
    assert len(FLOORS) <= 11
    assert len(arrows) <= 129  # 55 % of the 235 before the house was rebuilt
    assert graph.upward(arrows) == []


def test_the_graph_sees_what_is_hidden(tmp_path: Path):
    """An import inside a function, one for type checkers, and a circle of three files."""
    package = tmp_path / "cbm"
    for file, text in {
        "__init__.py": "",
        "a/__init__.py": "",
        "a/one.py": "def f():\n    from cbm.b import two\n",
        "b/__init__.py": "",
        "b/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cbm.c import three\n",
        "c.py": "import cbm.a.one\nthree = 3\n",
    }.items():
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text)
    assert graph.arrows(tmp_path) == {("a", "b"): 1, ("b", "c"): 1, ("c", "a"): 1}
    assert graph.circles(graph.file_edges(tmp_path)) == [["cbm.a.one", "cbm.b.two", "cbm.c"]]
    assert graph.height({"a": {"b"}, "b": {"c"}, "c": set()}) == 3


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("room", ["kernels", "solvers"])
def test_bare_rooms_import_only_torch_and_numpy(room: str):
    allowed = {"torch", "triton", "numpy", "cbm"} | set(sys.stdlib_module_names)
    for file in (PROJECT / "cbm" / room).rglob("*.py"):
        for name in imported(file):
            assert name.split(".")[0] in allowed, f"{file.name} imports {name}"
            if name.startswith("cbm."):
                assert name.split(".")[1] in ("kernels", "solvers")
                assert room == "solvers" or name.split(".")[1] == "kernels"


def test_every_import_is_a_declared_dependency():
    """Not one that is there because another package needs it (triton comes with torch where it is of use)."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.split(r"[\[<>=]", line)[0].lower().replace("_", "-") for line in lines} | {"triton", "starlette"}
    own = set(sys.stdlib_module_names) | {"cbm"}
    used = {name.split(".")[0] for file in FILES for name in imported(file)} - own - {""}
    distributions = metadata.packages_distributions()
    for name in used & set(distributions):
        assert {each.lower().replace("_", "-") for each in distributions[name]} & declared, name
    assert {"torch", "scipy", "yaml"} <= used


OPTIONAL = [
    "openai", "pydantic", "tenacity", "wandb", "wordfreq", "lemminflect", "better_profanity", "gradio", "onnx",
    "onnxscript", "pillow_heif", "pydicom",
]  # fmt: skip
NEED_AN_EXTRA = ("cbm.concepts.llm.", "cbm.app.")


def test_everything_but_the_extras_works_without_their_packages():
    """A plain install has none of them: what imports one at the top would fail for a command that never uses it."""
    modules = [".".join(file.relative_to(PROJECT).with_suffix("").parts) for file in FILES]
    core = [name for name in modules if not name.startswith(NEED_AN_EXTRA) and "gpu" not in name]
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in OPTIONAL)
    code = f"import importlib, sys\n{blocked}\nfor name in {core!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
