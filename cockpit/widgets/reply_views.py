"""Widgets that show a reply by its format: JSON as its task draws it (a table, an outline) or as a tree, thinking
folded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Collapsible, Markdown, Static, Tree
from textual.widgets.tree import TreeNode

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.reply_format import ParsedReply
from cockpit.widgets.tool_views import show_part
from engine.config.tasks import Outline, Table
from engine.protocol.terminal import show_controls

GAP = 2
NARROW = 40
"""Cells below which triples are stacked rather than in columns."""
MIN_COLUMN = 8
"""Cells that a column of a table keeps on a narrow screen."""
OPEN_LEVELS = 2
"""Levels of a JSON tree that are initially open."""
MUTED = "$foreground-muted"


def views(reply: ParsedReply) -> Iterator[Widget]:
    """The widgets that show a complete reply."""
    if reply.thinking:
        yield Thinking(reply.thinking)
    match reply.kind, reply.view:
        case "json", Table() as view:
            yield TableView(reply.value, view)
        case "json", Outline() as view:
            yield OutlineView(reply.value, view)
        case "json", _:
            yield JsonTree(reply.value)
        case "tools", _:
            for part in reply.parts:
                if isinstance(part, str):
                    yield Markdown(show_controls(part), open_links=False)
                else:
                    yield Static(show_part(part))
        case _ if reply.body[:1] in ("[", "{"):
            yield Static(
                Content(reply.body)
            )  # incomplete or almost valid JSON: its lines are easier to read than a paragraph
        case _ if reply.body.strip():
            yield Markdown(show_controls(reply.body), open_links=False)
        case _:
            yield Static(Content.styled(tr("(an empty reply)"), MUTED))


class Thinking(Collapsible):
    """The model's thinking: one line until it is opened."""

    DEFAULT_CSS = """
    Thinking { border: none; padding: 0; margin: 0; background: transparent; height: auto; }
    Thinking > Contents { padding: 0 1 0 3; color: $text-muted; }
    Thinking CollapsibleTitle { padding: 0 1; color: $text-muted; }
    """

    def __init__(self, text: str) -> None:
        words = len(text.split())
        super().__init__(
            Static(Content(text)),
            title=tr("thinking · {words} word{plural}", words=words, plural="s"[: words != 1]),
            collapsed=True,
        )


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class TableView(Static):
    """A table with an object in each row, and the types of its texts where there are any. Laid out again for every
    width."""

    DEFAULT_CSS = "TableView { height: auto; padding: 0 1; }"

    def __init__(self, rows: Sequence[dict[str, Any]], view: Table) -> None:
        super().__init__()
        self._rows, self._view = rows, view
        self._width = 0

    def on_resize(self, event: events.Resize) -> None:
        width = self.content_size.width
        if width and width != self._width:
            self._width = width
            self.update(format_table(self._rows, self._view, width))


def format_table(rows: Sequence[dict[str, Any]], view: Table, width: int) -> Content:
    """Columns that wrap, at most `width` cells wide, and the number of rows. In a narrow place they are stacked."""
    count = Content.styled(f"{len(rows)} {view.noun}{'s'[: len(rows) != 1]}", MUTED)
    if width < NARROW:
        return Content("\n").join([line for row in rows for line in _stacked(row, view, width)] + [count])
    cells = [[_cell(row, key) for key in view.columns] for row in rows]
    heads = [Content.styled(key, "bold $accent") for key in view.columns]
    room = width - GAP * (len(heads) - 1)
    widths = _widths([max(cell.cell_length for cell in column) for column in zip(heads, *cells, strict=True)], room)
    rule = Content.styled("─" * min(width, sum(widths) + GAP * (len(widths) - 1)), "$primary")
    lines = [*_row_lines(heads, widths), rule]
    tall = any(len(_row_lines(row, widths)) > 1 for row in cells)
    for number, row in enumerate(cells):
        lines += [Content("")] if tall and number else []
        lines += _row_lines(row, widths)
    return Content("\n").join([*lines, count])


def _stacked(row: dict[str, Any], view: Table, width: int) -> list[Content]:
    """A row for a narrow place: its first column, and the others indented below it."""
    first, *others = view.columns
    lines = _cell(row, first).wrap(width)
    for key in others:
        lines += [Content.assemble("  ", line) for line in _cell(row, key).wrap(max(1, width - 2))]
    return [line.rstrip() for line in lines]


def _cell(row: dict[str, Any], key: str) -> Content:
    text = " ".join(str(row[key]).split())
    kind = " ".join(str(row.get(f"{key}_type") or "").split())
    return Content.assemble(text, (f" {kind}" if kind else "", f"italic {MUTED}"))


