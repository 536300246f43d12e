"""`cockpit eval`: measure a model, or replies from elsewhere, and compare them with others."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cockpit.connection.submission import resume_environment
from cockpit.language.translate import tr
from cockpit.verbs.output import console, emit, format_metric, say, table
from cockpit.verbs.service_call import call_service
from engine.protocol.client import build_engine_environment
from engine.protocol.console import text_column
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, ServiceEvent

_SAID = 100
"""Characters of a question or a reply that are shown."""
DEFAULT_KEY = "DEEPSEEK_API_KEY"
"""The environment variable of the judge's API key, when no other is named."""


def evaluate(options: argparse.Namespace) -> int:
    """Returns 0, or 1 when a threshold was missed. Raises ValueError, ProblemError."""
    if (options.target is None) == (options.predictions is None):
        raise ValueError(tr("name either a target to measure or a file with --predictions"))
    home = Home.locate(options.home)
    settings = _settings(options)
    result = (
        _score_predictions(options, home, settings) if options.predictions else _measure_target(options, home, settings)
    )
    if options.json:
        emit({**result.pop("metrics"), **result})
    else:
        print_result(result)
    return 0 if result["passed"] else 1


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The evaluation worker's settings, those that are given."""
    names = ("data", "task", "rows", "samples", "max_new_tokens", "dtype", "quantization", "few_shot")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings |= {name: True for name in ("constrained", "again", "forgetting") if getattr(options, name)}
    if options.benchmark:
        settings["benchmarks"] = [name for each in options.benchmark for name in each.split(",") if name]
        settings["chat_template"] = options.chat_template
        if options.benchmark_folder:
            settings["benchmark_folder"] = str(Path(options.benchmark_folder).expanduser().absolute())
    elif options.benchmark_folder or options.chat_template or options.few_shot is not None:
        raise ValueError(tr("--benchmark-folder, --few-shot and --chat-template go with --benchmark"))
    if options.format != "auto":
        settings["format"] = options.format
    if options.thresholds:
        settings["thresholds"] = options.thresholds
    if options.out:
        settings["out"] = str(Path(options.out).expanduser().absolute())
    if options.judge is not None:
        settings["judge"] = parse_nested(options.judge)
    return settings


def parse_nested(pairs: list[str]) -> dict[str, Any]:
    """`["a.b=1"]` -> `{"a": {"b": 1}}`, values as YAML reads them. Raises ValueError."""
    found: dict[str, Any] = {}
    for pair in filter(None, pairs):
        key, equals, text = pair.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(tr("--judge {pair}: write it as model=NAME", pair=pair))
        try:
            value = YAML(typ="safe").load(text)
        except YAMLError:
            value = text
        *parents, last = key.split(".")
        target = found
        for name in parents:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ValueError(tr("--judge {pair}: {name} has a value already", pair=pair, name=name))
        target[last] = value
    return found


# ── a model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measure_target(options: argparse.Namespace, home: Home, settings: dict[str, Any]) -> dict[str, Any]:
    arguments = {"target": options.target, "directory": str(Path.cwd()), "against": options.against, **settings}
    extra = _judge_keys(options.target, home, settings["judge"]) if "judge" in settings else {}
    columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def on_event(event: ServiceEvent) -> None:
            name = f"{event.data.get('target') or options.target}: {event.data.get('stage', event.kind)}"
            done, total = event.data.get("done", 0), event.data.get("total", 0)
            if name not in bars:
                bars[name] = progress.add_task(name, total=total or None)
                if not console().is_terminal:
                    say(name)
            progress.update(bars[name], completed=done, total=total or None)

        try:
            result: dict[str, Any] = call_service(home, "evaluate", "evaluate", arguments, on_event, extra)
        except KeyboardInterrupt:
            progress.stop()
            say(tr("\nCancelled. Finished parts are kept: the same command continues from here."))
            raise
    return result


def _judge_keys(target: str, home: Home, judge: Mapping[str, Any]) -> dict[str, str]:
    """The environment variable with the judge's key: the one that is named, or those that the target's run names in its
    profile."""
    name = judge.get("api_key_env")
    found: dict[str, str] = {}
    if name is None:
        word = target.rpartition("@")[0] or target
        pattern = "*" if word == "last" else f"{word}*" if word.replace("-", "").isalnum() else ""
        for run in home.runs.glob(pattern) if pattern else ():
            found |= resume_environment(str(run))
    variable = name or DEFAULT_KEY
    return found | ({variable: os.environ[variable]} if variable in os.environ else {})


