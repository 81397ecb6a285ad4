"""The house: who may import whom, no circles, and no room that outgrows its idea."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "emqdeploy"

FLOORS = (
    ("ending", "errors", "files", "locks", "registry", "progress", "options", "processes", "__init__"),
    ("format",),
    ("graph",),
    ("data",),
    ("models",),
    ("quant",),
    ("training", "exporters", "runtimes"),
    ("measuring",),
    ("report",),
    ("remote",),
    ("serving",),
    ("workflows",),
    ("api",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a room imports from its own and from those below; rooms of one floor never from one another, but
for the single files on the ground."""

LIMIT = 400
"""Lines of a module: one idea fits."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, path: Path, everywhere: bool) -> set[str]:
    """Our modules that a module imports.

    Args:
        name: of the module.
        path: its file.
        everywhere: also inside functions; else only what runs when the module is imported. What type checkers alone
            read counts nowhere.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if not everywhere and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules_ = inner & set(MODULES)
            found.update(modules_)
            if modules_ != inner:
                found.add(str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {other for other in found if other in MODULES and other != name}


def room(name: str) -> str:
    """The part of the package that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def floor(name: str) -> int:
    """How high a module's room stands."""
    return next(height for height, rooms in enumerate(FLOORS) if room(name) in rooms)


def test_every_room_has_a_floor() -> None:
    """A new folder needs a place in the order."""
    known = {name for rooms in FLOORS for name in rooms}
    assert {room(name) for name in MODULES} <= known


@pytest.mark.parametrize("name", list(MODULES))
def test_imports_point_down(name: str) -> None:
    """Wherever in the module they stand: a lazy import is no way around the rule."""
    for other in imports(name, MODULES[name], everywhere=True):
        allowed = room(other) == room(name) or floor(other) < floor(name) or floor(name) == 0 == floor(other)
        assert allowed, f"{name} imports {other}, which stands higher or beside it"


def test_there_is_no_circle() -> None:
    """Every module can be read before those that need it."""
    graph = {name: imports(name, path, everywhere=False) for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_no_module_outgrows_its_idea() -> None:
    """A module that needs more lines holds two ideas."""
    long = {name: length for name, path in MODULES.items() if (length := len(path.read_text().splitlines())) > LIMIT}
    assert not long


_DEVICE_PART = ("format", "graph", "data", "runtimes", "measuring", "serving")


def test_the_device_part_needs_neither_torch_nor_onnx() -> None:
    """It is what travels: importing all of it loads neither."""
    names = [name for name in MODULES if room(name) in _DEVICE_PART and not name.endswith("__main__")]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names!r}]; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnx_ir", "onnxscript", "torchvision"} & set(loaded)
