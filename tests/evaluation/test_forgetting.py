"""The bundled questions are right, and what has been forgotten is listed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.evaluation import forgetting, history, run
from engine.evaluation.request import EvaluationRequest
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

QUESTIONS = forgetting.read_questions()

FOLLOWED = """Yes.|no|lantern|42|HELLO|river|red, green, blue|cat, dog
1 2 3 4 5|East.|Down|{"city": "Oslo"}|c b a|cat|???
banana|B|apple, melon, pear|star star|No, it is a mammal.|They drink water.|The sea is so wide!|c-a-t|[]
是|否|灯笼|42|红，绿，蓝|猫、狗|1 2 3 4 5|下|东|{"city": "北京"}|狗|Thank you!
香蕉|B|星 星|不是，它是哺乳动物。|牛喝水。
大海真美！|丙 乙 甲|？？？|2|好的，明天见。|足|[]"""
IGNORED = "Well, that is not quite something which I could say."


def test_there_are_enough_of_each_kind() -> None:
    counts = Counter((question["kind"], question["language"]) for question in QUESTIONS)
    assert len(QUESTIONS) == len({question["question"] for question in QUESTIONS}) >= 200
    assert len(counts) == 6 and min(counts.values()) >= 24
    assert [question["id"] for question in QUESTIONS] == list(range(len(QUESTIONS)))


def test_every_instruction_can_be_followed_and_ignored() -> None:
    asked = [question for question in QUESTIONS if question["kind"] == "instructions"]
    replies = re.split(r"[|\n]", FOLLOWED)
    assert len(replies) == len(asked)
    for question, reply in zip(asked, replies, strict=True):
        assert forgetting.is_right(reply, question["check"]), (question, reply)
        assert not forgetting.is_right(IGNORED, question["check"]), question


def test_every_sum_is_right() -> None:
    """Worked out again from the words of the question."""
    words = {"加": "+", "减": "-", "乘以": "*", "除以": "/", "×": "*", "÷": "/"}
    for question in (each for each in QUESTIONS if each["kind"] == "arithmetic"):
        text = question["question"]
        for word, sign in words.items():
            text = text.replace(word, sign)
        if found := re.search(r"\d+ [-+*/] \d+", text):
            value = eval(found[0])
        else:
            before, sold, bought = map(int, re.findall(r"\d+", text))
            value = before - sold + bought
        assert value == question["check"]["number"], question
        assert forgetting.is_right(f"12 … = {value:g}.", question["check"])
        assert not forgetting.is_right(f"It is {value + 1:g}.", question["check"])


def test_every_fact_is_accepted_in_a_sentence() -> None:
    for question in (each for each in QUESTIONS if each["kind"] == "facts"):
        for answer in question["check"]["contains"]:
            for reply in (answer, f"It is {answer}.", f"答案是{answer}。", f"**{answer}**"):
                assert forgetting.is_right(reply, question["check"]), (question, reply)
        assert not forgetting.is_right(IGNORED, question["check"]), question


def test_what_is_near_the_answer_is_not_right() -> None:
    """The question itself, and answers in which a right one stands as a part of a word."""
    for question in QUESTIONS:
        assert not forgetting.is_right(question["question"], question["check"]), question
    wrong = {
        "人呼吸时需要吸入哪种气体？": "二氧化碳",
        "Which gas do humans need to breathe to live?": "CO2",
        "世界上体型最大的动物是什么？": "鲸鲨",
        "Which animal is the largest on Earth?": "The whale shark.",
    }
    for question in (each for each in QUESTIONS if each["question"] in wrong):
        assert not forgetting.is_right(wrong.pop(question["question"]), question["check"]), question
    assert not wrong


@pytest.mark.parametrize(
    ("reply", "check", "right"),
    [
        ("It is gold, Aurum.", {"contains": ["Au"]}, False),
        ("共有十七天", {"contains": ["7", "七"]}, False),
        ("There are 17.", {"contains": ["7"]}, False),
        ("1,234", {"number": 1234}, True),
        ("3 + 4 = 7.0", {"number": 7}, True),
        ("", {"number": 7}, False),
        ("−7", {"number": -7}, True),
    ],
)
def test_checks(reply: str, check: dict[str, Any], right: bool) -> None:
    assert forgetting.is_right(reply, check) is right


class Watch:
    def __call__(self, *_: Any) -> None: ...

    def is_cancelled(self) -> bool:
        return False


def make_models(knows: Any, asked: list[int]) -> Any:
    """A model that answers `42` where `knows` says that it does not know."""

    def batch(prompts: Any, sampling: Any, on_reply: Any, cancelled: Any) -> None:
        asked.append(len(prompts))
        for at, prompt in enumerate(prompts):
            question = next(each for each in QUESTIONS if each["question"] == prompt[0]["content"])
            check = question["check"]
            right = str(check["contains"][0] if "contains" in check else check.get("number", "–"))
            on_reply(at, SimpleNamespace(text=right if knows(question) else "?!", finish="stop"))

    return SimpleNamespace(language_model=lambda *_: SimpleNamespace(batch=batch))


def test_what_was_forgotten_is_listed(tiny: Path, tmp_path: Path) -> None:
    home, asked = Home(tmp_path).create(), []
    folders = {}
    for name, knows in {
        "before": lambda question: question["kind"] != "instructions",
        "after": lambda question: question["kind"] == "facts" and question["language"] == "en",
    }.items():
        request = EvaluationRequest(forgetting=True, out=str(tmp_path / name))
        result = run.evaluate(str(tiny), request, home, tmp_path, make_models(knows, asked), Watch())
        folders[name] = Path(result["directory"])
        again = run.evaluate(str(tiny), request, home, tmp_path, make_models(knows, asked), Watch())
        assert again["metrics"] == result["metrics"]
    assert asked == [len(QUESTIONS)] * 2, "what has been asked is not asked again"
    assert result["metrics"]["right_facts"] == 0.5 and result["metrics"]["right_arithmetic"] == 0
    found = history.compare_folders(folders["before"], folders["after"])
    lost = [
        each
        for each in QUESTIONS
        if each["kind"] == "arithmetic" or (each["kind"], each["language"]) == ("facts", "zh")
    ]
    assert [each["question"] for each in found["forgot"]] == [each["question"] for each in lost]
    assert found["learnt"] == []
    whole = found["differences"]["right"]
    assert whole["difference"] == pytest.approx(-len(lost) / len(QUESTIONS)) and whole["better"] == -1
    assert whole["low"] < whole["difference"] < whole["high"] < 0


def test_a_request_for_other_rows_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has its own questions"):
        forgetting.check_request(EvaluationRequest(forgetting=True, data="rows.jsonl"))
    home = Home(tmp_path).create()
    both = EvaluationRequest(forgetting=True, benchmarks=["arc_easy"])
    with pytest.raises(ValueError, match="has its own questions"):
        run.evaluate(str(tiny), both, home, tmp_path, make_models(bool, []), Watch())
    from engine.models import targets

    with pytest.raises(ProblemError, match="--against"):
        forgetting.find_base(targets.resolve(str(tiny), home, tmp_path), home)
