"""Training rows as text: as conversations, as tokens with those marked that are trained, and facts about them. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.formatting import counted

ROLES = {"system": "$secondary", "user": "$accent", "assistant": "$success"}
TRAINED = "bold underline $success"
CONTEXT = "dim"
SHADE = "on $panel"
"""Background of every other token, which shows where each ends."""

DECISIONS = {
    "accepted": ("✓ accepted", "bold $text-success"),
    "dropped": ("✗ dropped", "bold $text-error"),
    "undecided": ("? undecided", "bold $text-warning"),
}
"""Decision -> text and style. The mark distinguishes them without colour."""
LEGEND = Content.assemble(
    (" trained ", TRAINED), "  ", (" context, not trained ", CONTEXT), ("   ↵ line end · ◌ part of a character", "dim")
)
MAX_COLUMNS = 5
"""Unused columns listed in the facts of a source."""
MAX_PROBLEMS = 8
"""Bad rows listed in the facts."""
BARS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 24
"""Cells of a histogram's longest bar."""


def conversation(row: Mapping[str, Any]) -> Content:
    """Each turn under its role, and the parts of a preference row under their names; plain text unchanged; a bad row
    with its reason."""
    blocks = []
    if row.get("decision", "undecided") != "undecided":
        blocks.append(Content.styled(*DECISIONS[row["decision"]]))
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
        columns = (Content.assemble((f"{name} ", "dim"), str(value)) for name, value in row["columns"].items())
        blocks.append(Content("\n").join(columns))
    return Content("\n\n").join(blocks)


def origin(row: Mapping[str, Any], counts: Mapping[str, int]) -> Content:
    """The decision about an expanded row, the counts of all decisions, and the seeds that the row was made from."""
    decision = Content.styled(*DECISIONS[row["decision"]])
    blocks = [Content.assemble(decision, ("  " + " · ".join(f"{n:,} {word}" for word, n in counts.items()), "dim"))]
    made = row.get("origin")
    if made:
        place = tr(
            "task {task} · request {request:,}, item {item}",
            task=made["task"],
            request=made["request"],
            item=made["item"],
        )
        blocks.append(Content.assemble((tr("Made from"), "bold $accent"), "\n", (place, "dim")))
        for number, seed in enumerate(made["seeds"], 1):
            blocks.append(
                Content.styled(
                    tr("── seed {number} of {seeds} ──", number=number, seeds=len(made["seeds"])), "bold $warning"
                )
            )
            blocks.append(conversation(seed))
    return Content("\n\n").join(blocks)


def _turn(turn: Mapping[str, Any]) -> Content:
    role = str(turn.get("role", "?"))
    heading = Content.styled(f"▌{role}", f"bold {ROLES.get(role, 'dim')}")
    calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return Content.assemble(heading, "\n", "\n".join(filter(None, (str(turn.get("content") or ""), *calls))))


def batch(content: Mapping[str, Any]) -> Content:
    """A global batch: its rows one below the other, packed sequences with their numbers."""
    if any("name" in part for part in content["parts"]):
        return replies(content["parts"])
    packed = len({part["sequence"] for part in content["parts"]}) < len(content["parts"])
    blocks = []
    for number, part in enumerate(content["parts"], 1):
        trained = sum(piece["trained"] for piece in part["pieces"])
        title = tr("▌row {number}", number=number) + (
            tr(" · sequence {sequence}", sequence=part["sequence"] + 1) if packed else ""
        )
        heading = Content.assemble(
            (title, "bold $accent"),
            (tr("  {pieces} tokens, {trained} trained", pieces=len(part["pieces"]), trained=trained), "dim"),
        )
        blocks.append(Content.assemble(heading, "\n", tokens(part["pieces"])))
    return Content("\n\n").join(blocks)


