"""The judge: a real HTTP service on the loopback gives points, refuses and limits, and no answer is paid for twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation import judge as judging
from engine.evaluation.judge import Case, judge, read_points, write_prompt
from engine.llm_api import retries
from engine.options.evaluation import JudgeOptions
from engine.protocol.messages import ProblemError
from tests.prep.service import Act, LoopbackService, answer, completion, error

CASES = [
    Case(row, f"Question {row}?", f"Reply of {row} standpoints, not of {{question}}.", "the reference")
    for row in range(6)
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


def options(service: LoopbackService, **changes: Any) -> JudgeOptions:
    return JudgeOptions(base_url=service.url, **changes)


def points(number: int, body: dict[str, Any]) -> Act:
    """As many as the reply has standpoints, at most five; the fourth reply it will not judge."""
    found = re.search(r"Reply of (\d) standpoints", body["messages"][0]["content"])
    assert found
    count = int(found[1])
    if count == 3:
        return completion("I would rather not.")
    return completion(
        "Here you are:\n" + json.dumps({"opposition": min(5, count + 1), "rigour": 2, "depth": 3.0, "why": "…"}),
        usage=(100, 10),
    )


def test_points_are_read_and_no_request_is_repeated(tmp_path: Path) -> None:
    with LoopbackService(points) as service:
        told: list[tuple[int, int]] = []
        chosen = options(service, price={"input": 1.0, "output": 2.0})
        found = judge(CASES, chosen, tmp_path / "judge.jsonl", lambda *each: told.append(each))
        assert found.points[0] == {"opposition": 1, "rigour": 2, "depth": 3} and found.points[3] is None
        assert told[-1] == (6, 6) and not found.stopped
        assert (found.usage.prompt, found.usage.reply) == (600, 5 * 10 + 50)
        assert found.cost == pytest.approx((600 * 1.0 + 100 * 2.0) / 1e6)
        again = judge(CASES, chosen, tmp_path / "judge.jsonl", lambda *_: None)
        assert again == found and len(service.prompts) == 6
        assert service.bodies[0]["temperature"] == 0
    asked = service.prompts[0]
    assert "opposition:" in asked and "{question}" in asked, "what a reply says is not filled in"


def test_failures_are_retried_and_a_wrong_key_ends_the_judge(tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Act:
        return answer(500) if number % 2 == 0 else points(number, body)

    with LoopbackService(behave) as service:
        found = judge(CASES[:2], options(service, concurrency=1), tmp_path / "a.jsonl", lambda *_: None)
        assert len(found.points) == 2 and len(service.prompts) == 4
    with (
        LoopbackService(lambda *_: error(401, "wrong key")) as service,
        pytest.raises(ProblemError, match=r"refuses the key") as raised,
    ):
        judge(CASES, options(service), tmp_path / "b.jsonl", lambda *_: None)
    assert "DEEPSEEK_API_KEY" in raised.value.problem.hint


def test_limits_leave_replies_out_and_a_larger_one_continues(tmp_path: Path) -> None:
    with LoopbackService(points) as service:
        few = options(service, token_limit=1700, concurrency=1)
        found = judge(CASES, few, tmp_path / "judge.jsonl", lambda *_: None)
        assert 0 < len(found.points) < 6 and "judge.token_limit of 1700" in found.stopped
        rest = judge(CASES, options(service, concurrency=1), tmp_path / "judge.jsonl", lambda *_: None)
        assert len(rest.points) == 6 == len(service.prompts)
    with pytest.raises(ValueError, match=r"judge\.cost_limit needs judge\.price"):
        judge(CASES, options(service, cost_limit=1.0), tmp_path / "other.jsonl", lambda *_: None)


def test_a_rubric_of_ones_own_in_the_questions_language(tmp_path: Path) -> None:
    chosen = JudgeOptions(rubric={"wit": "It makes one laugh."})
    chinese = write_prompt(Case(0, "为什么？", "因为。", None), chosen)
    assert "请严格评判" in chinese and "- wit: It makes one laugh." in chinese
    own = write_prompt(CASES[0], JudgeOptions(prompt="{rubric}|{question}|{reference}|{other}"))
    assert own.endswith("|Question 0?|the reference|{other}")
    assert read_points('{"wit": 4}', chosen.rubric) == {"wit": 4}


@pytest.mark.parametrize(
    "text", [None, "", "4", '{"wit": 6}', '{"wit": "4"}', '{"wit": true}', '{"wit": 4.5}', "{" * 9, "{}"]
)
def test_points_must_be_whole_numbers(text: str | None) -> None:
    assert read_points(text, {"wit": ""}) is None


def test_the_prompts_name_every_place(tmp_path: Path) -> None:
    for text in judging.PROMPTS.values():
        assert {"{rubric}", "{question}", "{reply}"} <= set(re.findall(r"\{\w+\}", text))
