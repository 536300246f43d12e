"""The task for texts with triples. The service writes `{"text", "triples"}`; a new row is its seed row with these
inserted."""

from __future__ import annotations

from typing import Any

from engine.prep.expand import rows, substitute
from engine.prep.expand.substitute import Exchange, Form, Seed
from engine.tasks import triples

_INSTRUCTIONS = (triples.messages("")[-1]["content"],)

PROMPTS = {
    "en": """You write training data for a model that extracts facts from text as triples.
Examples, each a text with the triples that it states:
{seed}

Write {count} new examples of the same kind, in the same language and style, about other people, places and things, \
in other words. Use predicates and types like those above. \
Every triple must be stated by its text, and every such fact of the text must be among its triples.
Answer with a JSON list of {count} objects like the examples, with the keys text and triples, and with nothing else.""",
    "zh": """你在为一个从文本中抽取三元组的模型编写训练数据。
下面是示例，每个示例是一段文本以及它所陈述的三元组：
{seed}

请再写 {count} 个同类的新示例：语言和风格相同，但换成其他人物、地点和事物，并使用不同的措辞。\
谓词和类型请与上面的示例一致。每个三元组都必须由文本明确陈述，文本中的此类事实也必须全部列出。
只输出一个包含 {count} 个对象的 JSON 列表，对象与示例一样含有 text 和 triples 两个键，不要输出其他内容。""",
}


def fits(seed: Seed) -> bool:
    if seed.form.source.prompt:
        return False  # the question is not in the row, so it cannot be replaced
    try:
        return bool(triples.parse(substitute.find_exchange(seed.content, _INSTRUCTIONS).reply))
    except ValueError:
        return False


def show(seed: Seed) -> Any:
    text, reply = substitute.find_exchange(seed.content, _INSTRUCTIONS)
    return {"text": text, "triples": triples.parse(reply)}


def build_row(item: Any, seed: Seed) -> dict[str, Any]:
    if not isinstance(item, dict) or "triples" not in item:
        row = rows.build_row(item, seed)
        _check_triples(substitute.find_exchange(seed.form.content(row), _INSTRUCTIONS).reply)
        return row
    text, found = item.get("text"), item["triples"]
    if item.keys() != {"text", "triples"}:
        raise ValueError("its keys are not text and triples")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("its text is empty or not a string")
    example = substitute.find_exchange(seed.content, _INSTRUCTIONS).reply
    order = (triples.parse(example) or [dict.fromkeys(triples.KEYS, "")])[0]
    reply = substitute.write_like(example, found)
    ordered = [{key: each[key] for key in order} for each in _check_triples(reply)]
    return substitute.replace_exchange(
        seed, Exchange(text.strip(), substitute.write_like(example, ordered)), _INSTRUCTIONS
    )


def duplicate_key(row: dict[str, Any], form: Form) -> str:
    return substitute.find_exchange(form.content(row), _INSTRUCTIONS).text


def _check_triples(reply: str) -> list[triples.Triple]:
    found = triples.parse(reply)
    if found is None:
        raise ValueError("its triples do not fit the schema")
    if not found:
        raise ValueError("it has no triples")
    return found
