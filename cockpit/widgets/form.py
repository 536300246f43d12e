"""A form of a profile's settings: each with its value, a mark when the file sets it, and help for the selected setting.

It is one list rather than sixty inputs: it paints in a millisecond, fits into forty columns, and every setting is a few
keys away. Values are typed as YAML, as in the file. The form changes nothing itself: it posts `Changed` and `Cleared`,
and the screen calls `show` with the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.events import Key
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from cockpit.content import Content
from cockpit.keymap import named
from cockpit.language.translate import tr, tr_engine
from cockpit.profiles.yaml_edit import to_flow_yaml, value_at
from cockpit.widgets.completion import LineSuggester

if TYPE_CHECKING:
    from engine.config.form import Field

KEY_WIDTH = 22
HINTS = {"group": "Enter unfolds, → switches it on, ← off", "sources": "Enter edits the list"}
"""Kind of setting -> how its value is changed."""


@named
class Form(Vertical):
    """The list of settings, the help, and the input for a value."""

    DEFAULT_CSS = """
    Form { width: 1fr; min-width: 34; }
    Form OptionList, Form OptionList:focus { height: 1fr; border: none; padding: 0; background: $background; }
    Form OptionList { text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1; }
    Form #help { height: auto; max-height: 5; padding: 0 1; color: $text-muted; border-top: solid $primary; }
    Form #value { display: none; background: $boost; }
    Form.editing #value { display: block; }
    Form #search { display: none; height: 1; border: none; padding: 0 1; background: $panel; }
    Form.searching #search { display: block; }
    """
    BINDINGS = [
        Binding("left,h", "cycle(-1)", "Choice", key_display="←→"),
        Binding("right,l", "cycle(1)", "Next choice", show=False),
        Binding("backspace", "clear", "Default"),
        Binding("delete", "clear", "Default", show=False),
        Binding("slash", "search", "Search", key_display="/"),
    ]

    class Changed(Message):
        """The user wants `key` to have `value` (YAML)."""

        def __init__(self, key: str, value: str) -> None:
            super().__init__()
            self.key, self.value = key, value

    class Cleared(Message):
        """The user wants `key` to have its default again."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class SourcesWanted(Message):
        """The user wants to edit the list of sources `key`."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fields: dict[str, Field] = {}
        self._wanted = ""
        self._folded: dict[str, bool] = {}
        """Group -> whether the user has folded or unfolded it; others are unfolded where the file has them."""
        self._listed: list[str] = []
        """The keys that the list shows."""
        self.document: dict[str, Any] = {}
        self.problems: Mapping[str, str] = {}
        self.directory: Path | None = None
        """The folder that paths are relative to, for their completion."""

    def compose(self) -> ComposeResult:
        yield SettingsList(id="settings")
        yield Input(id="search", placeholder=tr("words of a setting or of its help; Esc shows all"), compact=True)
        yield Static(id="help")
        yield Input(id="value", select_on_focus=False, compact=True)

    @property
    def settings(self) -> OptionList:
        return self.query_one("#settings", OptionList)

    def show(self, fields: Sequence[Field], document: dict[str, Any], problems: Mapping[str, str]) -> None:
        """Show these settings with the values of `document`. `problems` maps keys to messages."""
        self.fields = {field.key: field for field in fields}
        self.document, self.problems = document, problems
        self._refresh_rows()
        if self._wanted in self.fields:
            self.go_to(self._wanted)

    def _refresh_rows(self) -> None:
        listed = self._choose_rows()
        if listed == self._listed:
            for key in listed:
                self.settings.replace_option_prompt(key, self._row(key))
        else:
            self._listed = listed
            self._rebuild()
        self._show_help()

    def _choose_rows(self) -> list[str]:
        """The settings that are shown: those that the search finds, else all but those in folded groups."""
        if words := self.query_one("#search", Input).value.lower().split():
            return [
                key
                for key, field in self.fields.items()
                if all(word in f"{key} {field.help} {' '.join(field.choices)}".lower() for word in words)
            ]
        return [key for key in self.fields if not self._is_hidden(key)]

    def _is_hidden(self, key: str) -> bool:
        group = self.fields[key].group
        return bool(group) and (self._is_folded(group) or self._is_hidden(group))

    def _is_folded(self, group: str) -> bool:
        if group not in self._folded and any(key.startswith(f"{group}.") for key in self.problems):
            return False
        return self._folded.get(group, not isinstance(self._given(group), dict))

    def _given(self, key: str) -> Any:
        """The value in the file; None where there is none."""
        try:
            return value_at(self.document, key)
        except KeyError:
            return None

    def _rebuild(self) -> None:
        settings, at = self.settings, self.current
        settings.clear_options()
        section = None
        for key in self._listed:
            heading = key.partition(".")[0] if "." in key else ""
            if heading != section:
                section = heading
                if heading:
                    settings.add_option(Option(Content.styled(heading, "bold $accent"), disabled=True))
            settings.add_option(Option(self._row(key), id=key))
        if at in self._listed:
            settings.highlighted = settings.get_option_index(at)
        elif self._listed:
            settings.highlighted = settings.get_option_index(self._listed[0])

    @property
    def current(self) -> str:
        """The key of the selected setting."""
        option = self.settings.highlighted_option
        return option.id or "" if option else ""

    def value(self, key: str) -> Any:
        """The value in the file, else the default."""
        try:
            return value_at(self.document, key)
        except KeyError:
            return self.fields[key].default

    def _is_set(self, key: str) -> bool:
        try:
            value_at(self.document, key)
        except KeyError:
            return False
        return True

    def _row(self, key: str) -> Content:
        field, name = self.fields[key], key.rpartition(".")[2]
        if key in self.problems:
            mark, style = "✗ ", "$text-error"
        elif self._is_set(key):
            mark, style = "● ", "bold"
        else:
            mark, style = "  ", "dim"
        name = f"{'  ' * (key.count('.') - 1)}{name}"
        if field.kind == "group":
            folded = self._is_folded(key)
            name = f"{name} {'▸' if folded else '▾'}"
            value = to_flow_yaml(self.value(key)) if folded or not isinstance(self.value(key), dict) else ""
        else:
            value = to_flow_yaml(self.value(key))
        value = "(required)" if field.required and not self._is_set(key) else value
        unit = f" {field.unit}" if field.unit and self.value(key) is not None else ""
        return Content.assemble((f"{mark}{name:<{KEY_WIDTH}} ", style), (value, style), (unit, "dim"))

    @on(OptionList.OptionHighlighted)
    def _show_help(self) -> None:
        field = self.fields.get(self.current)
        if field is None:
            return
        choices = (
            tr("one of {choices} (← →)", choices=", ".join(field.choices))
            if field.choices
            else tr(HINTS.get(field.kind, ""))
        )
        facts = " · ".join(
            filter(None, (tr("default {to_flow_yaml}", to_flow_yaml=to_flow_yaml(field.default)), field.unit, choices))
        )
        problem = self.problems.get(field.key, "")
        help_line = Content.assemble(
            (f"✗ {problem}\n" if problem else "", "$text-error"), f"{tr_engine(field.help)}\n", (facts, "dim")
        )
        self.query_one("#help", Static).update(help_line)

    @on(OptionList.OptionSelected)
    def _setting_selected(self) -> None:
        self.action_edit()

    def go_to(self, key: str) -> None:
        """Highlight a setting, in an unfolded group. Before the settings are known it waits for them."""
        if key not in self.fields:
            self._wanted = key
            return
        self._wanted, group = "", self.fields[key].group
        while group:
            self._folded[group], group = False, self.fields[group].group
        self.query_one("#search", Input).value = ""
        self._refresh_rows()
        if key in self._listed:
            self.settings.highlighted = self.settings.get_option_index(key)
            self.settings.focus()

    def action_edit(self) -> None:
        """Toggle a switch, step through a choice, or open the input for any other value."""
        field = self.fields.get(self.current)
        if field is None:
            return
        if field.kind in ("bool", "choice"):
            self.action_cycle(1)
            return
        if field.kind == "group":
            self._folded[field.key] = not self._is_folded(field.key)
            self._refresh_rows()
            return
        if field.kind == "sources":
            self.post_message(self.SourcesWanted(field.key))
            return
        line = self.query_one("#value", Input)
        line.suggester = LineSuggester(list_values(field), self.directory)
        value = self.value(field.key)
        line.value = "" if value is None else to_flow_yaml(value)
        line.border_title = Content(tr("{key} · Enter sets, Esc cancels", key=field.key))
        self.add_class("editing")
        line.focus()
        line.cursor_position = len(line.value)

    def action_cycle(self, by: int) -> None:
        field = self.fields.get(self.current)
        if field is not None and field.kind == "group":
            if by > 0 and not isinstance(self.value(field.key), dict):
                self.post_message(self.Changed(field.key, "{}"))
            elif by < 0 and self._is_set(field.key):
                self.post_message(self.Cleared(field.key))
            return
        if field is None or field.kind not in ("bool", "choice"):
            return
        choices = ["false", "true"] if field.kind == "bool" else list(field.choices)
        current = to_flow_yaml(self.value(field.key))
        at = choices.index(current) if current in choices else -by
        self.post_message(self.Changed(field.key, choices[(at + by) % len(choices)]))

    def action_clear(self) -> None:
        if self.current and self._is_set(self.current):
            self.post_message(self.Cleared(self.current))

    @on(Input.Submitted, "#value")
    def _value_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        field = self.fields[self.current]
        empty = "null" if field.optional else '""'
        self.post_message(self.Changed(field.key, event.value.strip() or empty))
        self._close_input()

    def action_search(self) -> None:
        """Show only the settings that have some words in their names or their help."""
        self.add_class("searching")
        self.query_one("#search", Input).focus()

    @on(Input.Changed, "#search")
    def _search_changed(self) -> None:
        self._refresh_rows()

    @on(Input.Submitted, "#search")
    def _search_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.settings.focus()

    def _leave_search(self) -> None:
        self.remove_class("searching")
        self.query_one("#search", Input).value = ""
        self._refresh_rows()
        self.settings.focus()

    def on_key(self, event: Key) -> None:
        if event.key == "escape" and self.has_class("editing"):
            event.stop()
            self._close_input()
        elif event.key == "escape" and self.has_class("searching"):
            event.stop()
            self._leave_search()
        elif event.key == "down" and self.query_one("#search").has_focus:
            event.stop()
            self.settings.focus()

    def _close_input(self) -> None:
        self.remove_class("editing")
        self.settings.focus()


def list_values(field: Field) -> list[str]:
    """The values that a setting may have, where there are few."""
    if field.kind == "bool":
        return ["true", "false"]
    return [*field.choices, *(["null"] if field.optional else [])]


class SettingsList(OptionList):
    """The list itself, with j and k to move."""

    BINDINGS = [
        Binding("enter", "select", "Edit"),
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]
