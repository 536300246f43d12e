"""A rank that hangs is named long before a collective gives up."""

from __future__ import annotations

import os
import signal

import pytest

from engine.protocol import journal
from engine.protocol.messages import Command, Stop, Submit
from tests.scripted.bench import Engine, wait_for
from tests.training.harness import PROFILE, make_model


@pytest.mark.slow
def test_a_stopped_rank_is_named_with_the_stacks_of_all(bare_home, tmp_path):
    base = make_model(tmp_path / "tiny")
    engine = Engine(bare_home, "engine.workers", warm=True)
    try:
        text = PROFILE.format(base=base).replace("epochs: 1", "max_steps: 100000") + "launch: {processes: 2}\n"
        run = engine.client.request("submit", Submit(profile=text, directory="/"))
        wait_for(lambda: engine.show(run).run.step > 5, 300, "the first steps")
        ranks = wait_for(lambda: len(found := engine.show(run).ranks) == 2 and found, 20, "both ranks")
        os.kill(ranks[1].pid, signal.SIGSTOP)
        hung = wait_for(
            lambda: [text for text in engine.show(run).warnings if text.startswith("hanging")], 60, "a warning"
        )
        (warning,) = hung
        assert f"rank 1 (process {ranks[1].pid} is stopped by SIGSTOP)" in warning and "rank 0" not in warning
        log = bare_home.run(run.id).log
        wait_for(lambda: "most recent call first" in log.read_text(), 20, "the stacks of rank 0")
        assert any(isinstance(entry, journal.Warn) for entry, _ in journal.read(bare_home.run(run.id).lifecycle))
        # The rank was only stopped: nothing is lost.
        before, stacks = engine.show(run).run.step, log.read_text().count("most recent call first")
        os.kill(ranks[1].pid, signal.SIGCONT)
        wait_for(lambda: engine.show(run).run.step > before + 5, 120, "further steps")
        wait_for(
            lambda: log.read_text().count("most recent call first") > stacks, 20, "the stacks of the one that slept"
        )
        engine.client.request("pause", Command(run=run.id), 60)
        engine.client.request("stop", Stop(run=run.id), 60)
        engine.wait(run, "stopped", seconds=60)
    finally:
        engine.close()
