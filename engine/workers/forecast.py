"""`cockpit forecast` and `cockpit fit`: what a profile will take, in a process that the command line starts, or the
prepare stage of a run.

Exit status: 0 it fits, or hardly; 1 it does not; 2 a wrong request.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from engine.config import forecasts
from engine.config.profile import Profile, ProfileError, parse
from engine.hardware import host_memory
from engine.hardware.listing import list_visible
from engine.protocol.console import GuardedConsole, text
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json
from engine.protocol.text import first_line

if TYPE_CHECKING:
    from engine.training.forecast.hosts import Host

ERR = GuardedConsole(stderr=True)
FITS, TOO_LARGE, WRONG = 0, 1, 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="cockpit forecast")
    parser.add_argument("action", choices=("forecast", "fit", "accuracy", "launch", "changes"))
    parser.add_argument("arguments", nargs="?", default="{}")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", help="the run that this process belongs to, and ends with")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    home, arguments = Home(options.home), json.loads(options.arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        match options.action:
            case "accuracy":
                return _show_accuracy(home, options.json)
            case "launch":
                return _forecast_run(home, arguments["run"])
            case "changes":
                return _find_changes(home, arguments)
            case "fit":
                return _fit(home, arguments, options.json)
        return _forecast(home, arguments, options.json)
    except ProfileError as error:
        return _report(Problem(code=error.code, title="The profile is not valid", cause=str(error)), options.json)
    except ProblemError as error:
        return _report(error.problem, options.json)


def _report(problem: Problem, as_json: bool) -> int:
    ERR.print(": ".join(filter(None, (problem.title, problem.cause))), style="bold red", soft_wrap=True)
    if problem.hint:
        ERR.print(f"→ {problem.hint}", style="cyan", soft_wrap=True)
    if as_json:
        print(to_json({"error": problem.document()}))
    return WRONG


def make(
    profile: Profile,
    home: Home,
    host: Any,
    report: Callable[[dict[str, Any], Profile], bool],
    prepared: dict[str, Any] | None = None,
    limit: int = 120,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], Profile]:
    """The forecast and the chosen profile. `report` gets them before the changes of one that does not fit are looked
    for, for about `limit` seconds, if it returns true. Raises ProblemError, also where the libraries cannot trace the
    model, and Abandoned once it is `cancelled`."""
    from datasets import disable_progress_bars
    from transformers.utils import logging as library_logging

    from engine.training.forecast import estimate, verdict

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    disable_progress_bars()  # of the rows that are made up
    with ExitStack() as stack:
        with explain_failures():
            given = estimate.gather(profile, home, stack, prepared, ranks=host.cards)
            given = replace(given, cancelled=cancelled)
            found, chosen = verdict.forecast(profile, host, given)
        needs_less = forecasts.judge_all(found, host.card_bytes, host.host_bytes) == "too_large"  # be the disk as it is
        if report(found, chosen) and needs_less:
            verdict.add_changes(found, (profile, chosen), host, given, limit)
        return found, chosen


def find_ways(
    profile: Profile, home: Home, wanted: str, cancelled: Callable[[], bool] = lambda: False
) -> tuple[Host, dict[str, Any], list[dict[str, Any]]]:
    """The host of `wanted` cards (`8x80GB`, `auto`), the settings that keep the global batch there, and the ways in
    which the profile fits with these, the best first. Raises ProblemError, ProfileError, Abandoned."""
    from datasets import disable_progress_bars

    from engine.training.forecast import estimate, hosts, solver, ways

    card, cards = (None, None) if wanted == "auto" else (wanted, hosts.parse_card(wanted)[0])
    host = hosts.find(profile, card, cards)
    spread = solver.spread(profile, host)
    if not spread:
        _check_global_batch(profile, host.cards)
    profile = estimate.replace_settings(profile, spread)
    disable_progress_bars()
    with ExitStack() as stack, explain_failures():
        given = replace(estimate.gather(profile, home, stack, ranks=host.cards), cancelled=cancelled)
        found = ways.solve(profile, host, given)
        if cancelled():
            raise estimate.Abandoned
    return host, spread, found


def _check_global_batch(profile: Profile, cards: int) -> None:
    """Raises ProblemError if the global batch cannot be the same on so many cards as on as many processes as the
    profile names."""
    processes, training = profile.launch.processes, profile.training
    if not isinstance(processes, int) or processes == cards:
        return
    passes = training.accumulation * processes
    total = passes if training.tokens_per_batch else training.rows * passes
    possible = [number for number in range(1, total + 1) if total % number == 0]
    fewer = max((number for number in possible if number < cards), default=None)
    more = min((number for number in possible if number > cards), default=None)
    near = " or ".join(str(number) for number in (fewer, more) if number is not None)
    raise ProblemError(
        Problem(
            code="forecast.card_count",
            title=f"The global batch cannot be divided among {cards} cards",
            cause=f"it has {total} passes, with launch.processes {processes}"
            if training.tokens_per_batch
            else f"it has {total} rows, with launch.processes {processes}",
            hint=f"name {near} cards, or change training.accumulation",
        )
    )


@contextmanager
def explain_failures() -> Iterator[None]:
    """Context that says, of whatever the libraries raise, why there is no forecast."""
    from engine.training.forecast.estimate import Abandoned

    try:
        yield
    except (ProblemError, ProfileError, Abandoned):
        raise
    except Exception as error:
        raise _explain(error) from error


def _explain(error: Exception) -> ProblemError:
    return ProblemError(
        Problem(
            code="forecast.unsupported",
            title="There is no forecast for this profile",
            cause=f"its step cannot be traced without a device: {type(error).__name__}: {first_line(error)}",
            hint="the rehearsal before the first step shows whether it fits",
        )
    )


def _read_profile(home: Home, arguments: dict[str, Any]) -> Profile:
    where = Path(arguments["directory"])
    return parse(arguments["text"], arguments["profile"], where, home=home, forecast=True)


def _forecast(home: Home, arguments: dict[str, Any], as_json: bool) -> int:
    from engine.training.forecast import hosts

    profile = _read_profile(home, arguments)
    host = hosts.find(profile, arguments["card"], arguments["cards"])

    def report(found: dict[str, Any], chosen: Profile) -> bool:
        if not as_json:
            _print_forecast(found, profile, chosen)
        return True

    found, _ = make(profile, home, host, report)
    if as_json:
        print(to_json(found))
    disk = forecasts.read_free_disk(home) if host.is_here else None
    if found["verdict"] != "too_large":
        if near := forecasts.describe_near(found, host.card_bytes, host.host_bytes, disk):
            ERR.print(near, style="yellow", soft_wrap=True)
            ERR.print(f"→ {forecasts.NEAR_HINT}", style="cyan", soft_wrap=True)
        return FITS
    problem = _explain_lack(found, host, home, disk)
    ERR.print(f"{problem.title}: {problem.cause}", style="bold red", soft_wrap=True)
    ERR.print(f"→ {problem.hint}", style="cyan", soft_wrap=True)
    return TOO_LARGE


def _explain_lack(found: dict[str, Any], host: Host, home: Home, disk: int | None) -> Problem:
    if forecasts.judge_all(found, host.card_bytes, host.host_bytes) != "too_large" and disk is not None:
        return forecasts.explain_full_disk(found, disk, home.runs)
    return forecasts.explain_refusal(found, host.card_bytes, host.host_bytes)


VERDICTS = {
    "fits": ("it fits", "green"),
    "near": ("it hardly fits, or does not", "yellow"),
    "too_large": ("it does not fit", "bold red"),
    "unknown": ("whether it fits is not known: the card does not tell its memory", "yellow"),
}
"""Verdict -> what is printed of it, and its style."""


def _print_forecast(found: dict[str, Any], profile: Profile, chosen: Profile) -> None:
    console = GuardedConsole()
    console.print(text(forecasts.summarize(found)), soft_wrap=True)
    console.print(VERDICTS[found["verdict"]][0], style=VERDICTS[found["verdict"]][1])
    if profile.launch.strategy != chosen.launch.strategy:
        ERR.print(f"launch.strategy auto: {chosen.launch.strategy}", soft_wrap=True)
    if not found["rows_measured"]:
        ERR.print(
            "its data is not prepared yet: all rows are taken to be as long as data.max_length allows "
            "(`cockpit prepare` finds out)",
            soft_wrap=True,
        )
    table = Table("TERM", "WHERE", "PHASE", "SIZE", box=None, pad_edge=False, header_style="bold")
    for term in found["terms"]:
        table.add_row(*map(text, (term["name"], term["place"], term["phase"], forecasts.format_size(term["bytes"]))))
    console.print(table)


def _fit(home: Home, arguments: dict[str, Any], as_json: bool) -> int:
    from engine.training.forecast import apply

    profile = _read_profile(home, arguments)
    host, spread, found = find_ways(profile, home, arguments["cards"])
    if as_json:
        print(to_json({"cards": host.cards, "card_bytes": host.card_bytes, "ways": found}))
    else:
        table = Table("", "CHANGES", "A CARD", "HOST", "TIME", "", box=None, pad_edge=False, header_style="bold")
        for number, way in enumerate(found, 1):
            table.add_row(*map(text, (str(number), *_describe_way(way))))
        GuardedConsole(width=None if sys.stdout.isatty() else 200).print(table)
    if not found:
        ERR.print("no settings were found with which it fits", style="bold red")
        return TOO_LARGE
    if arguments["apply"]:
        chosen = found[arguments.get("way", 1) - 1 : arguments.get("way", 1)]
        if not chosen:
            ERR.print(f"--way {arguments['way']}: there are {len(found)}", style="bold red")
            return WRONG
        way = {**chosen[0], "settings": {**spread, "launch.processes": host.cards, **chosen[0]["settings"]}}
        apply.write_copy(Path(arguments["profile"]), Path(arguments["apply"]), way, arguments["overrides"])
        ERR.print(f"written to {arguments['apply']}", soft_wrap=True)
    return FITS


def _describe_way(way: dict[str, Any]) -> tuple[str, ...]:
    settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in way["settings"].items())
    device = forecasts.format_size(way["device_bytes"]) if way["device_bytes"] else "–"
    near = way.get("grows", "hardly" if way["verdict"] == "near" else "")
    return settings or "as it is", device, forecasts.format_size(way["host_bytes"]), f"× {way['time']:g}", near


def _show_accuracy(home: Home, as_json: bool) -> int:
    from engine.training.forecast import calibration

    runs = calibration.list_runs(home)
    if as_json:
        print(to_json(runs))
        return FITS
    table = Table("DEVICE", "RUN", "FORECAST", "ACTUAL", "ERROR", box=None, pad_edge=False, header_style="bold")
    for label, listed in runs.items():
        for run in listed:
            if run["forecast"] and run["actual"]:
                error = f"{(run['forecast'] / run['actual'] - 1) * 100:+.1f} %"
                sizes = map(forecasts.format_size, (run["forecast"], run["actual"]))
                table.add_row(*map(text, (label, run["run"], *sizes, error)))
    if table.rows:
        GuardedConsole(width=None if sys.stdout.isatty() else 200).print(table)
    else:
        ERR.print("no run has ended yet that there was a forecast for")
    return FITS


def _find_changes(home: Home, arguments: dict[str, Any]) -> int:
    """Print, as a line of JSON, the forecast of a profile that was refused, with its `changes` as far as they are found
    in about `limit` seconds; they are kept with it. Runs on this host come first."""
    from engine.training.forecast import hosts

    os.nice(5)
    profile = _read_profile(home, arguments)
    found, _ = make(profile, home, hosts.find(profile, None, None), lambda *_: True, limit=arguments["limit"])
    print(to_json(found))
    return FITS


def _forecast_run(home: Home, run_id: str) -> int:
    """Print the forecast of a run whose rows are prepared, with its `chosen_strategy`, as a line of JSON; a second line
    has the changes too, where the run would be refused."""
    from engine.training.forecast import hosts

    run = home.run(run_id)
    directory = Path(json.loads((run.path / "job.json").read_bytes())["directory"])
    profile = parse(run.profile.read_text(encoding="utf-8"), str(run.profile), directory, home=home, prepared=True)
    host = hosts.find(profile, None, None)
    largest, total = forecasts.find_largest(list_visible()), host_memory.read_total()

    def report(found: dict[str, Any], chosen: Profile) -> bool:
        print(json.dumps({**found, "chosen_strategy": chosen.launch.strategy, "free_bytes": host.host_bytes}))
        sys.stdout.flush()
        return forecasts.is_hopeless(found, largest, total)

    found, chosen = make(profile, home, host, report, json.loads(run.prepared.read_bytes()), 20)
    if "changes" in found:
        report(found, chosen)
    return FITS


if __name__ == "__main__":
    guard()
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without waiting for the libraries' threads: everything is printed
