"""The launchers that start ranks: `launch.strategy` -> the function that builds the command line."""

LAUNCHERS = {
    "ddp": "engine.supervisor.launchers.local:build_command",
    "zero2": "engine.supervisor.launchers.local:build_command",
}