def _widths(natural: list[int], room: int) -> list[int]:
    """The width of each column: its natural width; without enough room the widest columns shrink first."""
    widths = list(natural)
    while sum(widths) > room and max(widths) > MIN_COLUMN:
        widths[widths.index(max(widths))] -= 1
    return widths


def _row_lines(row: Sequence[Content], widths: Sequence[int]) -> list[Content]:
    """A row's lines, with each cell wrapped to its column."""
    wrapped = [cell.wrap(width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for at in range(max(map(len, wrapped))):
        parts = [cell[at].rstrip() if at < len(cell) else Content("") for cell in wrapped]
        padded = [part.pad_right(max(0, width - part.cell_length)) for part, width in zip(parts, widths, strict=True)]
        lines.append(Content(" " * GAP).join(padded))
    return lines


# ── outlines ───────────────────────────────────────────────────────────────────────────────────────────────────────


class OutlineView(Vertical):
    """The title, each point with its details below, and the objections."""

    DEFAULT_CSS = """
    OutlineView { height: auto; padding: 0 1; }
    OutlineView Static { height: auto; }
    OutlineView .standpoint { height: auto; margin: 1 0 0 0; text-style: bold; }
    OutlineView .number { width: 3; color: $accent; }
    OutlineView .text { width: 1fr; }
    OutlineView .below { margin: 0 0 0 1; padding: 0 0 0 1; border-left: solid $primary; }
    OutlineView .against { margin: 0 0 0 1; padding: 0 0 0 1; border-left: solid $warning; }
    OutlineView .counter { margin: 1 0 0 0; color: $warning; text-style: bold; }
    """

    def __init__(self, value: dict[str, Any], view: Outline) -> None:
        super().__init__()
        self._value, self._view = value, view

    def compose(self) -> ComposeResult:
        if title := self._value.get(self._view.title):
            yield Static(Content.assemble((str(title), "bold $accent")))
        for number, point in enumerate(self._value[self._view.points], 1):
            with Horizontal(classes="standpoint"):
                yield Static(str(number), classes="number")
                yield Static(Content(point["text"]), classes="text")
            for detail in point.get(self._view.details, []):
                yield Static(Content(detail["text"]), classes="below")
        objections = self._value.get(self._view.objections, [])
        if objections:
            yield Static(self._view.objections.replace("_", "-").capitalize(), classes="counter")
        for objection in objections:
            yield Static(Content(objection["text"]), classes="against")


# ── other JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────


class JsonTree(Tree[None]):
    """Objects and lists that fold. A long text has its lines below its name."""

    DEFAULT_CSS = """
    JsonTree { height: auto; width: 1fr; background: transparent; padding: 0 1; overflow-x: hidden; }
    JsonTree > .tree--cursor { background: transparent; text-style: none; color: $foreground; }
    JsonTree:focus > .tree--cursor { background: $panel; text-style: bold; }
    """
    BINDINGS = [
        Binding("space", "toggle_node", "Fold"),
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]
    LINE = 60
    """Cells of the longest text on one line."""

    def __init__(self, value: Any) -> None:
        super().__init__(Text(_count(value), "dim"))
        self.guide_depth = 2
        self.auto_expand = True
        self._add_nodes(self.root, value, 0)
        self.root.expand()

    def _add_nodes(self, node: TreeNode[None], value: Any, depth: int) -> None:
        pairs = value.items() if isinstance(value, dict) else ((str(at), each) for at, each in enumerate(value))
        for name, each in pairs:
            if isinstance(each, (dict, list)) and each:
                below = node.add(_label(name, _count(each), "dim"), expand=depth + 1 < OPEN_LEVELS)
                self._add_nodes(below, each, depth + 1)
            elif isinstance(each, str) and cell_len(each) > self.LINE:
                words = len(each.split())
                below = node.add(
                    _label(name, tr("{words} word{plural}", words=words, plural="s"[: words != 1]), "dim"), expand=True
                )
                for line in Content(each).wrap(self.LINE):
                    below.add_leaf(Text(line.plain.rstrip()))
            else:
                text = json.dumps(each, ensure_ascii=False)
                node.add_leaf(_label(name, text, "" if isinstance(each, str) else "italic"))


def _label(name: str, value: str, style: str) -> Text:
    return Text.assemble((name, "bold"), "  ", (value, style))


def _count(value: Any) -> str:
    count = len(value)
    if isinstance(value, dict):
        return tr("{{{count} key{plural}}}", count=count, plural="s"[: count != 1])
    return f"[{count} item{'s'[: count != 1]}]"
