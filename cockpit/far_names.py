"""Names that both ends of `--on` know. Imported by the command line, so it imports nothing."""

HERE = "."
"""The name, after `--on`, of the engine of this host."""
HANG_UP = "COCKPIT_HANG_UP"
"""An environment variable of a verb that another host's cockpit has started: end as by ctrl+c when nobody reads any
more."""
STDIN_NAME = "COCKPIT_STDIN_NAME"
"""An environment variable: the name of the profile that comes on standard input."""
