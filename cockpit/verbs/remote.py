"""`cockpit --on HOST VERB`: the cockpit of another host does the verb, through ssh.

So a verb does there exactly what it does here, with that host's files, models and versions, and its output and exit
status are its own. Every path means that host, but for a profile that is a file here: its text is sent along. A verb
that only follows is started again when the link drops.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from cockpit import remote_names
from cockpit.connection.ssh import (
    FAILED,
    NOT_EXECUTABLE,
    NOT_FOUND,
    RemoteHost,
    can_answer,
    describe_failure,
    is_permanent,
    missing_ssh,
    read_last_line,
)
from cockpit.exit_status import DONE
from cockpit.language.translate import tr
from cockpit.remote_names import CALLED, HANG_UP, STDIN_NAME
from cockpit.verbs.output import say
from cockpit.verbs.remote_arguments import find_profile_argument, reads_stdin, remove_on
from engine.protocol.messages import Problem, ProblemError

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a dropped link is tried again; each try that fails doubles them."""
STEADY = 10.0
"""Seconds after which a link counts as good, and the next wait is the first one again."""
STARTING = ("train:train", "train:prepare", "train:resume")
"""Verbs that start a run and follow it."""
WITH_PROFILE = ("train:train", "train:prepare", "profile:show", "profile:check", "tools:forecast", "tools:fit")
CHUNK = 1 << 16
TAIL = 4096
"""Bytes of ssh's output that are kept for its last line."""


def run(options: argparse.Namespace) -> int:
    """Do the verb of `options` on the host that it names. Returns its exit status."""
    if (named := remote_names.count_hosts(options.arguments)) > 1:
        raise ProblemError(
            Problem(
                code="remote.one_host",
                title=tr("{verb} works on one host, and {named} are named", verb=options.verb, named=named),
                hint=tr("name one; the app, without a verb, takes several"),
            )
        )
    host = RemoteHost.parse(options.on[0])
    arguments = remove_on(options.arguments)
    _refuse(host, options, arguments)
    far = _RemoteCockpit(host, options.home)
    remote_names.command = far.command
    if options.function in STARTING and not options.detach:
        return _start_and_watch(far, arguments, options)
    if options.function == "train:watch":
        return _watch(far, far.find_run(options), options)
    if options.function == "runs:logs" and options.follow:
        return _follow_log(far, far.find_run(options), options)
    text, arguments, name = _take_profile(arguments, options)
    reads = text is None and reads_stdin(options, arguments)
    done = far.call(arguments, terminal=text is None and _has_terminal(), given=text, name=name, reads=reads)
    if done.is_lost:
        raise far.lost(options.verb, done)
    return done.status


def _refuse(host: RemoteHost, options: argparse.Namespace, arguments: list[str]) -> None:
    """Raises ProblemError for a verb that does not work on another host, with the line to run instead."""
    asked = shlex.join(["cockpit", "--on", host.text, *arguments])
    match options.function:
        case "demo:demo" if not (options.headless or options.json):
            cause, instead = tr("it opens the app, beside the run"), f"{asked} --headless"
        case "serve:serve" if options.target and not options.detach and not options.stop:
            cause = tr("the server would end with this connection")
            instead = tr(
                "{asked} --detach; then `ssh -L 8000:127.0.0.1:8000 {host}` brings its address here",
                asked=asked,
                host=host,
            )
        case "engine:connect":
            cause = tr("it is the far end of --on itself")
            instead = f"{remote_names.name_command(host.text, options.home)} engine start"
        case _:
            return
    raise ProblemError(
        Problem(
            code="remote.verb_refused",
            title=tr("{verb} does not work on another host like this", verb=options.verb),
            cause=cause,
            hint=instead,
        )
    )


def _take_profile(arguments: list[str], options: argparse.Namespace) -> tuple[bytes | None, list[str], str]:
    """The text of a profile that is a file here or comes on stdin, the command line that reads it from stdin, and its
    name."""
    if options.function not in WITH_PROFILE or options.profile is None:  # `forecast --accuracy`
        return None, arguments, ""
    if options.profile == "-":
        return sys.stdin.buffer.read(), arguments, ""
    path = Path(options.profile)
    if not path.is_file():
        return None, arguments, ""
    at = find_profile_argument(arguments, options)
    say(tr("{path} is sent from here; every path in it means {on}", path=path, on=options.on[0]), "dim")
    return path.read_bytes(), [*arguments[:at], "-", *arguments[at + 1 :]], path.name


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


