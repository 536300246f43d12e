"""The engine ends in order: with status 0, and without anything left that a next one would have to clear away."""

from __future__ import annotations

import signal

import pytest

from engine.protocol import sockets
from engine.protocol.messages import Shutdown
from tests.scripted.bench import Engine


@pytest.mark.parametrize("how", ["request", "signal"])
def test_an_engine_that_is_stopped_ends_in_order(bare_home, how: str) -> None:
    for _ in range(5):
        engine = Engine(bare_home)
        if how == "request":
            engine.client.request("shutdown", Shutdown(force=True))
        else:
            engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(20) == 0, bare_home.engine_log.read_text()
        engine.client.close()
        left = [[each, *each.iterdir()] for each in sockets.list_directories(bare_home) if each.exists()]
        assert left == [] and not bare_home.connection.exists()
    assert bare_home.engine_log.read_text() == ""
