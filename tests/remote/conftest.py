from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol.client import find_engine
from engine.protocol.home import Home
from engine.protocol.sockets import list_directories
from tests import warm_engine
from tests.conftest import end_processes_of
from tests.remote.loopback import HOSTS, SSHD, Loopback, far_environment
from tests.scripted.bench import Engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "loopback" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """The hosts, for all tests of this folder; nothing is left of them."""
    if SSHD is None or not all(map(shutil.which, ("ssh", "ssh-keygen"))):
        pytest.skip("there is no sshd or no ssh: apt-get install openssh-server openssh-client")
    try:
        loopback = Loopback(tmp_path_factory.mktemp("far"), far_environment() | warm_engine.light_environment())
    except OSError as error:
        pytest.skip(f"sshd cannot be started: {error}")
    try:
        if refused := loopback.find_refusal():
            pytest.skip(f"nobody can log in to an sshd of these tests: {refused}")
    except BaseException:
        loopback.close()
        raise
    homes = [Home(loopback.home(host)).create() for host in HOSTS]
    yield loopback
    loopback.close()
    for home in homes:
        end_processes_of(home)
        assert find_engine(home) is None
        for directory in list_directories(home):
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def far(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """The hosts, for this process and what it starts."""
    for name, value in loopback.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COCKPIT_HOME", raising=False)
    monkeypatch.setenv("HOME", str(loopback.folder))  # whatever goes wrong, the user's own home is not touched
    return loopback


@pytest.fixture(scope="session")
def alpha(loopback: Loopback) -> Iterator[Engine]:
    """The engine of `alpha`, with scripted workers."""
    engine = Engine(Home(loopback.home("alpha")))
    yield engine
    engine.close()


def list_links() -> list[Path]:
    """The folders of the links of this process."""
    return list(Path(f"/tmp/cockpit-{os.getuid()}").glob(f"ssh-{os.getpid()}-*"))
