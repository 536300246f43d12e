"""Expansion against a real service on the loopback: what it makes, what it refuses, what it costs."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.llm_api import retries
from engine.options.data import ExpandOptions, PriceOptions, SourceOptions
from engine.prep import read_rows
from engine.prep.expand.expand import dry_run, expand
from engine.prep.expand.seeds import check_options
from engine.prep.stages.standalone import parse_options
from engine.prep.verbs import expand as verb
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.tasks import thought_graph, triples
from tests.prep.conftest import write
from tests.prep.service import (
    LoopbackService,
    answer,
    completion,
    disconnect,
    error,
    good,
    hang,
    invented,
)

BUNDLED = "triples/train.jsonl"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


def options(service: LoopbackService, **further: Any) -> ExpandOptions:
    return ExpandOptions(base_url=service.url, **{"samples": 10, "concurrency": 2, **further})


def run(chosen: ExpandOptions, out: Path, source: str | Path = BUNDLED) -> dict[str, Any]:
    seeds = SourceOptions(source=str(source))
    return expand(read_rows.locate(seeds, Path.cwd()), seeds, chosen, out, lambda *_: None)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replies(*items: Any) -> Callable[[int, dict[str, Any]], Any]:
    """The items in one answer, then nothing new."""
    return lambda number, _body: completion(json.dumps(list(items) if number == 0 else []))


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


# ── trouble ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_troubles_of_every_kind_change_nothing_but_the_bill(tmp_path: Path) -> None:
    acts = {
        1: error(503, "busy"),
        2: disconnect,
        3: answer(200, b"<html>not JSON"),
        5: hang(2),
        6: answer(200, b'{"choices": []}'),
        7: error(500, "oops"),
        9: error(429, "slow down", Retry_After="0.1"),
        10: error(429, "slow down"),
    }
    with LoopbackService() as service:
        quiet = run(options(service, samples=30), tmp_path / "quiet")
    with LoopbackService(lambda number, body: acts.get(number) or good(body)) as service:
        result = run(options(service, samples=30, timeout=0.4), tmp_path / "trouble")
        assert len(service.prompts) == 6 + len(acts)
    for name in ("rows.jsonl", "answers.jsonl"):
        assert (tmp_path / "trouble" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes()
    assert quiet["reply_tokens"] == 300
    # Four tries may have been answered and paid for without our knowledge: they count with their worst case.
    assert result["reply_tokens"] == 300 + 4 * 4096


@pytest.mark.parametrize("name", ["retry-after", "date", "x-ratelimit"])
def test_a_rate_limit_holds_all_requests_for_as_long_as_it_says(tmp_path: Path, name: str) -> None:
    limited: list[float] = []

    def behave(number: int, body: dict[str, Any]) -> Any:
        if number:
            return good(body)
        limited.append(time.monotonic())
        if name == "date":
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 1.99))
            return error(429, "slow", Retry_After=date)
        if name == "retry-after":
            return error(429, "slow", Retry_After="0.8")
        return error(429, "slow", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="0m0.8s")

    with LoopbackService(behave) as service:
        result = run(options(service, samples=20, retries=0, concurrency=1), tmp_path)
    assert result["rows"] == 20 and result["failed"] == 0, "waiting for a rate limit is no try"
    assert service.times[1] - limited[0] >= (0.75 if name != "date" else 0.9)


def test_a_limit_that_is_told_of_in_time_is_kept(tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Any:
        content = json.dumps(invented(body["messages"][0]["content"], 5))
        told = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "600ms"}
        return completion(content, **told if number == 0 else {})

    with LoopbackService(behave) as service:
        run(options(service, concurrency=1), tmp_path)
    assert service.times[1] - service.times[0] > 0.55


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (error(401, "Incorrect API key provided: sk-secret"), "refuses the key"),
        (error(402, "Insufficient Balance"), "has no balance left"),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), "has no balance left"),
        (error(404, "no such model"), "no such address or model"),
        (error(429, "come back tomorrow", Retry_After="90000"), "asks for a pause of 9"),
    ],
)
def test_what_cannot_get_better_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Any, told: str
) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    with LoopbackService(lambda *_: act) as service, pytest.raises(ProblemError, match=told) as raised:
        run(options(service, samples=100), tmp_path)
    assert len(service.prompts) <= 2
    assert "sk-secret" not in str(raised.value)
    assert not (tmp_path / "rows.jsonl").exists()
    assert all(b"sk-secret" not in path.read_bytes() for path in tmp_path.iterdir())
    assert service.keys == {"Bearer sk-secret"}


def test_an_outage_stops_the_work_and_leaves_no_gap(tmp_path: Path) -> None:
    with LoopbackService() as service:
        whole = run(options(service, samples=30), tmp_path / "whole")
    with LoopbackService(lambda number, body: good(body) if number < 2 else error(503, "down")) as service:
        chosen = options(service, samples=30, retries=1)
        with pytest.raises(ProblemError, match="gave no answer to 3 requests in succession"):
            run(chosen, tmp_path / "out")
    with LoopbackService() as service:
        result = run(options(service, samples=30), tmp_path / "out")
        assert len(service.prompts) == 4
    assert result == {**whole, "rejects": result["rejects"], "directory": result["directory"]}
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()


def test_a_request_that_is_refused_for_good_is_counted_and_others_go_on(tmp_path: Path) -> None:
    with LoopbackService(lambda number, body: error(400, "content filter") if number == 1 else good(body)) as service:
        result = run(options(service, samples=20, concurrency=1), tmp_path)
        assert len(service.prompts) == 5
        assert run(options(service, samples=20, concurrency=1), tmp_path) == result
        assert len(service.prompts) == 5, "a second run asks nothing"
    assert result["rows"] == 20 and result["failed"] == 1 and result["reasons"] == {"no answer": 1}
    assert "content filter" in lines(tmp_path / "rejects.jsonl")[0]["reason"]


def test_nobody_there_is_told(tmp_path: Path) -> None:
    with LoopbackService() as service:
        gone = options(service, retries=0)
    with pytest.raises(ProblemError, match="gave no answer"):
        run(gone, tmp_path)
    assert '"used": [0, 0]' in (tmp_path / "requests.jsonl").read_text(), "what was never reached costs nothing"


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_token_limit_is_never_exceeded(tmp_path: Path, concurrency: int) -> None:
    def behave(_: int, body: dict[str, Any]) -> Any:
        """As dear as can be: every token that was allowed."""
        prompt = body["messages"][0]["content"]
        return completion(json.dumps(invented(prompt, 5)), usage=(len(prompt.encode()), body["max_tokens"]))

    with LoopbackService(behave) as service:
        result = run(
            options(service, samples=500, token_limit=20_000, max_tokens=500, concurrency=concurrency), tmp_path
        )
    assert 15_000 < result["prompt_tokens"] + result["reply_tokens"] <= 20_000
    assert result["stopped"].startswith("expand.token_limit") and 0 < result["rows"] < 500
    assert service.most_at_once <= concurrency


def test_where_a_limit_stops_does_not_depend_on_timing(tmp_path: Path) -> None:
    written = []
    for concurrency in (1, 6):
        with LoopbackService(pause=0.02 * concurrency) as service:
            chosen = options(service, samples=500, token_limit=7000, max_tokens=900, concurrency=concurrency)
            run(chosen, tmp_path / str(concurrency))
        written.append((tmp_path / str(concurrency) / "rows.jsonl").read_bytes())
    assert written[0] == written[1] != b""


def test_the_cost_limit_counts_what_the_service_says(tmp_path: Path) -> None:
    price = PriceOptions(input=1.0, output=2.0)
    with LoopbackService() as service:
        result = run(options(service, samples=500, cost_limit=0.012, price=price), tmp_path)
    assert result["cost"] == pytest.approx(result["prompt_tokens"] * 1e-6 + result["reply_tokens"] * 2e-6)
    assert result["cost"] <= 0.012 and result["stopped"].startswith("expand.cost_limit")
    with pytest.raises(ValueError, match=r"expand\.price"):
        run(options(service, cost_limit=1.0), tmp_path / "unpriced")


@pytest.mark.slow
def test_results_do_not_depend_on_timing(tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Any:
        time.sleep(0.05 * (number % 3))
        items = invented(body["messages"][0]["content"], 5)
        return completion(json.dumps(items[: int(items[0]["text"][0], 16) % 6]))

    written = []
    for concurrency in (1, 7):
        with LoopbackService(behave) as service:
            out = tmp_path / str(concurrency)
            result = run(options(service, samples=40, concurrency=concurrency), out)
            assert result["requests"] == len(service.prompts), "no request more than is needed"
        written.append((out / "rows.jsonl").read_bytes())
    assert written[0] == written[1]


# ── going on ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_samples_go_on_from_what_is_there(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(options(service, samples=7), tmp_path)
        few = (tmp_path / "rows.jsonl").read_bytes()
        run(options(service, samples=20), tmp_path)
        assert len(service.prompts) == len(set(service.prompts)) == 4
    assert (tmp_path / "rows.jsonl").read_bytes().startswith(few)


def test_other_settings_want_another_folder(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(options(service), tmp_path)
        with pytest.raises(ValueError, match="other model, temperature"):
            run(options(service, model="another", temperature=0.5), tmp_path)
        with pytest.raises(ValueError, match="other seeds"):
            run(options(service), tmp_path, "triples/dev.jsonl")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    with LoopbackService() as service:
        run(options(service, samples=60, concurrency=3), tmp_path / "whole")
    with LoopbackService(pause=0.15) as service:
        out = tmp_path / "killed"
        command = [sys.executable, "-m", "engine.workers.data_tool", "data", "expand"]
        settings = (f"base_url={service.url}", "samples=60", "concurrency=3")
        given = {
            "file": BUNDLED,
            "format": "auto",
            "out": str(out),
            "dry_run": False,
            "overrides": [f"expand.{each}" for each in settings],
        }
        command += [json.dumps(given), "--json", "--home", str(tmp_path / "home")]
        kills = 0
        for answers in (2, 5):
            child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
            while child.poll() is None and len(service.prompts) < answers + 3 * kills:
                time.sleep(0.01)
            time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        assert kills == 2 and not (out / "rows.jsonl").exists()
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True)
        assert len(service.prompts) <= 12 + 3 * kills, "only what was on its way is asked again"
        assert len(set(service.prompts)) == 12
    assert json.loads(done.stdout)["rows"] == 60
    for name in ("rows.jsonl", "made.jsonl", "answers.jsonl", "rejects.jsonl"):
        here, there = ((folder / name).read_text() for folder in (out, tmp_path / "whole"))
        assert here.replace(str(out), "") == there.replace(str(tmp_path / "whole"), "")
    assert {path.name for path in out.iterdir()} == {
        "requests.jsonl",
        "answers.jsonl",
        "made.jsonl",
        "decisions.jsonl",
        "rows.jsonl",
        "rejects.jsonl",
        "report.json",
    }


def test_the_seeds_are_never_overwritten(tmp_path: Path) -> None:
    seeds = write(tmp_path / "rows.jsonl", {"prompt": "Hello?", "completion": "Hello."})
    with LoopbackService() as service, pytest.raises(ValueError, match="name another folder"):
        run(options(service), tmp_path, seeds)
    assert list(tmp_path.iterdir()) == [seeds]


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    from engine.llm_api.journal import Journal

    journal = Journal(tmp_path / "requests.jsonl", {})
    with LoopbackService() as service, pytest.raises(ValueError, match="another process"):
        run(options(service), tmp_path)
    journal.close()


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