# ── verbs that follow ──────────────────────────────────────────────────────────────────────────────────────────────


def _start_and_watch(far: _RemoteCockpit, arguments: list[str], options: argparse.Namespace) -> int:
    """Start a run there, then follow it: the one happens once, the other again whenever the link drops."""
    text, arguments, name = _take_profile(arguments, options)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    done = far.call([*arguments[:end], "--detach", *arguments[end:]], given=text, name=name, capture=True)
    if done.is_lost:
        raise far.lost(options.verb, done)
    if done.status != DONE:
        sys.stdout.write(done.output.decode(errors="replace"))
        return done.status
    return _watch(far, done.output.decode().split()[-1], options)


def _watch(far: _RemoteCockpit, run_id: str, options: argparse.Namespace) -> int:
    try:
        return far.call_again([*_shared(options), "watch", run_id], terminal=_has_terminal())
    except (KeyboardInterrupt, ProblemError):
        say(
            tr(
                "\nDetached: {run} goes on.\n  watch it   {command} watch {run}\n  stop it    {command} stop {run}",
                run=run_id,
                command=far.command,
            )
        )
        raise


def _follow_log(far: _RemoteCockpit, run_id: str, options: argparse.Namespace) -> int:
    return far.call_again([*_shared(options), "logs", run_id, "--follow"], counted=True)


def _shared(options: argparse.Namespace) -> list[str]:
    return [*(("--home", options.home) if options.home else ()), *(("--json",) if options.json else ())]


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Done:
    """How a call ended. `words` are what ssh itself printed, `told` the end of what came from there on stderr."""

    status: int = 0
    words: bytes = b""
    told: bytes = b""
    output: bytes = b""
    copied: int = 0
    """Bytes of its output that were written to stdout, to the last whole character."""

    @property
    def is_lost(self) -> bool:
        """Whether ssh ended, and not the verb. One that a signal ended has its shell's status."""
        return self.status == FAILED or self.status < 0

    def describe(self, host: RemoteHost) -> Problem:
        return describe_failure(host, self.status, self.words, self.told)


