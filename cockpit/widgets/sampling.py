"""The sampling panel of the chat: a column of fields, derived from `SamplingOptions`."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import ValidationError
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Select, Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from engine.config.sampling import PRESETS, SamplingOptions
from engine.config.tasks import task_names

LABELS = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repetition_penalty": "repetition",
    "no_repeat_ngram": "no-repeat n",
    "max_new_tokens": "max tokens",
    "seed": "seed",
    "stop": "stop",
}
"""Field of `SamplingOptions` -> its name here, in this order."""
SEPARATOR = "|"
"""Between stop texts."""
HINTS = {
    "preset": "Sets temperature, top-k and top-p, which you can then change.",
    "stop": f"A reply ends before any of these texts; {SEPARATOR} separates them.",
    "seed": "The same seed gives the same reply. Empty: another each time; targets side by side share it.",
    "task": "Prompts as in the task's training.",
    "json": "Replies are forced to fit the task's JSON schema.",
    "system": "The system prompt, used from the next question on. Enter edits it.",
}
HELP = "Tab goes to the next field. Empty: the model's default."


class SystemField(Static, can_focus=True):
    """The first line of the system prompt. It is edited in a dialog: a line is too short for it."""

    DEFAULT_CSS = """
    SystemField { width: 1fr; height: 1; text-wrap: nowrap; text-overflow: ellipsis; background: $surface; }
    SystemField:focus { background: $accent 30%; }
    """
    BINDINGS = [Binding("enter,space", "screen.system", "Edit", key_display="Enter")]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__("–", id=id)
        self.text = ""

    def show(self, text: str) -> None:
        self.text = text.strip()
        self.update(Content(" ".join(self.text.split())[:200] or "–"))

    async def on_click(self) -> None:
        await self.run_action("screen.system")


class Sampling(VerticalScroll):
    """`settings` gives the worker's settings; empty fields are left out."""

    DEFAULT_CSS = """
    Sampling { width: 32; height: 1fr; border-left: solid $primary; padding: 0 1; }
    Sampling Horizontal { height: 1; }
    Sampling .label { width: 13; }
    Sampling Input, Sampling Select { width: 1fr; }
    Sampling .title { color: $accent; text-style: bold; }
    Sampling .gap { height: 1; }
    Sampling #hint { color: $text-muted; height: auto; margin: 1 0 0 0; }
    """

    def compose(self) -> ComposeResult:
        yield Static(tr("Sampling"), classes="title")
        with Horizontal():
            yield Static(tr("preset"), classes="label")
            yield Select([(name, name) for name in PRESETS], id="preset", prompt="none", compact=True, value="greedy")
        for name, label in LABELS.items():
            with Horizontal():
                yield Static(tr(label), classes="label")
                yield Input(_default_text(name), id=name, compact=True, type=_input_type(name), placeholder="–")
        yield Static("", classes="gap")
        with Horizontal():
            yield Static(tr("task"), classes="label")
            yield Select(
                [(task.replace("_", " "), task) for task in task_names()], id="task", prompt="none", compact=True
            )
        with Horizontal():
            yield Static(tr("JSON"), classes="label")
            yield Select([(tr("must fit"), "fits")], id="json", prompt=tr("free"), compact=True, disabled=True)
        with Horizontal():
            yield Static(tr("system"), classes="label")
            yield SystemField(id="system")
        yield Static(tr(HELP), id="hint")

    # ── values ────────────────────────────────────────────────────────────────────────────────────────────────────

    def settings(self) -> dict[str, Any]:
        """The settings of the fields. Raises ValueError, with a message for the user, for an invalid field."""
        chosen: dict[str, Any] = {}
        for name in LABELS:
            text = self.query_one(f"#{name}", Input).value.strip()
            if text:
                chosen[name] = [part for part in text.split(SEPARATOR) if part] if name == "stop" else text
        try:
            checked = SamplingOptions.model_validate(chosen, strict=False).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            name = tr(LABELS.get(str(first["loc"][0]), str(first["loc"][0])))
            raise ValueError(
                tr(
                    "{name}: {msg}, not {input!r}",
                    name=name,
                    msg=first["msg"].removeprefix("Input "),
                    input=first["input"],
                )
            ) from None
        task = self.chosen_task
        settings = {name: checked[name] for name in chosen} | ({"task": task} if task else {})
        return settings | ({"constrained": True} if task and self.query_one("#json", Select).value == "fits" else {})

    @property
    def chosen_task(self) -> str:
        task = self.query_one("#task", Select).value
        return task if isinstance(task, str) and task in task_names() else ""

    @property
    def system(self) -> str:
        return self.query_one("#system", SystemField).text

    @system.setter
    def system(self, text: str) -> None:
        self.query_one("#system", SystemField).show(text)

    # ── filling ───────────────────────────────────────────────────────────────────────────────────────────────────

    def fill(self, settings: dict[str, Any]) -> None:
        """Set the fields from the settings of a saved conversation or a run. Fields without a setting stay
        unchanged."""
        for name in LABELS:
            if name in settings:
                value = settings[name]
                text = SEPARATOR.join(value) if isinstance(value, list) else "" if value is None else str(value)
                self.query_one(f"#{name}", Input).value = text
        if "task" in settings:
            task = settings["task"]
            self.query_one("#task", Select).value = task if task in task_names() else Select.NULL
        if "system" in settings:
            self.system = settings["system"]

    @on(Select.Changed, "#preset")
    def _preset_changed(self, event: Select.Changed) -> None:
        if event.value in PRESETS:
            preset = PRESETS[str(event.value)]
            for name in ("temperature", "top_k", "top_p"):
                self.query_one(f"#{name}", Input).value = str(preset.get(name, ""))

    @on(Input.Changed)
    def _field_changed(self) -> None:
        """Select the preset that the fields match, if there is one."""
        values = {name: self.query_one(f"#{name}", Input).value.strip() for name in ("temperature", "top_k", "top_p")}
        matching = [
            name
            for name, preset in PRESETS.items()
            if all(_is_equal(text, preset.get(field)) for field, text in values.items())
        ]
        select = self.query_one("#preset", Select)
        with self.prevent(Select.Changed):
            select.value = matching[0] if matching else Select.NULL

    @on(Select.Changed, "#task")
    def _task_changed(self) -> None:
        box = self.query_one("#json", Select)
        box.disabled = not self.chosen_task
        if box.disabled:
            box.clear()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        name = event.widget.id or ""
        field = SamplingOptions.model_fields.get(name)
        self.query_one("#hint", Static).update(
            Content(HINTS.get(name) or tr_engine(field.description or "" if field else "") or tr(HELP))
        )


def _default_text(name: str) -> str:
    default = SamplingOptions.model_fields[name].get_default(call_default_factory=True)
    return "" if default in (None, []) else f"{default:g}"


def _input_type(name: str) -> typing.Literal["integer", "number", "text"]:
    kinds = typing.get_args(SamplingOptions.model_fields[name].annotation) or (
        SamplingOptions.model_fields[name].annotation,
    )
    return "text" if name == "stop" else "integer" if int in kinds else "number"


def _is_equal(text: str, value: float | None) -> bool:
    try:
        return (float(text) if text else None) == value
    except ValueError:
        return False
