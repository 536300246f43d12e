"""Verbs that need training libraries. A worker in the foreground does them, and replaces this process."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

from cockpit import remote_names
from cockpit.language.translate import tr
from cockpit.verbs.profile import load_profile
from engine.protocol.client import build_engine_environment
from engine.protocol.home import Home

LAST_WORDS = 2.0
"""Seconds that a worker has to end after SIGTERM."""


def model_find(options: argparse.Namespace) -> NoReturn:
    _run_worker("models", options, "find", *options.folders)


def model_pull(options: argparse.Namespace) -> NoReturn:
    _run_worker("models", options, "pull", options.name)


def model_verify(options: argparse.Namespace) -> NoReturn:
    _run_worker("models", options, "verify", options.folder)


def doctor(options: argparse.Namespace) -> NoReturn:
    hosts = ["--hosts", options.hosts] if options.hosts else []
    ssh = [f"--ssh-option={option}" for option in options.ssh_option]
    flags = [f"--{flag}" for flag in ("again", "fix", "yes") if getattr(options, flag)]
    if options.stress is not None and not 1 <= options.stress <= 86_400:
        raise ValueError(tr("--stress takes 1 to 86400 seconds"))
    stress = [] if options.stress is None else [f"--stress={options.stress:g}"]
    _run_worker("doctor", options, *options.targets, *hosts, *ssh, *flags, *stress)


def forecast(options: argparse.Namespace) -> NoReturn:
    if options.accuracy:
        _run_worker("forecast", options, "accuracy")
    if options.profile is None:
        raise ValueError(tr("name a profile, or --accuracy"))
    _run_forecast(options, "forecast", {"card": options.card, "cards": options.cards})


def fit(options: argparse.Namespace) -> NoReturn:
    if options.way < 1:
        raise ValueError(tr("--way counts from 1"))
    _run_forecast(options, "fit", {"cards": options.cards, "apply": options.apply, "way": options.way})


def _run_forecast(options: argparse.Namespace, action: str, arguments: dict[str, Any]) -> NoReturn:
    path, profile = load_profile(options.profile, options.overrides, Home.locate(options.home), forecast=True)
    if arguments.get("apply") and not path.is_file():
        raise ValueError(tr("--apply copies the file of a profile: name one"))
    arguments |= {"text": profile.to_yaml(), "directory": str(profile.directory)}
    arguments |= {"profile": str(path), "overrides": options.overrides}  # what --apply copies
    _run_worker("forecast", options, action, json.dumps(arguments))


def plot(options: argparse.Namespace) -> NoReturn:
    names = [argument for name in options.names for argument in ("--name", name)]
    out = ["--out", options.out] if options.out else []
    _run_worker("plot", options, options.run, *names, *out)


def report(options: argparse.Namespace) -> NoReturn:
    flags = ("with_rows", "with_paths", "with_names", "no_doctor", "yes")
    given = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(options, flag)]
    bundle = [] if options.bundle is None else ["--bundle", *filter(None, [options.bundle])]
    _run_worker("bundle", options, options.run, *given, *bundle)


def merge(options: argparse.Namespace) -> NoReturn:
    chosen = {"method": options.method, "weights": options.weights, "density": options.density, "seed": options.seed}
    chosen |= {"base": options.base, "last": options.last, "out": options.out}
    arguments = [f"--{name}={value}" for name, value in chosen.items() if value is not None]
    _run_worker("merge", options, *options.targets, *arguments)


def push(options: argparse.Namespace) -> NoReturn:
    flags = [f"--{name}" for name in ("public", "merged") if getattr(options, name)]
    dry = ["--dry-run"] if options.dry_run else []
    chosen = [f"--{name}={value}" for name in ("hub", "message") if (value := getattr(options, name)) is not None]
    _run_worker("push", options, options.target, options.repository, *flags, *dry, *chosen)


def data(options: argparse.Namespace) -> NoReturn:
    _run_tool(options, "data")


def profile(options: argparse.Namespace) -> NoReturn:
    _run_tool(options, "profile")


def tokenizer(options: argparse.Namespace) -> NoReturn:
    _run_tool(options, "tokenizer")


def _run_tool(options: argparse.Namespace, group: str) -> NoReturn:
    """Pass the parsed options to the worker as JSON."""
    arguments = {
        key: value
        for key, value in vars(options).items()
        if key not in ("function", "verb", "home", "json", "readonly", "on", "arguments")
    }
    _run_worker("data_tool", options, group, options.verb, json.dumps(arguments))


def _run_worker(worker: str, options: argparse.Namespace, *arguments: str) -> NoReturn:
    """Replace this process, so that the worker has the terminal, the signals and the exit status. A process that has
    to watch its reader stays, and ends the worker with itself."""
    shared = ["--home", str(Home.locate(options.home).root), *(["--json"] if options.json else [])]
    command = [sys.executable, "-P", "-m", f"engine.workers.{worker}", *arguments, *shared]
    if remote_names.ends_with_reader:
        sys.exit(_run_watched(command))
    os.execve(sys.executable, command, build_engine_environment())


def _run_watched(command: list[str]) -> int:
    """Run a worker to its end, or to ours. Returns its exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # the worker is ended with this process
    worker = subprocess.Popen(command, env=build_engine_environment(), start_new_session=True)
    try:
        status = worker.wait()
        return status if status >= 0 else 128 - status
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGTERM)
            try:
                worker.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
