"""What the arguments of a verb with `--on` are."""

from __future__ import annotations

import argparse
import contextlib

STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
"""Names of standard input."""


def remove_on(arguments: list[str]) -> list[str]:
    """The command line without `--on HOST`."""
    kept: list[str] = []
    at = 0
    while at < len(arguments):
        if arguments[at] == "--":
            return [*kept, *arguments[at:]]
        if arguments[at] == "--on":
            at += 1
        elif not arguments[at].startswith("--on="):
            kept.append(arguments[at])
        at += 1
    return kept


def find_profile_argument(arguments: list[str], options: argparse.Namespace) -> int:
    """The index of PROFILE on the command line, which may be named like its verb or like the value of an option."""
    marked = "\0"  # no argument of a process has it
    for at, argument in enumerate(arguments):
        if argument == options.profile:
            with contextlib.suppress(ValueError):  # it was the verb, or a value that must be a number
                if options.parse([*arguments[:at], marked, *arguments[at + 1 :]]).profile == marked:
                    return at
    raise AssertionError("the parser has found a profile")


def reads_stdin(options: argparse.Namespace, arguments: list[str]) -> bool:
    """Whether the verb reads what comes on stdin. One that does not must leave it to the caller's next command."""
    if options.function == "chat:chat" and options.prompt is None:
        return True
    return any(argument.rpartition("=")[2] in STDIN for argument in arguments)
