"""What a home tells without its engine: the run that the app shows first, from the index of this version."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.protocol.first_look import find_run, has_runs
from engine.protocol.home import Home
from engine.protocol.messages import Run
from engine.supervisor.registry import Registry


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def store(home: Home, *runs: Run) -> None:
    registry = Registry(home.registry)
    for run in runs:
        home.run(run.id).path.mkdir()
        registry.store(run, 1)
    registry.close()


def test_it_finds_the_run_that_the_app_will_select(home: Home) -> None:
    assert find_run(home) is None
    old, new = (Run(id=name, state="completed", created=at) for at, name in enumerate(("old", "new")))
    live = Run(id="live", state="running", created=0.5, metrics={"train/loss": 0.25})
    store(home, new, old)
    assert find_run(home) == new and find_run(home, "old") == old and find_run(home, "unknown") == new
    store(home, live)
    assert find_run(home) == live
    home.run("live").path.rmdir()
    assert find_run(home) is None  # what it would select cannot be told


def test_an_index_that_an_engine_writes_is_read_all_the_same(home: Home) -> None:
    registry = Registry(home.registry)
    home.run("a").path.mkdir()
    registry.store(Run(id="a"), 1)
    with registry._transaction():
        assert find_run(home) == Run(id="a")
    registry.close()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + bytes(2000)])
def test_a_damaged_index_tells_nothing(home: Home, content: bytes) -> None:
    home.registry.write_bytes(content)
    assert find_run(home) is None


def test_whether_there_are_runs_is_told_by_their_folders(home: Home, tmp_path: Path) -> None:
    assert not has_runs(home) and not has_runs(Home(tmp_path / "nowhere"))
    home.run("a").path.mkdir()
    assert has_runs(home)
    (tmp_path / "file").touch()
    assert has_runs(Home(tmp_path / "file"))  # it cannot be told
