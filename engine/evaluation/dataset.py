"""The rows that something is evaluated on: those of a source, or the ones that a run held out for itself."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from engine.options.data import SourceOptions
from engine.prep.formats.canonical import Canonical, conversation_of
from engine.prep.read_rows import read
from engine.prep.rows import Rejects
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem, ProblemError
from engine.tasks import TASKS

Messages = list[dict[str, Any]]


class Question(NamedTuple):
    """A row that a reply is generated for."""

    row: int
    asked: Messages | str
    """A conversation up to its last reply; or a text to be gone on with."""
    reference: str | None

    @property
    def text(self) -> str:
        """What was asked last."""
        return self.asked if isinstance(self.asked, str) else str(self.asked[-1]["content"])


@dataclass(frozen=True)
class Material:
    """`rows` are canonical. `tokens` is the folder of the same rows as tokens, where a run has made them: of data that were tokens from the
    beginning there are no others, and `key` says which they are. `rejected` were bad."""

    source: str
    rows: list[Canonical]
    tokens: Path | None = None
    rejected: int = 0
    first_rejected: list[str] = field(default_factory=list)
    key: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of what the rows say, wherever they lie."""
        digest = hashlib.sha256(self.key.encode())
        for row in self.rows:
            digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()

    @property
    def are_pairs(self) -> bool:
        return bool(self.rows) and all("chosen" in row for row in self.rows)

    def said(self) -> list[str]:
        """What is to be known of the rows."""
        tools, bad = (sum(map(of, self.rows)) for of in (_has_tools, _is_bad))
        notes = [f"{tools} rows have tools: they are not asked anything"] if tools else []
        return notes + (
            [f"{bad} rows hold a bad reply: their loss counts, and they are not asked anything"] if bad else []
        )

    def questions(self, task: str | None, samples: int | None) -> list[Question]:
        """The first rows that something can be asked by: those of the task, with one; of plain text the task's prompt around it. Rows with
        tools, and replies that somebody has called bad, are none. Raises ValueError where there is no row of a task although it is wanted."""
        found: list[Question] = []
        for number, row in enumerate(self.rows):
            if len(found) == samples:
                break
            if question := _question(number, row, task):
                found.append(question)
        if task and not found and samples != 0:
            raise ValueError(f"{self.source} holds no row of the task {task}")
        return found


def _question(number: int, row: Canonical, task: str | None) -> Question | None:
    if task is not None:
        of_task = importlib.import_module(TASKS[task])
        if not of_task.concerns(row.get("columns", {})):
            return None
        if "text" in row:
            return Question(number, of_task.messages(row["text"]), None)
    if _has_tools(row) or _is_bad(row):
        return None
    messages = conversation_of(row)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return None
    return Question(number, messages[:-1], messages[-1]["content"])


def _has_tools(row: Canonical) -> bool:
    return "tools" in row


def _is_bad(row: Canonical) -> bool:
    return row.get("label") is False


def of_source(
    source: str, shape: str, limit: int | None, home: Home, directory: Path, progress: Callable[[int, int], None]
) -> Material:
    """The good rows of anything that may stand in a profile's `data`. Raises ProblemError, and ValueError when there is none."""
    rejects = Rejects(lambda _: None)
    options = SourceOptions(source=source, format=shape)
    rows: list[Canonical] = []
    for row in read([options], directory, rejects, 0, lambda done: progress(done, 0), home):
        rows.append(row.content)
        if len(rows) == limit:
            break
    if not rows:
        raise ValueError(f"{source} holds no good row{': ' + rejects.first[0] if rejects.first else ''}")
    return Material(source, rows, None, rejects.count, rejects.first)


@dataclass(frozen=True)
class Own:
    """What a run says about itself: its frozen profile, and where its prepared rows lie."""

    run: RunDirectory
    profile: Mapping[str, Any]
    prepared: Mapping[str, Any]

    @classmethod
    def of(cls, run: RunDirectory) -> Own:
        """Empty where a run's files cannot be read: then nothing is known of it."""
        try:
            profile = YAML(typ="safe").load(run.profile.read_text(encoding="utf-8")) or {}
            prepared = json.loads(run.prepared.read_bytes()) if run.prepared.is_file() else {}
        except (OSError, ValueError):
            return cls(run, {}, {})
        return cls(run, profile, prepared)

    def said(self, section: str, key: str) -> Any:
        """A setting; None where there is none."""
        return (self.profile.get(section) or {}).get(key)

    def material(self, limit: int | None) -> Material:
        """Its test rows, else those it was validated on while it trained. Raises ProblemError when it has neither, or they are gone."""
        for part, name in (("test_rows", "data.test"), ("validation_rows", "data.validation")):
            path = self.prepared.get(part)
            if path is None:
                continue
            if not Path(path).is_file():
                raise ProblemError(
                    Problem(
                        title=f"The prepared rows of run {self.run.id} are gone",
                        cause=f"there is no {path}",
                        hint="name what to evaluate on in --data",
                    )
                )
            tokens = self.prepared.get("validation") if part == "validation_rows" and limit is None else None
            with Path(path).open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in itertools.islice(file, limit)]
            return Material(f"{name} of {self.run.id}", rows, Path(tokens) if tokens else None)
        if self.prepared.get("validation"):
            tokens = Path(self.prepared["validation"])
            return Material(f"data.validation of {self.run.id}", [], tokens, key=str(self.prepared.get("hash")))
        raise ProblemError(
            Problem(
                title=f"Run {self.run.id} held no rows out",
                cause="its profile has neither data.test nor data.validation",
                hint="name what to evaluate on in --data",
            )
        )
