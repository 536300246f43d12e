"""The sampling options of the verbs that generate, as the workers take them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from cockpit.language.translate import tr

SAMPLING = (
    "task", "preset", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "no_repeat_ngram", "seed", "stop",
)  # fmt: skip
"""Options that are passed to the worker under their own names, when they are given."""


def sampling_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that are given, by the worker's names. Raises ValueError for a schema that cannot be
    read."""
    settings = {name: value for name in SAMPLING if (value := getattr(options, name)) not in (None, [])}
    if options.json_schema == "task":
        if not options.task:
            raise ValueError(tr("--json-schema task needs --task: replies are made to fit that task's schema"))
        return settings | {"constrained": True}
    if options.json_schema:
        path = Path(options.json_schema).expanduser()
        try:
            settings["schema"] = msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError as error:
            raise ValueError(tr("{path} is not JSON: {error}", path=path, error=error)) from None
    return settings
