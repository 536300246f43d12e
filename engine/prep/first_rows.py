"""The first rows of a profile's sources, read before a launch: what can be said at once need not fail later.

A small source is read whole, so that its share of bad rows is known. Nothing is read of what must be fetched or
unpacked as a table first; preparing checks these.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.options.data import DataOptions, SourceOptions
from engine.prep import read_rows, readers
from engine.prep.formats.canonical import Canonical, EmptyRow
from engine.prep.rows import too_many
from engine.prep.sources import HUB, list_files
from engine.prep.stages.source_files import PARTS, resolve_source
from engine.protocol.messages import Problem, ProblemError
from engine.tasks.task import load_task
from engine.tasks.thoughts import drop_thoughts

MOST_ROWS = 1000
"""Rows that are read of a source."""
MOST_BYTES = 2**18
"""Bytes that are read of a source, but for its last row."""
MOST_SOURCES = 20
"""Sources that are read of a part: a launch waits for it."""
_QUOTED = 3
"""Bad rows that a message quotes."""
_LIGHT = (".jsonl", ".json", ".csv", ".tsv", ".txt")
"""Kinds of files that are read without a library for tables."""


class PlacedContent(NamedTuple):
    """A canonical row, and its file and line for a message."""

    place: str
    content: Canonical


@dataclass
class FirstRows:
    """The first rows of a source. `read` counts rows of files, which may become several canonical ones."""

    rows: list[PlacedContent] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    read: int = 0
    empty: int = 0
    """Bad rows that have no text or no reply."""
    whole: bool = True
    """Whether these are all rows of the source."""
    problem: str = ""
    """Why no row can be read."""


def read_first(source: SourceOptions, data: DataOptions, directory: Path, part: str) -> FirstRows:
    """The first rows of a source. What cannot be found out here leaves them incomplete. Raises nothing."""
    try:
        found = resolve_source(source, data, directory, part)
        paths = [] if found.source.startswith(HUB) else list_files(found.source, directory, part)
        if not paths or any(not path.is_file() or _kind(path) not in _LIGHT for path in paths):
            return FirstRows(whole=False)
        stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    except (ValueError, OSError):
        return FirstRows(whole=False)  # which another check says
    return _read(found.model_dump_json(), stamps)


def check_first_rows(profile: Any) -> Iterator[tuple[str, str]]:
    """Yields `(key, message)` for sources whose rows cannot be read, for parts with more bad rows than
    `data.max_rejected` allows, for training rows without a single label, and for held-out replies that the profile's
    evaluation cannot score."""
    data = profile.data
    for part in PARTS:
        found = list(_read_part(profile, part))
        for index, rows in enumerate(found):
            if rows.problem:
                yield f"data.{part}.{index}", rows.problem
        if len(found) == len(getattr(data, part)) and not any(rows.problem for rows in found):
            yield from _check_share(data, part, found)
            if part == "train" and _trains_replies_alone(profile):
                yield from _check_trained(found)
    if profile.evaluation.task and profile.evaluation.samples:
        yield from _check_references(profile)


def _read_part(profile: Any, part: str) -> Iterator[FirstRows]:
    """The first rows of each of the part's first sources."""
    for source in getattr(profile.data, part)[:MOST_SOURCES]:
        yield read_first(source, profile.data, profile.directory, part)


def describe_misfit(text: str, task: str) -> str:
    """Why a reply is no answer to a task; empty if it may be one. Thoughts before the answer do not count."""
    tally, first = load_task(task).tally, ""
    # A template may mark thoughts in its own way. The answer behind them begins with a bracket.
    starts = (place for place in map(text.find, "[{") if place > 0)
    for attempt in (drop_thoughts(text), *(text[place:] for place in starts)):
        try:
            tally("", attempt)
            return ""
        except ValueError as error:
            first = first or str(error)
    return first


def last_reply(content: Canonical, task: str) -> str | None:
    """The reply of a row that a reply of the model is compared with; None for a row that the task is not about."""
    messages = content.get("messages") or []
    if not messages or messages[-1].get("role") != "assistant" or not messages[-1].get("content"):
        return None
    return str(messages[-1]["content"]) if load_task(task).concerns(content.get("columns", {})) else None


def _kind(path: Path) -> str:
    kind = readers.find_kind(path)
    return kind.removesuffix(".gz")


@functools.lru_cache(maxsize=16)
def _read(source: str, stamps: tuple[tuple[str, int, int], ...]) -> FirstRows:
    """The first rows of these files. `stamps` have path, time of change and size of each."""
    options, found, left = SourceOptions.model_validate_json(source), FirstRows(), MOST_BYTES
    good = 0
    for name, _, size in stamps:
        path = Path(name)
        if not size:
            continue
        if left <= 0:
            found.whole = False
            break
        try:
            convert = None
            for record in readers.read(path, encoding=options.encoding):
                if found.read >= MOST_ROWS or left <= 0:
                    found.whole = False
                    break
                found.read += 1
                left -= max(record.end - record.offset, 1)
                reason = record.reason
                if record.value is not None:
                    convert = convert or read_rows.make_converter(options, read_rows.find_format(options, path))
                    try:
                        rows = convert(record.value)
                        found.rows += [PlacedContent(f"{path.name}:{record.line}", row) for row in rows]
                        good += 1
                        if good == options.max_rows:
                            return found
                        continue
                    except ValueError as error:
                        reason, found.empty = str(error), found.empty + isinstance(error, EmptyRow)
                found.bad.append(f"{path.name}:{record.line}: {reason}")
        except (ValueError, OSError) as error:
            found.problem, found.whole = str(error), False
            break
    return found


