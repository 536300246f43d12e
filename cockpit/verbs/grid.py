"""`cockpit train PROFILE --grid K=V,V` queues a grid of runs; `cockpit grid` shows what they have come to."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict

from cockpit import remote_names
from cockpit.connection.submission import build_submission
from cockpit.language.translate import tr
from cockpit.profiles import grids
from cockpit.profiles.grid_results import GridRow, choose_measure, describe, list_rows, short_names
from cockpit.profiles.grids import Grid
from cockpit.state.formatting import counted
from cockpit.verbs.follow import follow
from cockpit.verbs.output import emit, format_metric, say, say_warning, table
from cockpit.verbs.profile import read_profile
from engine.config.overrides import load_reference
from engine.config.profile import Profile, list_notes, parse
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import ListRuns, ProblemError, Run


def grid(options: argparse.Namespace) -> int:
    """Show a grid's runs, the best first; without a name, list the grids."""
    home = Home.locate(options.home)
    if options.name is None:
        _list(home, as_json=options.json)
        return 0
    found = grids.load(home, options.name)
    with Client(home) as client:
        _show(found, _read_runs(client), as_json=options.json)
    return 0


def train_grid(options: argparse.Namespace, overrides: Sequence[str], exit_status: Callable[[Run], int]) -> int:
    """Check all runs of the grid, queue them, and follow them to the end unless `--detach` is given. Returns the
    greatest `exit_status` of the runs."""
    axes = dict(grids.parse_axis(axis) for axis in options.grid)
    if len(axes) < len(options.grid):
        raise ValueError(tr("--grid names a setting twice: write all of its values in one"))
    home, members = Home.locate(options.home), grids.combine(axes)
    path, text = read_profile(options.profile, home)

    def check(settings: Sequence[str], *, rows: bool = False) -> Profile:
        return parse(text, str(path), path.parent, [*overrides, *settings], home, rows=rows)

    checked: list[Profile] = []
    for number, member in enumerate(members, 1):
        settings = [f"{key}={value}" for key, value in member.settings.items()]
        name = check(settings, rows=number == 1).name or path.stem
        named = json.dumps(f"{name}-{number:0{len(str(len(members)))}}", ensure_ascii=False)
        checked.append(check([*settings, f"name={named}"]))
    check_outputs(checked)
    for note in list_notes(checked[0], home):
        say(note, "yellow")
    measure, rises = _choose_measure(checked[0])
    title = grids.free_name(home, re.sub(r"[^\w.-]+", "-", path.stem)[:32] or "grid")
    made = Grid(title, path.name, axes, measure, rises, runs=members)
    with Client(home) as client:
        try:
            for member, profile in zip(members, checked, strict=True):
                output = profile.checkpoint.output or ""
                message = build_submission(profile, "train", str(path), output)
                message.group = options.group or title
                member.run = client.request("submit", message).id
        except ProblemError:
            made.runs = [member for member in members if member.run]
            if made.runs:
                say(
                    tr(
                        "{runs} of {members} runs are queued, as the grid {title}",
                        runs=len(made.runs),
                        members=len(members),
                        title=title,
                    ),
                    "yellow",
                )
            raise
        finally:
            if made.runs and made.runs[0].run:
                grids.save(home, made)
        say_warning(client)
        command = f"{remote_names.command} grid {title}"
        queued = counted(len(members), "run")
        say(tr("{runs} queued as the grid {title}; {command} shows them", runs=queued, title=title, command=command))
        if options.detach:
            for member in members:
                print(member.run)
            return 0
        ended = [follow(client, member.run) for member in members]
        _show(made, _read_runs(client), as_json=options.json)
    return max(map(exit_status, ended))


def check_outputs(profiles: Sequence[Profile]) -> None:
    """Raises ValueError for a folder that several runs would write: all but the first would fail."""
    for section in ("checkpoint", "export"):
        options = [getattr(each, section) for each in profiles]
        named = [each.output for each in options if each.output and getattr(each, "kind", "") != "none"]
        if len(set(named)) < len(named):
            raise ValueError(
                tr("{section}.output is the same folder for several runs of the grid: leave it out", section=section)
            )


def _choose_measure(profile: Profile) -> tuple[str, bool]:
    """The metric that says which run is the best, and whether more of it is better."""
    name = profile.checkpoint.best_by
    direction = load_reference("engine.metrics.registry:direction")(name.removeprefix("eval/"))
    return name, bool(direction > 0)


def _read_runs(client: Client) -> dict[str, Run]:
    return {run.id: run for run in client.request("runs", ListRuns()).runs}


def _list(home: Home, *, as_json: bool) -> None:
    found = grids.list_grids(home)
    if as_json:
        emit([asdict(each) for each in found])
    elif found:
        rows = [(each.name, each.profile, str(len(each.runs)), ", ".join(each.axes)) for each in found]
        table(("GRID", "PROFILE", "RUNS", "SETTINGS"), rows)
    else:
        say(
            tr(
                "There are no grids yet: {command} train PROFILE --grid training.learning_rate=1e-4,3e-4",
                command=remote_names.command,
            )
        )


def _show(found: Grid, runs: dict[str, Run], *, as_json: bool) -> None:
    if as_json:
        emit(describe(found, runs))
        return
    measure, _ = choose_measure(found, runs)
    names = short_names(list(found.axes))
    rows = list_rows(found, runs)
    others = [name for name in ("eval/loss", "train/loss") if name != measure and any(name in r.metrics for r in rows)]
    heading = (
        "RUN",
        "STATE",
        "STEP",
        *(name.upper() for name in names.values()),
        measure.upper(),
        *map(str.upper, others),
    )
    table(heading, [_row(row, names, others, best=at == 0) for at, row in enumerate(rows)])


def _row(row: GridRow, names: dict[str, str], others: Sequence[str], *, best: bool) -> tuple[str, ...]:
    mark = " ★" if best and row.value is not None else ""
    value = format_metric(row.value) + mark
    further = (format_metric(row.metrics.get(name)) for name in others)
    return (row.run or "–", row.state, f"{row.step:,}", *(row.settings[axis] for axis in names), value, *further)
