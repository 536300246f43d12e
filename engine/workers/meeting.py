"""How the nodes of a job find each other: by files in the run's `control/` folder, each with one writer.

    node-N.json        node N: its addresses and versions, that it is alive, and how its ranks ended
    meeting.json       node 0: where its store listens, or why the nodes cannot work together
    lead.json          the process that has started the nodes: that it is alive, or that they shall end

Node 0 waits until all are there, compares them, and listens on an address in a network that all of them have.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import socket
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from engine.protocol import file_channel
from engine.protocol.home import host_name
from engine.protocol.messages import Problem

COMING = 300.0
"""Seconds that node 0 waits for the others, and they for it."""
BEAT = 1.0
LEASE = 60.0
"""Seconds without a word of the process that has started the nodes, after which they end."""
SAVING = 30.0
"""Seconds that their ranks then have to save."""
CLOCKS = 30.0
"""Seconds by which the clocks of two nodes may differ without a word."""
LOOPBACK = "127.0.0.1"
BRIDGES = ("lo", "docker", "virbr", "br-", "cni", "flannel", "podman")
"""What the names of interfaces begin with that lead to no other host."""


class Interface(msgspec.Struct, frozen=True):
    """An address of a host: of which interface, and the network that is reached through it (`10.0.0.0/24`)."""

    name: str
    address: str
    network: str


class Node(msgspec.Struct, kw_only=True):
    """`node-N.json`. `state`: `ready`, `running` or `ended`, then with an exit status."""

    attempt: int
    node: int
    host: str
    pid: int
    boot: str = ""
    """Identifies the start of the host's kernel."""
    interfaces: list[Interface] = []
    versions: dict[str, str] = {}
    time: float = 0.0
    beat: int = 0
    state: str = "ready"
    status: int | None = None


class Meeting(msgspec.Struct, kw_only=True):
    """`meeting.json`."""

    attempt: int
    address: str = ""
    port: int = 0
    problem: Problem | None = None


class Lead(msgspec.Struct, kw_only=True):
    """`lead.json`. With `end`, the ranks get SIGTERM, and SIGKILL after `grace` seconds."""

    attempt: int
    beat: int = 0
    end: bool = False
    grace: float = 5.0


WORD = b"\0\n"
"""What a node writes to its output now and then when ssh carries it: that it is alive, and so is the connection."""


def node_file(control: Path, node: int) -> Path:
    return control / f"node-{node}.json"


def meeting_file(control: Path) -> Path:
    return control / "meeting.json"


def lead_file(control: Path) -> Path:
    return control / "lead.json"


def write(path: Path, content: msgspec.Struct) -> None:
    """Raises OSError."""
    file_channel.replace(path, msgspec.json.encode(content))


def read_node(control: Path, node: int, attempt: int | None) -> Node | None:
    return _read(node_file(control, node), Node, attempt)


def read_meeting(control: Path, attempt: int) -> Meeting | None:
    return _read(meeting_file(control), Meeting, attempt)


def read_lead(control: Path) -> Lead | None:
    """Of any attempt: the nodes of an earlier one end."""
    return _read(lead_file(control), Lead, None)


T = TypeVar("T", Node, Meeting, Lead)


def _read(path: Path, kind: type[T], attempt: int | None) -> T | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    return found if attempt is None or found.attempt == attempt else None


# ── this host ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def list_interfaces() -> list[Interface]:
    """The addresses of this host by which others may reach it, IPv4 before IPv6."""
    found = []
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    for name, addresses in psutil.net_if_addrs().items():
        if name not in up or name.startswith(BRIDGES):
            continue
        for each in addresses:
            if each.family not in (socket.AF_INET, socket.AF_INET6) or not each.netmask or "%" in each.address:
                continue
            bits = sum(bin(int(part, 16 if ":" in each.netmask else 10)).count("1")
                       for part in each.netmask.replace(":", ".").split(".") if part)  # fmt: skip
            network = ipaddress.ip_interface(f"{each.address}/{bits}").network
            found.append(Interface(name, each.address, str(network)))
    return sorted(found, key=lambda each: ":" in each.address)


def list_versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    found = {"python": platform.python_version().rpartition(".")[0]}
    for name in ("cockpit", "torch", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def introduce(node: int, attempt: int) -> Node:
    return Node(
        attempt=attempt,
        node=node,
        host=host_name(),
        pid=os.getpid(),
        boot=read_boot_id(),
        interfaces=list_interfaces(),
        versions=list_versions(),
        time=time.time(),
    )


def read_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def find_interface(address: str, port: int) -> str:
    """The interface of this host by which `address` is reached; empty when there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port or 1))
            own = probe.getsockname()[0]
    except OSError:
        return ""
    everywhere = psutil.net_if_addrs().items()
    return next((name for name, addresses in everywhere for each in addresses if each.address == own), "")


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────────


def choose_address(nodes: Sequence[Node], preferred: str = "") -> str:
    """The address of the first node in a network that all nodes have; on the `preferred` interface where one is named.
    The loopback address when all nodes are one host; empty when there is none."""
    first, *others = nodes
    own = [each for each in first.interfaces if not preferred or each.name in preferred.split(",")]
    same = all((node.host, node.boot, node.interfaces) == (first.host, first.boot, first.interfaces) for node in others)
    if same and not preferred:
        return LOOPBACK
    for each in own:
        # The same address on two hosts is no way from one to the other, such as that of a bridge for containers.
        if all(
            any(other.network == each.network and other.address != each.address for other in node.interfaces)
            for node in others
        ):
            return each.address
    taken = {each.address for node in others for each in node.interfaces}
    # In another network of each there may be routes.
    return next((each.address for each in own if same or each.address not in taken), "")


def find_difference(nodes: Sequence[Node]) -> Problem | None:
    """Why these nodes cannot work together; None when they can."""
    first = nodes[0]
    for node in nodes[1:]:
        for name in sorted(first.versions.keys() | node.versions.keys()):
            here, there = first.versions.get(name, "none"), node.versions.get(name, "none")
            if here != there:
                return Problem(
                    code="launch.versions_differ",
                    title=f"{first.host} and {node.host} have different versions of {name}",
                    cause=f"{here} and {there}",
                    hint="use one environment on a shared file system, or name one in launch.python",
                )
    return None


def wait_for_all(control: Path, attempt: int, count: int, seconds: float = COMING) -> list[Node] | Problem:
    """All nodes of an attempt, once they are there."""
    until = time.monotonic() + seconds
    found: dict[int, Node] = {}
    while True:
        for index in range(count):
            if index not in found and (node := read_node(control, index, attempt)):
                found[index] = node
                if abs(apart := node.time - time.time()) > CLOCKS:
                    print(f"the clock of {node.host} differs from this host's by {apart:.0f} s", flush=True)
        if len(found) == count:
            return [found[index] for index in range(count)]
        if time.monotonic() > until:
            missing = ", ".join(str(index) for index in range(count) if index not in found)
            return Problem(
                code="launch.node_missing",
                title=f"Of {count} nodes, {len(found)} came",
                cause=f"node {missing} has not written its file into {control} within {seconds:.0f} s",
                hint="was it started on each host? Does each host see that folder?",
            )
        time.sleep(0.2)


def wait_for_meeting(control: Path, attempt: int, seconds: float = COMING + 30) -> Meeting:
    """Where node 0 says to meet."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := read_meeting(control, attempt):
            return found
        time.sleep(0.2)
    problem = Problem(code="launch.node_missing", title="Node 0 did not come", cause=f"within {seconds:.0f} s")
    return Meeting(attempt=attempt, problem=problem)
