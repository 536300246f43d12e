"""Single judgements (KTO): a conversation, or prompt and completion, and whether it is good: `label`, or `kto_tag`.

The last turns of the assistant are what is judged.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats import alpaca
from engine.prep.formats.canonical import (
    Canonical,
    Message,
    held_canonical,
    messages_of,
    named,
    opening,
    said,
    shown,
    text_of,
    with_columns,
    with_tools,
)
from engine.prep.formats.sharegpt import turns_of

QUESTIONS = ("prompt", "instruction", "conversations", "messages")
LABELS = ("label", "kto_tag")


def matches(row: dict[str, Any]) -> bool:
    """`label` means many things: outside conversations and prompt with completion only `kto_tag` says it."""
    if isinstance(row.get("kto_tag"), bool):
        return True
    conversation = isinstance(row.get("messages"), list) or ("prompt" in row and "completion" in row)
    return isinstance(row.get("label"), bool) and conversation


def convert(row: dict[str, Any]) -> Canonical:
    label = next((name for name in LABELS if isinstance(row.get(name), bool)), None)
    if label is None:
        name, given = next(((name, row[name]) for name in LABELS if row.get(name) is not None), ("label", None))
        raise ValueError(f"{name} is {'missing' if given is None else shown(given)}, not true or false")
    before, judged, used = _parts(row)
    if not before:
        raise ValueError("there is no question before the judged reply")
    if not judged or judged[0]["role"] != "assistant":
        raise ValueError("there is no assistant turn to judge")
    found = with_tools({"prompt": before, "completion": judged, "label": row[label]}, row.get("tools"))
    return with_columns(found, row, used | {label, "tools", "system"})


def _parts(row: dict[str, Any]) -> tuple[list[Message], list[Message], frozenset[str]]:
    """Messages before the judged reply, the reply, and the columns that both were made of. Raises ValueError."""
    system = opening(row.get("system"))
    if "prompt" in row or "completion" in row:
        parts = (_turns(row.get("prompt"), "user", "prompt"), _turns(row.get("completion"), "assistant", "completion"))
        before, judged = (messages_of(turns, "turns") for turns in (system + parts[0], parts[1]))
        return before, judged, frozenset({"prompt", "completion"})
    if "instruction" in row:
        turns = [*alpaca.asked(row), said("assistant", text_of(row.get("output"), "output"))]
        used = {"instruction", "input", "output", "history"}
    else:
        name = "messages" if "messages" in row else "conversations"
        turns, used = system + turns_of(row.get(name), name), {name}
    whole = messages_of(turns, "turns")
    asked = max((at for at, turn in enumerate(whole, 1) if turn["role"] in ("user", "system")), default=0)
    return whole[:asked], whole[asked:], frozenset(used)


def _turns(value: Any, role: str, name: str) -> list[Message]:
    return turns_of(value, name) if isinstance(value, list) else [said(role, text_of(value, name))]


def revert(canonical: Canonical) -> dict[str, Any]:
    if "label" not in canonical:
        raise ValueError(f"kto cannot hold {named(canonical)}")
    row: dict[str, Any] = {
        name: canonical[name] for name in ("prompt", "completion", "label", "tools") if name in canonical
    }
    return held_canonical(row, canonical, convert)
