"""Follow a run to its end, with bars in a terminal and lines elsewhere, both on stderr. Leaving never affects the
run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from cockpit import remote_names
from cockpit.language.translate import tr, tr_engine
from cockpit.state.formatting import format_duration
from cockpit.verbs.output import console, format_metric, say
from engine.protocol import stages, states
from engine.protocol.client import Client
from engine.protocol.console import GuardedConsole, text_column
from engine.protocol.messages import Problem, ProblemError, Run, RunChanged, RunRemoved, Snapshot, Told

LINE_PERIOD = 15.0
"""Seconds between two progress lines without a terminal."""
PHASE_PERIOD = 1.0
"""The least number of seconds between two lines that only report another phase."""


class Detached(KeyboardInterrupt):
    """The user pressed ctrl+c while following; the run goes on."""


def watch(client: Client, run_id: str) -> Iterator[Run]:
    """Yield the run now and at every change. Raises ProblemError when it is deleted."""
    for body in client.follow():
        run = _find_run(body, run_id)
        if run is not None:
            yield run


def _find_run(body: Any, run_id: str) -> Run | None:
    """The run, if this body contains it."""
    if isinstance(body, Snapshot):
        found = [run for run in body.runs if run.id == run_id]
        if found:
            return found[0]
        raise _gone(run_id)
    if isinstance(body, RunRemoved) and body.run == run_id:
        raise _gone(run_id)
    return body.run if isinstance(body, RunChanged) and body.run.id == run_id else None


def _gone(run_id: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="run.deleted",
            title=tr("{run_id} is gone", run_id=run_id),
            cause=tr("it was deleted"),
            hint=tr("cockpit runs"),
        )
    )


def follow(client: Client, run_id: str) -> Run:
    """Show the run until it has ended. Raises Detached on ctrl+c, after printing how to come back and how to stop
    it."""
    screen = console()
    display: Display = Bars(screen) if screen.is_terminal else Lines()
    stage, since = "", time.monotonic()
    try:
        for body in client.follow():
            if isinstance(body, Told) and body.run == run_id:
                _show_entry(display, body.entry)
            run = _find_run(body, run_id)
            if run is not None:
                if run.stage != stage and run.state not in states.ENDED:
                    if stage and len(run.stages) > 1:
                        display.end_stage(
                            tr(
                                "{stage} is done, in {monotonic}",
                                stage=stage,
                                monotonic=format_duration(time.monotonic() - since),
                            )
                        )
                    stage, since = run.stage, time.monotonic()
                display.show(run)
                if run.state in states.ENDED:
                    return run
    except KeyboardInterrupt:
        display.close()
        command = remote_names.command
        say(
            tr(
                "\nDetached: {run_id} goes on.\n  watch it   {command}\n  stop it    {command} stop {run_id}",
                run_id=run_id,
                command=command,
            )
        )
        raise Detached from None
    finally:
        display.close()
    raise AssertionError("a run is followed until it ends")


def _show_entry(display: Display, entry: dict[str, Any]) -> None:
    if entry["kind"] == "warning":
        hint = remote_names.name_in(entry.get("hint", ""), remote_names.command)
        display.note(" → ".join(filter(None, (entry["message"], hint))))
    elif entry["kind"] == "phase":
        display.phase(entry.get("done", 0), entry.get("total", 0))


class Display(Protocol):
    def show(self, run: Run) -> None: ...

    def phase(self, done: int, total: int) -> None:
        """Show the progress of the current phase. A total of 0 means that it is not known."""

    def note(self, text: str) -> None: ...

    def end_stage(self, text: str) -> None:
        """Report that a stage has ended and another begins."""

    def close(self) -> None: ...


class Bars:
    """One bar, which shows the steps during training and the progress of the phase in every other stage."""

    def __init__(self, screen: GuardedConsole) -> None:
        self._progress = Progress(
            text_column("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            text_column("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=screen,
            refresh_per_second=4,
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")
        self._stage = ""
        self._phase = (0, 0)
        self._progress.start()

    def show(self, run: Run) -> None:
        training = run.stage == stages.TRAIN and run.state not in (states.QUEUED, states.PREPARING)
        done, total = (run.step, run.max_steps) if training else self._phase
        stage = tr("steps of attempt {attempt}", attempt=run.attempt) if training else run.stage
        if stage != self._stage:  # the bar counts something else now, so start its speed anew
            self._stage = stage
            self._progress.remove_task(self._task)  # a total cannot be unset
            self._task = self._progress.add_task("", total=total or None, figures="")
        figures = _figures(run) if training else ""
        self._progress.update(
            self._task, description=_activity(run), completed=done, total=total or None, figures=figures
        )

    def phase(self, done: int, total: int) -> None:
        self._phase = (done, total)

    def note(self, text: str) -> None:
        self._progress.console.print(text, style="yellow")

    def end_stage(self, text: str) -> None:
        self._phase = (0, 0)
        self._progress.console.print(f"✓ {text}", style="green")

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """A line when the state or the phase changes, and at intervals in between."""

    def __init__(self) -> None:
        self._activity = ""
        self._state = ""
        self._step = -1
        self._printed = -LINE_PERIOD

    def show(self, run: Run) -> None:
        now = time.monotonic()
        activity = re.sub(r"\d+", "", _activity(run))  # "tensor 5 of 272" and "tensor 6 of 272" are one phase
        other_phase = activity != self._activity and now - self._printed >= PHASE_PERIOD
        moved_on = run.step != self._step and now - self._printed >= LINE_PERIOD
        if run.state == self._state and not other_phase and not moved_on:
            return
        self._activity, self._state, self._step, self._printed = activity, run.state, run.step, now
        training = run.max_steps and run.stage in ("", stages.TRAIN)
        progress = (
            (tr("step {step}/{max_steps}", step=run.step, max_steps=run.max_steps), _figures(run), _remaining(run))
            if training
            else ()
        )
        say("  ".join(filter(None, (run.id, _activity(run), *progress))))

    def phase(self, done: int, total: int) -> None:
        pass  # the run has its name

    def note(self, text: str) -> None:
        say(tr("warning: {text}", text=text), "yellow")

    def end_stage(self, text: str) -> None:
        say(text, "green")

    def close(self) -> None:
        pass


def _activity(run: Run) -> str:
    if run.state == states.PAUSED:
        return tr("paused: {tr_engine}", tr_engine=tr_engine(run.reason)) if run.reason else "paused"
    if run.state == states.QUEUED and (run.position or run.reason):
        place = tr(", place {position}", position=run.position) if run.position else ""
        return f"queued{place}" + (f": {tr_engine(run.reason)}" if run.reason else "")
    return run.phase if run.phase and run.state in (states.PREPARING, states.RUNNING) else run.state


def _figures(run: Run) -> str:
    loss, speed = run.metrics.get("train/loss"), run.metrics.get("train/tokens_per_second")
    return "  ".join(
        filter(
            None,
            (
                tr("loss {loss}", loss=format_metric(loss)) if loss is not None else "",
                tr("{speed:.0f} tok/s", speed=speed) if speed else "",
            ),
        )
    )


def _remaining(run: Run) -> str:
    """The remaining time, by the time of recent steps; loading and evaluations are not included."""
    step_seconds = run.metrics.get("train/step_seconds")
    if run.state != states.RUNNING or step_seconds is None or run.step >= run.max_steps:
        return ""
    return tr("{step_seconds} left", step_seconds=format_duration(step_seconds * (run.max_steps - run.step)))