class _RemoteCockpit:
    """Calls of the cockpit on `host`."""

    def __init__(self, host: RemoteHost, home: str | None) -> None:
        self.host = host
        self.command = remote_names.name_command(host.text, home)
        """How the user calls it."""
        self._ask = can_answer()

    def find_run(self, options: argparse.Namespace) -> str:
        """The id of a run there. Raises ProblemError."""
        home = ("--home", options.home) if options.home else ()
        done = self.call([*home, "--json", "show", options.run], capture=True, quiet=True)
        if done.is_lost:
            raise ProblemError(done.describe(self.host))
        try:
            document = json.loads(done.output)
            if "error" in document:
                raise ProblemError(msgspec.convert(document["error"], Problem))
            return str(document["id"])
        except (ValueError, KeyError, TypeError):  # msgspec's errors are ValueErrors
            raise ProblemError(done.describe(self.host)) from None

    def call_again(self, arguments: list[str], *, terminal: bool = False, counted: bool = False) -> int:
        """Call a verb that only follows, again whenever the link drops. With `counted`, it begins each time with what
        it has printed before, which is left out. Returns its exit status."""
        wait, copied = FIRST_WAIT, 0
        while True:
            began = time.monotonic()
            done = self.call(arguments, terminal=terminal, skipped=copied if counted else None)
            if not done.is_lost:
                return done.status
            if is_permanent(done.words):
                raise ProblemError(done.describe(self.host))
            copied = max(copied, done.copied)
            wait = FIRST_WAIT if time.monotonic() - began > STEADY else wait
            say(
                tr(
                    "The link to {host} is lost ({explain}). It is tried again in {wait:g} s.",
                    host=self.host,
                    explain=_explain(done),
                    wait=wait,
                ),
                "yellow",
            )
            time.sleep(wait)
            wait = min(LONGEST_WAIT, 2 * wait)

    def call(
        self,
        arguments: list[str],
        *,
        terminal: bool = False,
        given: bytes | None = None,
        name: str = "",
        capture: bool = False,
        quiet: bool = False,
        reads: bool = False,
        skipped: int | None = None,
    ) -> _Done:
        """Run cockpit there once, with a `terminal` of its own or without.

        `given` is its standard input and `name` the name of that; `capture` keeps its output, `quiet` does not print
        what it says on stderr, and `skipped` bytes of its output are not printed. Without a terminal it has this
        process's standard input only when it `reads` that.
        """
        variables = {CALLED: self.command}
        if not terminal:
            variables |= {HANG_UP: "1"} | ({STDIN_NAME: name} if name else {})
        with tempfile.NamedTemporaryFile(prefix="cockpit-ssh-") as log:
            remote = self.host.build_verb(arguments, **variables)
            options = ("-t" if terminal else "-T", "-E", log.name)
            stdin = None if terminal or reads else subprocess.DEVNULL if given is None else subprocess.PIPE
            try:
                ssh = subprocess.Popen(
                    self.host.build_ssh(*options, command=remote, ask=self._ask),
                    stdin=stdin,
                    stdout=None if terminal else subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                raise missing_ssh(error) from None
            done = _Done()
            try:
                self._attend(ssh, done, given, capture=capture, quiet=quiet, skipped=skipped or 0)
            finally:
                done.words = log.read()
                if not quiet:
                    sys.stderr.write(done.words.decode(errors="backslashreplace"))
        if not done.is_lost and done.status in (NOT_FOUND, NOT_EXECUTABLE):
            raise ProblemError(done.describe(self.host))
        return done

    def _attend(
        self,
        ssh: subprocess.Popen[bytes],
        done: _Done,
        given: bytes | None,
        *,
        capture: bool,
        quiet: bool,
        skipped: int,
    ) -> None:
        """Copy what ssh reads and prints until it ends."""
        assert ssh.stderr is not None
        threads = [threading.Thread(target=_copy_errors, args=(ssh.stderr, done, quiet), daemon=True)]
        if ssh.stdin is not None and given is not None:
            threads.append(threading.Thread(target=_feed, args=(ssh.stdin, given), daemon=True))
        for thread in threads:
            thread.start()
        try:
            with _terminal_kept(ssh.stdout is None):
                if ssh.stdout is not None:
                    _copy_output(ssh.stdout, done, capture, skipped)
                done.status = ssh.wait()
        except BaseException:
            ssh.terminate()
            ssh.wait()
            raise
        for thread in threads:
            thread.join(1.0)

    def lost(self, verb: str, done: _Done) -> ProblemError:
        problem = done.describe(self.host)
        return ProblemError(
            Problem(
                code="remote.link_lost",
                title=tr("The connection to {host} was lost, or never came about", host=self.host),
                cause=problem.cause,
                hint=tr(
                    "{verb} may have done its work there: look with `{command} runs`. {hint}",
                    verb=verb,
                    command=self.command,
                    hint=problem.hint,
                ),
            )
        )


@contextlib.contextmanager
def _terminal_kept(terminal: bool) -> Iterator[None]:
    """Restore the terminal afterwards: an ssh that is killed leaves it without echo and lines."""
    before = termios.tcgetattr(0) if terminal else None
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, before)


def _copy_errors(stream: IO[bytes], done: _Done, quiet: bool) -> None:
    decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
    while chunk := os.read(stream.fileno(), CHUNK):
        done.told = (done.told + chunk)[-TAIL:]
        if not quiet:
            sys.stderr.write(decode(chunk))
            sys.stderr.flush()


def _copy_output(stream: IO[bytes], done: _Done, capture: bool, skipped: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    while chunk := os.read(stream.fileno(), CHUNK):
        if capture:
            done.output += chunk
            continue
        fresh = chunk[max(0, skipped - done.copied) :]
        done.copied += len(chunk)
        sys.stdout.write(decoder.decode(fresh))
        sys.stdout.flush()
    done.copied -= len(decoder.getstate()[0])  # the link was cut within a character


def _feed(stream: IO[bytes], given: bytes) -> None:
    try:
        with stream:
            stream.write(given)
    except OSError:
        pass  # the verb ended without reading it, and says why


def _explain(done: _Done) -> str:
    return read_last_line(done.words) or (tr("ssh was ended by a signal") if done.status < 0 else tr("ssh ended"))


# ── the other end ──────────────────────────────────────────────────────────────────────────────────────────────────


def end_with_reader() -> None:
    """End this process as by ctrl+c when whoever reads its output has gone. A verb without a terminal would not notice
    that its ssh connection has ended."""
    os.environ.pop(HANG_UP, None)
    remote_names.ends_with_reader = True
    threading.Thread(target=_interrupt_when_unread, name="reader", daemon=True).start()


def _interrupt_when_unread() -> None:
    poll = select.poll()
    poll.register(1, 0)  # errors and hang-ups alone
    poll.poll()
    os.kill(os.getpid(), signal.SIGINT)
