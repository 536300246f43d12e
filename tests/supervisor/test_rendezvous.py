"""What the ranks of one host listen on: the loopback interface, and nothing that another host reaches. Ranks that train
are looked at in tests/faults/test_hung_rank.py."""

from __future__ import annotations

import ipaddress

import psutil
import pytest

from engine.protocol import states
from tests.scripted.bench import Engine, wait_for

pytestmark = pytest.mark.slow


def list_listeners(pids: list[int]) -> dict[int, set[str]]:
    """The addresses on which each process listens."""
    found: dict[int, set[str]] = {}
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(pid, set()).add(connection.laddr.ip)
    return found


def check_listeners(listeners: dict[int, set[str]]) -> None:
    assert listeners, "nothing listens: not even the store, so this test has looked at nothing"
    for addresses in listeners.values():
        for address in addresses:
            assert ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback, listeners


def test_the_store_of_scripted_ranks_listens_on_the_loopback_address(engine: Engine) -> None:
    run = engine.submit("launch.processes=2", steps=100_000)
    engine.wait(run, states.RUNNING)
    ranks = wait_for(lambda: len(found := engine.show(run).ranks) == 2 and found, 60, "two ranks")
    listeners = list_listeners(engine.show(run).pids)
    check_listeners(listeners)
    assert len(listeners) == 1 and not set(listeners) & {rank.pid for rank in ranks}, "the agent's store alone"
    for process in engine.processes(run):
        process.kill()


def test_a_port_that_the_profile_names_is_taken(engine: Engine) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = engine.submit("launch.processes=2", f"launch.port={port}", steps=100_000)
    wait_for(lambda: len(engine.show(run).ranks) == 2, 60, "two ranks")
    ports = {
        connection.laddr.port
        for pid in engine.show(run).pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {port}
    for process in engine.processes(run):
        process.kill()
