"""What every shape becomes, and the rules that hold for it."""

from __future__ import annotations

from typing import Any

ROLES = ("system", "user", "assistant", "tool")

Canonical = dict[str, Any]
"""`{"messages": [{"role": one of ROLES, "content": str}, …]}` or `{"text": str}`."""


def conversation(turns: list[tuple[Any, Any]]) -> Canonical:
    """Messages of (role, content). Raises ValueError for what no template could render or no loss could learn from."""
    messages = []
    for number, (role, content) in enumerate(turns, 1):
        if role not in ROLES:
            raise ValueError(f"turn {number} has the role {role!r}, not one of {', '.join(ROLES)}")
        checked = text_of(content, f"turn {number} ({role})")
        if role == "assistant" and not checked.strip():
            raise ValueError(f"turn {number} (assistant) is empty")
        messages.append({"role": role, "content": checked})
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no assistant turn: there is nothing to learn")
    return {"messages": messages}


def question_answer(system: Any, question: Any, answer: Any) -> Canonical:
    """One exchange, with a system turn unless `system` is empty."""
    opening = [("system", system)] if system else []
    return conversation([*opening, ("user", question), ("assistant", answer)])


def text_of(value: Any, name: str) -> str:
    """`value`, which must be text that has a UTF-8 form (half a surrogate pair has none). Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {'missing' if value is None else type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a surrogate pair")
    return value
