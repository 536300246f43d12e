"""Which ranks hang, and which only wait for one that hangs."""

from __future__ import annotations

import os

from engine.protocol.messages import Rank
from engine.supervisor import hang_detector
from engine.supervisor.hang_detector import Heartbeats


def _rank(number: int, time: float, phase: str = "training", waiting: bool = False) -> Rank:
    return Rank(rank=number, pid=os.getpid(), phase=phase, time=time, waiting=waiting)


def _heartbeats(*ranks: Rank, now: float) -> Heartbeats:
    heartbeats = Heartbeats(checked=now)
    for rank in ranks:
        heartbeats.add(rank, now)
    return heartbeats


def test_a_rank_without_heartbeats_hangs_and_the_one_that_waits_for_it_does_not() -> None:
    heartbeats = _heartbeats(_rank(0, 100.0), _rank(1, 100.0), now=100.0)
    for now in range(101, 120):
        heartbeats.add(_rank(0, 100.0, waiting=True), float(now))
        hung = heartbeats.find_hung_ranks(float(now))
    assert hung == {1: "no heartbeat for 19 s"}


def test_a_rank_with_heartbeats_but_no_progress_is_told_apart_from_those_that_wait() -> None:
    heartbeats = _heartbeats(_rank(0, 100.0, waiting=True), _rank(1, 100.0), now=100.0)
    for now in range(101, 300):
        heartbeats.add(_rank(0, 100.0, waiting=True), float(now))
        heartbeats.add(_rank(1, 100.0), float(now))
        hung = heartbeats.find_hung_ranks(float(now))
        assert bool(hung) == (now - 100 > hang_detector.SHORTEST_STEP_LIMIT)
    assert set(hung) == {1}


def test_slow_steps_raise_the_limit_and_a_paused_rank_does_not_hang() -> None:
    heartbeats = _heartbeats(_rank(0, 0.0), now=0.0)
    heartbeats.add(_rank(0, 60.0), 60.0)  # a step of a minute: ten of them are waited for
    heartbeats.checked = 60.0
    for now in range(61, 1000):
        heartbeats.add(_rank(0, 60.0), float(now))
        assert bool(heartbeats.find_hung_ranks(float(now))) == (now > 660)
    heartbeats.add(_rank(0, 1000.0, "paused asked"), 1000.0)
    for now in range(1001, 9000, 4):
        heartbeats.add(_rank(0, 1000.0, "paused asked"), float(now))
        assert not heartbeats.find_hung_ranks(float(now))


def test_an_engine_that_was_stopped_itself_reports_no_rank() -> None:
    heartbeats = _heartbeats(_rank(0, 0.0), _rank(1, 0.0), now=0.0)
    assert not heartbeats.find_hung_ranks(1.0)
    assert not heartbeats.find_hung_ranks(1000.0)


def test_a_hang_is_reported_once(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(hang_detector, "_request_stacks", asked.append)
    heartbeats = _heartbeats(_rank(0, 0.0), _rank(1, 0.0), now=0.0)
    reports = []
    for now in range(1, 40):
        heartbeats.add(_rank(0, float(now)), float(now))
        reports.append(hang_detector.report_hangs(heartbeats, float(now)))
    assert [text for text in reports if text] == [f"rank 1 (process {os.getpid()}): no heartbeat for 16 s"]
    assert asked == [os.getpid()] * 2
