"""The process on the engine's host that starts a job's ranks on other hosts, and watches them.

`launch.via: ssh` starts each node over the user's own ssh; `none` prints the line to run on each host, and waits. It
ends when all nodes have. When one dies, it is named, the others are ended, and the run's next attempt may follow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from engine.options.launch import LaunchOptions
from engine.protocol.file_channel import SCHEME, Notice, ended_file, notice_file, read_time
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.journal import Warn, Writer
from engine.protocol.messages import Problem, ProblemError
from engine.supervisor.crash_report import RESUME, WorkerExit, find_killed_rank, report_crash
from engine.supervisor.launchers.nodes import build_node_command
from engine.workers import meeting
from engine.workers.meeting import Lead, Node
from engine.workers.remote import SSH_FAILED, Remote, say

SSH = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=4"]
SSH += ["-o", "ServerAliveCountMax=5"]
"""A host that does not answer for twenty seconds is lost: a cable that somebody plugs in again is no reason to begin
anew. Options of the user's precede these, and win."""
QUIET = 6.0
"""Seconds without a word over ssh after which the user is told."""
LOST = 30.0
"""The same after which the node is lost, even when ssh itself is alive."""
STALL = 2.0
"""Seconds for which this process must have been held up itself, so that it blames nobody for silence."""
SILENT = 10.0
"""Seconds without a word from a node that was started by hand, after which it is dead."""
GATHER = 3.0
"""Seconds after the first node's end in which the others may end by themselves: the first is not always the cause."""
ENDING = 15.0
"""Seconds that the nodes have to end when they are told to."""


