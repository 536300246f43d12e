"""What is told of runs: in the app from any screen, and to the terminal by sequences that are complete and harmless."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cockpit.connection.alerts import Alerts, find_news, write_title
from cockpit.connection.settings import Settings
from engine.protocol.home import Home
from engine.protocol.messages import Holder, Problem, Run, RunChanged
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import run_app, screen_text, until

SEQUENCE = re.compile(r"\a|\x1b\[2[23];0t|\x1b\](?:0|9|777);[^\x00-\x1f\x7f-\x9f]*\x1b\\")
"""All that may be written."""


async def test_a_run_that_ends_during_a_chat_is_told_there_once() -> None:
    live, told = demo_run(name="poems"), []
    async with run_app(FakeEngine(live), first="chat") as pilot:
        pilot.app.alerts.write = told.append  # type: ignore[attr-defined]
        problem = Problem(code="memory.exhausted", title="Out of memory [/x]\x1b]0;pwned\a", cause="", hint="")
        engine = pilot.app.engine.client  # type: ignore[attr-defined]
        engine.say(RunChanged(run=demo_run(name="poems", step=32)))
        await pilot.pause(0.2)
        assert "\a" not in told
        for _ in range(2):
            engine.say(RunChanged(run=demo_run(name="poems", state="failed", problem=problem)))
        await until(
            pilot, lambda: "poems has failed" in screen_text(pilot) and "Out of memory [/x]" in screen_text(pilot)
        )
        assert told.count("\a") == 1
        assert SEQUENCE.sub("", "".join(told)) == "" and "pwned" in "".join(told)
        await pilot.press("alt+1")  # on its own dashboard the state is in sight
        engine.say(RunChanged(run=demo_run(name="poems", attempt=2)))
        engine.say(RunChanged(run=demo_run(name="poems", attempt=2, state="completed", step=50)))
        await until(pilot, lambda: told.count("\a") == 2)
        assert "poems is completed" not in screen_text(pilot)
    assert told[-1].startswith("\x1b]0;\x1b\\"), "the terminal has its title back"


@pytest.mark.parametrize(
    ("before", "now", "title"),
    [
        (Run(id="a", state="running"), Run(id="a", state="completed"), "a is completed"),
        (Run(id="a", state="running"), Run(id="a", state="lost"), "a is lost"),
        (Run(id="a", state="running"), Run(id="a", state="paused", code="pause.loss_spike"), "a is paused"),
        (Run(id="a", state="running"), Run(id="a", state="paused", code="pause.asked"), None),
        (Run(id="a", state="stopping"), Run(id="a", state="stopped"), None),
        (Run(id="a", state="queued", holders=[Holder(device=0)]), Run(id="a", state="preparing"), "a has begun"),
        (Run(id="a", state="queued"), Run(id="a", state="preparing"), None),
        (Run(id="a", state="completed"), Run(id="a", state="completed"), None),
        (None, Run(id="a", state="completed"), None),
    ],
)
def test_news(before: Run | None, now: Run, title: str | None) -> None:
    news = find_news(before, now)
    assert (news and news.title) == title


def test_the_terminal_gets_what_the_settings_allow(tmp_path: Path) -> None:
    home = Home(tmp_path)
    runs = {"a": Run(id="a", state="running", step=25, max_steps=50), "b": Run(id="b", state="running")}
    assert write_title(runs, "a") == ("50 % a and 1 more · cockpit", 50) and write_title({}, None) == ("cockpit", None)
    for environment, progress in (({}, False), ({"TERM_PROGRAM": "ghostty"}, True), ({"WT_SESSION": "1"}, True)):
        written: list[str] = []
        alerts = Alerts(Settings(home), environment)
        alerts.show(runs, "a")  # without a terminal: nothing
        alerts.write = written.append
        alerts.show(runs, "a")
        alerts.show(runs, "a")
        assert "".join(written).count("\x1b]0;50 % a") == 1
        assert ("\x1b]9;4;1;50\x1b\\" in written) == progress
        assert not SEQUENCE.sub("", "".join(written))
    home.settings.write_text("notify: {bell: false, desktop: false, title: false, progress: false}\n")
    written = []
    alerts = Alerts(Settings(home), {"TERM_PROGRAM": "ghostty"})
    alerts.write = written.append
    alerts.show(runs, "a")
    news = find_news(Run(id="a", state="running"), Run(id="a", state="failed"))
    assert news is not None
    alerts.tell(news)
    alerts.close()
    assert not written
