"""What one can talk to: runs that train, checkpoints of runs, models on this machine, what the catalogue has."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cockpit.widgets.picker import Choice
from engine.protocol.client import build_engine_environment
from engine.protocol.home import Home
from engine.protocol.messages import RunDetail
from engine.protocol.states import PAUSED, RUNNING

NOW = "@now"
"""Behind a run's id: the newest weights, in the process that trains them."""
WHERE = {
    "huggingface": "in the Hugging Face cache",
    "modelscope": "in the ModelScope cache",
    "cockpit": "model in the home",
}


def choices(
    details: Sequence[RunDetail], found: Sequence[dict[str, Any]], catalogue: str, *, hot: bool = True
) -> list[Choice]:
    """Runs that train, with `hot`; checkpoints of runs, newest first and the best of each before the others; then `found`, the models on
    this machine as `model find` lists them; then the catalogue's."""
    listed = [
        Choice(f"{detail.run.id}{NOW}", f"the newest weights · training, step {detail.run.step:,}")
        for detail in details
        if hot and detail.run.state in (RUNNING, PAUSED)
    ]
    for detail in details:
        for checkpoint in sorted(detail.checkpoints, key=lambda each: (each.best, each.step), reverse=True):
            loss = checkpoint.metrics.get("eval/loss")
            facts = (
                "best" if checkpoint.best else "",
                detail.run.name,
                f"eval loss {loss:.3f}" if loss is not None else "",
            )
            listed.append(Choice(f"{detail.run.id}@{checkpoint.step}", " · ".join(filter(None, facts))))
    names = [each["name"] for each in found]
    for each in found:
        damaged = f" · damaged: {each['problems'][0]}" if each["problems"] else ""
        listed.append(Choice(each["name"], WHERE.get(each["where"], each["where"]) + damaged))
    if catalogue not in names:
        listed.append(Choice(catalogue, "from the catalogue, pulled on first use"))
    return listed


async def on_this_machine(home: Home) -> list[dict[str, Any]]:
    """What `cockpit model find` lists: models in the home and in the hubs' caches. Half a second; empty when it cannot be told."""
    command = [sys.executable, "-P", "-m", "engine.workers.models", "find", "--home", str(home.root), "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=build_engine_environment()
    )
    output, _ = await process.communicate()
    try:
        found: list[dict[str, Any]] = json.loads(output)
    except ValueError:
        return []
    return found


def chats(folder: Path) -> list[Choice]:
    """Saved conversations, the newest first."""
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [Choice(file.stem, _about(file)) for file in files]


def _about(file: Path) -> str:
    """How a conversation begins."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        turns = document["turns"]
        first = next(turn["said"] for turn in turns if turn.get("said"))
        return f"{len(turns)} turns · {' '.join(first.split())[:60]}"
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return ""
