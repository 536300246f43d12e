"""How ranks start. One row a launcher: strategy -> the function that makes its command line."""

LAUNCHERS = {
    "ddp": "engine.launchers.local:command",
    "zero2": "engine.launchers.local:command",
}
