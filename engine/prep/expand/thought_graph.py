"""The task for thought graphs. The service writes whole graphs; if the seeds are conversations about graphs, so are the
new rows."""

from __future__ import annotations

from typing import Any

from engine.prep.expand import rows, substitute
from engine.prep.expand.substitute import Exchange, Form, Seed
from engine.tasks import thought_graph

_FORMAT = "thought_graph"
_INSTRUCTIONS = tuple(thought_graph.messages(letter)[-1]["content"].removesuffix(letter) for letter in ("?", "问"))

PROMPTS = {
    "en": """You write training data for a model that draws thought graphs of philosophical questions: \
standpoints, the arguments for each, and counter-questions.
Examples:
{seed}

Write {count} new thought graphs in the same language and form, about questions that the examples do not ask. \
Each has at least two standpoints that contradict one another, \
each standpoint at least one argument that supports it, and at least one counter-question. \
Within a graph every id is used once.
Answer with a JSON list of {count} objects with exactly the keys of the examples, and with nothing else.""",
    "zh": """你在为一个绘制思维图谱的模型编写训练数据。思维图谱针对一个哲学问题列出不同的立场、每个立场的论据以及反问。
示例：
{seed}

请再写 {count} 个语言和形式相同的新思维图谱，所讨论的问题不得与示例重复。\
每个图谱至少有两个相互对立的立场，每个立场至少有一条支持它的论据，并至少有一个反问。\
同一图谱中的 id 不得重复。
只输出一个包含 {count} 个对象的 JSON 列表，对象的键与示例完全一致，不要输出其他内容。""",
}


def fits(seed: Seed) -> bool:
    return not seed.form.source.prompt and _find_graph(seed.row, seed.form) is not None


def show(seed: Seed) -> Any:
    graph = _find_graph(seed.row, seed.form)
    assert graph is not None, "only seeds that fit are shown"
    return {key: graph[key] for key in thought_graph.KEYS}


def build_row(item: Any, seed: Seed) -> dict[str, Any]:
    if isinstance(item, dict) and "standpoints" not in item and seed.form.format != _FORMAT:
        row = rows.build_row(item, seed)
        if _find_graph(row, seed.form) is None:
            raise ValueError("its reply is not a thought graph")
        return row
    if fault := thought_graph.fault(item):
        raise ValueError(fault)
    graph = {key: item[key] for key in thought_graph.KEYS}
    if seed.form.format == _FORMAT:
        others = {name: value for name, value in seed.row.items() if name not in thought_graph.KEYS}
        return {**graph, **others}
    example = substitute.find_exchange(seed.content, _INSTRUCTIONS).reply
    reply = substitute.write_like(example, graph)
    return substitute.replace_exchange(seed, Exchange(graph["question"].strip(), reply), _INSTRUCTIONS)


def duplicate_key(row: dict[str, Any], form: Form) -> str:
    graph = _find_graph(row, form)
    assert graph is not None, "only rows that were checked have a key"
    return str(graph["question"])


def _find_graph(row: dict[str, Any], form: Form) -> dict[str, Any] | None:
    """The graph that a row is, or that its reply contains; None without one."""
    if form.format == _FORMAT:
        return row
    try:
        return thought_graph.parse(substitute.find_exchange(form.content(row), _INSTRUCTIONS).reply)
    except ValueError:
        return None
