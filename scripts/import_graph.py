"""The rooms of ``cbm/`` and who imports whom: rooms, floors, arrows, circles, arrows that go up.

    python scripts/import_graph.py            # this checkout
    python scripts/import_graph.py PATH       # another

A room is a package or a loose module of ``cbm/``; nested packages count with their parent. An arrow leads from a room
to another that it imports, wherever in the file the import stands: inside a function and for type checkers too. A
circle is a set of rooms, or of files, that import each other. A room's floor is one above the highest floor it imports
from; an arrow goes up if it leads to a room that the architecture test puts on the same floor or a higher one.
"""

import ast
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1] / "tests" / "test_architecture.py"
"""The test that holds the order of the rooms."""


def floors() -> dict[str, int]:
    """Room to floor, as ``FLOORS`` of the architecture test says."""
    for node in ast.parse(HOUSE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return {name: level for level, names in enumerate(ast.literal_eval(node.value)) for name in names}
    raise ValueError(f"no FLOORS in {HOUSE}")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name to file of every module of ``root/cbm``."""
    found = {}
    for file in sorted((root / "cbm").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room(module: str) -> str:
    """The room of a module: the part of its name after ``cbm``; ``__init__`` for ``cbm`` itself."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules among ``known`` that a file imports; a package stands for what its ``__init__`` takes in."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in known else base for name in names]
        else:
            continue
        found |= {name for name in names if name in known}
    return found


def arrows(root: Path) -> dict[tuple[str, str], int]:
    """(importing room, imported room) to the number of files that do so."""
    known, found = modules(root), Counter()
    for name, file in known.items():
        for target in {room(target) for target in imports(file, known)} - {room(name)}:
            found[room(name), target] += 1
    return dict(found)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for target in edges.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    reached = {node: reach(node) for node in edges}
    found = {frozenset({node} | {other for other in reached[node] if node in reached.get(other, ())}) for node in edges}
    return sorted(sorted(group) for group in found if len(group) > 1)


def file_edges(root: Path) -> dict[str, set[str]]:
    """Module to the modules it imports."""
    known = modules(root)
    return {name: imports(file, known) - {name} for name, file in known.items()}


def height(edges: dict[str, set[str]]) -> int:
    """The number of floors that the arrows need; rooms of a circle share one."""
    groups = {node: group[0] for group in circles(edges) for node in group}
    merged: dict[str, set[str]] = {}
    for node, targets in edges.items():
        own = groups.get(node, node)
        merged.setdefault(own, set()).update(groups.get(t, t) for t in targets if groups.get(t, t) != own)
    try:
        order = TopologicalSorter(merged).static_order()
        floors: dict[str, int] = {}
        for node in order:
            floors[node] = 1 + max((floors[t] for t in merged.get(node, ())), default=0)
    except CycleError as error:
        raise RuntimeError(f"a circle is left after merging: {error}") from error
    return max(floors.values())


def upward(found: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Arrows that do not lead to a strictly lower floor."""
    floor = floors()
    return sorted((a, b) for a, b in found if floor.get(b, 99) >= floor.get(a, -1))


def main() -> None:
    """Print the figures."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    found = arrows(root)
    rooms = {room(name) for name in modules(root)}
    edges: dict[str, set[str]] = {name: set() for name in rooms}
    for a, b in found:
        edges[a].add(b)
    print(f"rooms           {len(rooms)}")
    print(f"floors          {height(edges)}")
    print(f"arrows          {len(found)}")
    print(f"room circles    {len(circles(edges))}  {circles(edges) or ''}")
    files = circles(file_edges(root))
    print(f"file circles    {len(files)}  {files or ''}")
    if rooms <= set(floors()):
        print(f"arrows upward   {len(upward(found))}  {upward(found) or ''}")
    else:
        print(f"arrows upward   not counted: {len(rooms - set(floors()))} rooms have no floor")


if __name__ == "__main__":
    main()
