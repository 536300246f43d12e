"""How replies are sampled: a column of small fields."""

from __future__ import annotations

from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Select, Static

FIELDS: dict[str, tuple[str, type, str, str]] = {
    "temperature": ("temperature", float, "0", "0 takes the likeliest token"),
    "top_k": ("top-k", int, "", "among the k likeliest; empty: all"),
    "top_p": ("top-p", float, "", "among those of this probability"),
    "max_new_tokens": ("max tokens", int, "256", "longest reply"),
    "seed": ("seed", int, "", "same seed, same reply"),
}
"""Name for the worker -> label, type, start value, help."""
TASKS = ("triples", "thought_graph")


class Sampling(VerticalScroll):
    """`settings` is what the worker is asked with; empty fields are left to the model."""

    DEFAULT_CSS = """
    Sampling { width: 32; height: 1fr; border-left: solid $primary; padding: 0 1; }
    Sampling Horizontal { height: 1; }
    Sampling .label { width: 13; }
    Sampling Input { width: 1fr; }
    Sampling .hint { color: $text-muted; height: auto; margin: 0 0 1 0; }
    Sampling .title { color: $accent; text-style: bold; margin: 0 0 1 0; }
    """

    def compose(self) -> ComposeResult:
        yield Static("Sampling", classes="title")
        for name, (label, kind, value, hint) in FIELDS.items():
            with Horizontal():
                yield Static(label, classes="label")
                yield Input(value, id=name, compact=True, type="integer" if kind is int else "number", placeholder="–")
            yield Static(hint, classes="hint")
        with Horizontal():
            yield Static("task", classes="label")
            yield Select([(task, task) for task in TASKS], id="task", prompt="none", compact=True)
        yield Static("a task asks as its training did", classes="hint")

    def settings(self) -> dict[str, Any]:
        """Raises ValueError, in words, for a field that does not hold."""
        chosen: dict[str, Any] = {}
        for name, (label, kind, _, _) in FIELDS.items():
            text = self.query_one(f"#{name}", Input).value.strip()
            if not text:
                continue
            try:
                chosen[name] = kind(text)
            except ValueError:
                raise ValueError(f"{label}: {text!r} is not a number")
        if chosen.get("temperature", 0) < 0 or not 0 < chosen.get("top_p", 1) <= 1:
            raise ValueError("temperature is 0 or more, top-p above 0 and at most 1")
        if chosen.get("max_new_tokens", 1) < 1 or chosen.get("top_k", 1) < 1:
            raise ValueError("max tokens and top-k are 1 or more")
        task = self.query_one("#task", Select).value
        return chosen | ({"task": task} if task in TASKS else {})
