"""Choosing what to talk to: a run's checkpoint, a model that is here, or anything else by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from engine.protocol.messages import RunDetail


@dataclass(frozen=True)
class Choice:
    target: str
    detail: str


def choices(details: Sequence[RunDetail], models: Path, catalogue: str) -> list[Choice]:
    """Checkpoints of runs, newest first and the best of each before the others; then models in the home; then the catalogue's."""
    found = []
    for detail in details:
        for checkpoint in sorted(detail.checkpoints, key=lambda each: (each.best, each.step), reverse=True):
            loss = checkpoint.metrics.get("eval/loss")
            facts = (
                "best" if checkpoint.best else "",
                detail.run.name,
                f"eval loss {loss:.3f}" if loss is not None else "",
            )
            found.append(Choice(f"{detail.run.id}@{checkpoint.step}", " · ".join(filter(None, facts))))
    folders = sorted(models.iterdir()) if models.is_dir() else []
    local = [folder.name for folder in folders if (folder / "config.json").is_file()]
    found += [Choice(name, "model in the home") for name in local]
    if catalogue not in local:
        found.append(Choice(catalogue, "from the catalogue, pulled on first use"))
    return found


class TargetPicker(ModalScreen[str | None]):
    """Type to narrow the list or to name something that is not on it; Enter takes it."""

    DEFAULT_CSS = """
    TargetPicker { align: center middle; }
    TargetPicker > Vertical { width: 80; max-width: 96%; height: auto; max-height: 80%; border: round $accent; background: $surface; padding: 0 1; }
    TargetPicker OptionList { height: auto; max-height: 14; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS = [("escape", "dismiss(None)", "Leave"), ("down", "move(1)", "Next"), ("up", "move(-1)", "Previous")]

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__()
        self.choices = choices

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Chat with"
            box.border_subtitle = "↑↓ · Enter · Esc leaves"
            yield Input(placeholder="run, run@step, folder, catalogue name or org/name")
            yield OptionList(compact=True)

    def on_mount(self) -> None:
        self._narrow("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._narrow(event.value.strip())

    def _narrow(self, text: str) -> None:
        listing = self.query_one(OptionList)
        listing.clear_options()
        for choice in self.choices:
            if text.lower() in f"{choice.target} {choice.detail}".lower():
                listing.add_option(
                    Option(Content.assemble(choice.target, (f"  {choice.detail}", "dim")), id=choice.target)
                )
        listing.highlighted = 0 if listing.option_count else None

    def action_move(self, by: int) -> None:
        listing = self.query_one(OptionList)
        listing.action_cursor_down() if by > 0 else listing.action_cursor_up()

    @on(Input.Submitted)
    def _taken(self, event: Input.Submitted) -> None:
        event.stop()
        option = self.query_one(OptionList).highlighted_option
        typed = event.value.strip()
        if option is not None:
            self.dismiss(option.id)
        elif typed:
            self.dismiss(typed)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)
