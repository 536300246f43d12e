"""Single judgements (KTO): a conversation, or prompt and completion, with a `label` or `kto_tag` that says whether it
is good.

A label is true or false, 1 or 0, or one of the words that `cells.read_label` knows. It judges the assistant's last
turns.
"""

from __future__ import annotations

from typing import Any

from engine.prep.formats import alpaca
from engine.prep.formats.canonical import (
    SYSTEM_COLUMNS,
    Canonical,
    Message,
    abbreviate,
    add_columns,
    add_tools,
    check_messages,
    check_text,
    describe_kind,
    find_system,
    make_message,
    restore_canonical_columns,
)
from engine.prep.formats.cells import (
    JUDGEMENTS,
    find_filled,
    is_bad_word,
    is_turns,
    parse_cell,
    parse_together,
    read_label,
)
from engine.prep.formats.sharegpt import convert_turns

KIND = "judged"
QUESTIONS = ("prompt", "question", "instruction", "conversations", "messages")
ANSWERS = ("completion", "response", "answer")
_TEXTS = ("prompt", "question")
LABELS = ("label", "kto_tag")
COLUMNS = frozenset({*QUESTIONS, *ANSWERS, *LABELS, "input", "output", "history", "tools", *SYSTEM_COLUMNS})


def matches(row: dict[str, Any]) -> bool:
    """A `label` counts only beside a conversation or a question and its answer: elsewhere it may mean anything."""
    if read_label(row.get("kto_tag")) is not None:
        return True
    if read_label(row.get("label")) is None:
        return False
    exchange = any(row.get(name) is not None for name in _TEXTS) and any(row.get(name) is not None for name in ANSWERS)
    return exchange or any(is_turns(parse_cell(row.get(name))) for name in ("messages", "conversations"))


def find_bad_label(row: dict[str, Any]) -> str | None:
    """The column whose value says that the row's reply is bad, as far as a row of any format can say so."""
    return next((name for name in LABELS if is_bad_word(row.get(name))), None)


def convert(row: dict[str, Any]) -> Canonical:
    name = next((name for name in LABELS if read_label(row.get(name)) is not None), None)
    if name is None:
        name, given = next(((name, row[name]) for name in LABELS if row.get(name) is not None), ("label", None))
        raise ValueError(f"{name} is {'missing' if given is None else abbreviate(given)}, not one of {JUDGEMENTS}")
    label = read_label(row[name])
    before, judged, used = _split_judged(row)
    if not before:
        raise ValueError("there is no question before the judged reply")
    if not judged or judged[0]["role"] != "assistant":
        raise ValueError("there is no assistant turn to judge")
    found = add_tools({"prompt": before, "completion": judged, "label": label}, row.get("tools"))
    return add_columns(found, row, used | {name, "tools"})


def _split_judged(row: dict[str, Any]) -> tuple[list[Message], list[Message], frozenset[str]]:
    """The messages before the judged reply, the reply, and the columns that both came from. Raises ValueError."""
    system, column = find_system(row)
    name, answer = find_filled(row, QUESTIONS), find_filled(row, ANSWERS) or ANSWERS[0]
    if not (name and row[name]) and "instruction" in row and row.get("input"):
        name = "instruction"
    name = name or next((other for other in ("instruction", "prompt") if other in row), "conversations")
    if name in _TEXTS:
        row = parse_together(row, (name, answer))
        before = check_messages([*system, *_read_turns(row.get(name), "user", name)], "turns")
        return (
            before,
            check_messages(_read_turns(row.get(answer), "assistant", answer), "turns"),
            column | {name, answer},
        )
    if name == "instruction":
        turns = [*alpaca.question_turns(row), make_message("assistant", check_text(row.get("output"), "output"))]
        used = {"instruction", "input", "output", "history"}
    else:
        turns, used = system + convert_turns(row.get(name), name), {name}
    whole = check_messages(turns, "turns")
    end = max((at for at, turn in enumerate(whole, 1) if turn["role"] in ("user", "system")), default=0)
    return whole[:end], whole[end:], column | used


def _read_turns(value: Any, role: str, name: str) -> list[Message]:
    return convert_turns(value, name) if isinstance(value, list) else [make_message(role, check_text(value, name))]


def revert(canonical: Canonical) -> dict[str, Any]:
    if "label" not in canonical:
        raise ValueError(f"kto cannot hold {describe_kind(canonical)}")
    row: dict[str, Any] = {
        name: canonical[name] for name in ("prompt", "completion", "label", "tools") if name in canonical
    }
    return restore_canonical_columns(row, canonical, convert)
