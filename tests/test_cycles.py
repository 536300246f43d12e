"""No file imports itself by way of others, wherever in the file the import stands.

Between packages of the engine import-linter's layers say more (`pyproject.toml`). Within a package an import for type
checkers alone is allowed: it ties two files together for a reader of their types, not for the interpreter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle, the first again at the end; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def read_graph(root: Path, packages: tuple[str, ...]) -> dict[str, set[str]]:
    """Module -> modules of these packages that it imports, at its top or in a function."""
    paths = {module_name(root, path): path for package in packages for path in (root / package).rglob("*.py")}
    return {name: set(imports_of(name, path, paths.keys())) - {name} for name, path in paths.items()}


def module_name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports_of(name: str, path: Path, known: set[str]) -> Iterator[str]:
    for node in _without_type_checking(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if target in known or base in known:
                    yield target if target in known else base


def _without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _without_type_checking(child)


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = read_graph(ROOT, ("engine", "cockpit"))
    assert len(graph) > 300 and sum(map(len, graph.values())) > 1000
    assert find_cycle(graph) == []


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ("from demo.first import x", True),
        ("def f():\n    from demo import first", True),
        ("from . import first", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from demo.first import x", False),
        ("import json", False),
    ],
)
def test_a_cycle_is_found(second: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/__init__.py").touch()
    (tmp_path / "demo/first.py").write_text("from demo.second import y")
    (tmp_path / "demo/second.py").write_text(second)
    assert bool(find_cycle(read_graph(tmp_path, ("demo",)))) is found
