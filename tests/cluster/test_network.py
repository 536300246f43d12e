"""Real training on two hosts that have a network of their own: delay and loss, a short cut, and a cut for good."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from engine.protocol import journal
from engine.protocol.home import Home
from engine.protocol.messages import Command, Run, Submit
from tests.cluster import UnavailableError, long, ssh
from tests.cluster.network import Network, find_missing
from tests.scripted.bench import Engine, wait_for
from tests.training.harness import PROFILE, make_model

MISSING = find_missing() or ssh.find_missing()
pytestmark = [pytest.mark.slow, long, pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")]


@pytest.fixture
def network(tmp_path) -> Iterator[tuple[Network, ssh.Hosts]]:
    try:
        network = Network("alpha", "beta", delay=0.01, loss=0.01)
    except UnavailableError as error:
        pytest.skip(str(error))
    try:
        hosts = ssh.Hosts(tmp_path / "ssh", "alpha", "beta", inside=network.inside)
        yield network, hosts
        hosts.close()
    finally:
        network.close()


def test_two_hosts_train_over_a_bad_link_and_a_cut_one_is_named(network, bare_home: Home, tmp_path) -> None:
    cables, hosts = network
    launch = {"via": "ssh", "hosts": ["alpha", "beta"], "ssh_options": hosts.options}
    text = PROFILE.format(base=make_model(tmp_path / "tiny")).replace("epochs: 1", "max_steps: 1000000")
    text = text.replace("rehearsal: true", "rehearsal: false")
    text += f"launch: {json.dumps(launch)}\n"
    engine = Engine(bare_home, "engine.workers", warm=True)
    try:
        run: Run = engine.client.request("submit", Submit(profile=text, directory="/"))
        wait_for(lambda: engine.show(run).run.step > 3 or engine.show(run).run.problem, 120, "the first steps")
        assert engine.show(run).run.problem is None, engine.home.run(run.id).log.read_text()[-3000:]
        log = engine.home.run(run.id).log.read_text()
        assert f"store {cables.net}.2:" in log and ", eth0" in log
        starts = [e for e, _ in journal.read(engine.home.run(run.id).events) if isinstance(e, journal.Start)]
        assert starts[0].processes == 2
        assert len(wait_for(lambda: len(found := engine.show(run).ranks) == 2 and found, 20, "both ranks")) == 2
        engine.client.request("save", Command(run=run.id), 60)
        cables.cut("beta")
        begun = time.monotonic()
        wait_for(lambda: any("beta" in text for text in engine.show(run).warnings), 10, "that beta is silent")
        time.sleep(max(0.0, 10 - (time.monotonic() - begun)))
        cables.mend("beta")
        before = engine.show(run).run.step
        wait_for(lambda: engine.show(run).run.step > before + 2, 60, "steps after a cut of ten seconds")
        # TCP waits twice as long before each repetition, so the host may be heard later than its rank goes on.
        wait_for(lambda: "beta is back" in engine.home.run(run.id).log.read_text(), 30, "that beta is heard again")
        assert engine.show(run).run.attempt == 1 and cables.lost > 0
        said = len(engine.show(run).warnings)
        cables.cut("beta")
        wait_for(lambda: len(engine.show(run).warnings) > said, 10, "that beta is silent again")
        failed = engine.wait(run, "failed", seconds=60)
        assert failed.problem is not None and failed.problem.code == "launch.host_lost"
        assert "beta" in failed.problem.title and "does not answer" in failed.problem.cause
    finally:
        engine.close()
