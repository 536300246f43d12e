"""The task for rows of any format: the service sees seed rows unchanged, and writes more like them."""

from __future__ import annotations

from typing import Any

from engine.prep import detect_format
from engine.prep.expand.substitute import Form, Seed
from engine.prep.formats.canonical import Canonical
from engine.protocol.text import name_kind

PROMPTS = {
    "en": """You write training data for a language model. Examples, one JSON object a line:
{seed}

Write {count} new examples of the same kind, in the same language, style and difficulty, \
about other subjects and in other words. What they state must be right.
Answer with a JSON list of {count} objects with exactly the keys of the examples, and with nothing else.""",
    "zh": """你在为语言模型编写训练数据。示例如下，每行一个 JSON 对象：
{seed}

请再写 {count} 个同类的新示例：语言、风格和难度相同，但主题和措辞不同，内容必须正确。
只输出一个包含 {count} 个对象的 JSON 列表，对象的键与示例完全一致，不要输出其他内容。""",
}


def fits(seed: Seed) -> bool:
    return True


def show(seed: Seed) -> Any:
    return seed.row


def build_row(item: Any, seed: Seed) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"it is {name_kind(item)}, not an object")
    if not seed.form.matches(item):
        item = _convert_item(item, seed.form.format)
    seed.form.convert(item)
    if further := sorted(item.keys() - seed.columns):
        raise ValueError(f"it has columns that no seed has: {', '.join(further)}")
    return dict(item)


def duplicate_key(row: dict[str, Any], form: Form) -> str:
    """All text except the assistant's. If the source has its own prompt, only the values that fill it."""
    values = form.prompt_values(row)
    if values is not None:
        return values
    content = form.content(row)
    if "text" in content:
        return str(content["text"])
    turns = content.get("messages") or content["prompt"]
    return "\n".join(turn["content"] for turn in turns if turn["role"] in ("user", "tool"))


def _convert_item(item: dict[str, Any], row_format: str) -> dict[str, Any]:
    """Convert a row of another known format to this one."""
    try:
        other = detect_format.detect([item])
    except ValueError:
        raise ValueError("it has no known format")
    found: list[Canonical] = detect_format.convert(other, item)
    row: dict[str, Any] = detect_format.load(row_format).revert(found[0])
    return row
