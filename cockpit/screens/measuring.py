"""Asks how a checkpoint is to be measured: a list of the settings with their values."""

from __future__ import annotations

import shlex
from typing import Any

from textual.app import App

from cockpit.language.translate import tr
from cockpit.state.evaluation_results import SETTINGS, parse_settings
from cockpit.state.run_history import format_value
from cockpit.widgets.picker import Choice, Picker
from cockpit.widgets.prompt import Prompt

MEASURE = "measure"
DEFAULTS: dict[str, Any] = {"samples": 32}
MEANINGS = {
    "rows": "rows to measure on; all without a number",
    "samples": "of these, rows to generate replies for",
    "data": "a file of rows; without one, those that the run held out",
    "task": "whose metrics score the replies; without one, the run's own",
    "max_new_tokens": "longest reply, in tokens",
    "constrained": "whether every reply fits the task's JSON schema",
}
"""Setting -> its meaning."""


async def ask_settings(app: App[Any], target: str) -> dict[str, Any] | None:
    """The settings with which `target` is to be measured; None where the user does not want to."""
    chosen = dict(DEFAULTS)
    while True:
        choices = [Choice(MEASURE, tr("with these settings:"), tr("Measure"))]
        choices += [Choice(name, _describe(name, chosen), f"  {name}") for name in MEANINGS]
        title, hint = tr("Measure {target}", target=target), tr("a setting to change, or NAME=VALUE")
        picked = await app.push_screen_wait(Picker(title, hint, choices))
        if picked is None:
            return None
        if picked == MEASURE:
            return chosen
        if picked not in SETTINGS:
            try:
                chosen |= parse_settings(picked)
            except ValueError as error:
                app.notify(str(error), severity="error")
        elif SETTINGS[picked] is bool:
            chosen[picked] = not chosen.get(picked)
        else:
            await _change(app, picked, chosen)


async def _change(app: App[Any], name: str, chosen: dict[str, Any]) -> None:
    """Ask for a setting's value until it is one. An empty line takes the setting back."""
    text, problem = str(chosen.get(name, "")), ""
    while True:
        question = Prompt(name, f"{problem}{tr(MEANINGS[name])}", text, paths=name == "data")
        answer = await app.push_screen_wait(question)
        if answer is None:
            return
        text = answer
        try:
            value = parse_settings(f"{name}={shlex.quote(answer)}") if answer else {}
        except ValueError as error:
            problem = f"✗ {error}\n"
            continue
        chosen.pop(name, None)
        chosen |= value
        return


def _describe(name: str, chosen: dict[str, Any]) -> str:
    value = chosen.get(name, "–")
    value = str(value).lower() if isinstance(value, bool) else format_value(value)
    return f"{value} · {tr(MEANINGS[name])}"
