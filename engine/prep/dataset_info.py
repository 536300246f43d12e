"""LLaMA-Factory's `dataset_info.json` as a catalogue: its names become sources.

An entry is translated into the options of a source: `formatting` and `ranking` become `format`, `columns` (which
LLaMA-Factory names by role: prompt, query, response …) become the columns of that format, `num_samples` becomes
`max_rows`, and `hf_hub_url` with `subset` and `split` becomes `hf://name:subset@split`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.options.data import SourceOptions
from engine.prep.sources import HUB
from engine.protocol.text import did_you_mean

_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
"""`formatting` -> LLaMA-Factory's name of a column -> the format's name."""
_SHARED = {name: name for name in ("system", "tools", "chosen", "rejected", "kto_tag")}
_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "model"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function", "tool_calls"),
    "system_tag": ("system",),
}
"""The names in turns that our formats recognise without being told."""
_MEDIA = ("images", "videos", "audios")


class Catalog(Mapping[str, SourceOptions]):
    """Sources by name. An entry is translated on access, so an unusable entry does not affect the others."""

    def __init__(self, path: Path, entries: dict[str, dict[str, Any]]) -> None:
        self.path, self._entries = path, entries

    def __getitem__(self, name: str) -> SourceOptions:
        """Raises ValueError for an unknown name, with a suggestion, and for an entry that uses an unsupported
        option."""
        if name not in self._entries:
            raise ValueError(f"{self.path.name} has no data set {name}{did_you_mean(name, self._entries)}")
        try:
            return _convert_entry(self._entries[name], self.path.parent)
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {name}: {error}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def read(path: Path) -> Catalog:
    """The catalogue in a file. Raises ValueError if it is not a catalogue, OSError if it cannot be opened."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(
            f"{path.name} is not a catalogue: it must be an object that maps the name of each data set to an object"
        )
    return Catalog(path, entries)


def _convert_entry(entry: dict[str, Any], folder: Path) -> SourceOptions:
    formatting = entry.get("formatting") or "alpaca"
    if formatting not in _FORMATS:
        raise ValueError(f"its formatting is {formatting!r}, not one of {', '.join(_FORMATS)}")
    _check_tags(entry.get("tags") or {})
    theirs = entry.get("columns") or {}
    ours = _COLUMNS[formatting] | _SHARED
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        media = " (pictures and sound are not trained on here)" if unknown[0] in _MEDIA else ""
        raise ValueError(f"its column {unknown[0]!r} is not known for {formatting}{media}")
    row_format = "kto" if "kto_tag" in theirs else "preference" if entry.get("ranking") else _FORMATS[formatting]
    if row_format == "alpaca" and theirs and not {"query", "response"} & set(theirs) and "prompt" in theirs:
        # LLaMA-Factory calls the text of a pretraining set a prompt without a response.
        row_format, ours = "text", {"prompt": "text"} | _SHARED
    return SourceOptions(
        source=_locate_rows(entry, folder),
        format=row_format,
        # A column that keeps its name is mapped too: it stands before others that the format could read in its place.
        columns={ours[name]: column for name, column in theirs.items() if column},
        max_rows=entry.get("num_samples"),
    )


def _locate_rows(entry: dict[str, Any], folder: Path) -> str:
    """The file beside the catalogue if it exists, which needs no network, else the hub data set."""
    file, hub = entry.get("file_name"), entry.get("hf_hub_url")
    if file and (not hub or (folder / file).exists()):
        return str((folder / file).absolute())
    if hub:
        if entry.get("folder"):
            raise ValueError("it names a folder of a hub data set; download that folder and name it in file_name")
        subset, split = entry.get("subset"), entry.get("split")
        return f"{HUB}{hub}{f':{subset}' if subset else ''}{f'@{split}' if split else ''}"
    other = next(
        (name for name in ("ms_hub_url", "om_hub_url", "cloud_file_name", "script_url") if entry.get(name)), ""
    )
    raise ValueError(
        f"it has neither file_name nor hf_hub_url{f', and {other} cannot be read here; download it' if other else ''}"
    )


def _check_tags(tags: dict[str, Any]) -> None:
    for tag, name in tags.items():
        if tag not in _TAGS:
            raise ValueError(f"its tag {tag!r} is not known; known are {', '.join(_TAGS)}")
        if name not in _TAGS[tag]:
            raise ValueError(
                f"its {tag} is {name!r}, but turns are read by {' or '.join(_TAGS[tag])}; rename it in the rows"
            )
