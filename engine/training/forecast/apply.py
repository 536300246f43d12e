"""Writes settings that fit into a copy of a profile, with the reason as a comment."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from engine.config.forecasts import format_size
from engine.config.overrides import apply_overrides
from engine.config.profile import SECTIONS, read_text
from engine.protocol.home import write_private
from engine.protocol.messages import Problem, ProblemError

_PATHS = {
    "model": {"base", "tokenizer"},
    "data": {"train", "validation", "test", "source", "catalog", "template", "chat_template"},
    "checkpoint": {"output"},
    "evaluation": {"folder"},
    "export": {"output"},
    "method": {"run"},
}
"""Section -> keys in it, at any depth, whose values may be paths relative to the profile."""


def _make_absolute(part: Any, names: set[str], directory: Path) -> None:
    """Replace what is there beside the profile by its absolute path, and so a folder that a run writes. All else, such
    as the name of a model, stays."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if isinstance(value, dict):
            _make_absolute(value, names, directory)
        elif isinstance(value, list):
            for at, each in enumerate(value):
                if isinstance(each, str) and key in names:
                    value[at] = _find(each, directory)
                _make_absolute(each, names, directory)
        elif isinstance(value, str) and key in names:
            part[key] = str(directory / value) if key == "output" else _find(value, directory)


def _find(value: str, directory: Path) -> str:
    path = directory / Path(value).expanduser()
    return str(path) if path.exists() or "*" in value else value


def write_copy(source: Path, target: Path, way: dict[str, Any], overrides: Sequence[str]) -> None:
    """Write the profile of `source`, with `overrides` and the settings of `way`, to `target`, which must not exist.
    Raises ProblemError."""
    if target.exists():
        raise ProblemError(
            Problem(code="output.not_empty", title=f"{target} exists", hint="name a file that does not exist yet")
        )
    writer = YAML(typ="rt")
    document = writer.load(read_text(source)) or CommentedMap()
    apply_overrides(document, overrides, SECTIONS)
    if source.parent.absolute() != target.expanduser().absolute().parent:
        for section, names in _PATHS.items():
            _make_absolute(document.get(section), names, source.parent.absolute())
    needed = format_size(way["device_bytes"] or way["host_bytes"])
    why = way.get("grows", "so that it fits")
    reason = f"{why}: {needed}, {way['time']:g} times as long a step"
    for key, value in way["settings"].items():
        section, _, name = key.partition(".")
        if not isinstance(document.get(section), dict):
            document[section] = CommentedMap()
        document[section][name] = value
        document[section].yaml_add_eol_comment(reason, name)
    stream = io.StringIO()
    writer.dump(document, stream)
    try:
        write_private(target.expanduser().absolute(), stream.getvalue().encode())
    except OSError as error:
        raise ProblemError(
            Problem(code="file.unwritable", title=f"{target} cannot be written", cause=error.strerror or str(error))
        ) from None
