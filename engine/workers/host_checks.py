"""`cockpit doctor --hosts a,b`: whether these hosts can train together, how fast they talk, and over which network."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.options.launch import LaunchOptions
from engine.protocol.file_channel import SCHEME
from engine.protocol.home import Home, make_private
from engine.protocol.messages import Problem, ProblemError
from engine.workers import meeting
from engine.workers.device_checks import Check
from engine.workers.nodes import Job

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Attempt:
    """One launch on the hosts, on a named interface or the one that is found."""

    def __init__(self, home: Home, hosts: Sequence[str], ssh_options: Sequence[str], interface: str = "") -> None:
        self.folder = make_private(Path(tempfile.mkdtemp(prefix="doctor-", dir=make_private(home.engine))))
        self.out = self.folder / "links.json"
        environment = dict.fromkeys(VARIABLES, interface) if interface else {}
        launch = LaunchOptions(via="ssh", hosts=list(hosts), ssh_options=list(ssh_options), environment=environment)
        rest = ["--out", str(self.out), "--home", str(home.root), "--job", f"doctor-{uuid.uuid4().hex[:8]}"]
        self.job = Job("engine.workers.link_probe", launch, 1, f"{SCHEME}{self.folder}", rest)

    def run(self) -> Problem | None:
        """Returns why it failed; then `nodes` may know more."""
        log = io.StringIO()
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                _, problem = self.job.run_by_ssh()
            except ProblemError as error:
                problem = error.problem
        return problem

    @property
    def nodes(self) -> list[meeting.Node]:
        found = (meeting.read_node(self.folder, index, 1) for index in range(len(self.job.launch.hosts)))
        return [node for node in found if node is not None]

    def read_links(self) -> dict[str, Any] | None:
        try:
            links: dict[str, Any] = json.loads(self.out.read_bytes())
        except (OSError, ValueError):
            return None
        return links

    def close(self) -> None:
        self.job.finished.set()
        shutil.rmtree(self.folder, ignore_errors=True)


def check_hosts(home: Home, hosts: Sequence[str], ssh_options: Sequence[str]) -> Iterator[Check]:
    """Start a rank on each host as a run would, and measure."""
    first = Attempt(home, hosts, ssh_options)
    problem = first.run()
    links, nodes, met = first.read_links(), first.nodes, meeting.read_meeting(first.folder, 1)
    first.close()
    if links is not None:
        yield Check("hosts", True, f"{', '.join(hosts)}: ssh, the shared folder and the versions are as they must be")
        yield from _describe_links(hosts, links, met)
        return
    found = problem or Problem(code="launch.host_lost", title="The hosts could not be measured")
    detail = ": ".join(filter(None, (found.title, found.cause)))
    for interface in _list_other_interfaces(nodes, met):
        other = Attempt(home, hosts, ssh_options, interface)
        other.run()
        works = other.read_links() is not None
        other.close()
        if works:
            mend = f"launch.environment: {{{', '.join(f'{name}: {interface}' for name in VARIABLES)}}}"
            yield Check("hosts", False, f"{detail}; over {interface} it works", mend, found.code)
            return
    yield Check("hosts", False, detail, found.hint, found.code)


def _list_other_interfaces(nodes: Sequence[meeting.Node], met: meeting.Meeting | None) -> list[str]:
    """Interfaces that all hosts have, without the one that was tried."""
    if not nodes:
        return []
    tried = {each.name for each in nodes[0].interfaces if met is not None and each.address == met.address}
    shared = [each.name for each in nodes[0].interfaces
              if all(any(each.name == other.name for other in node.interfaces) for node in nodes)]  # fmt: skip
    return [name for name in dict.fromkeys(shared) if name not in tried]


def _describe_links(hosts: Sequence[str], links: dict[str, Any], met: meeting.Meeting | None) -> Iterator[Check]:
    where = f" by way of {met.address}" if met is not None else ""
    slowest = min(links["links"], key=lambda link: link["bandwidth"], default=None)
    for link in links["links"]:
        names = " – ".join(hosts[rank] for rank in link["ranks"])
        slow = ", the slowest" if link is slowest and len(links["links"]) > 1 else ""
        yield Check(
            "link",
            True,
            f"{names}: {link['bandwidth'] / 1e6:,.0f} MB/s, {link['latency'] * 1e3:.2f} ms with "
            f"{links['backend']}{where}{slow}",
        )