# ── replies from elsewhere ─────────────────────────────────────────────────────────────────────────────────────────


def _score_predictions(options: argparse.Namespace, home: Home, settings: dict[str, Any]) -> dict[str, Any]:
    """Score replies in a process of its own, in the foreground. This starts no engine."""
    for name in (
        "data",
        "rows",
        "samples",
        "max_new_tokens",
        "constrained",
        "dtype",
        "quantization",
        "benchmarks",
        "forgetting",
    ):
        if name in settings:
            raise ValueError(
                tr(
                    "--{replace} applies to measuring a model; leave it out with --predictions",
                    replace=name.replace("_", "-"),
                )
            )
    request = json.dumps({"files": [options.predictions, *options.against], "settings": settings})
    command = [sys.executable, "-P", "-m", "engine.workers.predictions", request, "--home", str(home.root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=build_engine_environment(), check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ProblemError(
            Problem(
                code="evaluation.failed",
                title=tr("The scoring process ended without a result"),
                cause=tr("status {returncode}", returncode=done.returncode),
            )
        )
    if "error" in answer:
        raise ProblemError(msgspec.convert(answer["error"], Problem))
    result: dict[str, Any] = answer["result"]
    return result


# ── output ────────────────────────────────────────────────────────────────────────────────────────────────────────


def print_result(result: dict[str, Any]) -> None:
    """Print metrics, comparisons and thresholds to stdout, and notes to stderr."""
    for note in result["notes"]:
        say(note, "yellow")
    if result["rejected"]:
        say(tr("{rejected} bad rows were left out", rejected=result["rejected"]), "yellow")
    for other in result.get("against", ()):
        _print_comparison(result, other)
    if not result.get("against"):
        whole, parts = _split_parts(result["metrics"])
        table((result["target"], ""), [(name, format_metric(value)) for name, value in whole.items()])
        for stem, columns in parts.items():
            rows = [(part, *(format_metric(value) for value in values)) for part, values in columns[1].items()]
            table((tr("{stem}, by part", stem=stem), *columns[0]), rows)
    for each in result["thresholds"]:
        print(f"{'passed' if each['passed'] else 'FAILED'}: {each['text']}")
    if usage := result.get("judge_usage"):
        cost = tr(", cost {cost:.4g}", cost=usage["cost"]) if usage["cost"] else ""
        say(
            tr(
                "the judge used {prompt_tokens} + {reply_tokens} tokens{cost}",
                prompt_tokens=usage["prompt_tokens"],
                reply_tokens=usage["reply_tokens"],
                cost=cost,
            ),
            "dim",
        )
    if versions := result.get("versions"):
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        say(
            tr(
                "versions: {named}; {rows} rows with their scores are in {directory}",
                named=named,
                rows=result["rows"],
                directory=result["directory"],
            ),
            "dim",
        )
    else:
        say(
            tr(
                "{replies} replies of {rows} rows with their scores are in {directory}",
                replies=result["replies"],
                rows=result["rows"],
                directory=result["directory"],
            ),
            "dim",
        )


def _split_parts(
    metrics: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, tuple[list[str], dict[str, list[float]]]]]:
    """Metrics of all rows, and those of parts (`triples_f1.born_in`) as stem -> names, and their values by part."""
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


def _print_comparison(result: dict[str, Any], other: dict[str, Any]) -> None:
    rows = []
    for name, each in other["differences"].items():
        verdict = {1: "better", -1: "worse", 0: "differs" if each["beyond_noise"] else tr("within noise")}[
            each["better"]
        ]
        interval = f"{each['difference']:+.4g}  [{each['low']:+.4g}, {each['high']:+.4g}]"
        rows.append((name, format_metric(each["first"]), format_metric(each["second"]), interval, verdict))
    table(("", other["target"], result["target"], tr("difference, 95 % interval"), ""), rows)
    for change in ("forgot", "learnt"):
        listed = other.get(change, ())
        if listed:
            say(
                tr(
                    "{change} {listed} of {compared_rows} questions:",
                    change=change,
                    listed=len(listed),
                    compared_rows=other["compared_rows"],
                )
            )
            for each in listed:
                said = (" ".join(each[name].split())[:_SAID] for name in ("question", "right", "wrong"))
                print(tr("  {}\n    right: {}\n    wrong: {}").format(*said))
    say(
        tr(
            "paired bootstrap over {compared_rows} rows, {resamples} resamples",
            compared_rows=other["compared_rows"],
            resamples=other["resamples"],
        ),
        "dim",
    )
