"""Single judgements (KTO): a conversation, or prompt and completion, with a `label` or `kto_tag` that says whether it
is good.

The label judges the assistant's last turns.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats import alpaca
from engine.prep.formats.canonical import (
    Canonical,
    Message,
    abbreviate,
    add_columns,
    add_tools,
    check_messages,
    check_text,
    describe_kind,
    make_message,
    restore_canonical_columns,
    system_turns,
)
from engine.prep.formats.sharegpt import convert_turns

KIND = "judged"
QUESTIONS = ("prompt", "instruction", "conversations", "messages")
LABELS = ("label", "kto_tag")


def matches(row: dict[str, Any]) -> bool:
    """A `label` counts only beside a conversation or prompt and completion: elsewhere it may mean anything."""
    if isinstance(row.get("kto_tag"), bool):
        return True
    conversation = isinstance(row.get("messages"), list) or ("prompt" in row and "completion" in row)
    return isinstance(row.get("label"), bool) and conversation


def convert(row: dict[str, Any]) -> Canonical:
    label = next((name for name in LABELS if isinstance(row.get(name), bool)), None)
    if label is None:
        name, given = next(((name, row[name]) for name in LABELS if row.get(name) is not None), ("label", None))
        raise ValueError(f"{name} is {'missing' if given is None else abbreviate(given)}, not true or false")
    before, judged, used = _split_judged(row)
    if not before:
        raise ValueError("there is no question before the judged reply")
    if not judged or judged[0]["role"] != "assistant":
        raise ValueError("there is no assistant turn to judge")
    found = add_tools({"prompt": before, "completion": judged, "label": row[label]}, row.get("tools"))
    return add_columns(found, row, used | {label, "tools", "system"})


def _split_judged(row: dict[str, Any]) -> tuple[list[Message], list[Message], frozenset[str]]:
    """The messages before the judged reply, the reply, and the columns that both came from. Raises ValueError."""
    system = system_turns(row.get("system"))
    if "prompt" in row or "completion" in row:
        parts = (
            _read_turns(row.get("prompt"), "user", "prompt"),
            _read_turns(row.get("completion"), "assistant", "completion"),
        )
        before, judged = (check_messages(turns, "turns") for turns in (system + parts[0], parts[1]))
        return before, judged, frozenset({"prompt", "completion"})
    if "instruction" in row:
        turns = [*alpaca.question_turns(row), make_message("assistant", check_text(row.get("output"), "output"))]
        used = {"instruction", "input", "output", "history"}
    else:
        name = "messages" if "messages" in row else "conversations"
        turns, used = system + convert_turns(row.get(name), name), {name}
    whole = check_messages(turns, "turns")
    end = max((at for at, turn in enumerate(whole, 1) if turn["role"] in ("user", "system")), default=0)
    return whole[:end], whole[end:], frozenset(used)


def _read_turns(value: Any, role: str, name: str) -> list[Message]:
    return convert_turns(value, name) if isinstance(value, list) else [make_message(role, check_text(value, name))]


def revert(canonical: Canonical) -> dict[str, Any]:
    if "label" not in canonical:
        raise ValueError(f"kto cannot hold {describe_kind(canonical)}")
    row: dict[str, Any] = {
        name: canonical[name] for name in ("prompt", "completion", "label", "tools") if name in canonical
    }
    return restore_canonical_columns(row, canonical, convert)
