"""Command lines of the user's own ssh, and what its failures mean.

Keys, agent, known hosts and jump hosts are those of the user's ssh configuration: cockpit adds `BatchMode` where nobody
could answer a question, and for the app's link the options that share one connection.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cockpit.language.translate import tr
from engine.protocol.messages import Problem, ProblemError

FAILED, NOT_FOUND, NOT_EXECUTABLE = 255, 127, 126
"""Exit statuses: of ssh itself, and of a shell that does not find, or may not execute, a command."""
ALWAYS = (
    ("ServerAliveInterval", "5"),
    ("ServerAliveCountMax", "3"),
    ("ConnectTimeout", "15"),
    ("RemoteCommand", "none"),
    ("ClearAllForwardings", "yes"),
)
"""Options of every connection: a far end that is silent is given up, and what the user's configuration adds for
sessions of the user's own does not get in the way."""
PERMANENT = (b"Permission denied (", b"Host key verification failed", b"Bad configuration option", b"Bad owner or")
"""What OpenSSH, which gives one exit status to everything, prints where another attempt fails in the same way."""
_URL = r"ssh://(?:[^\s/@]+@)?(?:\[[^\s\]/]+\]|[^\s/:@]+)(?::\d+)?"
_HOST = re.compile(
    rf"(?P<destination>{_URL}|(?!ssh://)[^\s/]*?[^\s/:])(?::(?P<cockpit>(?:~[\w.-]*)?/.+))?", re.DOTALL | re.ASCII
)


@dataclass(frozen=True)
class RemoteHost:
    """A host that ssh knows, and what starts cockpit there, as its shell takes it."""

    destination: str
    cockpit: str
    text: str
    """As the user wrote it, for command lines."""

    def __str__(self) -> str:
        return self.destination

    @classmethod
    def parse(cls, text: str) -> RemoteHost:
        """Parse `user@host`, or `user@host:/path/to/cockpit`. Raises ProblemError."""
        match = _HOST.fullmatch(text)
        if match is None or text.startswith("-") or (":" in match[1] and not _may_have_colon(match[1])):
            raise ProblemError(
                Problem(
                    code="remote.host_invalid",
                    title=tr("{text!r} is not a host", text=text),
                    hint=tr(
                        "write it as for ssh, user@host or a name from your ssh configuration, and behind a colon "
                        "the path of cockpit there where it is not on the PATH: user@host:/path/to/cockpit"
                    ),
                )
            )
        path = match["cockpit"]
        cockpit = _quote_path(path) if path else os.environ.get("COCKPIT_REMOTE") or "cockpit"
        return cls(match["destination"], cockpit, text)

    def build_remote(self, arguments: Sequence[str]) -> str:
        """The command line that runs cockpit there, for its shell."""
        return f"{self.cockpit} {shlex.join(arguments)}".rstrip()

    def build_verb(self, arguments: Sequence[str], **variables: str) -> str:
        """The same with environment variables, and with an exit status also where a signal ends cockpit: ssh would
        report that as a lost connection. Shells other than sh have another name for the status."""
        setting = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
        script = f"trap : INT QUIT; {self.build_remote(arguments)}; exit $?"
        return f"env {setting}sh -c {shlex.quote(script)}"

    def build_ssh(self, *options: str, command: str = "", ask: bool) -> list[str]:
        """The command line of ssh. Without `ask` it asks no question, and fails instead."""
        always = (*ALWAYS, *(() if ask else (("BatchMode", "yes"),)))
        settings = [part for name, value in always for part in ("-o", f"{name}={value}")]
        return [*read_ssh(), *settings, *options, self.destination, *([command] if command else [])]

    def build_forward(self, control: str, here: str, there: str) -> list[str]:
        """The command line that has the connection behind the socket `control` forward the socket `there` to `here`.
        It reads no configuration, whose own forwardings it would ask for as well."""
        options = ("-F", "/dev/null", "-o", f"ControlPath={control}", "-O", "forward", "-L", f"{here}:{there}")
        return [*read_ssh(), *options, self.destination]


def read_ssh() -> list[str]:
    """The user's ssh command: `COCKPIT_SSH`, else `ssh`."""
    return shlex.split(os.environ.get("COCKPIT_SSH", "")) or ["ssh"]


def _may_have_colon(destination: str) -> bool:
    """Whether it is a URL or an IPv6 address; `host:port` is no way to write a port."""
    return destination.startswith("ssh://") or destination.count(":") > 1


def _quote_path(path: str) -> str:
    """Quote a path for a shell, which shall still expand `~`."""
    if path.startswith("~"):
        home, slash, rest = path.partition("/")
        return f"{home}{slash}{shlex.quote(rest) if rest else ''}"
    return shlex.quote(path)


def can_answer() -> bool:
    """Whether somebody could answer a question of ssh: it asks the terminal that controls this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def read_last_line(output: bytes) -> str:
    """The last line of what ssh printed; empty when it printed nothing."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def is_permanent(words: bytes) -> bool:
    """Whether what ssh printed says that another attempt would fail in the same way."""
    return any(each in words for each in PERMANENT)


def describe_failure(host: RemoteHost, status: int, words: bytes, told: bytes) -> Problem:
    """Why ssh ended, by its exit status. `words` are what ssh itself printed, `told` what came from there on stderr."""
    last = read_last_line(told)
    if status in (NOT_FOUND, NOT_EXECUTABLE):
        return Problem(
            code="remote.no_cockpit",
            title=tr("cockpit was not found on {host}", host=host),
            cause=last,
            hint=tr(
                "install it there, or say where it is: --on {host}:/path/to/cockpit, or the variable COCKPIT_REMOTE",
                host=host,
            ),
        )
    if status == FAILED or status < 0:
        return Problem(
            code="remote.ssh_failed",
            title=tr("There is no connection to {host}", host=host),
            cause=read_last_line(words)
            or last
            or (tr("ssh was ended by a signal") if status < 0 else tr("ssh ended with status {status}", status=status)),
            hint=tr("try `{read_ssh} {host}` in a terminal", read_ssh=shlex.join(read_ssh()), host=host),
        )
    return Problem(
        code="remote.ended",
        title=tr("The cockpit on {host} ended before it answered", host=host),
        cause=last or tr("it ended with status {status}", status=status),
        hint=tr(
            "try `{read_ssh} {host} {cockpit} engine status` in a terminal",
            read_ssh=shlex.join(read_ssh()),
            host=host,
            cockpit=host.cockpit,
        ),
    )


def describe_refusal(host: RemoteHost, problem: Problem) -> Problem:
    """Why the cockpit there refused to answer a link, from what it printed with `--json`."""
    if problem.code == "request.usage":
        return Problem(
            code="remote.too_old",
            title=tr("The cockpit on {host} is too old to be connected to", host=host),
            cause=problem.title,
            hint=tr("update cockpit on {host}", host=host),
        )
    return msgspec.structs.replace(problem, title=f"{host}: {problem.title}")


def missing_ssh(error: OSError) -> ProblemError:
    """The problem of an ssh command that cannot be started."""
    return ProblemError(
        Problem(
            code="remote.ssh_missing",
            title=tr("{read_ssh} cannot be started", read_ssh=shlex.join(read_ssh())),
            cause=error.strerror or str(error),
            hint=tr("install the OpenSSH client, or name another command in COCKPIT_SSH"),
        )
    )
