"""Expansion as the first stage of a profile: new rows of the training sources, made once and kept in the cache.

    cache/expand-HASH/     what `expand` leaves; `stage.json` says what was asked for, and of what form each row is
    cache/expanded-HASH/   the rows that are kept, a file for each form, as they take part in training

The first hash is of the seeds and of all that a request depends on: with more samples, other limits or another concurrency it goes on
from the answers that were paid for, and what has nothing to do with the service (lengths, cleaning, the base) asks for nothing. The cache's
version is left out of it for the same reason.
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
"""Settings that decide what is asked, and of whom."""
_ROWS = ("samples", "similarity", "token_limit", "cost_limit", "price")
"""Settings that decide which rows become of the answers."""


class ExpandedSources(NamedTuple):
    """`sources` are the new rows as further training sources; `report` is what `prepared.json` says of them."""

    sources: Sources
    report: dict[str, Any]


def folder_of(options: ExpandOptions, sources: Sources, digests: Mapping[str, str], home: Home) -> Path:
    """Where the expansion of these training sources lies, made or not. `digests` are of the sources' files, by role."""
    forms = [source.model_dump(exclude={"source", "weight"}) for source, _ in sources]
    kinds = [path.suffix.lower() for _, paths in sources for path in paths]
    told = [sorted(digests.items()), forms, kinds, options.model_dump(include=set(_REQUESTS))]
    return home.cache / f"expand-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]}"


def expand_training(
    options: ExpandOptions, sources: Sources, digests: Mapping[str, str], home: Home, progress: Progress
) -> ExpandedSources:
    """The new rows of the training sources: made now, gone on with, or found. Rows that the user has dropped take no part.

    Raises what `expand` raises; then what was answered is kept, and the same call goes on from there.
    """
    with cache.permanent_folder(home, folder_of(options, sources, digests, home).name) as folder:
        told = _make_rows(folder, options, sources, progress)
        lines, dropped = _read_kept(folder, told["forms"])
    report = {
        **told["report"],
        "rows": len(told["forms"]),
        "dropped": dropped,
        "rejects": str(folder / "rejects.jsonl"),
        "directory": str(folder),
    }
    return ExpandedSources(_write_sources(lines, told["kinds"], sources, home), report)


def is_made(options: ExpandOptions, sources: Sources, digests: Mapping[str, str], home: Home) -> bool:
    """Whether `expanded` would find all of it in the cache."""
    marker = folder_of(options, sources, digests, home) / "stage.json"
    return marker.is_file() and json.loads(marker.read_bytes()).get("asked") == options.model_dump(include=set(_ROWS))


def _make_rows(folder: Path, options: ExpandOptions, sources: Sources, progress: Progress) -> dict[str, Any]:
    """`stage.json`, of an expansion as it is asked for."""
    marker = folder / "stage.json"
    asked = options.model_dump(include=set(_ROWS))
    told: dict[str, Any] = json.loads(marker.read_bytes()) if marker.is_file() else {}
    if told.get("asked") != asked:
        marker.unlink(missing_ok=True)  # from here on the rows may be others than it says
        made = expand_sources(sources, options, folder, progress)
        told = {"asked": asked, "report": made.report, "kinds": made.formats, "forms": made.forms}
        write_private(marker, json.dumps(told, ensure_ascii=False).encode())
    return told


def _read_kept(folder: Path, forms: list[int]) -> tuple[dict[int, list[bytes]], int]:
    """The lines of the rows that nobody dropped, by form, and how many were dropped."""
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
    """Each form's rows under the options of its seeds, in a folder named by what it holds: later decisions change none that is in use."""
    digest = hashlib.sha256()
    for form, rows in lines.items():
        digest.update(f"{form} {len(rows)}\n".encode())
        digest.update(b"".join(rows))
    made = home.cache / f"expanded-{digest.hexdigest()[:32]}"
    if lines and not made.is_dir():
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
            "columns": {name: own for name, own in source.columns.items() if own in there},
            "weight": 1.0,
            "max_rows": None,
        }
        found.append((source.model_copy(update=changed), [path]))
    return found
