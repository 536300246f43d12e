"""How a training row looks: as a conversation, and as tokens of which some are trained. Pure: rows in, text out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

ROLES = {"system": "$secondary", "user": "$accent", "assistant": "$success"}
TRAINED = "bold underline $success"
CONTEXT = "dim"
SHADE = "on $panel"
"""Behind every other token, so that one sees where each ends."""

DECIDED = {
    "accepted": ("✓ accepted", "bold $text-success"),
    "dropped": ("✗ dropped", "bold $text-error"),
    "undecided": ("? undecided", "bold $text-warning"),
}
"""Words and styles; the mark shows without colour too."""
LEGEND = Content.assemble(
    (" trained ", TRAINED), "  ", (" context, not trained ", CONTEXT), ("   ↵ line end · ◌ part of a character", "dim")
)
PROBLEMS = 8
"""Bad rows told by name in the facts."""
BARS = " ▏▎▍▌▋▊▉█"
WIDE = 24
"""Cells of a histogram's longest bar."""


def conversation(row: Mapping[str, Any]) -> Content:
    """Each turn under its role, pairs and judgements with theirs; a row of plain text as it is, a bad one with what is wrong."""
    blocks = []
    if row.get("decision", "undecided") != "undecided":
        blocks.append(Content.styled(*DECIDED[row["decision"]]))
    if row.get("reason"):
        blocks.append(Content.styled(f"✗ {row['reason']}", "bold $text-error"))
    if row.get("text"):
        blocks.append(_turn({"role": "text", "content": row["text"]}))
    for key in ("messages", "prompt", "chosen", "rejected", "completion"):
        if key != "messages" and row.get(key):
            blocks.append(Content.styled(f"── {key} ──", "bold $warning"))
        blocks += [_turn(turn) for turn in row.get(key) or ()]
    if "label" in row:
        blocks.append(Content.assemble(("judged ", "dim"), "good" if row["label"] else "bad"))
    if row.get("tools"):
        names = [str((tool.get("function") or tool).get("name", "?")) for tool in row["tools"]]
        blocks.append(Content.assemble(("tools ", "dim"), ", ".join(names)))
    if row.get("columns"):
        told = (Content.assemble((f"{name} ", "dim"), str(value)) for name, value in row["columns"].items())
        blocks.append(Content("\n").join(told))
    return Content("\n\n").join(blocks)


def origin(row: Mapping[str, Any], counts: Mapping[str, int]) -> Content:
    """What was decided about an expanded row and all others, and what the row was made from."""
    decided = Content.styled(*DECIDED[row["decision"]])
    blocks = [Content.assemble(decided, ("  " + " · ".join(f"{n:,} {word}" for word, n in counts.items()), "dim"))]
    made = row.get("origin")
    if made:
        place = f"task {made['task']} · request {made['request']:,}, item {made['item']}"
        blocks.append(Content.assemble(("Made from", "bold $accent"), "\n", (place, "dim")))
        for number, seed in enumerate(made["seeds"], 1):
            blocks.append(Content.styled(f"── seed {number} of {len(made['seeds'])} ──", "bold $warning"))
            blocks.append(conversation(seed))
    return Content("\n\n").join(blocks)


def _turn(turn: Mapping[str, Any]) -> Content:
    role = str(turn.get("role", "?"))
    heading = Content.styled(f"▌{role}", f"bold {ROLES.get(role, 'dim')}")
    calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return Content.assemble(heading, "\n", "\n".join(filter(None, (str(turn.get("content") or ""), *calls))))


def batch(shown: Mapping[str, Any]) -> Content:
    """A global batch: its rows one below the other, each packed sequence under its number."""
    if any("name" in part for part in shown["parts"]):
        return replies(shown["parts"])
    packed = len({part["sequence"] for part in shown["parts"]}) < len(shown["parts"])
    blocks = []
    for number, part in enumerate(shown["parts"], 1):
        trained = sum(piece["trained"] for piece in part["pieces"])
        told = f"▌row {number}" + (f" · sequence {part['sequence'] + 1}" if packed else "")
        heading = Content.assemble(
            (told, "bold $accent"), (f"  {len(part['pieces'])} tokens, {trained} trained", "dim")
        )
        blocks.append(Content.assemble(heading, "\n", tokens(part["pieces"])))
    return Content("\n\n").join(blocks)