def replies(parts: Sequence[Mapping[str, Any]]) -> Content:
    """Preference rows: each prompt with each of its replies, under the row's number (when there are several) and the
    reply's name."""
    blocks = []
    for part in parts:
        compared = sum(piece["trained"] for piece in part["pieces"])
        title = (
            tr("▌row {sequence} · {name}", sequence=part["sequence"] + 1, name=part["name"])
            if "sequence" in part
            else f"▌{part['name']}"
        )
        heading = Content.assemble(
            (title, "bold $accent"),
            (tr("  {pieces} tokens, {compared} of the reply", pieces=len(part["pieces"]), compared=compared), "dim"),
        )
        blocks.append(Content.assemble(heading, "\n", tokens(part["pieces"])))
    return Content("\n\n").join(blocks)


def rendered(texts: Mapping[str, Any]) -> Content:
    """The row's text as training sees it. When chat's prompt for the last reply is not its first part, the two are
    shown separately."""
    if texts["same"]:
        prompt, reply = texts["chat"], texts["training"][len(texts["chat"]) :]
        several = texts.get("sequences", 1)
        which = (
            tr(" (the last of {several} sequences, one for each reply that changes in history)", several=several)
            if several > 1
            else ""
        )
        verdict = Content.styled(
            tr("✓ chat sends the dim part, byte for byte; training continues with the rest{which}", which=which),
            "$success",
        )
        return Content.assemble(verdict, "\n\n", (prompt, "dim"), (reply, "bold"))
    verdict = Content.styled(tr("✗ chat sends other bytes than training starts with"), "bold $text-error")
    headings = ("▌training", "bold $accent"), ("▌chat", "bold $accent")
    return Content.assemble(
        verdict, "\n\n", headings[0], "\n", texts["training"], "\n\n", headings[1], "\n", texts["chat"]
    )


