"""Single words that are shown by `tr` from where they are data: states, stages, names of figures, heads of columns."""

from __future__ import annotations

from engine.protocol.stages import STAGES
from engine.protocol.states import STATES

WORDS = (
    *STATES,
    *STAGES,
    *("Dashboard", "Data", "Profile", "Runs", "Chat", "Doctor", "Everywhere"),
    *("connecting", "engine", "reconnecting"),
    *("trainable", "batch", "forecast", "memory", "base", "method", "precision", "data", "device"),
    *("load", "tokens", "elapsed", "remaining", "epoch", "speed", "energy", "host", "cut"),
    *("utilisation", "power", "temperature"),
    *(
        "RUN",
        "STATE",
        "STEP",
        "LOSS",
        "BASE",
        "AGE",
        "NAME",
        "WHERE",
        "WHAT",
        "GRID",
        "PROFILE",
        "RUNS",
        "HOST",
        "TIME",
    ),
    *(
        "built-in",
        "home",
        "here",
        "folder",
        "evaluation",
        "Memory",
        "d",
        "h",
        "min",
        "now",
        "progress",
        "eval",
        "tags",
        "note",
    ),
    *("state", "loss", "lr"),
    *("age", "group", "newest", "oldest", "name", "run", "greedy", "stop", "seed", "temperature", "repetition"),
    *("step", "by", "ok", "replies"),
    *("CHANGES", "BEFORE", "AFTER", "METRIC", "VALUE", "SIZE", "FILE", "ROWS", "CHECK", "RESULT"),
)
