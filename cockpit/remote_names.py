"""Names that both ends of `--on` know. Imported by the command line, so it imports next to nothing."""

import os

HERE = "."
"""The name, after `--on`, of the engine of this host."""
HANG_UP = "COCKPIT_HANG_UP"
"""An environment variable of a verb that another host's cockpit has started: end as by ctrl+c when nobody reads any
more."""
CALLED = "COCKPIT_CALLED"
"""An environment variable: how the user calls this cockpit, `cockpit --on HOST`."""
STDIN_NAME = "COCKPIT_STDIN_NAME"
"""An environment variable: the name of the profile that comes on standard input."""

VERBS = (
    *("demo", "train", "prepare", "chat", "generate", "eval", "export", "serve", "runs", "show", "watch", "metrics"),
    *("logs", "plot", "stop", "pause", "continue", "set", "resume", "delete", "profile", "data", "tokenizer"),
    *("model", "engine", "doctor", "forecast", "fit", "launch-file", "completion", "merge", "push"),
    *("compare", "explain", "report", "why", "profile-step", "grid", "tag", "note", "pin", "fork", "clean"),
    *("group", "queue", "web", "man"),
)
"""The verbs of the command line."""

ends_with_reader = False
"""Whether this process ends when nobody reads its output any more."""
command = "cockpit"
"""What command lines in messages begin with."""


def read_command(home: str | None) -> None:
    """Take over how the user calls this cockpit, with this `--home`; no job inherits it."""
    global command
    command = os.environ.pop(CALLED, "") or name_command("", home)


def name_command(host: str, home: str | None) -> str:
    """How the user calls the cockpit of a host, with `--home` where there is one."""
    import shlex  # not needed by a plain verb

    return shlex.join(["cockpit", *(("--on", host) if host else ()), *(("--home", home) if home else ())])


def name_in(text: str, called: str) -> str:
    """`text` with the command lines in it as the user has to write them: `cockpit stop` becomes
    `cockpit --on HOST stop`."""
    if called == "cockpit":
        return text
    import re

    return re.sub(rf"\bcockpit (?=(?:{'|'.join(VERBS)})\b)", lambda _: f"{called} ", text)


def count_hosts(arguments: list[str]) -> int:
    """How often `--on` is on a command line; argparse forgets those before a verb when there is one behind it."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return sum(argument == "--on" or argument.startswith("--on=") for argument in options)
