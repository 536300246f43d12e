"""Verbs whose work needs training libraries: done by a worker in the foreground, which takes over this process."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import NoReturn

from engine.protocol.client import build_engine_environment
from engine.protocol.home import Home


def model_find(options: argparse.Namespace) -> NoReturn:
    _become("models", options, "find", *options.folders)


def model_pull(options: argparse.Namespace) -> NoReturn:
    _become("models", options, "pull", options.name)


def model_verify(options: argparse.Namespace) -> NoReturn:
    _become("models", options, "verify", options.folder)


def doctor(options: argparse.Namespace) -> NoReturn:
    _become("doctor", options, *filter(None, [options.folder]))


def plot(options: argparse.Namespace) -> NoReturn:
    named = [argument for name in options.names for argument in ("--name", name)]
    out = ["--out", options.out] if options.out else []
    _become("plot", options, options.run, *named, *out)


def data(options: argparse.Namespace) -> NoReturn:
    _become_tool(options, "data")


def tokenizer(options: argparse.Namespace) -> NoReturn:
    _become_tool(options, "tokenizer")


def _become_tool(options: argparse.Namespace, group: str) -> NoReturn:
    """The options were read here, where their help is; the worker gets them as they are."""
    given = {
        key: value
        for key, value in vars(options).items()
        if key not in ("function", "verb", "home", "json", "readonly")
    }
    _become("data_tool", options, group, options.verb, json.dumps(given))


def _become(worker: str, options: argparse.Namespace, *arguments: str) -> NoReturn:
    """Replace this process: terminal, signals and exit status are the worker's own."""
    shared = ["--home", str(Home.locate(options.home).root), *(["--json"] if options.json else [])]
    command = [sys.executable, "-P", "-m", f"engine.workers.{worker}", *arguments, *shared]
    os.execve(sys.executable, command, build_engine_environment())
