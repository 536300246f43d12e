"""`cockpit compare RUN RUN …`: how runs differ, and what each has cost."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from typing import Any

from cockpit.connection.run_sides import read_side
from cockpit.language.translate import tr
from cockpit.state.formatting import counted
from cockpit.state.run_comparison import Side, compare_sides, energy_requests, evaluation_rows, measure_energy
from cockpit.verbs import run_files
from cockpit.verbs.output import emit, say, table
from cockpit.verbs.service_call import call_service
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.protocol.terminal import show_controls


def compare(options: argparse.Namespace) -> int:
    """Without an engine, all but energy and evaluations is known from the runs' directories."""
    home = Home.locate(options.home)
    directories = [run_files.find_run(home, run) for run in options.runs]
    names = list(dict.fromkeys(run.id for run in directories))
    if len(names) < 2:
        raise ValueError(tr("name two different runs or more: cockpit runs lists them"))
    now = time.time()
    sides = [read_side(home.run(name), now) for name in names]
    compared: dict[str, Any] = {}
    if not options.no_evaluations:
        try:
            sides = _add_energy(home, sides)
            compared = call_service(home, "evaluate", "compare_runs", {"runs": names}, lambda _: None)["compared"]
        except ProblemError as error:
            say(tr("evaluations and energy are left out: {title}", title=error.problem.title), "yellow")
    if options.json:
        emit({"sections": [asdict(section) for section in compare_sides(sides)], "evaluations": compared})
    else:
        _print(sides, compared)
    return 0


def _add_energy(home: Home, sides: list[Side]) -> list[Side]:
    found = []
    with Client(home) as client:
        for side in sides:
            parts = [
                measure_energy(client.request("telemetry", query).samples, devices, spans)
                for query, devices, spans in energy_requests(side)
            ]
            known = [part for part in parts if part is not None]
            found.append(replace(side, energy=sum(known) if known else None))
    return found


def _print(sides: list[Side], compared: dict[str, Any]) -> None:
    runs = [side.run for side in sides]
    for section in compare_sides(sides):
        print(f"{section.title}{': ' if section.note else ''}{section.note}")
        if section.rows:
            heads = [""] if section.sentences else runs
            table(("", *heads), section.rows)
        print()
    for other, each in compared.items():
        title = tr("evaluations of {other} against {runs}", other=other, runs=runs[0])
        if each is None:
            print(tr("{title}: none on the same rows with stored replies", title=title))
            continue
        rows = tr("{rows} of {data}", rows=counted(each["compared_rows"], "row"), data=each["data"])
        print(
            show_controls(
                tr(
                    "{title}: steps {step} and {first_step}, {rows}",
                    title=title,
                    step=each["step"],
                    first_step=each["first_step"],
                    rows=rows,
                )
            )
        )
        table(("", runs[0], other, "change", tr("95 % interval"), ""), evaluation_rows(each))
        print()
