"""Thinking before a reply is set apart wherever replies and references are read; it is never scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.state.reply_format import parse_reply, split_partial_reply
from engine.evaluation import judge, predictions
from engine.evaluation.request import EvaluationRequest
from engine.evaluation.results_store import make_entry
from engine.evaluation.summarize import tally_entry
from engine.inference.detokenizer import StreamedReply, decode_reply
from engine.inference.request import parse_reply as parse_of_task
from engine.metrics import registry
from engine.models.template_metadata import read_template, read_thinking_marks
from engine.options.evaluation import JudgeOptions
from engine.prep.expand.parse_replies import _parse_items
from engine.protocol.home import Home
from engine.tasks import TASKS
from engine.tasks.answer import Answer
from engine.tasks.task import load_task
from engine.tasks.thoughts import MARKS, split_thoughts
from tests.inference.test_telling import Letters

TRIPLE = {"subject": "Ada", "subject_type": "person", "predicate": "wrote", "object": "notes", "object_type": "work"}
GRAPH = {
    "question": "q",
    "standpoints": [{"id": f"s{n}", "text": "t", "arguments": [{"id": f"a{n}", "text": "t"}]} for n in (1, 2)],
    "counter_questions": [{"id": "c", "text": "t"}],
}
ANSWERS = {"triples": json.dumps([TRIPLE]), "thought_graph": json.dumps(GRAPH)}
THOUGHTS = ["<think>\nOne fact: {}.\n</think>\n\n", "<think></think>", "  <think>a</think>", "[THINK][1][/THINK]"]
THOUGHTS += ["<thinking>[]</thinking>\n", "opened by the prompt\n</think>\n\n", "</think>"]


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("task", TASKS)
def test_thinking_is_not_scored(task: str, thought: str) -> None:
    answer = ANSWERS[task]
    bare = registry.metrics(registry.sum_rows([registry.tally_answer(Answer(answer, answer), task)]), task)
    for reply, reference in ((thought + answer, answer), (answer, thought + answer), (thought + answer,) * 2):
        assert load_task(task).score([reply], [reference]) == load_task(task).score([answer], [answer])
        found = registry.metrics(registry.sum_rows([registry.tally_answer(Answer(reply, reference), task)]), task)
        assert found == bare
        assert parse_of_task({"task": task}, reply) == {"parsed": json.loads(answer)}
    assert parse_reply(thought + answer).value == json.loads(answer)


def test_a_reply_that_was_cut_off_while_thinking_has_no_answer() -> None:
    cut = f"<think>perhaps {ANSWERS['triples']}"
    assert split_thoughts(cut) == (f"perhaps {ANSWERS['triples']}", "", False)
    assert load_task("triples").score([cut], [ANSWERS["triples"]])["json_validity"] == 0
    assert (
        registry.tally_answer(Answer("<think>the same", "<think>x</think>the same"), None)["exact_match"]["same"] == 0
    )


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        " blanks stay ",
        "say <think>this</think> aloud",
        '["</think>"]',
        '```json\n["</think>"]\n```',
        "<b>",
        "a < b",
    ],
)
def test_a_reply_without_thinking_stays_as_it_is(text: str) -> None:
    assert split_thoughts(text) == ("", text, True)


PIECES = st.lists(st.sampled_from([*sum(MARKS, ()), "<<<", ">>>", "<", "think", ">", " ", "\n", "ja", "é", "[", "]"]))


@pytest.mark.parametrize("template", [None, "[THINK]x[/THINK]", "{#- ours. thinking: <<< >>> -#}x"])
@pytest.mark.parametrize("prompt", ["ask", "ask<think>\n", "ask[THINK]", "ask<<<"])
@given(pieces=PIECES, special=st.booleans())
def test_a_finished_reply_is_separated_as_a_streamed_one(
    template: str | None, prompt: str, pieces: list[str], special: bool
) -> None:
    tokenizer = Letters(template)
    ids = [*"".join(pieces).encode()]
    if special:  # marks that are special tokens, and have no text otherwise
        half = len("".join(pieces[: len(pieces) // 2]).encode())
        ids = [257, *ids[:half], 258, *ids[half:]]
    streamed = StreamedReply(tokenizer, [*prompt.encode()])
    for token in ids:
        streamed.add(token)
    streamed.finish()
    found = decode_reply(tokenizer, [*prompt.encode()], ids)
    assert (found.thinking, found.text) == (streamed.thinking, streamed.text)
    assert found.raw.endswith(streamed.raw)
    marks = read_thinking_marks(template)
    assert split_thoughts(found.raw, (marks,), opened=False).answer == found.text, "what is recorded says the same"


def test_marks_that_a_template_declares_are_kept_with_the_reply(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "{#- x. thinking: <<< >>> -#}"}]})
    )
    marks = read_thinking_marks(read_template(tmp_path))
    assert marks == ("<<<", ">>>")
    answer = ANSWERS["triples"]
    entry = make_entry(0, "q", f"<<<hm>>>\n{answer}", answer, "so", marks)
    assert entry["thinking"] == "so"
    assert registry.score_row(tally_entry(json.loads(json.dumps(entry)), "triples"), "triples")["exact_match"] == 1


def test_a_file_of_replies(tmp_path: Path) -> None:
    answer = ANSWERS["triples"]
    file = tmp_path / "replies.jsonl"
    lines = [{"reply": f"<think>\nOne.\n</think>\n\n{answer}", "reference": f"<think>Two</think>{answer}"}]
    file.write_text("\ufeff" + "\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = predictions.evaluate(
        file, EvaluationRequest(task="triples"), Home(tmp_path / "home").create(), lambda *_: None
    )
    assert result["metrics"]["triples_f1"] == result["metrics"]["exact_match"] == 1
    kept = json.loads((Path(result["directory"]) / "replies.jsonl").read_text(encoding="utf-8"))
    assert kept["reply"] == lines[0]["reply"], "the raw reply stays"


def test_a_judge_reads_no_thinking_and_may_think_itself() -> None:
    from engine.evaluation.summarize import _make_case

    entry = {"row": 0, "asked": "why?", "reply": "<think>SECRET</think>because", "reference": "SECRET</think>so"}
    prompt = judge.write_prompt(_make_case(entry), JudgeOptions(base_url="http://127.0.0.1", model="m"))
    assert "because" in prompt and "SECRET" not in prompt
    assert judge.read_points('<think>{"a": 1}?</think>{"a": 3}', {"a": "good"}) == {"a": 3}


def test_a_service_that_makes_rows_may_think() -> None:
    assert _parse_items('<think>[{"a": 2}]</think>\n[{"a": 1}]') == [{"a": 1}]


def test_the_app_shows_no_mark_while_a_reply_is_written() -> None:
    text = "[THINK]hm, so[/THINK]\nyes"
    parts = [split_partial_reply(text[:end]) for end in range(1, len(text) + 1)]
    assert [body for _, body in parts if body] == ["y", "ye", "yes"]
