"""How ranks start. One row a launcher: strategy -> the function that makes its command line."""

LAUNCHERS = {
    "ddp": "engine.supervisor.launchers.local:command",
    "zero2": "engine.supervisor.launchers.local:command",
}
