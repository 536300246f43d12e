"""Measuring a model, or replies that somebody else has generated; and telling whether one is better than another."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cockpit.submit import resumption
from cockpit.verbs.asking import asked
from cockpit.verbs.output import console, emit, number, say, table
from engine.protocol.client import build_engine_environment
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, ServiceEvent

DEFAULT_KEY = "DEEPSEEK_API_KEY"
"""Variable of the judge's key where nobody names one."""


def evaluate(options: argparse.Namespace) -> int:
    """0 done, 1 a threshold failed. Raises ValueError, ProblemError."""
    if (options.target is None) == (options.predictions is None):
        raise ValueError("name a target to measure, or the file of --predictions; not both")
    home = Home.locate(options.home)
    settings = _settings(options)
    result = _predictions(options, home, settings) if options.predictions else _target(options, home, settings)
    if options.json:
        emit({**result.pop("metrics"), **result})
    else:
        show(result)
    return 0 if result["passed"] else 1


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """As `engine.evaluation.run.Wanted` has them."""
    names = ("data", "task", "rows", "samples", "max_new_tokens", "dtype", "quantization")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings |= {name: True for name in ("constrained", "again") if getattr(options, name)}
    if options.format != "auto":
        settings["format"] = options.format
    if options.thresholds:
        settings["thresholds"] = options.thresholds
    if options.out:
        settings["out"] = str(Path(options.out).expanduser().absolute())
    if options.judge is not None:
        settings["judge"] = nested(options.judge)
    return settings


def nested(pairs: list[str]) -> dict[str, Any]:
    """`["a.b=1"]` -> `{"a": {"b": 1}}`, values as YAML reads them. Raises ValueError."""
    found: dict[str, Any] = {}
    for pair in filter(None, pairs):
        key, equals, text = pair.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"--judge {pair}: write it as model=NAME")
        try:
            value = YAML(typ="safe").load(text)
        except YAMLError:
            value = text
        *above, last = key.split(".")
        place = found
        for name in above:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"--judge {pair}: {name} is a value already")
        place[last] = value
    return found


# ── a model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _target(options: argparse.Namespace, home: Home, settings: dict[str, Any]) -> dict[str, Any]:
    arguments = {"target": options.target, "directory": str(Path.cwd()), "against": options.against, **settings}
    further = _keys(options.target, home, settings["judge"]) if "judge" in settings else {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def said(event: ServiceEvent) -> None:
            name = f"{event.data.get('target') or options.target}: {event.data.get('stage', event.kind)}"
            done, total = event.data.get("done", 0), event.data.get("total", 0)
            if name not in bars:
                bars[name] = progress.add_task(name, total=total or None)
                if not console().is_terminal:
                    say(name)
            progress.update(bars[name], completed=done, total=total or None)

        try:
            result: dict[str, Any] = asked(home, "evaluate", "evaluate", arguments, said, further)
        except KeyboardInterrupt:
            progress.stop()
            say("\nGiven up. What was measured is kept: the same command goes on from here.")
            raise
    return result


def _keys(target: str, home: Home, judge: Mapping[str, Any]) -> dict[str, str]:
    """The variable of the judge's key, by the name that was given, or that the target's run has in its profile."""
    name = judge.get("api_key_env")
    found: dict[str, str] = {}
    if name is None:
        word = target.rpartition("@")[0] or target
        pattern = "*" if word == "last" else f"{word}*" if word.replace("-", "").isalnum() else ""
        for run in home.runs.glob(pattern) if pattern else ():
            found |= resumption(str(run))
    wanted = name or DEFAULT_KEY
    return found | ({wanted: os.environ[wanted]} if wanted in os.environ else {})


# ── replies from elsewhere ─────────────────────────────────────────────────────────────────────────────────────────


def _predictions(options: argparse.Namespace, home: Home, settings: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own, in the foreground; no engine is started."""
    for name in ("data", "rows", "samples", "max_new_tokens", "constrained", "dtype", "quantization"):
        if name in settings:
            raise ValueError(f"--{name.replace('_', '-')} says how a model is measured; --predictions needs none")
    told = json.dumps({"files": [options.predictions, *options.against], "settings": settings})
    command = [sys.executable, "-P", "-m", "engine.workers.predictions", told, "--home", str(home.root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=build_engine_environment(), check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    try:
        said = json.loads(done.stdout)
    except ValueError:
        raise ProblemError(Problem(title="The scoring process ended without a word", cause=f"status {done.returncode}"))
    if "error" in said:
        raise ProblemError(Problem(**said["error"]))
    result: dict[str, Any] = said["result"]
    return result


# ── what is shown ──────────────────────────────────────────────────────────────────────────────────────────────────


def show(result: dict[str, Any]) -> None:
    """Metrics, what was compared, what passed; on stdout. Notes are for stderr."""
    for note in result["notes"]:
        say(note, "yellow")
    if result["rejected"]:
        say(f"{result['rejected']} bad rows are left out", "yellow")
    for other in result.get("against", ()):
        _compared(result, other)
    if not result.get("against"):
        whole, parts = _parted(result["metrics"])
        table((result["target"], ""), [(name, number(value)) for name, value in whole.items()])
        for stem, columns in parts.items():
            rows = [(part, *(number(value) for value in values)) for part, values in columns[1].items()]
            table((f"{stem}, part by part", *columns[0]), rows)
    for each in result["thresholds"]:
        print(f"{'passed' if each['passed'] else 'FAILED'}: {each['text']}")
    if usage := result.get("judge_usage"):
        cost = f", cost {usage['cost']:.4g}" if usage["cost"] else ""
        say(f"the judge used {usage['prompt_tokens']} + {usage['reply_tokens']} tokens{cost}", "dim")
    say(f"{result['replies']} replies of {result['rows']} rows, each with its scores: {result['directory']}", "dim")


def _parted(
    metrics: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, tuple[list[str], dict[str, list[float]]]]]:
    """Metrics of the whole, and those of parts (`triples_f1.born_in`): stem -> names, and their values by part."""
    whole = {name: value for name, value in metrics.items() if "." not in name}
    parts: dict[str, tuple[list[str], dict[str, list[float]]]] = {}
    for name, value in metrics.items():
        metric, dot, part = name.partition(".")
        if dot:
            stem, _, score = metric.rpartition("_")
            names, values = parts.setdefault(stem, ([], {}))
            if score not in names:
                names.append(score)
            values.setdefault(part, []).append(value)
    return whole, parts


def _compared(result: dict[str, Any], other: dict[str, Any]) -> None:
    rows = []
    for name, each in other["differences"].items():
        verdict = {1: "better", -1: "worse", 0: "differs" if each["beyond_noise"] else "within noise"}[each["better"]]
        interval = f"{each['difference']:+.4g}  [{each['low']:+.4g}, {each['high']:+.4g}]"
        rows.append((name, number(each["first"]), number(each["second"]), interval, verdict))
    table(("", other["target"], result["target"], "difference, 95 % interval", ""), rows)
    say(f"paired bootstrap over {other['compared_rows']} rows, {other['resamples']} resamples", "dim")
