"""Widgets that show a reply by its format: JSON as a tree, triples as a table, a thought graph by standpoint, thinking
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
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Collapsible, Markdown, Static, Tree
from textual.widgets.tree import TreeNode

from cockpit.state.reply_format import TRIPLE, ParsedReply

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
    match reply.kind:
        case "triples":
            yield Triples(reply.value)
        case "graph":
            yield Graph(reply.value)
        case "json":
            yield JsonTree(reply.value)
        case _ if reply.body[:1] in ("[", "{"):
            yield Static(
                Content(reply.body)
            )  # incomplete or almost valid JSON: its lines are easier to read than a paragraph
        case _ if reply.body.strip():
            yield Markdown(reply.body, open_links=False)
        case _:
            yield Static(Content.styled("(an empty reply)", MUTED))


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
            Static(text, markup=False), title=f"thinking · {words} word{'s'[: words != 1]}", collapsed=True
        )


# ── triples ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Triples(Static):
    """A table of subject, predicate and object, with their types where there are any. Laid out again for every
    width."""

    DEFAULT_CSS = "Triples { height: auto; padding: 0 1; }"

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self._rows = rows
        self._width = 0

    def on_resize(self, event: events.Resize) -> None:
        width = self.content_size.width
        if width and width != self._width:
            self._width = width
            self.update(format_triples(self._rows, width))


def format_triples(rows: Sequence[dict[str, Any]], width: int) -> Content:
    """Triples in columns that wrap, at most `width` cells wide, and their number. In a narrow place they are
    stacked."""
    count = Content.styled(f"{len(rows)} triple{'s'[: len(rows) != 1]}", MUTED)
    if width < NARROW:
        return Content("\n").join([line for row in rows for line in _stacked(row, width)] + [count])
    cells = [[_cell(row, key) for key in TRIPLE] for row in rows]
    heads = [Content.styled(key, "bold $accent") for key in TRIPLE]
    room = width - GAP * (len(heads) - 1)
    widths = _widths([max(cell.cell_length for cell in column) for column in zip(heads, *cells, strict=True)], room)
    rule = Content.styled("─" * min(width, sum(widths) + GAP * (len(widths) - 1)), "$primary")
    lines = [*_row_lines(heads, widths), rule]
    tall = any(len(_row_lines(row, widths)) > 1 for row in cells)
    for number, row in enumerate(cells):
        lines += [Content("")] if tall and number else []
        lines += _row_lines(row, widths)
    return Content("\n").join([*lines, count])


def _stacked(row: dict[str, Any], width: int) -> list[Content]:
    """A triple for a narrow place: its subject, and indented below it predicate and object."""
    lines = _cell(row, "subject").wrap(width)
    for key in ("predicate", "object"):
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


# ── thought graphs ─────────────────────────────────────────────────────────────────────────────────────────────────


class Graph(Vertical):
    """The question, each standpoint with its arguments below, and the counter-questions."""

    DEFAULT_CSS = """
    Graph { height: auto; padding: 0 1; }
    Graph Static { height: auto; }
    Graph .standpoint { height: auto; margin: 1 0 0 0; text-style: bold; }
    Graph .number { width: 3; color: $accent; }
    Graph .text { width: 1fr; }
    Graph .below { margin: 0 0 0 1; padding: 0 0 0 1; border-left: solid $primary; }
    Graph .against { margin: 0 0 0 1; padding: 0 0 0 1; border-left: solid $warning; }
    Graph .counter { margin: 1 0 0 0; color: $warning; text-style: bold; }
    """

    def __init__(self, graph: dict[str, Any]) -> None:
        super().__init__()
        self._graph = graph

    def compose(self) -> ComposeResult:
        if question := self._graph.get("question"):
            yield Static(Content.assemble((str(question), "bold $accent")))
        for number, standpoint in enumerate(self._graph["standpoints"], 1):
            with Horizontal(classes="standpoint"):
                yield Static(str(number), classes="number")
                yield Static(Content(standpoint["text"]), classes="text")
            for argument in standpoint.get("arguments", []):
                yield Static(Content(argument["text"]), classes="below")
        counters = self._graph.get("counter_questions", [])
        if counters:
            yield Static("Counter-questions", classes="counter")
        for question in counters:
            yield Static(Content(question["text"]), classes="against")


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
                below = node.add(_label(name, f"{words} word{'s'[: words != 1]}", "dim"), expand=True)
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
        return f"{{{count} key{'s'[: count != 1]}}}"
    return f"[{count} item{'s'[: count != 1]}]"
