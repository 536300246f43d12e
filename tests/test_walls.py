"""The borders between packages, checked from outside: what a process has really loaded, and what the import contracts
say."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
API = ROOT / "engine" / "inference" / "__init__.py"
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "pandas",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "matplotlib",
)


@pytest.mark.parametrize(
    "modules",
    [
        "cockpit.app",
        "engine.supervisor.__main__",
        (
            "cockpit.cli, cockpit.verbs.train, cockpit.verbs.chat, cockpit.verbs.demo, "
            "cockpit.verbs.engine, cockpit.verbs.tools"
        ),
        "engine.config.profile, engine.protocol.async_client",
    ],
)
def test_no_training_library_is_loaded(modules: str) -> None:
    program = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert len(loaded) > 50
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_the_parser_alone_loads_next_to_nothing() -> None:
    program = "import sys; from cockpit.cli import build_parser; build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "cockpit.cli" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {"rich", "zmq", "msgspec", "pydantic", "textual", "engine"}


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert " 0 broken" in checked.stdout


def package_sources() -> list[Path]:
    return [path for package in ("cockpit", "engine") for path in sorted((ROOT / package).rglob("*.py"))]


def test_there_is_no_utils() -> None:
    sources = package_sources()
    assert len(sources) > 50
    assert not [path for path in sources if path.stem in ("utils", "util", "helpers", "common")]


def test_package_faces_are_empty_or_tables() -> None:
    """`__init__.py` holds a docstring, and tables of strings where there is a choice: importing a package costs
    nothing."""
    faces = [path for path in package_sources() if path.name == "__init__.py"]
    assert len(faces) > 10
    for path in faces:
        for node in ast.parse(path.read_text()).body:
            table = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict | ast.Tuple)
            future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
            assert isinstance(node, ast.Expr) or table or future or path == API, f"{path}:{node.lineno}"


def test_the_python_interface_is_loaded_when_it_is_asked_for() -> None:
    """`engine.inference` is the one face that is more: its modules must not pay for what stands there."""
    program = "import sys; from engine.inference import PRESETS, Sampling; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "engine.inference.sampling" in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
    from engine import inference

    assert all(getattr(inference, name).__name__ == name for name in inference.FACE if name != "PRESETS")
    with pytest.raises(AttributeError):
        inference.nothing  # noqa: B018 - that it fails is the point


def test_files_and_functions_are_short_enough_to_read() -> None:
    """A file above 400 lines says why in its first lines; no function is above 60."""
    sources = package_sources()
    assert len(sources) > 300
    long_files = []
    long_functions = []
    for path in sources:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400 and "400 lines" not in "\n".join(text.splitlines()[:12]):
            long_files.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > 60:
                    long_functions.append(f"{path}:{node.lineno} {node.name}")
    assert long_files == [] and long_functions == []
