"""The package has one direction: no file and no sub-package imports what imports it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "cockpit"
LAYERS = ("state", "profiles", "connection", "widgets", "screens", "app")
"""From the bottom up: `state` and the rest of a sub-package's imports lie below it. `profiles` may use `state`."""


def _modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports anywhere in it, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in submodules)


def _graph() -> dict[str, set[str]]:
    modules = _modules()
    assert len(modules) > 50, "the package was not found"
    return {name: set(_imports(path, modules)) - {name} for name, path in modules.items()}


def _assert_acyclic(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_no_two_files_import_each_other() -> None:
    _assert_acyclic(_graph())


def test_a_sub_package_imports_only_those_below_it() -> None:
    for name, imported in _graph().items():
        parts = name.split(".")
        if len(parts) < 2 or parts[1] not in LAYERS:
            continue
        for other in imported:
            below = other.split(".")[1:2]
            if below and below[0] in LAYERS:
                assert LAYERS.index(below[0]) <= LAYERS.index(parts[1]), f"{name} imports {other}"
            assert not below or below[0] not in ("verbs", "cli"), f"{name} imports {other}"