def histogram(bars: Sequence[Sequence[float]]) -> list[Content]:
    """`[from, rows]` pairs, ascending, as horizontal bars."""
    most = max((rows for _, rows in bars), default=0)
    lines = []
    for start, rows in bars:
        eighths = math.ceil(rows / most * BAR_WIDTH * 8) if most else 0
        bar = BARS[8] * (eighths // 8) + (BARS[eighths % 8] if eighths % 8 else "")
        lines.append(Content.assemble((f"{int(start):>6} ", "dim"), (bar, "$accent"), (f" {int(rows):,}", "dim")))
    return lines


def stages(names: Sequence[str], done: Sequence[Mapping[str, Any]], shown: str) -> list[Content]:
    """The stages that a run does first: the rows in and out of finished ones, with a mark at the stage whose rows are
    on the screen."""
    lines = []
    if not done:
        lines.append(Content(" → ".join(names)))
    for stage in done:
        part = "" if stage.get("part", "train") == "train" else f" {stage['part']}"
        counts = f"{stage.get('in', 0):,} → {stage.get('out', 0):,}"
        mark = "▸ " if stage["name"] == shown else "  "
        lines.append(Content.assemble((mark, "$accent"), (f"{stage['name'] + part:<21}", "dim"), counts))
    finished = {stage["name"] for stage in done}
    left = [name for name in names if name not in finished | {"expand"}]
    if done and left:
        lines.append(Content.styled(tr("  then {left}", left=" → ".join(left)), "dim"))
    if done or names:
        lines.append(Content.assemble(("r", "$accent"), (tr(" runs them up to one, and shows its rows"), "dim")))
    return lines


def tokens(pieces: Sequence[Mapping[str, Any]]) -> Content:
    """The tokens in order, the trained ones underlined, which is visible without colour too."""
    parts: list[tuple[str, str]] = []
    for at, piece in enumerate(pieces):
        style = TRAINED if piece["trained"] else CONTEXT
        parts.append((write_token(str(piece["text"])), f"{style} {SHADE}" if at % 2 else style))
    return Content.assemble(*parts)


def write_token(text: str) -> str:
    """A token's text with the line ends and the parts of characters in it shown."""
    return text.replace("\ufffd", "◌").replace("\n", "↵\n") or "◌"


def facts(summary: Mapping[str, Any], stats: Mapping[str, Mapping[str, Any]]) -> Content:
    """The sources with their counts, the token statistics, and the bad rows."""
    lines = [Content.styled("Sources", "bold $accent")]
    for source in summary["sources"]:
        lines.append(Content.assemble((source["source"], "bold")))
        lines.append(
            Content.styled(f"  {source['part']} · {source['format']} · {counted(source['rows'], 'row')}", "dim")
        )
        if source["rejected"]:
            lines.append(Content.styled(tr("  ✗ {rejected:,} rejected", rejected=source["rejected"]), "$text-error"))
        if unused := source.get("unused_columns"):
            listed = ", ".join(f"{name} ({rows:,})" for name, rows in list(unused.items())[:MAX_COLUMNS])
            more = tr(" and {unused} more", unused=len(unused) - MAX_COLUMNS) if len(unused) > MAX_COLUMNS else ""
            lines.append(Content.styled(tr("  columns not used: {listed}{more}", listed=listed, more=more), "dim"))
        if source.get("left_out"):
            lines.append(
                Content.styled(
                    tr("  {files} of other splits not read", files=counted(source["left_out"], "file")), "$text-warning"
                )
            )
    if summary.get("decisions"):
        lines += [Content(""), Content.styled(tr("Expanded rows"), "bold $accent")]
        lines += [Content.assemble((f"{word:<10}", "dim"), f"{rows:,}") for word, rows in summary["decisions"].items()]
        lines.append(Content.assemble(("v", "$accent"), (tr(" shows them"), "dim")))
    lines += [Content(""), Content.styled("Stages", "bold $accent")]
    lines += stages(summary.get("stages", ()), summary.get("done", ()), summary.get("shown", ""))
    for part, numbers in stats.items():
        lines += [Content(""), Content.styled(tr("Tokens, {part}", part=part), "bold $accent"), *_numbers(numbers)]
    dropped = [row for numbers in stats.values() for row in numbers.get("dropped", ())]
    problems = [*summary["problems"][: MAX_PROBLEMS // 2 if dropped else MAX_PROBLEMS], *dropped][:MAX_PROBLEMS]
    if problems:
        count = summary.get("parts", {}).get("rejected", len(problems))
        lines += [Content(""), Content.styled(tr("Rejected rows ({count:,})", count=count), "bold $text-error")]
        for problem in problems:
            name = str(problem["file"]).rpartition("/")[2]
            lines.append(Content.assemble((f"{name}:{problem['line']} ", "dim"), str(problem["reason"])))
    lines += [Content(""), Content.assemble(("base ", "dim"), str(summary.get("base", "")))]
    lines.append(Content.assemble(("template ", "dim"), str(summary.get("template", ""))))
    return Content("\n").join(lines)


def _numbers(numbers: Mapping[str, Any]) -> list[Content]:
    total, trained = numbers.get("tokens", 0), numbers.get("trained_tokens", 0)
    share = f"{trained:,} ({trained / total:.0%})" if total else "0"
    values = {
        "rows": f"{numbers.get('rows', 0):,}",
        "tokens": f"{total:,}",
        "trained": share,
        "a row": tr(
            "p50 {p50}, p95 {p95}, max {max}",
            p50=numbers.get("p50", 0),
            p95=numbers.get("p95", 0),
            max=numbers.get("max", 0),
        ),
        "cut": counted(numbers.get("truncated", 0), "row"),
    }
    if (turns := numbers.get("turns")) and turns.keys() - {"together"}:
        values["turns"] = ", ".join(f"{count:,} {means}" for means, count in turns.items())
    lines = [Content.assemble((f"{name:<9}", "dim"), value) for name, value in values.items()]
    return lines + histogram(numbers.get("histogram", ()))
