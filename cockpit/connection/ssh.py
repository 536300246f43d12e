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

from engine.protocol.messages import Problem, ProblemError

FAILED, NOT_FOUND, NOT_EXECUTABLE = 255, 127, 126
"""Exit statuses: of ssh itself, and of a shell that does not find, or may not execute, a command."""
_HOST = re.compile(r"(?P<destination>ssh://\S+|[^\s/]+?)(:(?P<cockpit>[/~].*))?", re.DOTALL)


@dataclass(frozen=True)
class FarHost:
    """A host that ssh knows, and what starts cockpit there, as its shell takes it."""

    destination: str
    cockpit: str
    text: str
    """As the user wrote it, for command lines."""

    def __str__(self) -> str:
        return self.destination

    @classmethod
    def parse(cls, text: str) -> FarHost:
        """Parse `user@host`, or `user@host:/path/to/cockpit`. Raises ProblemError."""
        match = _HOST.fullmatch(text)
        if match is None or text.startswith("-"):
            raise ProblemError(
                Problem(
                    code="remote.host_invalid",
                    title=f"{text!r} is not a host",
                    hint="write it as for ssh, user@host or a name from your ssh configuration, and behind a colon the "
                    "path of cockpit there where it is not on the PATH: user@host:/path/to/cockpit",
                )
            )
        path = match["cockpit"]
        cockpit = _quote_path(path) if path else os.environ.get("COCKPIT_REMOTE") or "cockpit"
        return cls(match["destination"], cockpit, text)

    def build_remote(self, arguments: Sequence[str], **variables: str) -> str:
        """The command line that runs cockpit there, for its shell."""
        setting = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
        return f"{f'env {setting}' if setting else ''}{self.cockpit} {shlex.join(arguments)}".rstrip()

    def build_ssh(self, *options: str, command: str = "", ask: bool) -> list[str]:
        """The command line of ssh. Without `ask` it asks no question, and fails instead."""
        batch = () if ask else ("-o", "BatchMode=yes")
        return [*read_ssh(), *batch, *options, self.destination, *([command] if command else [])]


def read_ssh() -> list[str]:
    """The user's ssh command: `COCKPIT_SSH`, else `ssh`."""
    return shlex.split(os.environ.get("COCKPIT_SSH", "")) or ["ssh"]


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


def describe_failure(host: FarHost, status: int, output: bytes) -> Problem:
    """Why ssh ended, by its exit status and what it printed on stderr."""
    last = read_last_line(output)
    if status in (NOT_FOUND, NOT_EXECUTABLE):
        return Problem(
            code="remote.no_cockpit",
            title=f"cockpit was not found on {host}",
            cause=last,
            hint=f"install it there, or say where it is: --on {host}:/path/to/cockpit, or the variable COCKPIT_REMOTE",
        )
    if status in (FAILED, -1) or status < 0:
        return Problem(
            code="remote.ssh_failed",
            title=f"There is no connection to {host}",
            cause=last or ("ssh was ended by a signal" if status < 0 else f"ssh ended with status {status}"),
            hint=f"try `{shlex.join(read_ssh())} {host}` in a terminal",
        )
    return Problem(
        code="remote.too_old",
        title=f"The cockpit on {host} cannot be attached to",
        cause=last or f"it ended with status {status}",
        hint=f"update cockpit on {host}",
    )


def missing_ssh(error: OSError) -> ProblemError:
    """The problem of an ssh command that cannot be started."""
    return ProblemError(
        Problem(
            code="remote.ssh_missing",
            title=f"{shlex.join(read_ssh())} cannot be started",
            cause=error.strerror or str(error),
            hint="install the OpenSSH client, or name another command in COCKPIT_SSH",
        )
    )
