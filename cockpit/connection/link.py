"""The link to an engine on another host: one ssh process, which this process owns, and a Unix socket that it forwards.

ssh runs `cockpit engine connect` there (see `agent`), which says where the engine's socket is and starts an engine if
need be. The same connection then carries the socket: `ssh -O forward -L here:there`. Both ends are Unix sockets in
directories of the owner's alone, and no port is opened on either side. ssh ends with this process, because the far end
ends with its standard input.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from cockpit import remote_names
from cockpit.connection.agent import Found, Inquiry
from cockpit.connection.ssh import RemoteHost, describe_failure, describe_refusal, missing_ssh, read_last_line
from cockpit.connection.versions import check_versions
from cockpit.language.translate import tr
from engine.protocol import sockets, wire
from engine.protocol.home import open_private
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.reach import dial, unreachable_error

Decoded = TypeVar("Decoded")

LOGIN = 60.0
"""Seconds that ssh may take until cockpit answers there, when nobody is asked anything."""
LOGIN_WITH_QUESTIONS = 300.0
"""The same when somebody answers ssh's questions."""
ENGINE_START = 60.0
"""Seconds that an engine may take to start there."""
ANSWER = 6.0
"""Seconds after which a far end that answers nothing counts as gone."""
DIAL = 5.0
"""Seconds that a connection to the forwarded socket may take."""
DEPARTURE = 1.0
"""Seconds that ssh has to end when it is asked to."""


