"""`cockpit data expand`: new rows from an OpenAI-compatible service. `--set` takes `expand.KEY=VALUE`, as in a profile's data section."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engine.prep import rows
from engine.prep.expand.expand import expand, rehearse
from engine.prep.options import ExpandOptions, SourceOptions
from engine.protocol.complaints import explain
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """What `engine.prep.expand.expand` returns, of `expand` or with `--dry-run` of `rehearse`. Raises ValueError, ProblemError."""
    options = options_of(arguments.overrides)
    source = SourceOptions(source=arguments.file, format=arguments.format)
    paths = rows.locate(source, Path.cwd(), home)
    if arguments.dry_run:
        return rehearse(paths, source, options, progress)
    return expand(paths, source, options, Path(arguments.out).expanduser().absolute(), progress)


def options_of(overrides: Iterable[str]) -> ExpandOptions:
    """Options with `data.expand.KEY=VALUE` in place of their defaults; `data.` may be left out. Raises ValueError with all problems."""
    document: dict[str, Any] = {}
    wrong = []
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().removeprefix("data.").split(".")
        if not equals or keys[0] != "expand" or len(keys) < 2 or not all(keys):
            wrong.append(f"--set {override}: write it as expand.KEY=VALUE")
            continue
        node = document
        for key in keys[1:-1]:
            inner = node.setdefault(key, {})
            node = inner if isinstance(inner, dict) else {}
        try:
            node[keys[-1]] = text if keys[1] == "prompts" else YAML(typ="safe").load(text)
        except YAMLError:
            wrong.append(f"--set {override}: the value is not YAML")
    try:
        options = ExpandOptions.model_validate(document)
    except ValidationError as error:
        wrong += [f"expand.{'.'.join(map(str, keys))}: {told}" for keys, told in explain(error, ExpandOptions)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return options
