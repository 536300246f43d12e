"""Everything in the home is its owner's alone, whatever the umask of the shell was."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.profiles.files import write_profile
from engine.protocol import states, wire
from engine.protocol.home import Home, make_private
from engine.protocol.messages import Command
from engine.storage import cache
from tests.cli.conftest import command, environment
from tests.scripted.bench import Engine


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def list_open(folder: Path) -> list[str]:
    """Everything in a folder that others than its owner could use, with its mode."""
    found = []
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            continue
        wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        if stat.S_IMODE(status.st_mode) != wanted:
            found.append(f"{path.relative_to(folder)} {stat.S_IMODE(status.st_mode):o}")
    return sorted(found)


def verb(home: Home, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(home), input=text, capture_output=True, text=True, timeout=60, cwd="/tmp"
    )


def test_a_whole_run_leaves_nothing_open(tmp_path: Path, open_umask: None) -> None:
    home = Home(tmp_path / "new" / "home")
    assert verb(home, "engine", "start").returncode == 0
    assert verb(home, "engine", "stop").returncode == 0
    engine = Engine(home)
    try:
        run = engine.submit("export.kind=none", steps=60, pace=0.005)
        engine.wait_step(run, 5)
        engine.client.request("save", Command(run=run.id))
        engine.wait(run, states.COMPLETED)
        said = verb(home, "chat", "some-model", text="hello\n/save mine\nexit\n")
        assert said.returncode == 0 and (home.chats / "mine.json").is_file(), said
        assert verb(home, "plot", run.id).returncode == 0
        write_profile(home.root / "profiles" / "mine.yaml", "data: {}", home)
        with cache.new_entry(home, "entry") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "rows").write_text("x")
        assert list_open(home.root) == [], "while the engine runs"
        connection = wire.read_connection(home)
        assert connection is not None
        sockets = Path(connection.control.removeprefix("ipc://")).parent
        assert list_open(sockets) == []
    finally:
        engine.close()
    assert list_open(home.root) == []
    assert len(list(home.root.rglob("*"))) > 20
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700, "a parent that was made for it, too"


def test_an_engine_folder_that_was_left_open_is_closed(tmp_path: Path, open_umask: None) -> None:
    home = Home(tmp_path / "home").create()
    home.engine.chmod(0o777)
    home.engine.parent.chmod(0o777)
    home.engine_log.write_text("")
    assert verb(home, "engine", "start").returncode == 0
    assert list_open(home.engine.parent) == []
    assert verb(home, "engine", "stop").returncode == 0


def test_folders_that_exist_keep_their_modes(tmp_path: Path, open_umask: None) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    make_private(tmp_path / "mine" / "a" / "b")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("mine", "mine/a", "mine/a/b")]
    assert modes == [0o755, 0o700, 0o700]
