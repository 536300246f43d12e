"""SIGTERM from a scheduler, a reboot or `kill`: the run saves at the next boundary, ends as stopped, and says so."""

from __future__ import annotations

import os
import signal
import time

import pytest

from engine.protocol.journal import End, Ledger, Metrics, Start, Warn
from engine.supervisor.crash_report import WorkerExit, find_killed_rank, report_crash
from engine.training.inbox import REPEATED, Inbox, Terminated
from tests.training.harness import Supervised

LONG = ("training.max_steps=100000", "training.rehearsal=false", "checkpoint.every_steps=100000")


def _rank_pids(run: Supervised) -> dict[int, int]:
    return {beat.rank.rank: beat.rank.pid for beat in run.heard if type(beat).__name__ == "Heartbeat"}


def _check_stopped(run: Supervised) -> int:
    """The step of the checkpoint that the run ended with."""
    end = run.entries(End)[-1]
    assert (end.status, end.problem) == ("stopped", None)
    assert run.run.checkpoint_steps()[-1] == end.step == run.entries(Metrics)[-1].step
    warned = [entry for entry in run.entries(Warn) if entry.code == "training.terminated"]
    assert [entry.step for entry in warned] == [end.step] and "resume" in warned[0].hint
    return int(end.step)


def test_a_run_that_gets_sigterm_saves_and_goes_on_later(start_run):
    run = start_run("term", *LONG)
    run.start()
    run.until(lambda: len(run.entries(Metrics)) >= 3)
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGTERM)  # a launcher sends it too
    assert run.wait() == 0
    step = _check_stopped(run)
    run.start()
    run.until(lambda: len(run.entries(Start)) == 2 and run.entries(Metrics)[-1].step > step)
    assert run.entries(Start)[-1].step == step
    run.ask("pause")
    run.process.send_signal(signal.SIGTERM)  # a paused run, too
    assert run.wait() == 0
    assert _check_stopped_again(run) > step


def _check_stopped_again(run: Supervised) -> int:
    end = run.entries(End)[-1]
    assert end.status == "stopped" and run.run.checkpoint_steps()[-1] == end.step
    assert [entry.name for entry in run.entries(Ledger)][-2:] == ["pause", "continue"]
    return int(end.step)


def test_a_second_sigterm_some_seconds_later_ends_a_run_at_once():
    """One that follows at once is a launcher's, see above."""
    inbox = Inbox()
    inbox.looping = True
    inbox._terminate(signal.SIGTERM, None)
    inbox._terminate(signal.SIGTERM, None)
    assert inbox.terminated and inbox.looping
    inbox._terminated_at -= REPEATED
    with pytest.raises(Terminated):
        inbox._terminate(signal.SIGTERM, None)


def test_sigterm_before_the_first_step_ends_it_as_stopped(start_run):
    run = start_run("early", *LONG)
    run.start()
    run.until(lambda: run.heard)  # the link is up: the libraries are being loaded
    time.sleep(0.05)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 0
    assert run.entries(End)[-1].status == "stopped"


@pytest.mark.slow
def test_one_rank_that_gets_sigterm_stops_all_with_a_checkpoint(start_run):
    run = start_run("rank", *LONG, "launch.processes=2")
    run.start(processes=2)
    run.until(lambda: len(run.entries(Metrics)) >= 3 and len(_rank_pids(run)) == 2)
    os.kill(_rank_pids(run)[1], signal.SIGTERM)
    assert run.wait() == 0
    _check_stopped(run)


@pytest.mark.slow
def test_a_killed_rank_is_named_whoever_fails_first(start_run):
    run = start_run("killed", *LONG, "launch.processes=2")
    run.start(processes=2, cold=True)
    run.until(lambda: len(run.entries(Metrics)) >= 3 and len(_rank_pids(run)) == 2)
    os.kill(_rank_pids(run)[1], signal.SIGKILL)
    status = run.wait()
    log = run.run.log.read_text()
    assert find_killed_rank(log) == (1, -signal.SIGKILL)
    problem = report_crash(WorkerExit(status, log, checkpoints=False), None)
    assert problem.title == "Rank 1 died" and "SIGKILL" in problem.cause and "no checkpoint yet" in problem.hint


TABLE = """
Failures:
[0]:
  time      : 2026-11-29_12:00:01
  host      : host
  rank      : {others[0]} (local_rank: {others[0]})
  exitcode  : {others[1]} (pid: 101)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-29_12:00:00
  host      : host
  rank      : {root[0]} (local_rank: {root[0]})
  exitcode  : {root[1]} (pid: 100)
"""


@pytest.mark.parametrize(
    ("others", "root", "named"),
    [
        ((1, -9), (0, 1), (1, -9)),  # rank 0's gloo error was noticed before rank 1's death
        ((0, 1), (1, -9), (1, -9)),
        ((1, -15), (0, 1), None),  # the launcher ended rank 1 itself
        ((1, -11), (0, -6), (1, -11)),
    ],
)
def test_the_dead_rank_is_found_in_either_part_of_the_table(others, root, named):
    assert find_killed_rank(TABLE.format(others=others, root=root)) == named
