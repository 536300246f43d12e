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

ends_with_reader = False
"""Whether this process ends when nobody reads its output any more."""
command = "cockpit"
"""What command lines in messages begin with."""


def read_command() -> None:
    """Take over how the user calls this cockpit; no job inherits it."""
    global command
    command = os.environ.pop(CALLED, command)
