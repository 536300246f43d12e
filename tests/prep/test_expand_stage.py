"""`data.expand` in a profile: made once, trained on as one more source, never paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import Profile, ProfileError
from engine.prep.expand import decisions
from engine.prep.expand.decisions import DROPPED
from engine.prep.prepare import prepare
from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError, Resume, RunRef, Submit
from engine.workers.prepare import list_warnings
from tests.prep.conftest import ProfileOver, chat, write
from tests.prep.service import LoopbackService, completion
from tests.prep.test_prepare import quiet, rows_of
from tests.scripted.bench import Engine, wait_for

SEEDS = [
    chat(
        f"Extract the triples: Firm {name} sits in {name}ville.",
        json.dumps(
            [
                {
                    "subject": f"Firm {name}",
                    "subject_type": "company",
                    "predicate": "in",
                    "object": f"{name}ville",
                    "object_type": "city",
                }
            ]
        ),
    )
    for name in ("Alder", "Birch", "Cedar", "Douglas", "Elm", "Fir")
]


@pytest.fixture
def service() -> Iterator[LoopbackService]:
    with LoopbackService() as running:
        yield running


def expanding(service: LoopbackService, **further: Any) -> dict[str, Any]:
    return {"max_length": 256, "expand": {"base_url": service.url, "samples": 10, "concurrency": 2, **further}}


def texts(prepared: dict[str, Any], home: Home) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home.models / "smollm2-135m-instruct")
    return [tokenizer.decode(ids) for ids in rows_of(prepared["train"])["input_ids"]]


def made(prepared: dict[str, Any]) -> list[bytes]:
    return (Path(prepared["expanded"]["directory"]) / "made.jsonl").read_bytes().splitlines()


def test_new_rows_are_trained_on_and_told(home: Home, profile_over: ProfileOver, service: LoopbackService) -> None:
    told: list[tuple[str, int, int]] = []
    profile = profile_over(SEEDS, clean={}, dedup={}, **expanding(service))
    prepared = prepare(profile, home, lambda *each: told.append(each))
    assert prepared["rows"] == 16 and len(service.prompts) == 2
    expanded = prepared["expanded"]
    assert (expanded["rows"], expanded["dropped"], expanded["rejected"], expanded["stopped"]) == (10, 0, 0, "")
    assert (expanded["prompt_tokens"], expanded["reply_tokens"], expanded["task"]) == (200, 100, "triples")
    assert [(stage["name"], stage["in"]) for stage in prepared["stages"]] == [
        ("validate", 16),
        ("clean", 16),
        ("dedup", 16),
    ]
    trained = "".join(texts(prepared, home))
    for line in made(prepared):
        assert json.loads(line)["messages"][0]["content"] in trained
    assert {("expanding", 0, 10), ("expanding", 10, 10)} <= set(told)
    assert list(list_warnings(prepared)) == []


def test_nothing_is_asked_twice(home: Home, profile_over: ProfileOver, service: LoopbackService) -> None:
    first = prepare(profile_over(SEEDS, **expanding(service)), home, quiet)
    again = [
        profile_over(SEEDS, **expanding(service)),
        profile_over(SEEDS, **{**expanding(service), "max_length": 200}),
        profile_over(SEEDS, **expanding(service), clean={}),
        profile_over(SEEDS, **expanding(service, concurrency=1, retries=0), file="renamed.jsonl"),
        profile_over(SEEDS, **expanding(service, samples=5)),
    ]
    prepared = [prepare(each, home, quiet) for each in again]
    assert len(service.prompts) == 2
    assert prepared[0] == first and prepared[3]["hash"] == first["hash"] and prepared[1]["hash"] != first["hash"]
    assert [each["expanded"]["rows"] for each in prepared] == [10, 10, 10, 10, 5]
    assert made(prepared[4]) == made(first)[:5] and prepared[4]["rows"] == 11
    more = prepare(profile_over(SEEDS, **expanding(service, samples=15)), home, quiet)
    assert len(service.prompts) == 3 and more["rows"] == 21, "only what is new is asked"
    prepare(profile_over(SEEDS, **expanding(service, temperature=0.5)), home, quiet)
    assert len(service.prompts) == 5, "another temperature is other work"


def test_dropped_rows_stay_dropped(home: Home, profile_over: ProfileOver, service: LoopbackService) -> None:
    profile = profile_over(SEEDS, **expanding(service))
    before = prepare(profile, home, quiet)
    gone = made(before)[3]
    decisions.decide(Path(before["expanded"]["directory"]), decisions.digest(gone), DROPPED)
    after = prepare(profile, home, quiet)
    assert (after["rows"], after["expanded"]["rows"], after["expanded"]["dropped"]) == (15, 10, 1)
    text = json.loads(gone)["messages"][0]["content"]
    assert text in "".join(texts(before, home)) and text not in "".join(texts(after, home))
    more = prepare(profile_over(SEEDS, **expanding(service, samples=15)), home, quiet)
    assert text not in "".join(texts(more, home)) and more["rows"] == 20
    assert len(service.prompts) == 3


def test_sources_of_several_kinds_keep_their_own_columns(
    home: Home, profile_over: ProfileOver, tmp_path: Path, service: LoopbackService
) -> None:
    write(tmp_path / "qa.jsonl", *({"q": f"What is number {at}?", "a": f"It is {at}.", "level": at} for at in range(4)))
    write(
        tmp_path / "news.jsonl", *({"body": f"Report {at} of the day.", "summary": f"Report {at}."} for at in range(4))
    )
    sources = [
        {"source": "qa.jsonl", "columns": {"instruction": "q", "output": "a"}, "weight": 3.0, "max_rows": 2},
        {"source": "news.jsonl", "format": "alpaca", "columns": {"output": "summary"}, "prompt": "Shorten:\n{body}"},
    ]

    def word(*of: int) -> str:
        return hashlib.sha256(repr(of).encode()).hexdigest()

    def behave(number: int, body: dict[str, Any]) -> Any:
        prompt = body["messages"][0]["content"]
        examples = [json.loads(line) for line in prompt.splitlines() if line.startswith("{")]
        items = [
            {"body": f"Wholly new story: {word(number, place)}.", "summary": f"Story {number}{place}."}
            if "body" in seed
            else {"q": f"Unheard-of question: {word(number, place)}?", "a": "None.", "level": 9}
            for place, seed in enumerate(examples)
        ]
        return completion(json.dumps(items))

    with LoopbackService(behave) as service:
        prepared = prepare(
            profile_over([], train=sources, **expanding(service, samples=9, shots=3, per_request=3)), home, quiet
        )
    shown = [json.loads(line) for prompt in service.prompts for line in prompt.splitlines() if line.startswith("{")]
    assert {row["q"] for row in shown if "q" in row} == {"What is number 0?", "What is number 1?"}, (
        "no row beyond max_rows"
    )
    rows = [json.loads(line) for line in made(prepared)]
    kinds = {"q": sum("q" in row for row in rows), "body": sum("body" in row for row in rows)}
    assert kinds["q"] and kinds["body"] and sum(kinds.values()) == 9 == prepared["expanded"]["rows"]
    assert prepared["rows"] == 2 * 3 + 4 + 9, "the seeds' weight is theirs alone"
    trained = texts(prepared, home)
    assert sum("user\nShorten:\nWholly new story" in text for text in trained) == kinds["body"]
    assert sum("user\nUnheard-of question" in text for text in trained) == kinds["q"]


def test_limits_hold_and_what_is_missing_is_told(
    home: Home, profile_over: ProfileOver, service: LoopbackService
) -> None:
    price = {"input": 10.0, "output": 10.0}
    first = prepare(
        profile_over(
            SEEDS, **expanding(service, samples=50, max_tokens=100, concurrency=1, token_limit=1500, price=price)
        ),
        home,
        quiet,
    )
    expanded = first["expanded"]
    used = expanded["prompt_tokens"] + expanded["reply_tokens"]
    assert 0 < used <= 1500 and expanded["rows"] < 50 and expanded["cost"] == used / 1e5
    ((code, message, hint),) = list_warnings(first)
    assert message.endswith("expand.token_limit of 1500 leaves no room for another request") and hint
    assert code == "expand.limit"


def test_rejected_rows_are_warned_of(home: Home, profile_over: ProfileOver) -> None:
    with LoopbackService(lambda number, body: completion('["nothing"]')) as service:
        prepared = prepare(profile_over(SEEDS, **expanding(service)), home, quiet)
    assert prepared["rows"] == 6 and prepared["expanded"]["rows"] == 0
    rejected, stopped = list_warnings(prepared)
    assert rejected.message.startswith("10 expanded rows were rejected (10 bad row")
    assert "the last 10 answers held no good row" in stopped.message
    assert (rejected.code, stopped.code) == ("expand.rejected", "expand.stalled")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a key itself": (
        {"api_key_env": "sk-0123"},
        "data.expand.api_key_env: must be the name of an environment variable",
    ),
    "no address": ({"base_url": "api.example.com"}, "data.expand.base_url: must be an address"),
    "no price": ({"cost_limit": 1.0}, "data.expand.cost_limit: needs data.expand.price"),
    "no such task": ({"task": "triple"}, "there is no task triple, did you mean triples?"),
    "a prompt without seeds": ({"prompts": {"rows": "more!"}}, "has no {seed}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_profile(profile_over: ProfileOver, case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ProfileError) as refused:
        profile_over(SEEDS, expand=settings)
    assert message in str(refused.value) and "sk-0123" not in str(refused.value)


def test_tokens_cannot_be_expanded(home: Home, profile_over: ProfileOver, service: LoopbackService) -> None:
    tokens = prepare(profile_over(SEEDS), home, quiet)["train"]
    with pytest.raises(ProblemError, match="expand works on rows"):
        prepare(profile_over([], train=[{"source": tokens}], **expanding(service)), home, quiet)


# ── in a run ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def real(home: Home) -> Iterator[Engine]:
    engine = Engine(home, workers="engine.workers", warm=True)
    yield engine
    engine.close()


def submit(engine: Engine, profile: Profile, **environment: str) -> Any:
    message = Submit(
        profile=profile.to_yaml(), kind="prepare", directory=str(profile.directory), environment=environment
    )
    return engine.client.request("submit", message)


def test_a_missing_key_is_refused_before_anything_is_launched(engine: Engine, profile_over: ProfileOver) -> None:
    profile = profile_over(SEEDS, expand={"base_url": "https://api.example.com", "api_key_env": "SOME_SERVICE_KEY"})
    with pytest.raises(ProblemError) as refused:
        submit(engine, profile)
    assert "SOME_SERVICE_KEY is not set; export SOME_SERVICE_KEY=" in refused.value.problem.cause
    assert list(engine.home.runs.iterdir()) == []
    assert submit(engine, profile, SOME_SERVICE_KEY="k").state in ("queued", "preparing")


@pytest.mark.slow
def test_killed_in_the_middle_of_a_run_it_goes_on(
    real: Engine, profile_over: ProfileOver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Home(tmp_path / "other").create()
    (other.models / "smollm2-135m-instruct").symlink_to((real.home.models / "smollm2-135m-instruct").resolve())
    with LoopbackService(pause=0.2) as service:
        profile = profile_over(SEEDS, **expanding(service, samples=60, concurrency=3, api_key_env="THE_KEY"))
        run = submit(real, profile, THE_KEY="a-secret")
        wait_for(lambda: len(service.prompts) >= 5, 60.0, "five requests")
        real.client.request("show", RunRef(run=run.id))
        (worker, *_) = real.processes(run)
        worker.kill()
        assert real.wait(run, "failed").id == run.id
        before = len(service.prompts)
        assert 5 <= before <= 9
        real.client.request("resume", Resume(run=run.id))
        real.wait(run, "completed", seconds=90)
        assert len(set(service.prompts)) == 12 and len(service.prompts) <= 12 + 3, (
            "only what was on its way is asked again"
        )
        assert service.keys == {"Bearer a-secret"}
        asked = len(service.prompts)
        whole = prepare(profile, other, quiet)
        assert len(service.prompts) == asked + 12
    from cockpit.verbs.train import _print_outcome

    _print_outcome(real.show(run).run)
    assert "60 rows, 0 dropped, " in capsys.readouterr().out
    directory = real.home.run(run.id)
    prepared = json.loads(directory.prepared.read_bytes())
    assert made(prepared) == made(whole) and len(made(whole)) == 60
    assert prepared["hash"] == whole["hash"]
    assert rows_of(prepared["train"])["input_ids"] == rows_of(whole["train"])["input_ids"]
    phases = {entry.name for entry, _ in journal.read(directory.events) if isinstance(entry, journal.Phase)}
    assert "expanding" in phases
    written = [path for path in real.home.root.rglob("*") if path.is_file() and b"a-secret" in path.read_bytes()]
    assert written == [], "the key is nowhere on the disk"