def _check_share(data: DataOptions, part: str, found: list[FirstRows]) -> Iterator[tuple[str, str]]:
    """Whether a launch would be refused because of bad rows. It is known when all rows were read."""
    if not found or not all(rows.whole for rows in found):
        return
    drops_empty = data.clean is not None and data.clean.empty
    read = sum(rows.read for rows in found)
    bad = sum(len(rows.bad) - (rows.empty if drops_empty else 0) for rows in found)
    if too_many(bad, read, data.max_rejected):
        first = list(itertools.islice((reason for rows in found for reason in rows.bad), _QUOTED))
        more = " …" if bad > len(first) else ""
        yield (
            f"data.{part}",
            f"{bad} of {read} rows are bad ({percent(bad / read)}), above data.max_rejected "
            f"({percent(data.max_rejected)}): {'; '.join(first)}{more}; mend them, or raise data.max_rejected to go on "
            "without them",
        )


def _trains_replies_alone(profile: Any) -> bool:
    """Whether only replies of the rows of these sources will be trained, but for those of weight 0."""
    method = profile.method
    return method.rows == "tokens" and method.loss_on == "assistant" and profile.data.expand is None


def _check_trained(found: list[FirstRows]) -> Iterator[tuple[str, str]]:
    """Whether all labels of all training rows will be masked: then no step would have a loss."""
    rows = [row for each in found for row in each.rows]
    if rows and all(each.whole for each in found) and not any(_is_trained(row.content) for row in rows):
        yield (
            "data.train",
            f"no row has anything to train on: in all {len(rows)} rows each assistant turn has the weight 0 "
            f"({rows[0].place} is the first); give the turns that are to be learnt the weight 1, or none",
        )


def _is_trained(content: Canonical) -> bool:
    """Whether some of a row's labels can be other than masked. What is no conversation is trained as a whole."""
    messages = content.get("messages")
    if not messages:
        return True
    return any(turn.get("role") == "assistant" and turn.get("weight") != 0 for turn in messages)


def percent(share: float) -> str:
    """A share as a percentage: 6.8 %, 1 %."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _check_references(profile: Any) -> Iterator[tuple[str, str]]:
    """Whether the held-out replies that will be scored are answers to `evaluation.task`. A part that is to be split off
    is only known to be wrong if none of the rows is an answer, and one that is to be cleaned, too."""
    data, task, samples = profile.data, profile.evaluation.task, profile.evaluation.samples
    for part in ("validation", "test", "train"):
        if part == "train" and (not data.split or data.validation):
            continue
        certain = part != "train" and data.clean is None
        rows = (row for first in _read_part(profile, part) for row in first.rows)
        replies = ((row.place, reply) for row in rows if (reply := last_reply(row.content, task)) is not None)
        seen, wrong = 0, []
        for place, reply in itertools.islice(replies, samples):
            seen += 1
            if reason := describe_misfit(reply, task):
                wrong.append(f"the reply of {place} {reason}")
                if certain:
                    break
        if wrong and (certain or len(wrong) == seen):
            yield "evaluation.task", explain_misfit(wrong[0], task)


def misfit(found: str, task: str) -> ProblemError:
    """The problem that a held-out reply is no answer to the evaluation's task."""
    return ProblemError(
        Problem(
            code="data.rows.misfit",
            title=f"evaluation.task {task} cannot score the held-out rows",
            cause=found,
            hint="leave evaluation.task out, or hold out rows that are answers to the task",
        )
    )


def check_held_out(profile: Any, paths: Iterable[str | None]) -> None:
    """Raises ProblemError when one of the first held-out rows, canonical rows in JSONL files, cannot be scored by
    `evaluation.task`."""
    task, samples = profile.evaluation.task, profile.evaluation.samples
    for path in paths if task and samples else ():
        if path is None:
            continue
        with Path(path).open("rb") as file:
            replies = (last_reply(msgspec.json.decode(line), task) for line in file)
            scored = (reply for reply in replies if reply is not None)
            for number, reply in enumerate(itertools.islice(scored, samples), 1):
                if reason := describe_misfit(reply, task):
                    raise misfit(f"the reply of row {number} of {Path(path).stem} {reason}", task)


def explain_misfit(misfit: str, task: str) -> str:
    """What a reply that is no answer means for a run, and what to do."""
    return (
        f"{misfit}; {task} scores replies against those of held-out rows: leave evaluation.task out, or hold out rows "
        "that are answers to the task"
    )
