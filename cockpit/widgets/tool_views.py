"""Tool calls and their results, as a conversation shows them."""

from __future__ import annotations

import json
from typing import Any

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.reply_format import indent_json
from cockpit.state.tool_text import Part, ToolCall, ToolResult, split_tools

MUTED = "$foreground-muted"
MAX_LINES = 40
"""Lines of a result that are shown; the raw view has all."""


def show_part(part: Part) -> Content:
    """A call with its arguments below it, a result below its mark, or text as it stands."""
    match part:
        case ToolCall(name, arguments):
            lines = [Content.assemble((tr("▸ calls "), MUTED), (name, "bold $accent"))]
            for key, value in arguments.items():
                text = value if isinstance(value, str) else _write(value)
                lines.append(Content.assemble((f"    {key}  ", MUTED), text))
            return Content("\n").join(lines)
        case ToolResult(text):
            shown = indent_json(text).splitlines()
            more = [tr("… {count} more lines", count=len(shown) - MAX_LINES)] if len(shown) > MAX_LINES else []
            body = "\n".join(f"    {line}" for line in [*shown[:MAX_LINES], *more])
            return Content.assemble((tr("◂ result"), f"bold {MUTED}"), "\n", body)
    return Content(str(part))


def _write(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # read with more room on the stack
        return "…"


def show_question(text: str) -> Content:
    """A question; the results of tools in it are shown as such."""
    return Content("\n").join([show_part(part) for part in split_tools(text)]) if "<tool_" in text else Content(text)
