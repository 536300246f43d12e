"""What a home holds, read without its engine: what the app shows in its first paint, before an engine has answered."""

from __future__ import annotations

import contextlib
import os
from urllib.parse import quote

import msgspec

from engine.protocol.home import Home
from engine.protocol.messages import Run
from engine.protocol.states import LIVE


class _Brief(msgspec.Struct):
    id: str
    state: str = ""
    created: float = 0.0


def has_runs(home: Home) -> bool:
    """Whether there is a run's directory, or it cannot be told."""
    try:
        with os.scandir(home.runs) as found:
            return any(True for _ in found)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def find_run(home: Home, wanted: str | None = None) -> Run | None:
    """The run `wanted`, else the newest one that has not ended, else the newest, as the engine has indexed it last.
    None when there is none, or no index of this version that can be read at once."""
    import sqlite3

    if not home.registry.is_file():
        return None
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(home.registry))}?mode=ro", uri=True, timeout=0.0)
        ) as index:
            summaries = [summary for (summary,) in index.execute("SELECT summary FROM runs")]
        brief = msgspec.json.Decoder(_Brief).decode
        known = [(found, summary) for summary in summaries if summary and (found := brief(summary))]
        chosen = [each for each in known if each[0].id == wanted] or known
        if not chosen:
            return None
        _, summary = max(chosen, key=lambda each: (each[0].state in LIVE, each[0].created))
        run = msgspec.json.decode(summary, type=Run)
        return run if home.run(run.id).path.is_dir() else None
    except (sqlite3.Error, msgspec.MsgspecError, ValueError, TypeError, OSError):
        return None
