"""Conversations as prompts to answer: chat's own bytes, the reply they had beside them, whatever is left out
counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.prep.prepare import prepare
from engine.prep.token_rows import Counts
from engine.prep.tokenize import make_row_tokenizer
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.prep.conftest import ProfileOver, chat

TRIPLE = '[{"subject":"a","subject_type":"b","predicate":"c","object":"d","object_type":"e"}]'
GRPO = (
    "method.kind=grpo",
    "method.reward={task: triples, metric: triples_f1}",
    "method.max_new_tokens=40",
    "training.micro_batch=8",
    "checkpoint.best_by=eval/reward",
)


def test_a_prompt_is_what_chat_would_send(tokenizer: Any) -> None:
    rows = [
        chat("hi", "hello"),
        chat("first", "one", "second", "two", system="Be brief."),
        {"text": "plain"},
        chat("only half", "of", "it"),
        {"messages": [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": "yes"}]},
        {
            "prompt": chat("q")["messages"],
            "chosen": chat("", "a")["messages"][1:],
            "rejected": chat("", "b")["messages"][1:],
        },
    ]
    counts = Counts()
    batch = make_row_tokenizer("prompts", tokenizer, "assistant", 64)(rows, counts)
    assert batch.rows == [0, 1, 3]
    assert "plain text" in batch.refused[2] and "there is no prompt" in batch.refused[4]
    assert "preference pairs: they train with method.kind dpo" in batch.refused[5]
    ids, lengths = batch.columns["prompt_ids"]
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    for at, (row, end, length) in enumerate(zip(batch.rows, ends, lengths, strict=True)):
        last = {0: 1, 1: 4, 3: 1}[row]
        asked = rows[row]["messages"][:last]
        expected = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert ids[end - length : end].tolist() == expected
        assert json.loads(batch.columns["prompt"][0][at]) == {"messages": asked}
    assert batch.columns["reference"][0] == ["hello", "two", "of"]
    assert (counts.rows, counts.tokens, counts.masked, counts.misfits.total()) == (3, sum(lengths), 0, 2)


@pytest.mark.parametrize(("max_prompt", "kept", "truncated", "masked"), [(None, 1, 1, 1), (36, 2, 1, 0)])
def test_long_prompts_are_cut_or_left_out_and_counted(
    tokenizer: Any, max_prompt: int | None, kept: int, truncated: int, masked: int
) -> None:
    counts = Counts()
    rows = [chat("short", "yes"), chat("a long question " * 20, "yes")]
    batch = make_row_tokenizer("prompts", tokenizer, "assistant", 40, max_prompt)(rows, counts)
    assert (len(batch.rows), counts.truncated, counts.masked) == (kept, truncated, masked)
    if max_prompt:
        ids, lengths = batch.columns["prompt_ids"]
        whole = tokenizer.apply_chat_template(rows[1]["messages"][:1], add_generation_prompt=True, return_dict=False)
        assert lengths[1] == 36 and ids[-36:].tolist() == whole[-36:]


def test_prompts_are_prepared_with_their_replies(profile_over: ProfileOver, home: Home) -> None:
    from datasets import load_from_disk

    rows = [chat(f"question {number}", TRIPLE) for number in range(20)]
    profile = profile_over(rows, rows[:3], *GRPO, max_rejected=0.1)
    made = prepare(profile, home, lambda *_: None)
    train = load_from_disk(made["train"])
    assert train.column_names == ["prompt_ids", "prompt", "reference"] and len(train) == made["rows"] == 20
    assert train[3]["reference"] == TRIPLE and json.loads(train[3]["prompt"])["messages"] == rows[3]["messages"][:1]
    assert made["tokens"] == sum(map(len, train["prompt_ids"])) and len(load_from_disk(made["validation"])) == 3
    assert prepare(profile, home, lambda *_: None)["hash"] == made["hash"]
    longer = prepare(profile_over(rows, rows[:3], *GRPO, "method.max_new_tokens=41"), home, lambda *_: None)
    assert longer["hash"] != made["hash"]


def test_what_the_task_cannot_score_is_rejected(profile_over: ProfileOver, home: Home) -> None:
    rows = [chat(f"question {number}", TRIPLE) for number in range(20)]
    profile = profile_over([*rows, chat("odd", "no triples")], None, *GRPO, max_rejected=0.1)
    made = prepare(profile, home, lambda *_: None)
    (told,) = map(json.loads, Path(made["rejects"]).read_text(encoding="utf-8").splitlines())
    assert told["line"] == 21 and "not an answer of the reward's task" in told["reason"]
    with pytest.raises(ProblemError, match=r"does not hold what method\.kind grpo trains on"):
        prepare(
            profile_over(
                [{"text": f"words {number}"} for number in range(5)], None, *GRPO, max_rejected=1.0, file="t.jsonl"
            ),
            home,
            lambda *_: None,
        )
    with pytest.raises(ProblemError) as caught:
        prepare(profile_over(rows, None, *GRPO, "method.max_new_tokens=120", file="long.jsonl"), home, lambda *_: None)
    assert caught.value.problem.hint == "raise data.max_length"
