"""How a training row looks: as a conversation, and as tokens of which some are trained. Pure: rows in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

ROLES = {"system": "$secondary", "user": "$accent", "assistant": "$success"}
TRAINED = "bold underline $success"
CONTEXT = "dim"
SHADE = "on $panel"
"""Behind every other token, so that one sees where each ends."""

LEGEND = Content.assemble(
    (" trained ", TRAINED), "  ", (" context, not trained ", CONTEXT), ("   ↵ line end · ◌ part of a character", "dim")
)
PROBLEMS = 8
"""Bad rows told by name in the facts."""


def conversation(row: Mapping[str, Any]) -> Content:
    """Each turn under its role; a row of plain text as it is."""
    turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
    blocks = []
    for turn in turns:
        role = str(turn.get("role", "?"))
        heading = Content.styled(f"▌{role}", f"bold {ROLES.get(role, 'dim')}")
        blocks.append(Content.assemble(heading, "\n", str(turn.get("content") or "")))
    return Content("\n\n").join(blocks)


def tokens(pieces: Sequence[Mapping[str, Any]]) -> Content:
    """The tokens in order; trained ones underlined, so that it shows without colour too."""
    parts: list[tuple[str, str]] = []
    for at, piece in enumerate(pieces):
        text = str(piece["text"]).replace("\n", "↵\n") or "◌"
        style = TRAINED if piece["trained"] else CONTEXT
        parts.append((text, f"{style} {SHADE}" if at % 2 else style))
    return Content.assemble(*parts)


def facts(summary: Mapping[str, Any], stats: Mapping[str, Mapping[str, Any]]) -> Content:
    """Sources with their counts, what tokenising them would give, what is wrong with which row."""
    lines = [Content.styled("Sources", "bold $accent")]
    for source in summary["sources"]:
        lines.append(Content.assemble((source["source"], "bold")))
        lines.append(Content.styled(f"  {source['part']} · {source['format']} · {source['rows']:,} rows", "dim"))
        if source["rejected"]:
            lines.append(Content.styled(f"  ✗ {source['rejected']:,} rejected", "$text-error"))
    for part, numbers in stats.items():
        lines += [Content(""), Content.styled(f"Tokens, {part}", "bold $accent"), *_numbers(numbers)]
    if summary["problems"]:
        lines += [Content(""), Content.styled(f"Rejected rows ({len(summary['problems'])})", "bold $text-error")]
        for problem in summary["problems"][:PROBLEMS]:
            name = str(problem["file"]).rpartition("/")[2]
            lines.append(Content.assemble((f"{name}:{problem['line']} ", "dim"), str(problem["reason"])))
    lines += [Content(""), Content.assemble(("base ", "dim"), str(summary.get("base", "")))]
    lines.append(Content.assemble(("template ", "dim"), str(summary.get("template", ""))))
    return Content("\n").join(lines)


def _numbers(numbers: Mapping[str, Any]) -> list[Content]:
    total, trained = numbers.get("tokens", 0), numbers.get("trained_tokens", 0)
    share = f"{trained:,} ({trained / total:.0%})" if total else "0"
    told = {
        "rows": f"{numbers.get('rows', 0):,}",
        "tokens": f"{total:,}",
        "trained": share,
        "a row": f"p50 {numbers.get('p50', 0)}, p95 {numbers.get('p95', 0)}, max {numbers.get('max', 0)}",
        "cut": f"{numbers.get('truncated', 0):,} rows",
    }
    return [Content.assemble((f"{name:<9}", "dim"), value) for name, value in told.items()]
