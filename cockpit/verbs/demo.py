"""`cockpit demo`: train the embedded model, and compare it on the same held-out rows before and after."""

from __future__ import annotations

import argparse
from typing import Any

from cockpit import remote_names
from cockpit.connection.submission import build_submission
from cockpit.language.translate import tr
from cockpit.profiles.files import DEMO
from cockpit.state.formatting import format_duration
from cockpit.verbs.follow import follow
from cockpit.verbs.open_app import is_interactive
from cockpit.verbs.output import emit, format_metric, say, say_warning, table
from cockpit.verbs.profile import load_profile
from cockpit.verbs.train import exit_status, explain_end
from engine.protocol import journal, states
from engine.protocol.client import Client
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Run, RunRef

FIGURES = {
    "loss": "eval/loss",
    "json_validity": "eval/json_validity",
    "schema_validity": "eval/schema_validity",
    "triples_f1": "eval/triples_f1",
}
"""Name in the report -> metric."""


def demo(options: argparse.Namespace) -> int:
    home = Home.locate(options.home)
    path, profile = load_profile(DEMO, options.overrides, home)
    for remark in profile.remarks:
        say(remark)
    message = build_submission(profile, "train", str(path))
    with Client(home) as client:
        say_warning(client)
        run: Run = client.request("submit", message)
        if options.headless or options.json or not is_interactive():
            run = follow(client, run.id)
        else:
            from cockpit.session import run as run_app

            if ended := run_app(home, select=run.id):
                return ended
            run = client.request("show", RunRef(run=run.id)).run
            if run.state in states.LIVE:  # the app has printed that it goes on, and how to come back
                return 0
    report(home.run(run.id), run, options.json)
    return exit_status(run)


def report(directory: RunDirectory, run: Run, as_json: bool) -> None:
    """Print what the model learnt, from the run's journal. For a run that did not complete, print why."""
    before, after = _before_and_after(directory)
    if as_json:
        seconds = run.ended - run.created if run.ended else None
        emit({"run": run.id, "state": run.state, "before": before, "after": after, "seconds": seconds})
        return
    if run.state == states.COMPLETED:
        table((tr("ON THE SAME HELD-OUT ROWS"), "BEFORE", "AFTER"), _rows(before, after))
        _print_replies(directory)
        print(
            tr(
                "\n{step} steps in {ended}, all in {path}",
                step=run.step,
                ended=format_duration(run.ended - run.created),
                path=directory.path,
            )
        )
        print(tr("talk to it: {command} chat {id} --task triples", command=remote_names.command, id=run.id))
    else:
        explain_end(run)


def _rows(before: dict[str, float | None], after: dict[str, float | None]) -> list[tuple[str, str, str]]:
    return [(name.replace("_", " "), format_metric(before[name]), format_metric(after[name])) for name in FIGURES]


def _before_and_after(run: RunDirectory) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The metrics of the first and the last evaluation; None for those that were not measured."""
    values = [entry.values for entry, _ in journal.read(run.events) if isinstance(entry, journal.Evaluation)]
    evaluations = [each for each in values if "eval/loss" in each]  # those without it are on the test rows
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    return _figures(first), _figures(last)


def _figures(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: values.get(metric) for name, metric in FIGURES.items()}


def _print_replies(run: RunDirectory) -> None:
    """Print one prompt's first and last sampled reply: the base's and the adapter's."""
    samples = [entry for entry, _ in journal.read(run.events) if isinstance(entry, journal.Sample)]
    if not samples:
        return
    first = samples[0]
    last = next(entry for entry in reversed(samples) if entry.prompt == first.prompt)
    texts = {"prompt": first.prompt, "base": first.reply, "adapter": last.reply, "reference": last.reference}
    for title, text in texts.items():
        print(f"\n{title}\n  " + text.strip().replace("\n", "\n  "))
