"""A run that is refused is told what would make it fit, also if nobody has looked for that before."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import forecasts
from engine.config.profile import find, load
from engine.protocol.messages import Problem, ProblemError, Submit
from engine.supervisor import operations, refusal, room

GB = 10**9
PROBLEM = Problem(code="memory.will_not_fit", title="too large", cause="it is", hint="look for it")
CHANGES = [
    {"settings": {"training.micro_batch": number}, "device_bytes": number * GB, "host_bytes": 0}
    for number in (8, 4, 2, 1)
]


def answer(
    home: Any, monkeypatch: pytest.MonkeyPatch, script: str, *, closing: bool = False
) -> tuple[Problem, list[str]]:
    """The problem with which a run is refused, where the worker is `script`; and the worker's command line."""
    plain, asked = refusal.subprocess.Popen, list[str]()

    def start(command: list[str], **how: Any) -> Any:
        asked.extend(command)
        return plain([sys.executable, "-c", script], **how)

    monkeypatch.setattr(refusal.subprocess, "Popen", start)
    message = Submit(
        profile=load(find("triples-qlora")).to_yaml(), kind="train", directory="/", environment={"PATH": "/"}
    )
    with pytest.raises(ProblemError) as refused:
        refusal.refuse(PROBLEM, message, home, lambda: closing)
    return refused.value.problem, asked


def test_the_three_cheapest_changes_are_named(bare_home, monkeypatch):
    script = f"print('noise'); print({json.dumps(json.dumps({'verdict': 'too_large', 'changes': CHANGES}))})"
    problem, asked = answer(bare_home, monkeypatch, script)
    assert (problem.code, problem.cause) == (PROBLEM.code, PROBLEM.cause)
    sizes = "; or ".join(f"training.micro_batch={number} ({number}.0 GB)" for number in (8, 4, 2))
    assert problem.hint == f"change one of these: {sizes}"
    given = json.loads(asked[asked.index("changes") + 1])
    assert given["text"].startswith("name: triples-qlora") and given["directory"] == "/"


@pytest.mark.parametrize("script", ["print('{}')", "print('[]')", "print('no JSON')", "raise SystemExit(1)"])
def test_a_search_that_finds_nothing_changes_no_refusal(script, bare_home, monkeypatch):
    assert answer(bare_home, monkeypatch, script)[0] == PROBLEM


def test_a_search_that_is_late_is_ended_and_so_it_is_with_the_engine(bare_home, monkeypatch):
    endless, begun = "import time; time.sleep(600)", time.monotonic()
    assert answer(bare_home, monkeypatch, endless, closing=True)[0] == PROBLEM
    monkeypatch.setattr(refusal, "SECONDS", 0.5)
    assert answer(bare_home, monkeypatch, endless)[0] == PROBLEM
    assert time.monotonic() - begun < 300


def test_a_forecast_with_changes_answers_at_once_and_one_without_looks_for_them(bare_home, monkeypatch):
    later: list[Any] = []

    def submit(**further: Any) -> Any:
        base = {"base_inputs": forecasts.stamp([Path("/")]), "floor": {"device_bytes": 0, "host_bytes": 10**15}}
        sizes = {"device_bytes": 0, "host_bytes": 10**15, "disk_bytes": 1, "error_percent": 10.0}
        profile, home = load(find("triples-qlora")), bare_home
        key = forecasts.compute_key(profile, forecasts.Place("cpu", "CPU"), 1)
        forecasts.keep(home, key, sizes | base | further)
        queue = SimpleNamespace(submit=lambda _: room.check_memory(profile, home, [], idle=True))
        server = SimpleNamespace(queue=queue, home=home, reply_later=lambda _, work: later.append(work))
        return operations.submit(server, None, Submit(profile="", kind="train"))  # type: ignore[arg-type]

    assert submit() is None and len(later) == 1
    with pytest.raises(ProblemError) as refused:
        submit(changes=CHANGES)
    assert len(later) == 1 and "training.micro_batch=8 (8.0 GB)" in refused.value.problem.hint