def replies(parts: Sequence[Mapping[str, Any]]) -> Content:
    """Preference rows: each prompt with each of its replies, under the row's number (where there are several) and the reply's name."""
    blocks = []
    for part in parts:
        compared = sum(piece["trained"] for piece in part["pieces"])
        told = f"▌row {part['sequence'] + 1} · {part['name']}" if "sequence" in part else f"▌{part['name']}"
        heading = Content.assemble(
            (told, "bold $accent"), (f"  {len(part['pieces'])} tokens, {compared} of the reply", "dim")
        )
        blocks.append(Content.assemble(heading, "\n", tokens(part["pieces"])))
    return Content("\n\n").join(blocks)


def rendered(shown: Mapping[str, Any]) -> Content:
    """The row's text as training has it; what chat sends to get its last reply is the first part of it, or the two are shown apart."""
    if shown["same"]:
        asked, reply = shown["chat"], shown["training"][len(shown["chat"]) :]
        told = Content.styled("✓ chat sends the dim part, byte for byte; training goes on with the rest", "$success")
        return Content.assemble(told, "\n\n", (asked, "dim"), (reply, "bold"))
    told = Content.styled("✗ chat sends other bytes than training began with", "bold $text-error")
    headings = ("▌training", "bold $accent"), ("▌chat", "bold $accent")
    return Content.assemble(
        told, "\n\n", headings[0], "\n", shown["training"], "\n\n", headings[1], "\n", shown["chat"]
    )


def histogram(bars: Sequence[Sequence[float]]) -> list[Content]:
    """`[from, rows]` pairs, ascending, as horizontal bars."""
    most = max((rows for _, rows in bars), default=0)
    lines = []
    for start, rows in bars:
        eighths = math.ceil(rows / most * WIDE * 8) if most else 0
        bar = BARS[8] * (eighths // 8) + (BARS[eighths % 8] if eighths % 8 else "")
        lines.append(Content.assemble((f"{int(start):>6} ", "dim"), (bar, "$accent"), (f" {int(rows):,}", "dim")))
    return lines


def stages(asked: Sequence[str], done: Sequence[Mapping[str, Any]], shown: str) -> list[Content]:
    """What a run does with the rows first: rows in and out of those that are done, a mark at the one whose rows are shown."""
    lines = []
    if not done:
        lines.append(Content(" → ".join(asked)))
    for stage in done:
        part = "" if stage.get("part", "train") == "train" else f" {stage['part']}"
        counts = f"{stage.get('in', 0):,} → {stage.get('out', 0):,}"
        mark = "▸ " if stage["name"] == shown else "  "
        lines.append(Content.assemble((mark, "$accent"), (f"{stage['name'] + part:<21}", "dim"), counts))
    names = {stage["name"] for stage in done}
    left = [name for name in asked if name not in names | {"expand"}]
    if done and left:
        lines.append(Content.styled(f"  then {' → '.join(left)}", "dim"))
    if done or asked:
        lines.append(Content.assemble(("r", "$accent"), (" runs them up to one, and shows its rows", "dim")))
    return lines


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
    if summary.get("decisions"):
        lines += [Content(""), Content.styled("Expanded rows", "bold $accent")]
        lines += [Content.assemble((f"{word:<10}", "dim"), f"{rows:,}") for word, rows in summary["decisions"].items()]
        lines.append(Content.assemble(("v", "$accent"), (" goes to them", "dim")))
    lines += [Content(""), Content.styled("Stages", "bold $accent")]
    lines += stages(summary.get("stages", ()), summary.get("done", ()), summary.get("shown", ""))
    for part, numbers in stats.items():
        lines += [Content(""), Content.styled(f"Tokens, {part}", "bold $accent"), *_numbers(numbers)]
    if summary["problems"]:
        count = summary.get("parts", {}).get("rejected", len(summary["problems"]))
        lines += [Content(""), Content.styled(f"Rejected rows ({count:,})", "bold $text-error")]
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
    lines = [Content.assemble((f"{name:<9}", "dim"), value) for name, value in told.items()]
    return lines + histogram(numbers.get("histogram", ()))
