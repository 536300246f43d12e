"""What the chat screen's pickers offer: targets to talk to, and saved conversations."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cockpit.connection.chat_target import NOW
from cockpit.connection.json_verb import read_json
from cockpit.language.translate import tr
from cockpit.state.chat_tree import question_text
from cockpit.widgets.picker import Choice
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError, RunDetail
from engine.protocol.states import PAUSED, RUNNING

if TYPE_CHECKING:
    from cockpit.connection.link import Link

LOCATIONS = {
    "huggingface": "in the Hugging Face cache",
    "modelscope": "in the ModelScope cache",
    "cockpit": "model in the home",
}


def target_choices(
    details: Sequence[RunDetail], models: Sequence[dict[str, Any]], catalogue: str, *, hot: bool = True
) -> list[Choice]:
    """The targets to offer: with `hot`, runs that train; the checkpoints of `details`, the best of each run first;
    `models` on this machine, as `model find` lists them; and the catalogue's model."""
    choices = [
        Choice(f"{detail.run.id}{NOW}", tr("the newest weights · training, step {step:,}", step=detail.run.step))
        for detail in details
        if hot and detail.run.state in (RUNNING, PAUSED)
    ]
    for detail in details:
        for checkpoint in sorted(detail.checkpoints, key=lambda each: (each.best, each.step), reverse=True):
            loss = checkpoint.metrics.get("eval/loss")
            facts = (
                "best" if checkpoint.best else "",
                detail.run.name,
                tr("eval loss {loss:.3f}", loss=loss) if loss is not None else "",
            )
            choices.append(Choice(f"{detail.run.id}@{checkpoint.step}", " · ".join(filter(None, facts))))
    for model in models:
        damage = tr(" · damaged: {problems}", problems=model["problems"][0]) if model["problems"] else ""
        choices.append(Choice(model["name"], tr(LOCATIONS.get(model["where"], model["where"])) + damage))
    if catalogue not in [model["name"] for model in models]:
        choices.append(Choice(catalogue, tr("from the catalogue, downloaded on first use")))
    return choices


async def find_local_models(home: Home, link: Link | None = None) -> list[dict[str, Any]]:
    """The models that `cockpit model find` lists, there if there is a link: in the home and in the hubs' caches. Takes
    half a second; empty when it fails."""
    command = [sys.executable, "-P", "-m", "engine.workers.models", "find", "--home", str(home.root), "--json"]
    if link is not None:
        try:
            command = link.build_command("--json", "model", "find")
        except ProblemError:
            return []  # the link is down, which the app shows
    models = await read_json(command)
    return models if isinstance(models, list) else []


def list_saved_chats(folder: Path) -> list[Choice]:
    """Saved conversations, the newest first."""
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [Choice(file.stem, _first_question(file)) for file in files]


def _first_question(file: Path) -> str:
    """The number of turns of a conversation and how it begins; empty when the file cannot be read."""
    try:
        turns = json.loads(file.read_text(encoding="utf-8"))["turns"]
        first = next(text for turn in turns if not turn.get("replies") and (text := question_text(turn)))
        return tr("{turns} turns · {split}", turns=len(turns), split=" ".join(first.split())[:60])
    except (OSError, ValueError, KeyError, TypeError, StopIteration, AttributeError):
        return ""
