"""Expansion when the service fails, refuses, limits its rate or is gone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine.llm_api import retries
from engine.protocol.messages import ProblemError
from tests.prep.expanding import lines, options, run
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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


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
            return error(429, "slow", Retry_After="0.4")
        return error(429, "slow", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="0m0.4s")

    with LoopbackService(behave) as service:
        result = run(options(service, samples=20, retries=0, concurrency=1), tmp_path)
    assert result["rows"] == 20 and result["failed"] == 0, "waiting for a rate limit is no try"
    assert service.times[1] - limited[0] >= (0.38 if name != "date" else 0.9)


def test_a_limit_that_is_told_of_in_time_is_kept(tmp_path: Path) -> None:
    def behave(number: int, body: dict[str, Any]) -> Any:
        content = json.dumps(invented(body["messages"][0]["content"], 5))
        told = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "300ms"}
        return completion(content, **told if number == 0 else {})

    with LoopbackService(behave) as service:
        run(options(service, concurrency=1), tmp_path)
    assert service.times[1] - service.times[0] > 0.28


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
