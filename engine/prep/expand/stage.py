"""Expansion as the first stage of a profile: new rows for the training sources, made once and kept in the cache.

    cache/expand-HASH/     the files of `expand`; `stage.json` records the settings and the form of each row
    cache/expanded-HASH/   the kept rows, a file per form, as they are trained on

The first hash covers the seeds and everything that a request depends on. So with more samples, other limits or another
concurrency the expansion continues from the answers that were paid for, and a change of lengths, cleaning or base sends
no request. The cache's version is not part of the hash for the same reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.options.data import ExpandOptions
from engine.prep.expand import decisions
from engine.prep.expand.decisions import DROPPED, MADE
from engine.prep.expand.expand import Progress, expand_sources
from engine.prep.expand.seeds import Sources
from engine.protocol.home import Home, write_private
from engine.storage import cache

_REQUESTS = ("task", "prompts", "per_request", "shots", "base_url", "model", "temperature", "max_tokens", "seed")
"""Settings that requests depend on."""
_ROWS = ("samples", "similarity", "token_limit", "cost_limit", "price")
"""Settings that decide which answers become rows."""


class ExpandedSources(NamedTuple):
    """`sources` are the new rows as additional training sources; `report` is their entry in `prepared.json`."""

    sources: Sources
    report: dict[str, Any]


def folder_of(options: ExpandOptions, sources: Sources, digests: Mapping[str, str], home: Home) -> Path:
    """The folder for the expansion of these sources, whether it exists or not. `digests` are those of the sources'
    files, by role."""
    forms = [source.model_dump(exclude={"source", "weight"}) for source, _ in sources]
    kinds = [path.suffix.lower() for _, paths in sources for path in paths]
    made_of = [sorted(digests.items()), forms, kinds, options.model_dump(include=set(_REQUESTS))]
    return home.cache / f"expand-{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]}"


def expand_training(
    options: ExpandOptions, sources: Sources, digests: Mapping[str, str], home: Home, progress: Progress
) -> ExpandedSources:
    """The new rows for the training sources: made now, continued, or found in the cache; rows that the user has dropped
    are left out.

    Raises what `expand` raises; the answers received until then are kept, and the same call continues from there.
    """
    with cache.permanent_folder(home, folder_of(options, sources, digests, home).name) as folder:
        stage = _make_rows(folder, options, sources, progress)
        lines, dropped = _read_kept(folder, stage["forms"])
    report = {
        **stage["report"],
        "rows": len(stage["forms"]),
        "dropped": dropped,
        "rejects": str(folder / "rejects.jsonl"),
        "directory": str(folder),
    }
    return ExpandedSources(_write_sources(lines, stage["kinds"], sources, home), report)


def is_made(options: ExpandOptions, sources: Sources, digests: Mapping[str, str], home: Home) -> bool:
    """Whether `expand_training` would find everything in the cache."""
    marker = folder_of(options, sources, digests, home) / "stage.json"
    return marker.is_file() and json.loads(marker.read_bytes()).get("asked") == options.model_dump(include=set(_ROWS))


def _make_rows(folder: Path, options: ExpandOptions, sources: Sources, progress: Progress) -> dict[str, Any]:
    """The content of `stage.json`; expands first if it does not exist or has other settings."""
    marker = folder / "stage.json"
    settings = options.model_dump(include=set(_ROWS))
    stage: dict[str, Any] = json.loads(marker.read_bytes()) if marker.is_file() else {}
    if stage.get("asked") != settings:
        marker.unlink(missing_ok=True)  # from here on it may not match the rows
        made = expand_sources(sources, options, folder, progress)
        stage = {"asked": settings, "report": made.report, "kinds": made.formats, "forms": made.forms}
        write_private(marker, json.dumps(stage, ensure_ascii=False).encode())
    return stage


def _read_kept(folder: Path, forms: list[int]) -> tuple[dict[int, list[bytes]], int]:
    """The lines of the rows that were not dropped, by form, and the number of dropped rows."""
    gone = {row for row, word in decisions.read_decisions(folder).items() if word == DROPPED}
    kept: dict[int, list[bytes]] = {}
    dropped = 0
    with (folder / MADE).open("rb") as made:
        for line, form in zip(made, forms, strict=True):
            if decisions.digest(line) in gone:
                dropped += 1
            else:
                kept.setdefault(form, []).append(line)
    return dict(sorted(kept.items())), dropped


def _write_sources(lines: dict[int, list[bytes]], kinds: list[list[Any]], seeds: Sources, home: Home) -> Sources:
    """Sources with each form's rows and the options of its seeds. The folder is named by its content, so later
    decisions do not change a folder in use."""
    digest = hashlib.sha256()
    for form, rows in lines.items():
        digest.update(f"{form} {len(rows)}\n".encode())
        digest.update(b"".join(rows))
    made = home.cache / f"expanded-{digest.hexdigest()[:32]}"
    if lines and not cache.find_entry(home, made.name):
        with cache.new_entry(home, made.name) as folder:
            for form, rows in lines.items():
                (folder / f"expanded-{form}.jsonl").write_bytes(b"".join(rows))
    found: Sources = []
    for form, rows in lines.items():
        number, row_format = kinds[form]
        source, path = seeds[number][0], made / f"expanded-{form}.jsonl"
        there = {name for row in rows for name in json.loads(row)}
        changed = {
            "source": str(path),
            "format": row_format,
            "encoding": None,  # expanded rows are written in UTF-8
            "columns": {name: own for name, own in source.columns.items() if own in there},
            "weight": 1.0,
            "max_rows": None,
        }
        found.append((source.model_copy(update=changed), [path]))
    return found
