"""Who is silent, and who only waits for somebody silent."""

from __future__ import annotations

import os

from engine.protocol.messages import Rank
from engine.supervisor import hang_detector
from engine.supervisor.hang_detector import Pulse


def _rank(number: int, time: float, phase: str = "training", waiting: bool = False) -> Rank:
    return Rank(rank=number, pid=os.getpid(), phase=phase, time=time, waiting=waiting)


def _pulse(*ranks: Rank, now: float) -> Pulse:
    pulse = Pulse(looked=now)
    for rank in ranks:
        pulse.beat(rank, now)
    return pulse


def test_a_rank_without_heartbeats_is_silent_and_the_one_that_waits_for_it_is_not() -> None:
    pulse = _pulse(_rank(0, 100.0), _rank(1, 100.0), now=100.0)
    for now in range(101, 120):
        pulse.beat(_rank(0, 100.0, waiting=True), float(now))
        silent = pulse.silent(float(now))
    assert silent == {1: "no sign of life for 19 s"}


def test_a_rank_that_beats_but_does_not_get_on_is_told_from_those_that_wait() -> None:
    pulse = _pulse(_rank(0, 100.0, waiting=True), _rank(1, 100.0), now=100.0)
    for now in range(101, 300):
        pulse.beat(_rank(0, 100.0, waiting=True), float(now))
        pulse.beat(_rank(1, 100.0), float(now))
        silent = pulse.silent(float(now))
        assert bool(silent) == (now - 100 > hang_detector.LEAST)
    assert set(silent) == {1}


def test_slow_steps_raise_the_bound_and_pauses_are_no_silence() -> None:
    pulse = _pulse(_rank(0, 0.0), now=0.0)
    pulse.beat(_rank(0, 60.0), 60.0)  # a step of a minute: ten of them are waited for
    pulse.looked = 60.0
    for now in range(61, 1000):
        pulse.beat(_rank(0, 60.0), float(now))
        assert bool(pulse.silent(float(now))) == (now > 660)
    pulse.beat(_rank(0, 1000.0, "paused asked"), 1000.0)
    for now in range(1001, 9000, 4):
        pulse.beat(_rank(0, 1000.0, "paused asked"), float(now))
        assert not pulse.silent(float(now))


def test_an_engine_that_stood_still_itself_blames_nobody() -> None:
    pulse = _pulse(_rank(0, 0.0), _rank(1, 0.0), now=0.0)
    assert not pulse.silent(1.0)
    assert not pulse.silent(1000.0)


def test_a_silence_is_told_once(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(hang_detector, "_ask_for_stacks", asked.append)
    pulse = _pulse(_rank(0, 0.0), _rank(1, 0.0), now=0.0)
    told = []
    for now in range(1, 40):
        pulse.beat(_rank(0, float(now)), float(now))
        told.append(hang_detector.name(pulse, float(now)))
    assert [text for text in told if text] == [f"rank 1 (process {os.getpid()}): no sign of life for 16 s"]
    assert asked == [os.getpid()] * 2
