"""An editor of YAML that marks problems: ✗ beside the line, and the place underlined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.strip import Strip
from textual.widgets import TextArea
from textual.widgets.text_area import TextAreaTheme

from cockpit.widgets.completion import complete_yaml

MARK = Style(color="bright_white", bgcolor="red", bold=True)
LIGHT = "cockpit-light"
"""The colours of syntax on a light background."""
PLACE = Style(underline=True)


class YamlEditor(TextArea):
    """Highlighted YAML with line numbers. `mark` shows problems. Lines do not wrap, so each is one row, which
    `render_line` relies on."""

    DEFAULT_CSS = """
    YamlEditor {
        width: 1fr; height: 1fr; border: none; padding: 0; border-left: solid $primary; scrollbar-size-vertical: 1;
        scrollbar-size-horizontal: 1;
    }
    YamlEditor:focus { border: none; border-left: solid $accent; }
    """

    def __init__(self, **options: str | None) -> None:
        super().__init__(
            "", language="yaml", soft_wrap=False, show_line_numbers=True, tab_behavior="focus", id=options.get("id")
        )
        self.columns: Mapping[int, int] = {}
        self.completions: Mapping[str, Sequence[str]] = {}
        """Settings by their dotted names, each with the values that it may have."""

    def on_mount(self) -> None:
        if (light := TextAreaTheme.get_builtin_theme("github_light")) is not None:
            styles = {name: _darken(style) for name, style in light.syntax_styles.items()}
            self.register_theme(replace(light, name=LIGHT, syntax_styles=styles))
        self.app.theme_changed_signal.subscribe(self, lambda theme: self._choose_colours(theme.dark))
        self._choose_colours(self.app.current_theme.dark)

    def _choose_colours(self, dark: bool) -> None:
        """Textual's colours of syntax are made for dark themes; on light ones they cannot be read."""
        self.theme = "css" if dark else LIGHT

    def update_suggestion(self) -> None:
        """Propose the rest of a key or value at the end of a line; `→` takes it over."""
        row, column = self.cursor_location
        lines = self.document.lines
        at_end = not self.read_only and column == len(lines[row])
        self.suggestion = complete_yaml(lines, row, self.completions) if at_end else ""

    def mark(self, columns: Mapping[int, int]) -> None:
        """Mark these lines, each from a column to its end. Lines and columns count from 1."""
        self.columns = columns
        self.refresh()

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        line = y + self.scroll_offset.y + 1
        if line not in self.columns:
            return strip
        gutter, width = self.gutter_width, strip.cell_length
        start = max(gutter, gutter + self.columns[line] - 1 - self.scroll_offset.x)
        end = (
            max(start, min(width, gutter + len(self.document.get_line(line - 1).rstrip()) - self.scroll_offset.x))
            if line <= self.document.line_count
            else start
        )
        parts = [
            strip.crop(0, gutter - 2),
            Strip([Segment("✗ ", MARK)]),
            strip.crop(gutter, start),
            strip.crop(start, end).apply_style(PLACE),
            strip.crop(end, width),
        ]
        return Strip.join(parts)

    def go_to(self, line: int, column: int) -> None:
        """Move the cursor to a line and column (from 1) and focus the editor."""
        self.focus()
        self.move_cursor((max(line - 1, 0), max(column - 1, 0)), center=True)


def _darken(style: Style) -> Style:
    """The style with a darker text: its own is too pale on the line of the cursor."""
    if style.color is None:
        return style
    return style + Style(color=Color.from_rich_color(style.color).darken(0.1).rich_color)