class Link:
    """A `Reach` of the engine on `host`. `close` when done."""

    def __init__(self, host: RemoteHost, home: str = "") -> None:
        """`home` is the COCKPIT_HOME there, if it is not the usual one."""
        self.host, self._home = host, home
        self.found: Found | None = None
        """What was last heard from the far end about its engine."""
        self._answered = False
        self._lock = threading.RLock()
        self._closed = False
        self._ssh: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._folder: Path | None = None
        self._forwarded = ""
        """The path there of the socket that is forwarded."""
        self._sockets = 0
        self._inquiries = 0

    # ── as `Reach` ────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> Problem | None:
        """Connect if there is no connection, start the engine there if none runs, and forward its socket."""
        with self._lock, _failures_told(self.host):
            if self._is_alive():
                with contextlib.suppress(ProblemError):  # a cable that was cut: this ends ssh
                    self._inquire(Inquiry(id=0), ANSWER)
            if not self._is_alive():
                self.connect(ask=False)
            if self.found is not None:
                check_versions(self.host, self.found)  # before an engine is started
            found = self._inquire(Inquiry(id=0, start=True), ENGINE_START)
            if found.connection is None:
                raise ProblemError(self._name(found.problem or _no_engine(self.host)))
            check_versions(self.host, found)
            if found.connection.control != self._forwarded:
                self._forward(found.connection.control)
            return found.problem and self._name(found.problem)

    def open(self) -> tuple[wire.Connection, zmq.Socket[bytes]]:
        with self._lock, _failures_told(self.host):
            found = self._inquire_alive(Inquiry(id=0))
            if found.connection is None and found.problem and found.problem.code == "engine.unreachable":
                raise ProblemError(self._name(found.problem))
            if found.connection is None or found.connection.control != self._forwarded:
                raise unreachable_error(tr("the engine on {host} has ended", host=self.host))
            check_versions(self.host, found)
            address = f"ipc://{self._local_path}"
            if sockets.check_peer(address) and (socket := dial(address, DIAL)):
                return found.connection, socket
            raise ProblemError(
                Problem(
                    code="remote.forward_failed",
                    title=tr("The engine's socket on {host} accepts no connection", host=self.host),
                    cause=self._last_words(),
                    hint=tr("sshd there must allow the forwarding of Unix sockets (AllowStreamLocalForwarding)"),
                )
            )

    def check(self, connection: wire.Connection) -> None:
        if not self._is_alive():
            raise unreachable_error(tr("the ssh connection to {host} has ended", host=self.host))

    # ── the ssh process ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def command(self) -> str:
        """How the user calls the cockpit there."""
        return remote_names.name_command(self.host.text, self._home)

    @property
    def is_connected(self) -> bool:
        """Whether the far end has answered, and ssh still runs."""
        return self._answered and self._is_alive()

    def give_up(self) -> None:
        """End an attempt to connect that another thread makes."""
        if not self._answered:
            self._end()

    def connect(self, *, ask: bool) -> None:
        """Connect anew. With `ask`, ssh may ask questions on this process's terminal. Raises ProblemError."""
        with self._lock, _failures_told(self.host):
            self._end()
            if self._closed:
                raise unreachable_error(tr("this link is closed"))
            try:
                self._start_ssh(ask)
                if self._closed:  # meanwhile, by another thread
                    raise unreachable_error(tr("this link is closed"))
                self._inquire(Inquiry(id=0), LOGIN_WITH_QUESTIONS if ask else LOGIN)
                self._answered = True
            except BaseException:
                self._end()
                raise

    def _start_ssh(self, ask: bool) -> None:
        folder = self._folder = sockets.make_temporary("ssh")
        # As JSON even a cockpit that does not know the verb says why.
        arguments = [*(("--home", self._home) if self._home else ()), "--json", "engine", "connect"]
        shared = (f"ControlPath={folder}/ctl", "ControlMaster=yes", "ControlPersist=no")
        options = [*(part for each in shared for part in ("-o", each)), "-E", f"{folder}/ssh.log"]
        command = self.host.build_ssh("-T", *options, command=self.host.build_remote(arguments), ask=ask)
        open_private(folder / "ssh.log").close()
        with open_private(folder / "log") as log, _ctrl_c_ignored(ask):
            try:
                # Without a question it gets no terminal: a session of its own, which ctrl+c does not reach.
                self._ssh = ssh = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=not ask,
                )
            except OSError as error:
                raise missing_ssh(error) from None
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(ssh, self._lines), daemon=True).start()

    def resume_environment(self, directory: str) -> dict[str, str]:
        """As `submission.resume_environment`, of a run there."""
        with self._lock, _failures_told(self.host):
            return self._inquire_alive(Inquiry(id=0, resume=directory)).environment

    def build_command(self, *arguments: str) -> list[str]:
        """The command line that runs a verb there over this connection. Raises ProblemError when there is none."""
        if not self.is_connected:
            raise unreachable_error(tr("there is no connection to {host}", host=self.host))
        home = ("--home", self._home) if self._home else ()
        return self.host.build_ssh(
            "-T",
            "-o",
            f"ControlPath={self._folder}/ctl",
            "-o",
            "ControlMaster=no",
            command=self.host.build_remote([*home, *arguments]),
            ask=False,
        )

    def close(self) -> None:
        """End the connection, also for a thread that is waiting for it."""
        self._closed = True
        self._end()

    def _is_alive(self) -> bool:
        return self._ssh is not None and self._ssh.poll() is None

    def _end(self) -> None:
        ssh, self._ssh = self._ssh, None
        folder, self._folder = self._folder, None
        self._forwarded, self._answered = "", False
        if ssh is not None:
            ssh.terminate()
            try:
                ssh.wait(DEPARTURE)
            except subprocess.TimeoutExpired:
                ssh.kill()
                ssh.wait()
            if ssh.stdin is not None:
                with contextlib.suppress(OSError):
                    ssh.stdin.close()
        if folder is not None:
            sockets.remove_temporary(folder)

    def _inquire_alive(self, inquiry: Inquiry) -> Found:
        if not self._is_alive():
            raise unreachable_error(tr("there is no connection to {host}", host=self.host))
        return self._inquire(inquiry, ANSWER)

    def _inquire(self, inquiry: Inquiry, seconds: float) -> Found:
        """Ask the far end. Raises ProblemError when it does not answer; then the connection is ended."""
        ssh, lines = self._ssh, self._lines
        if ssh is None or ssh.stdin is None:
            raise unreachable_error(tr("this link is closed"))
        self._inquiries += 1
        inquiry.id = self._inquiries
        with contextlib.suppress(OSError, ValueError):  # it has ended: that is said below
            ssh.stdin.write(msgspec.json.encode(inquiry) + b"\n")
            ssh.stdin.flush()
        deadline = time.monotonic() + seconds
        refusal: Problem | None = None
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                words = self._last_words()
                self._end()
                raise _silent(self.host, words) from None
            if not line:
                raise self._failure(ssh, refusal)
            found = _decode(line, Found)  # a shell's start-up files may print lines too
            if found is not None and found.id == inquiry.id:
                if not inquiry.resume:  # whose environment is that of one run
                    self.found = found
                return found
            if (refused := _decode(line, _Refused)) is not None:
                refusal = refused.error

    def _failure(self, ssh: subprocess.Popen[bytes], refusal: Problem | None) -> ProblemError:
        try:
            status = ssh.wait(DEPARTURE)
        except subprocess.TimeoutExpired:
            status = -1
        words, told = self._read_log("ssh.log"), self._read_log("log")
        self._end()
        if refusal is not None:
            return ProblemError(describe_refusal(self.host, refusal))
        return ProblemError(describe_failure(self.host, status, words, told))

    def _forward(self, control: str) -> None:
        """Forward the socket at `control` there to a new one here. Raises ProblemError."""
        self._sockets += 1
        there = control.removeprefix("ipc://")
        command = self.host.build_forward(f"{self._folder}/ctl", self._local_path, there)
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER)
        except subprocess.TimeoutExpired:
            self._end()
            raise _silent(self.host, "") from None
        if done.returncode:
            raise ProblemError(
                Problem(
                    code="remote.forward_failed",
                    title=tr("ssh does not forward the engine's socket on {host}", host=self.host),
                    cause=read_last_line(done.stderr) or self._last_words(),
                    hint=tr("COCKPIT_SSH must be an OpenSSH client, and its configuration must not forbid forwarding"),
                )
            )
        self._forwarded = control

    @property
    def _local_path(self) -> str:
        return f"{self._folder}/engine-{self._sockets}"

    def _read_log(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes() if self._folder else b""
        except OSError:
            return b""

    def _last_words(self) -> str:
        return read_last_line(self._read_log("ssh.log")) or read_last_line(self._read_log("log"))

    def _name(self, problem: Problem) -> Problem:
        """The far side's problem, with the host's name."""
        return msgspec.structs.replace(problem, title=f"{self.host}: {problem.title}")


class _Refused(msgspec.Struct):
    """What a cockpit prints with `--json` when it does not do a verb."""

    error: Problem


def _decode(line: bytes, kind: type[Decoded]) -> Decoded | None:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError:
        return None


@contextlib.contextmanager
def _failures_told(host: RemoteHost) -> Iterator[None]:
    """Raise what fails here (a full disk, a process that cannot be started, COCKPIT_SSH without its closing quote) as
    ProblemError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ProblemError(
            Problem(
                code="remote.ssh_failed",
                title=tr("There is no connection to {host}", host=host),
                cause=(error.strerror if isinstance(error, OSError) else "") or str(error),
                hint=tr("check that /tmp here can be written and has space, and that COCKPIT_SSH is right"),
            )
        ) from error


def _read_lines(ssh: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Put what ssh prints into the queue, and an empty line at the end."""
    assert ssh.stdout is not None
    with ssh.stdout, contextlib.suppress(OSError, ValueError):
        for line in ssh.stdout:
            lines.put(line)
    lines.put(b"")


@contextlib.contextmanager
def _ctrl_c_ignored(ask: bool) -> Iterator[None]:
    """A process that is started meanwhile ignores ctrl+c. One that may ask must be of this terminal's group, whose
    every process ctrl+c reaches."""
    if not ask or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _silent(host: RemoteHost, words: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="remote.silent",
            title=tr("{host} does not answer", host=host),
            cause=words or tr("nothing has come over the ssh connection for too long"),
            hint=tr("see whether {host} can be reached and is not overloaded", host=host),
        )
    )


def _no_engine(host: RemoteHost) -> Problem:
    return Problem(
        code="engine.not_started", title=tr("The engine did not start"), hint=tr("look at its log on {host}", host=host)
    )
