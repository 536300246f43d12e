"""Two ranks that train, started by torchrun: what they listen on, and that one that hangs is named long before a
collective gives up."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from engine.protocol import journal, states
from engine.protocol.home import Home
from engine.protocol.messages import Run, Submit
from engine.protocol.sockets import list_directories
from tests.cluster import long
from tests.conftest import end_processes_of
from tests.scripted.bench import Engine, wait_for
from tests.supervisor.test_rendezvous import check_listeners, list_listeners
from tests.training.harness import PROFILE, make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    home = Home(tmp_path_factory.mktemp("ranks") / "home").create()
    engine = Engine(home, "engine.workers", warm=True)
    yield engine
    engine.close()
    end_processes_of(home)
    for directory in list_directories(home):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module", params=["ddp", pytest.param("fsdp", marks=long)])
def run(engine: Engine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Run:
    base = make_model(tmp_path_factory.mktemp("model") / "tiny")
    text = PROFILE.format(base=base).replace("epochs: 1", "max_steps: 100000")
    text += f"launch: {{processes: 2, strategy: {request.param}}}\n"
    run: Run = engine.client.request("submit", Submit(profile=text, directory="/"))
    wait_for(lambda: engine.show(run).run.step > 5, 300, "the first steps")
    return run


def test_ranks_that_train_listen_on_the_loopback_address(engine: Engine, run: Run) -> None:
    listeners = list_listeners(engine.show(run).pids)
    check_listeners(listeners)
    assert len(listeners) == 3, "the store, and gloo in each rank"


def test_a_stopped_rank_is_named_with_the_stacks_of_all(engine: Engine, run: Run) -> None:
    ranks = wait_for(lambda: len(found := engine.show(run).ranks) == 2 and found, 20, "both ranks")
    os.kill(ranks[1].pid, signal.SIGSTOP)
    hung = wait_for(lambda: [text for text in engine.show(run).warnings if text.startswith("hanging")], 60, "a warning")
    (warning,) = hung
    assert f"rank 1 (process {ranks[1].pid} is stopped by SIGSTOP)" in warning and "rank 0" not in warning
    log = engine.home.run(run.id).log
    wait_for(lambda: "most recent call first" in log.read_text(), 20, "the stacks of rank 0")
    assert any(isinstance(entry, journal.Warn) for entry, _ in journal.read(engine.home.run(run.id).lifecycle))
    # The rank was only stopped: nothing is lost.
    before, stacks = engine.show(run).run.step, log.read_text().count("most recent call first")
    os.kill(ranks[1].pid, signal.SIGCONT)
    wait_for(lambda: engine.show(run).run.step > before + 5, 120, "further steps")
    wait_for(lambda: log.read_text().count("most recent call first") > stacks, 20, "the stacks of the one that slept")
    # And SIGTERM to torchrun stops all ranks with a checkpoint.
    launched = [
        entry for entry, _ in journal.read(engine.home.run(run.id).lifecycle) if isinstance(entry, journal.Launched)
    ]
    os.kill(launched[-1].pid, signal.SIGTERM)
    ended = engine.wait(run, states.STOPPED, states.FAILED, states.COMPLETED, seconds=60)
    assert (ended.state, ended.code, ended.problem) == (states.STOPPED, "run.terminated", None)
    assert engine.home.run(run.id).checkpoint_steps()[-1] == ended.step
