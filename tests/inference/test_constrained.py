"""Replies constrained to a schema, of a model that would not follow it by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.inference.loaded_model import LoadedModel, load
from engine.inference.request import parse_reply, read_prompt, read_sampling
from engine.inference.sampling import Row, Sampling, choose, make_sampling
from engine.protocol.home import Home
from engine.tasks import TASKS, thought_graph, triples

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def loaded(whole_smollm2: Path) -> LoadedModel:
    return load(str(whole_smollm2), home=Home(whole_smollm2.parent.parent), dtype="float32", device="cpu")


def fits(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"name", "age"} and isinstance(value["age"], int) and len(value["name"]) <= 12


@pytest.mark.slow
def test_sampled_replies_fit_a_schema_streamed_and_in_a_batch(loaded: LoadedModel) -> None:
    asked = ["Tell me of Ada.", "Sing!"]
    wild = [Sampling(60, temperature=1.5, seed=seed, schema=SCHEMA, no_repeat_ngram=seed or None) for seed in (0, 1)]
    alone = [loaded.chat(*pair) for pair in zip(asked, wild, strict=True)]
    for reply in alone:
        assert reply.finish == "stop" and fits(reply.text), reply.text
    together = loaded.batch([[{"role": "user", "content": each}] for each in asked], wild)
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert not loaded.chat(asked[0], Sampling(60, temperature=1.5, seed=0)).text.startswith("{")


@pytest.mark.slow
def test_the_tasks_schemas_are_supported(loaded: LoadedModel) -> None:
    reply = loaded.chat("Triples of: Ada lives in Paris.", Sampling(200, schema=triples.SCHEMA))
    assert reply.finish != "stop" or triples.parse(reply.text) is not None
    for name in TASKS:
        assert loaded.grammar(read_sampling({"task": name, "constrained": True})) is not None
    assert reply.text.lstrip().startswith("[")


@pytest.mark.slow
def test_invalid_schemas_are_refused(loaded: LoadedModel) -> None:
    for wrong in ({"type": "strange"}, {"$ref": "http://example.com/x"}, {"type": "string", "pattern": "("}):
        with pytest.raises(ValueError, match="this JSON schema is not supported"):
            loaded.chat("Hi", Sampling(4, schema=wrong))


class OnlyFives:
    """A grammar of one token."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def mask(self, logits: Any) -> None:
        logits[[index for index in range(len(logits)) if index != 5]] = float("-inf")

    def accept(self, token: int) -> None:
        self.taken.append(token)


def test_a_schema_begins_after_thinking_and_precedes_repetition() -> None:
    import torch

    logits = torch.arange(10.0)[None]
    grammar = OnlyFives()
    row = Row(Sampling(no_repeat_ngram=1), [9, 1], grammar=grammar, grammar_after=(8, 7), prompt_tokens=2)
    for _ in range(5):
        choose(logits, [row])
    assert row.history == [9, 1, 8, 7, 5, 5, 5] and grammar.taken == [5, 5, 5]


def test_a_task_wraps_a_question_and_parses_its_reply() -> None:
    text = "Ada lives in Paris."
    asked = {"messages": [{"role": "user", "content": text}], "task": "triples"}
    assert read_prompt(asked) == triples.messages(text)
    assert read_prompt({"text": text}) == text and read_sampling({"schema": SCHEMA}).schema == SCHEMA
    assert read_sampling(asked).schema is None
    assert read_sampling({"task": "thought_graph", "constrained": True}).schema == thought_graph.SCHEMA
    assert (
        parse_reply(asked, "[]") == {"parsed": []}
        and parse_reply(asked, "no") == {"parsed": None}
        and parse_reply({}, "no") == {}
    )
    for wrong in ({"constrained": True}, {"task": "riddles", "constrained": True}):
        with pytest.raises(ValueError):
            read_sampling(wrong)
    assert make_sampling({"task": "riddles"}) == Sampling()
