"""`cockpit doctor --fix`: runs the commands that mend what a check found, those that are safe; it names the others."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import NamedTuple

from engine.protocol.home import Home
from engine.protocol.terminal import show_controls
from engine.workers.device_checks import Check


class Mended(NamedTuple):
    """A command that was run: the check that named it, and its exit status."""

    name: str
    command: str
    status: int


def check_can_ask(*, yes: bool) -> None:
    """Raises ValueError if nobody can be asked and nothing was agreed to."""
    if not yes and not _has_terminal():
        raise ValueError("--fix asks before each command, and there is no terminal: --fix --yes runs the safe ones")


def mend(checks: Iterable[Check], home: Home, *, also_wanted: bool, yes: bool) -> list[Mended]:
    """Run the safe command of each check that fails, or of each that is not well with `also_wanted`; each command once.

    Asks before each, unless `yes`. What is not safe is printed, and left to the user.
    """
    done: list[Mended] = []
    for check in checks:
        if check.ok or not check.mend or (check.ok is None and not also_wanted):
            continue
        if not check.fix:
            _say(f"{check.name}: not run by --fix, since it may change more than this: {check.mend}")
            continue
        command = shlex.join(("cockpit", *check.fix))
        if any(each.command == command for each in done):
            continue
        if yes or _agrees(command):
            _say(f"{check.name}: {command}")
            done.append(Mended(check.name, command, _run(check.fix, home)))
    return done


def _run(words: tuple[str, ...], home: Home) -> int:
    """Run a verb of cockpit; what it prints goes to stderr, since stdout is the doctor's."""
    command = [sys.executable, "-P", "-m", "cockpit.cli", *words, "--home", str(home.root)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.__stderr__, check=False).returncode


def _agrees(command: str) -> bool:
    print(f"Run `{show_controls(command)}`? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _say(words: str) -> None:
    print(show_controls(words), file=sys.stderr)