class Job:
    """One attempt on several nodes. `rest` are the worker's arguments."""

    def __init__(self, worker: str, launch: LaunchOptions, attempt: int, address: str, rest: list[str]) -> None:
        self.worker, self.launch, self.attempt = worker, launch, attempt
        self.rest = [*rest, "--attempt", str(attempt), "--address", address]
        self.control = make_private(Path(address.removeprefix(SCHEME)))
        self.lead = Lead(attempt=attempt)
        self._telling = threading.RLock()  # a signal's handler may interrupt its own thread
        self.stopping = False
        self.finished = threading.Event()
        self._quiet: set[str] = set()
        self._signs: dict[str, tuple[int, int]] = {}
        """Host -> its heartbeat, as it was when the host had been quiet for half of `QUIET`."""
        self._told = 0
        self.tell()
        threading.Thread(target=self._keep, daemon=True).start()
        signal.signal(signal.SIGTERM, self._stop)
        self._wait_for_earlier()
        for index in range(self._most):
            meeting.node_file(self.control, index).unlink(missing_ok=True)
        meeting.meeting_file(self.control).unlink(missing_ok=True)

    @property
    def _most(self) -> int:
        """How many nodes an attempt may have."""
        return max(self.launch.nodes, len(self.launch.hosts))

    def _wait_for_earlier(self) -> None:
        """Wait until the nodes of earlier attempts have ended, or must have: two attempts would write one journal."""
        lease = meeting.LEASE + meeting.SAVING
        until, told = time.monotonic() + lease, False
        while not self.stopping and time.monotonic() < until:
            nodes = [meeting.read_node(self.control, index, None) for index in range(self._most)]
            left = [node for node in nodes if node is not None and node.attempt < self.attempt
                    and node.state != "ended" and time.time() - node.time < lease]  # fmt: skip
            if not left:
                return
            if not told:
                told = True
                names = ", ".join(node.host for node in left)
                say(f"waiting at most {lease:.0f} s until the ranks of the previous attempt on {names} have ended")
            time.sleep(0.2)

    def tell(self) -> None:
        with self._telling, contextlib.suppress(OSError):
            self.lead.beat += 1
            meeting.write(meeting.lead_file(self.control), self.lead)

    def _keep(self) -> None:
        while not self.finished.wait(meeting.BEAT):
            self.tell()

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True
        self.lead.end = True
        self.tell()

    def build_line(self, index: int, count: int, lead: str) -> str:
        """The command line for a shell on the host of a node."""
        command = build_node_command(self.worker, self.rest, node=str(index), count=count, launch=self.launch)
        command[command.index("--port"):command.index("--port")] = ["--lead", lead]  # fmt: skip
        path = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if os.environ.get("PYTHONPATH") else []
        if lead != "ssh":
            path += [f"{name}={value}" for name, value in self.list_variables().items()]
        return shlex.join(["exec", "env", *path, *command] if lead == "ssh" else ["env", *path, *command])

    def list_variables(self) -> dict[str, str]:
        """What the profile says of the environment. All else on a host is its own."""
        devices = self.launch.devices
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))} if isinstance(devices, list) else {}
        return chosen | self.launch.environment

    # ── ssh ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def build_ssh(self, host: str, line: str) -> list[str]:
        return ["ssh", *self.launch.ssh_options, *SSH, host, "--", line]

    def find_hosts(self) -> list[str]:
        """The hosts that answer and see the run's directory. Raises ProblemError when these are too few."""
        token = uuid.uuid4().hex
        path = self.control / "token"
        write_private(path, token.encode())
        hosts = self.launch.hosts
        with ThreadPoolExecutor(len(hosts)) as threads:
            found = list(threads.map(lambda host: self._probe(host, f"cat {shlex.quote(str(path))}"), hosts))
        problems = {host: problem for host, reply in zip(hosts, found, strict=True)
                    if (problem := self._judge_probe(host, token, *reply))}  # fmt: skip
        usable = [host for host in hosts if host not in problems]
        for problem in problems.values():
            say(problem, error=True)
        if problems and len(usable) < (self.launch.min_nodes or len(hosts)):
            raise ProblemError(next(iter(problems.values())))
        return usable

    def _probe(self, host: str, line: str, seconds: float = 20.0) -> tuple[int, str]:
        try:
            done = subprocess.run(
                self.build_ssh(host, line), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return SSH_FAILED, f"no answer within {seconds:.0f} s"
        except OSError as error:
            return SSH_FAILED, str(error)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    def _judge_probe(self, host: str, token: str, status: int, said: str) -> Problem | None:
        if status == SSH_FAILED:
            return Problem(
                code="launch.host_unreachable",
                title=f"ssh does not reach {host}",
                cause=said.strip()[-500:],
                hint=f"`ssh {host} true` must work without a question; launch.min_nodes goes on without a host",
            )
        if status != 0 or token not in said.split():  # a shell may print more
            return Problem(
                code="launch.not_shared",
                title=f"{host} does not see the run's directory",
                cause=f"{self.control} is not the same folder there: {said.strip()[-300:] or 'another file'}",
                hint="COCKPIT_HOME must be on a file system that all hosts share, at the same path",
            )
        return None

    def run_by_ssh(self) -> tuple[int, Problem | None]:
        hosts = self.find_hosts()
        if len(hosts) < len(self.launch.hosts):
            say(f"going on with {len(hosts)} of {len(self.launch.hosts)} hosts: {', '.join(hosts)}")
        remotes = [
            Remote(host, index, self.build_ssh(host, self.build_line(index, len(hosts), "ssh")), self.list_variables())
            for index, host in enumerate(hosts)
        ]
        first = self._wait_for_end(remotes)
        problem = None if first is None or self.stopping else self._explain(first, remotes)
        if problem is not None:
            say(problem, error=True)
            with contextlib.suppress(OSError):
                write_private(ended_file(self.control, self.attempt), msgspec.json.encode(problem))
        self._end_all(remotes)
        return (0 if first is None else 1), problem

    def _wait_for_end(self, remotes: list[Remote]) -> Remote | None:
        """Wait until all nodes have ended well, and return None; or one has not: then that one."""
        turn = time.monotonic()
        while not self.stopping:
            states = [remote.poll() for remote in remotes]
            if all(state == 0 for state in states):
                return None
            if any(state not in (None, 0) for state in states):
                break
            now = time.monotonic()
            if now - turn > STALL:  # this process itself was held up, and has read nothing
                for remote in remotes:
                    remote.heard = max(remote.heard, now)
            turn = now
            self._tell_of_quiet(remotes)
            for remote in remotes:
                remote.silent = remote.spoken and remote.poll() is None and now - remote.heard > LOST
            if any(remote.silent for remote in remotes):
                break
            time.sleep(0.1)
        until = time.monotonic() + (0.0 if any(remote.lost for remote in remotes) else GATHER)
        while time.monotonic() < until and any(remote.poll() is None for remote in remotes):
            time.sleep(0.1)
        failed = [remote for remote in remotes if remote.silent or remote.poll() not in (None, 0)]
        if not failed:
            return None if self.stopping else remotes[0]
        # A lost connection or a killed rank is the cause; the others fail because they have lost it.
        return min(failed, key=lambda remote: (not remote.lost, not _was_killed(remote), remote.ended))

    def _tell_of_quiet(self, remotes: list[Remote]) -> None:
        """Tell of a host from which nothing comes, and whether its files still do."""
        now = time.monotonic()
        for remote in remotes:
            silence = now - remote.heard if remote.poll() is None and remote.spoken else 0.0
            if silence <= QUIET / 2:
                self._signs.pop(remote.host, None)
            elif remote.host not in self._signs:
                self._signs[remote.host] = self._read_sign(remote.index)
            if silence <= QUIET:
                if remote.host in self._quiet:
                    self._quiet.discard(remote.host)
                    say(f"{remote.host} is back")
                continue
            if remote.host in self._quiet:
                continue
            self._quiet.add(remote.host)
            fresh = self._read_sign(remote.index) != self._signs[remote.host]
            cause = ("its files still change, so it is alive: the network to it is cut" if fresh
                     else "its files do not change either: it is down, stopped, or cut off altogether")  # fmt: skip
            problem = Problem(
                code="launch.host_silent",
                title=f"Nothing has come from {remote.host} for {now - remote.heard:.0f} s",
                cause=cause,
                hint="the run goes on if the host answers within about twenty seconds; otherwise this attempt ends",
            )
            say(problem)
            self._told += 1
            with contextlib.suppress(OSError):
                notice = Notice(attempt=self.attempt, number=self._told, problem=problem)
                meeting.write(notice_file(self.control), notice)

    def _read_sign(self, index: int) -> tuple[int, int]:
        """What changes with each heartbeat of a node. Its time would depend on the clock of another host."""
        node = meeting.read_node(self.control, index, self.attempt)
        return node.beat if node else 0, read_time(meeting.node_file(self.control, index))

    def _explain(self, remote: Remote, remotes: list[Remote]) -> Problem:
        """What happened on the node that ended first."""
        tail = "\n".join(remote.tail)
        if remote.lost:
            status, said = self._probe(remote.host, "true", 4.0)
            if status == 0:
                cause = "the host can be reached: somebody has ended ssh, its sshd, or the node's first process"
            else:
                cause = f"the host does not answer any more: its network is cut, or it is down ({said.strip()[-200:]})"
            return Problem(
                code="launch.host_lost", title=f"The connection to {remote.host} was lost", cause=cause, hint=RESUME,
                traceback=tail,
            )  # fmt: skip
        problem = report_crash(WorkerExit(remote.process.returncode, tail), None)
        problem.title += f" on {remote.host}"
        return problem

    def _end_all(self, remotes: list[Remote]) -> None:
        self.lead.end = True
        self.lead.grace = 2.0 if any(remote.lost for remote in remotes) else self.lead.grace
        self.tell()
        for remote in remotes:
            remote.hang_up()
        until = time.monotonic() + ENDING
        while time.monotonic() < until and any(remote.poll() is None for remote in remotes):
            time.sleep(0.1)
        for remote in remotes:
            if remote.poll() is None:
                remote.process.kill()

    # ── by hand ───────────────────────────────────────────────────────────────────────────────────────────────────

    def print_lines(self, run: Path) -> None:
        count = self.launch.nodes
        lines = "\n".join(f"host {index}: {self.build_line(index, count, 'files')}" for index in range(count))
        say(f"run on each host:\n{lines}")
        writer = Writer(run / "events.jsonl")  # its next writer has not been started
        writer.write(
            Warn(
                attempt=self.attempt,
                code="launch.run_by_hand",
                message=f"the run waits for {count} hosts; run the line of each host there:\n{lines}",
                hint="`cockpit stop --now` ends the waiting",
            )
        )
        writer.close()

    def follow(self) -> tuple[int, Problem | None]:
        """Wait for the nodes that somebody starts, and for their end."""
        count = self.launch.nodes
        seen: dict[int, tuple[tuple[int, int], float]] = {}
        turn = time.monotonic()
        while not self.stopping:
            time.sleep(0.3)
            if (now := time.monotonic()) - turn > STALL:
                seen.clear()
            turn = now
            nodes = {
                index: node for index in range(count) if (node := meeting.read_node(self.control, index, self.attempt))
            }
            if len(nodes) == count and all(node.state == "ended" and node.status == 0 for node in nodes.values()):
                return 0, None
            failed = [node for node in nodes.values() if node.state == "ended" and node.status != 0]
            for index in nodes:
                sign = self._read_sign(index)
                if index not in seen or seen[index][0] != sign:
                    seen[index] = sign, time.monotonic()
            silent = [nodes[index] for index, (_, when) in seen.items()
                      if index in nodes and nodes[index].state != "ended"
                      and time.monotonic() - when > SILENT]  # fmt: skip
            if failed or silent:
                self.lead.end = True
                self.tell()
                return 1, _describe_node(failed, silent)
        return 1, None


def _describe_node(failed: list[Node], silent: list[Node]) -> Problem:
    if silent:
        node = silent[0]
        return Problem(
            code="launch.host_lost",
            title=f"Node {node.node} ({node.host}) is silent",
            cause=f"no word from it for {SILENT:.0f} s: it was killed, is down, or has lost the shared folder",
            hint=RESUME,
        )
    node = failed[0]
    return Problem(
        code="worker.failed",
        title=f"Node {node.node} ({node.host}) ended with exit status {node.status}",
        cause="its terminal says why",
        hint=RESUME,
    )


def _was_killed(remote: Remote) -> bool:
    return find_killed_rank("\n".join(remote.tail)) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--launch", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--address", required=True)
    arguments, rest = parser.parse_known_args()
    launch = LaunchOptions.model_validate(json.loads(arguments.launch))
    job = Job(arguments.worker, launch, arguments.attempt, arguments.address, rest)
    home, run = rest[rest.index("--home") + 1], rest[rest.index("--job") + 1]
    try:
        if job.stopping:
            return 1
        if launch.via == "ssh":
            status, _ = job.run_by_ssh()
            return status
        job.print_lines(Home(Path(home)).run(run).path)
        status, problem = job.follow()
    except ProblemError as error:
        status, problem = 1, error.problem
    if problem is not None:
        say(problem, error=True)
        with contextlib.suppress(OSError):
            write_private(ended_file(job.control, job.attempt), msgspec.json.encode(problem))
    time.sleep(2 * meeting.BEAT if launch.via == "none" else 0)  # the nodes read that they shall end
    return status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
