"""`cockpit plot`: a run's curves as a picture."""

from __future__ import annotations

import json

from engine.protocol.home import Home
from engine.protocol.journal import Metrics, Writer
from tests.cli.conftest import Cockpit


def test_the_verb_draws_what_is_asked(bare_home: Home, cockpit: Cockpit) -> None:
    run = bare_home.run("mine-1121")
    run.path.mkdir(parents=True)
    run.profile.write_text("name: mine\ndescription: 论辩图\n")
    journal = Writer(run.events)
    result = cockpit("plot", "mine", "--json")
    assert result.returncode == 1 and json.loads(result.stdout)["error"]["code"] == "plot.nothing"
    for step in range(1, 9):
        journal.write(Metrics(attempt=1, step=step, values={"train/loss": 1 / step}))
    result = cockpit("plot", "mine", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["path"] == str(run.plots / "loss_curve_step_8.png")
    assert (run.plots / "loss_curve_step_8.png").read_bytes().startswith(b"\x89PNG")
    assert cockpit("plot", "other").returncode == 2
