"""Expansion against a real service on the loopback: what it makes, and what is said before it begins."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from engine.llm_api import retries
from engine.options.data import ExpandOptions, PriceOptions, SourceOptions
from engine.prep import read_rows
from engine.prep.expand.expand import dry_run
from engine.prep.expand.seeds import check_options
from engine.prep.stages.standalone import parse_options
from engine.prep.verbs import expand as verb
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.tasks import thought_graph, triples
from tests.prep.conftest import write
from tests.prep.expanding import BUNDLED, lines, options, replies, run
from tests.prep.service import (
    LoopbackService,
    completion,
    good,
    invented,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


# ── what is made ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_new_triples_have_the_form_of_the_seeds(tmp_path: Path) -> None:
    with LoopbackService() as service:
        result = run(options(service, samples=12), tmp_path)
    made = lines(tmp_path / "rows.jsonl")
    assert result["rows"] == len(made) == 12
    assert result["task"] == "triples" and result["requests"] == 3
    assert result["prompt_tokens"] == 300 and result["reply_tokens"] == 150
    for row in made:
        system, question, reply = row["messages"]
        text = question["content"].removeprefix("Extract the triples: ")
        assert [system, question] == triples.messages(text)
        (found,) = triples.parse(reply["content"]) or []
        assert text == f"{found['subject']} lives at {found['object']}."
    assert service.bodies[0]["temperature"] == 1.0 and service.bodies[0]["max_tokens"] == 4096


def test_whatever_else_a_seed_holds_stays(tmp_path: Path) -> None:
    reply = (
        '```json\n[{"predicate": "目", "object_type": "目", "subject_type": "生物", "object": "半翅目", '
        '"subject": "网蝽"}]\n```'
    )
    asked = "Instruction: 你是阅读理解器。\nInput: 抽取三元组：\n\n网蝽属半翅目。\nAnswer: "
    seeds = write(tmp_path / "seeds.jsonl", {"context": asked, "target": reply, "level": 3})
    triple = {"subject": "蜜蜂", "subject_type": "生物", "predicate": "目", "object": "膜翅目", "object_type": "目"}
    with LoopbackService(replies({"text": "蜜蜂属膜翅目。", "triples": [triple]})) as service:
        run(options(service, samples=1), tmp_path / "out", seeds)
    (row,) = lines(tmp_path / "out" / "rows.jsonl")
    assert row == {
        "context": asked.replace("网蝽属半翅目", "蜜蜂属膜翅目"),
        "target": reply.replace("半翅目", "膜翅目").replace("网蝽", "蜜蜂"),
        "level": 3,
    }
    assert "请再写 5 个" in service.prompts[0], "Chinese seeds are asked for in Chinese"


def graph(question: str) -> dict[str, Any]:
    standpoints = [
        {"id": f"s{side}", "text": f"side {side}", "arguments": [{"id": f"a{side}", "text": "because"}]}
        for side in "12"
    ]
    return {"question": question, "standpoints": standpoints, "counter_questions": [{"id": "c1", "text": "Really?"}]}


def test_thought_graphs_must_fit_their_schema(tmp_path: Path) -> None:
    seeds = write(tmp_path / "seeds.jsonl", graph("Is time real?"), graph("What is a number?"))
    lame = {**graph("Do plants feel?"), "standpoints": graph("")["standpoints"][:1]}
    with LoopbackService(replies(graph("Can machines grieve?"), lame, graph("is TIME real")), 0) as service:
        result = run(options(service, samples=3), tmp_path / "out", seeds)
    assert lines(tmp_path / "out" / "rows.jsonl") == [graph("Can machines grieve?")]
    assert result["task"] == "thought_graph"
    rejected = lines(tmp_path / "out" / "rejects.jsonl")
    assert [(each["item"], each["reason"]) for each in rejected] == [
        (2, "bad row: standpoints: 1 are there, at least 2 are needed"),
        (3, "duplicate"),
    ]
    assert rejected[0]["row"] == lame and rejected[0]["line"] == 1
    assert result["stopped"] == "the last 10 answers held no good row"


def test_graphs_inside_conversations_stay_there(tmp_path: Path) -> None:
    said = thought_graph.write_graph(graph("Is time real?"))
    chat = [*thought_graph.messages("Is time real?"), {"role": "assistant", "content": said}]
    seeds = write(tmp_path / "seeds.jsonl", {"messages": chat})
    with LoopbackService(replies(graph("Why laugh?"))) as service:
        run(options(service, samples=1), tmp_path / "out", seeds)
    (row,) = lines(tmp_path / "out" / "rows.jsonl")
    assert row["messages"][:-1] == thought_graph.messages("Why laugh?")
    assert row["messages"][-1]["content"] == thought_graph.write_graph(graph("Why laugh?"))


def test_rows_of_any_shape_are_made_in_that_shape(tmp_path: Path) -> None:
    seed = {"instruction": "Name a colour.", "input": "", "output": "Red.", "category": "facts"}
    seeds = write(tmp_path / "seeds.jsonl", seed, {**seed, "instruction": "Name a river."})
    good_one = {"instruction": "Name a planet of the sun.", "input": "", "output": "Mars.", "category": "facts"}
    as_chat = {
        "messages": [
            {"role": "user", "content": "Who was Ada Lovelace?"},
            {"role": "assistant", "content": "A mathematician."},
        ]
    }
    bad = [{**good_one, "output": ""}, {**good_one, "mood": "glum"}, "a word"]
    with LoopbackService(replies(good_one, as_chat, *bad)) as service:
        result = run(options(service, samples=5), tmp_path / "out", seeds)
    assert result["task"] == "rows"
    made = lines(tmp_path / "out" / "rows.jsonl")
    assert made[0] == good_one
    assert made[1]["instruction"] == "Who was Ada Lovelace?" and made[1]["output"] == "A mathematician."
    assert result["reasons"] == {"bad row": 3}


def test_duplicates_of_seeds_and_of_each_other_are_refused(tmp_path: Path) -> None:
    seed = json.loads(next(iter((Path(__file__).parents[2] / "data" / BUNDLED).open(encoding="utf-8"))))
    known = seed["messages"][1]["content"].removeprefix("Extract the triples: ")
    (other,) = invented("a", 1)
    near = {**other, "text": other["text"].replace("lives", "live")}
    items = [{**other, "text": known.upper()}, other, near, {**other, "text": other["text"] + "!"}]
    with LoopbackService(replies(*items)) as service:
        result = run(options(service, samples=4, similarity=0.7), tmp_path)
    assert result["rows"] == 1
    assert [each["reason"] for each in lines(tmp_path / "rejects.jsonl")] == [
        "duplicate",
        "near-duplicate",
        "duplicate",
    ]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Here you are!", "not JSON"),
        ('[{"text": "a b", "triples": ' + "[" * 100_000, "not JSON"),
        ('[{"text": "a b", "triples": [{"subject": "a"}]}]', "bad row"),
        ('[{"text": "", "triples": []}]', "bad row"),
        ('[{"text": "a b", "triples": []}]', "bad row"),
        ('[{"text": "a \\ud800", "triples": [' + json.dumps(invented("", 1)[0]["triples"][0]) + "]}]", "bad row"),
        ("[[[[]]]]", "bad row"),
        ("NaN", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_bad_answers_are_counted_by_reason(tmp_path: Path, reply: str, reason: str) -> None:
    with LoopbackService(lambda number, body: completion(reply) if number == 0 else good(body)) as service:
        result = run(options(service, samples=5, concurrency=1), tmp_path)
    assert result["rows"] == 5 and result["reasons"] == {reason: 1}
    assert lines(tmp_path / "answers.jsonl")[0]["reply"] == reply


def test_fences_and_a_list_in_an_object_are_understood(tmp_path: Path) -> None:
    def fenced(_: int, body: dict[str, Any]) -> Any:
        return completion(f"```json\n{json.dumps({'examples': invented(body['messages'][0]['content'], 5)})}\n```")

    with LoopbackService(fenced) as service:
        assert run(options(service), tmp_path)["rejected"] == 0


def test_an_answer_that_was_cut_off_says_so(tmp_path: Path) -> None:
    cut = completion('[{"text": "a', finish="length")
    with LoopbackService(lambda number, body: cut if number == 0 else good(body)) as service:
        result = run(options(service, samples=5, max_tokens=7, concurrency=1), tmp_path)
    assert result["reasons"] == {"cut off at 7 tokens": 1}


def test_prompts_of_ones_own_are_used_and_braces_stay(tmp_path: Path) -> None:
    own = {"triples": 'Write {count} new like\n{seed}\nas {"text": …} {other}'}
    with LoopbackService() as service:
        run(options(service, samples=2, per_request=2, shots=1, prompts=own), tmp_path)
    (prompt,) = service.prompts
    assert prompt.startswith('Write 2 new like\n{"text": "') and prompt.endswith('\nas {"text": …} {other}')
    assert len(prompt.splitlines()) == 3


# ── asking wrongly, and asking first ───────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_sends_nothing_and_tells_the_worst_case(tmp_path: Path) -> None:
    price = PriceOptions(input=10.0, output=20.0)
    with LoopbackService() as service:
        chosen = options(service, samples=12, max_tokens=100, price=price)
        seeds = SourceOptions(source=BUNDLED)
        told = dry_run(read_rows.locate(seeds, Path.cwd()), seeds, chosen, lambda *_: None)
        assert service.prompts == []
        run(chosen, tmp_path)
    assert told["requests"] == 3 and sorted(told["prompts"].values()) == sorted(service.prompts)
    prompts = sum(len(prompt.encode()) for prompt in service.prompts)
    assert prompts + 300 < told["tokens_at_most"] < prompts + 300 + 3 * 100
    assert told["cost_at_most"] == pytest.approx(((told["tokens_at_most"] - 300) * 10 + 300 * 20) / 1e6)


def test_a_missing_key_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(
        ProblemError, match=r"There is no key for https://api\.example\.com\nthe variable SOME_KEY is not set"
    ):
        run(ExpandOptions(base_url="https://api.example.com", api_key_env="SOME_KEY"), tmp_path)
    with pytest.raises(ProblemError) as raised:
        run(ExpandOptions(base_url="https://api.example.com", api_key_env="sk-0123"), tmp_path)
    assert "sk-0123" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_unknown_tasks_and_prompts_without_seeds_are_named() -> None:
    with pytest.raises(ValueError, match=r"expand\.task: there is no task triple, did you mean triples\?"):
        check_options(ExpandOptions(task="triple"))
    with pytest.raises(ValueError, match=r"expand\.prompts\.rows: has no \{seed\}"):
        check_options(ExpandOptions(prompts={"rows": "Write {count}."}))


def test_seeds_that_do_not_fit_are_told(tmp_path: Path) -> None:
    seeds = write(tmp_path / "seeds.jsonl", {"prompt": "Hello?", "completion": "Hello."})
    with (
        LoopbackService() as service,
        pytest.raises(ProblemError, match=r"seeds\.jsonl:1: it does not fit the task triples"),
    ):
        run(options(service, task="triples"), tmp_path / "out", seeds)


def test_the_verb_reads_its_settings(home_stub: Home, tmp_path: Path) -> None:
    with LoopbackService() as service:
        overrides = [f"data.expand.base_url={service.url}", "expand.samples=3", "expand.price.input=0.5"]
        given = {"file": BUNDLED, "format": "auto", "out": str(tmp_path / "out"), "overrides": overrides}
        told = verb.run(home_stub, argparse.Namespace(**given, dry_run=True), lambda *_: None)
        assert told["cost_at_most"] > 0 and not service.prompts
        result = verb.run(home_stub, argparse.Namespace(**given, dry_run=False), lambda *_: None)
    assert result["rows"] == 3 and result["directory"] == str(tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"expand\.seed: .*not 'x'; expand\.sampels: unknown key, did you mean samples\?"
    ):
        parse_options(ExpandOptions, "expand", ["expand.sampels=3", "expand.seed=x"])
    with pytest.raises(ValueError, match=r"write it as expand\.KEY=VALUE"):
        parse_options(ExpandOptions, "expand", ["samples=3"])


@pytest.fixture
def home_stub(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")
