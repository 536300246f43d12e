"""Votes and ratings are stored with the runs that they are about, and outlive the supervisor."""

from __future__ import annotations

import json

import pytest

from engine.protocol.messages import Judgement, JudgementQuery, ProblemError
from tests.scripted.bench import Engine


def test_a_vote_is_stored_with_both_runs_and_a_models_rating_in_the_home(engine: Engine) -> None:
    one, two = (engine.submit(steps=2) for _ in range(2))
    for run in (one, two):
        engine.wait(run, "completed")
    left, right = f"{one.id}@2", f"{two.id}@2"
    kept = engine.client.request(
        "judge", Judgement(targets=[left, right], prompt="第一", replies=["x", "y"], vote="left", settings={"seed": 1})
    )
    assert kept.id and kept.time
    engine.client.request("judge", Judgement(targets=["org/model"], prompt="p", replies=["r"], rating=4))
    for run in (one, two):
        (line,) = engine.home.run(run.id).votes.read_text().splitlines()
        assert json.loads(line)["vote"] == "left" and "第一" in line
    assert json.loads(engine.home.votes.read_text())["rating"] == 4
    # A torn line and one of another kind do no harm.
    with open(engine.home.run(one.id).votes, "ab") as file:
        file.write(b'{"targets": ["a"]}\n{"targets"')
    engine.client.request("judge", Judgement(targets=[left], prompt="p", replies=["r"], rating=2))
    engine.kill()
    engine.restart()
    found = engine.client.request("judgements", JudgementQuery(targets=[right, left, "org/other"])).judgements
    assert [(each.vote, each.rating) for each in found] == [("left", 0), ("", 4), ("", 2)]
    assert [each.vote for each in engine.client.request("judgements", JudgementQuery(targets=[two.id])).judgements] == [
        "left"
    ]


@pytest.mark.parametrize(
    "judgement",
    [
        Judgement(targets=["a", "b"], prompt="p", replies=["x", "y"], vote="better"),
        Judgement(targets=["a"], prompt="p", replies=["x"], vote="left"),
        Judgement(targets=["a"], prompt="p", replies=["x"], rating=6),
        Judgement(targets=["a", "b"], prompt="p", replies=["x", "y"], rating=3),
    ],
)
def test_what_is_neither_is_refused(judgement: Judgement, engine: Engine) -> None:
    with pytest.raises(ProblemError, match="neither a vote nor a rating"):
        engine.client.request("judge", judgement)
    assert not engine.home.votes.exists()
