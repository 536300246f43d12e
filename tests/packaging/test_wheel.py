"""A wheel built from the tree, in an environment of its own, far from the checkout."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("cockpit-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and borrows what it depends on from ours."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Lines of a path file are appended, and path files behind them are not read: our own editable checkout stays out.
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


def run(program: Path, *arguments: str, home: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "COCKPIT_HOME": str(home)}
    done = subprocess.run([program, *arguments], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_two_packages_with_profiles_and_samples_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"cockpit", "engine"}
    assert [name.partition("/data/")[2] for name in names if ".data/" in name] == ["share/man/man1/cockpit.1"]
    assert "cockpit/language/zh/LC_MESSAGES/cockpit.mo" in names
    for kind in ("profiles", "data"):
        files = [path for path in (ROOT / kind).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files
        assert {f"engine/{path.relative_to(ROOT)}" for path in files} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_is_typed_and_carries_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    assert {"cockpit/py.typed", "engine/py.typed"} <= set(archive.namelist())
    (licence,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    required = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist: trl")]
    assert len(required) == 1 and "extra == 'dev'" in required[0], "trl is for tests and benchmarks alone"


def test_the_command_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    cockpit = installed / "cockpit"
    assert "verbs:" in run(cockpit, "--help", home=tmp_path)
    listed = json.loads(run(cockpit, "profile", "list", "--json", home=tmp_path))
    (path,) = (Path(entry["path"]) for entry in listed if entry["name"] == "triples-qlora")
    assert path.parts[-4:] == ("site-packages", "engine", "profiles", "triples-qlora.yaml")
    assert path.is_relative_to(installed.parent)
    assert json.loads(run(cockpit, "profile", "check", "triples-qlora", "--json", home=tmp_path))["ok"]
    find_data = "from engine.config.bundled import find_bundled; print(find_bundled('data'))"
    assert Path(run(installed / "python", "-c", find_data, home=tmp_path).strip()).is_relative_to(installed.parent)


def test_its_engine_starts_and_ends(installed: Path, tmp_path: Path) -> None:
    cockpit = installed / "cockpit"
    status = json.loads(run(cockpit, "engine", "start", "--json", home=tmp_path))
    try:
        assert status["home"] == str(tmp_path)
    finally:
        assert json.loads(run(cockpit, "engine", "stop", "--json", home=tmp_path))["stopped"]
