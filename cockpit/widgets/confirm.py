"""A dialog with a question whose answers each need their own key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr


class Confirm(ModalScreen[str | None]):
    """Dismissed with the key of a choice, or with None for Esc and `n`. Enter does nothing, because it is pressed too
    easily."""

    DEFAULT_CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical {
        width: 76; max-width: 96%; height: auto; max-height: 96%; border: round $warning; background: $surface;
        padding: 1 2; overflow-y: auto; scrollbar-size-vertical: 1;
    }
    Confirm Static { width: 1fr; }
    """

    def __init__(self, title: str, text: str, choices: Mapping[str, str]) -> None:
        super().__init__()
        self._title, self._text, self._choices = title, text, choices

    def compose(self) -> ComposeResult:
        keys = [Content.assemble((f" {key} ", "bold $accent"), f" {label}") for key, label in self._choices.items()]
        keys.append(Content.assemble((" n ", "bold $accent"), tr(" cancel (Esc)")))
        with Vertical() as box:
            box.border_title = Content(self._title)
            yield Static(Content("\n").join([Content(self._text), Content(""), *keys]))

    def on_key(self, event: events.Key) -> None:
        event.stop()
        if event.key in self._choices:
            self.dismiss(event.key)
        elif event.key in ("n", "escape"):
            self.dismiss(None)


class LeaveDialog(Confirm):
    """Asks whether to leave the app, and names what is not saved. Dismissed with `y` to keep that, `d` to drop it."""

    def __init__(self, drafts: Sequence[Mapping[str, Any]]) -> None:
        text = tr("Runs go on without the app; cockpit shows them again.")
        choices = {"y": "leave"}
        if drafts:
            names = "\n".join(f"  · {_describe_draft(draft)}" for draft in drafts)
            text = tr(
                "Not saved:\n{names}\nIt is kept, and offered the next time. Runs go on without the app.", names=names
            )
            choices = {"y": tr("leave, and keep it"), "d": tr("leave, and throw it away")}
        super().__init__(tr("Leave cockpit?"), text, choices)


def _describe_draft(draft: Mapping[str, Any]) -> str:
    match draft["kind"]:
        case "profile":
            return tr("the profile {stem}", stem=Path(draft["key"]).stem)
        case "chat":
            return tr("a conversation")
    return tr("a prompt that you are writing")
