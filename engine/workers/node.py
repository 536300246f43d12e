"""One node's part of a job that runs on other hosts than the engine: it starts the ranks of its host.

Started by srun on each node of a Slurm job, by ssh on each of `launch.hosts`, or by hand. With several nodes it finds
the others through files in the run's directory (`engine.workers.meeting`). It loads no training library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from engine.hardware.listing import list_visible
from engine.protocol import file_channel
from engine.protocol.environment import remove_launcher_variables
from engine.protocol.file_channel import SCHEME
from engine.protocol.home import make_private
from engine.protocol.messages import Problem
from engine.protocol.process import signal_when_parent_ends
from engine.supervisor.launchers import local
from engine.supervisor.processes import WORKER_DEFAULTS
from engine.workers import meeting
from engine.workers.meeting import Meeting, Node

FAILED = 3
"""Exit status when the nodes did not come together."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
STORE = "COCKPIT_STORE"
"""As in `engine.workers.launch`, which loads torch."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", required=True, help="the module of the worker")
    parser.add_argument("--node", required=True, help="the number of this node, or slurm")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", required=True, help="ranks on this host, or all")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--lead", choices=("none", "files", "ssh"), default="none", help="who watches over the nodes")
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--address", required=True)
    arguments, rest = parser.parse_known_args()
    node = int(os.environ.get("SLURM_NODEID", 0)) if arguments.node == "slurm" else int(arguments.node)
    environment = WORKER_DEFAULTS | remove_launcher_variables(os.environ)
    if arguments.lead == "ssh":  # variables come by the pipe: a command line can be read by everybody
        environment |= json.loads(sys.stdin.readline() or "{}")
        os.environ.update(environment)
    processes = count_processes(arguments.processes)
    rest += ["--attempt", str(arguments.attempt), "--address", arguments.address]
    worker = [arguments.worker, *rest]
    alone = arguments.nodes == 1
    if alone and arguments.lead == "none":
        environment = local.build_rank_environment(environment, processes)
        command = local.build_command(worker, processes, arguments.port or None)
        os.execve(command[0], command, environment)
    control = make_private(Path(arguments.address.removeprefix(SCHEME)))
    own = NodeAgent(control, meeting.introduce(node, arguments.attempt), arguments.lead)
    if alone:
        environment = local.build_rank_environment(environment, processes)
        return own.run(local.build_command(worker, processes, arguments.port or None), environment, None)
    met, listener = own.meet(arguments.nodes, arguments.port, environment)
    if met.problem is not None:
        print(met.problem, file=sys.stderr, flush=True)
        return own.end(FAILED)
    interface = meeting.find_interface(met.address, met.port)
    environment = {name: interface for name in INTERFACES if interface} | environment
    print(
        f"node {node} of {arguments.nodes}: {processes} ranks, store {met.address}:{met.port}, {interface}", flush=True
    )
    command = [sys.executable, "-P", "-m", "engine.workers.launch", "--nnodes", str(arguments.nodes)]
    command += [
        "--rdzv-conf",
        f"rank={node}",
        "--rdzv-backend",
        "shared",
        "--rdzv-endpoint",
        f"{met.address}:{met.port}",
    ]
    command += ["--nproc-per-node", str(processes), "-m", *worker]
    return own.run(command, environment, listener)


def count_processes(asked: str) -> int:
    """The ranks of this host: as many as were asked for, or one for each device."""
    return int(asked) if asked != "all" else max(1, len(list_visible()))


class NodeAgent:
    """This node, with its file and its one child, the launcher of its ranks."""

    def __init__(self, control: Path, node: Node, lead: str) -> None:
        self.control, self.node, self.lead = control, node, lead
        self._child: subprocess.Popen[Any] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._beat()
        threading.Thread(target=self._keep, daemon=True).start()
        if lead == "ssh":
            threading.Thread(target=self._watch_pipe, daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: self._pass_on(signal.SIGTERM))

    def meet(self, count: int, port: int, environment: dict[str, str]) -> tuple[Meeting, socket.socket | None]:
        """Where the ranks of all nodes meet; node 0 says so, and listens there already."""
        attempt = self.node.attempt
        if self.node.node != 0:
            return meeting.wait_for_meeting(self.control, attempt), None
        nodes = meeting.wait_for_all(self.control, attempt, count)
        problem = nodes if not isinstance(nodes, list) else meeting.find_difference(nodes)
        listener = None
        met = Meeting(attempt=attempt, problem=problem)
        if problem is None and isinstance(nodes, list):
            met.address = meeting.choose_address(nodes, environment.get("GLOO_SOCKET_IFNAME", ""))
            family = socket.AF_INET6 if ":" in met.address else socket.AF_INET
            try:
                if not met.address:  # an empty one would stand for all interfaces
                    raise OSError("the hosts share no network, or the interface that is named is not there")
                listener = socket.create_server((met.address, port), family=family, backlog=512)
                met.port = listener.getsockname()[1]
            except OSError as error:
                met.problem = Problem(
                    code="launch.no_address",
                    title=f"Nothing can listen on {met.address or 'any address'} of {self.node.host}",
                    cause=str(error),
                    hint="name the interface that the hosts share in launch.environment: GLOO_SOCKET_IFNAME",
                )
        if self._is_superseded():
            met.problem = Problem(code="launch.node_missing", title="A later attempt of this run has begun")
        else:
            meeting.write(meeting.meeting_file(self.control), met)
        return met, listener

    def run(self, command: list[str], environment: dict[str, str], listener: socket.socket | None) -> int:
        """Start the ranks and wait for their end; returns the exit status."""
        pass_fds = ()
        if listener is not None:
            pass_fds = (listener.fileno(),)  # type: ignore[assignment]
            environment = environment | {STORE: str(listener.fileno())}
        self._child = subprocess.Popen(  # by this thread, which is the last one to end
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            preexec_fn=partial(signal_when_parent_ends, signal.SIGTERM),
        )
        if listener is not None:
            listener.close()
        self.node.state = "running"
        return self.end(self._child.wait())

    def end(self, status: int) -> int:
        with self._lock:
            self.node.state, self.node.status = "ended", status
        self._beat()
        return status if status >= 0 else 128 - status

    # ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _beat(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._is_superseded():
                return
            self.node.beat += 1
            self.node.time = time.time()
            meeting.write(meeting.node_file(self.control, self.node.node), self.node)

    def _is_superseded(self) -> bool:
        """Whether a later attempt has begun, to which this node's file belongs now: this one may have been frozen."""
        later = (meeting.read_lead(self.control), meeting.read_node(self.control, self.node.node, None))
        return any(each is not None and each.attempt > self.node.attempt for each in later)

    def _keep(self) -> None:
        """Say that this node is alive, and look whether whoever started it still is."""
        seen, heard = (-1, 0), time.monotonic()
        while True:
            time.sleep(meeting.BEAT)
            if self.node.state != "ended":
                self._beat()
            if self.lead == "ssh":
                with contextlib.suppress(OSError):
                    os.write(1, meeting.WORD)
            if self.lead == "none":
                continue
            when = file_channel.read_time(meeting.lead_file(self.control))
            lead = meeting.read_lead(self.control)
            if lead is not None and lead.attempt > self.node.attempt:
                self._end_ranks(f"attempt {lead.attempt} has begun", 0.0)
            own = lead if lead is not None and lead.attempt == self.node.attempt else None
            if own is not None and own.end:
                self._end_ranks("the run is being ended", own.grace)
            if own is not None and (own.beat, when) != seen:
                seen, heard = (own.beat, when), time.monotonic()
            elif time.monotonic() - heard > meeting.LEASE:
                self._end_ranks(f"no word of the engine's host for {meeting.LEASE:.0f} s", meeting.SAVING)

    def _watch_pipe(self) -> None:
        """The pipe of ssh closes when its connection, or whoever holds it, has ended."""
        while sys.stdin.buffer.read(4096):
            pass
        lead = meeting.read_lead(self.control)
        self._end_ranks("the connection to the engine's host has ended", lead.grace if lead and lead.end else 10.0)

    def _pass_on(self, number: int) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
        elif self._child is None:
            os._exit(128 + number)

    def _end_ranks(self, why: str, grace: float) -> None:
        """End this node: its ranks save first, if they can within `grace` seconds."""
        if self._ending.is_set():
            return
        self._ending.set()
        with contextlib.suppress(OSError):
            os.write(2, f"node {self.node.node}: {why}; ending its ranks\n".encode())
        children = psutil.Process().children(recursive=True)
        for each in children:
            with contextlib.suppress(psutil.Error):
                each.terminate()
        _, alive = psutil.wait_procs(children, timeout=grace)
        for each in alive:
            with contextlib.suppress(psutil.Error):
                each.kill()
        self.end(128 + signal.SIGTERM)
        os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
