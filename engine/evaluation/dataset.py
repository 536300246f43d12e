"""The rows of an evaluation: those of a source, or those that a run held out."""

from __future__ import annotations

import hashlib
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
from engine.tasks.task import load_task

Messages = list[dict[str, Any]]


class Question(NamedTuple):
    """A row that a reply is generated for."""

    row: int
    prompt: Messages | str
    """A conversation up to its last reply; or a text to continue."""
    reference: str | None

    @property
    def text(self) -> str:
        """The prompt's last turn."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


@dataclass(frozen=True)
class EvaluationSet:
    """Canonical `rows`, and the number of bad ones, which were `rejected`.

    `tokens` is the folder of the same rows as tokens, if a run has prepared them. Data that were token ids from the
    start have no `rows`; their `key` identifies them.
    """

    source: str
    rows: list[Canonical]
    tokens: Path | None = None
    rejected: int = 0
    first_rejected: list[str] = field(default_factory=list)
    key: str = ""

    @cached_property
    def sha256(self) -> str:
        """The hash of the rows' content, wherever they are stored."""
        digest = hashlib.sha256(self.key.encode())
        for row in self.rows:
            digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()

    @property
    def are_pairs(self) -> bool:
        return bool(self.rows) and all("chosen" in row for row in self.rows)

    def notes(self) -> list[str]:
        """Notes on rows for which no reply is generated."""
        tools, bad = (sum(map(test, self.rows)) for test in (_has_tools, _is_bad))
        notes = [f"{tools} rows have tools: no replies are generated for them"] if tools else []
        return notes + (
            [f"{bad} rows have a reply that is labelled bad: their loss counts, and no replies are generated for them"]
            if bad
            else []
        )

    def questions(self, task: str | None, samples: int | None) -> list[Question]:
        """The first `samples` rows for which a reply can be generated, all of them for None.

        With a task these are the task's rows, and its prompt is put around plain text. Rows with tools, and replies
        that are labelled bad, are left out. Raises ValueError when no row is of the task.
        """
        questions: list[Question] = []
        for number, row in enumerate(self.rows):
            if len(questions) == samples:
                break
            if question := _make_question(number, row, task):
                questions.append(question)
        if task and not questions and samples != 0:
            raise ValueError(f"{self.source} has no row of the task {task}")
        return questions


def _make_question(number: int, row: Canonical, task: str | None) -> Question | None:
    if task is not None:
        task_row = load_task(task)
        if not task_row.concerns(row.get("columns", {})):
            return None
        if "text" in row:
            return Question(number, task_row.messages(row["text"]), None)
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


def read_source(
    source: str, shape: str, limit: int | None, home: Home, directory: Path, progress: Callable[[int, int], None]
) -> EvaluationSet:
    """The good rows of any source that a profile's `data` can name. Raises ProblemError, and ValueError when there is
    none."""
    rejects = Rejects(lambda _: None)
    options = SourceOptions(source=source, format=shape)
    rows: list[Canonical] = []
    for row in read([options], directory, rejects, 0, lambda done: progress(done, 0), home):
        rows.append(row.content)
        if len(rows) == limit:
            break
    if not rows:
        raise ValueError(f"{source} has no valid row{': ' + rejects.first[0] if rejects.first else ''}")
    return EvaluationSet(source, rows, None, rejects.count, rejects.first)


@dataclass(frozen=True)
class RunFiles:
    """A run's frozen profile, and the record of its prepared rows."""

    run: RunDirectory
    profile: Mapping[str, Any]
    prepared: Mapping[str, Any]

    @classmethod
    def read(cls, run: RunDirectory) -> RunFiles:
        """Both are empty where the run's files cannot be read."""
        try:
            profile = YAML(typ="safe").load(run.profile.read_text(encoding="utf-8")) or {}
            prepared = json.loads(run.prepared.read_bytes()) if run.prepared.is_file() else {}
        except (OSError, ValueError):
            return cls(run, {}, {})
        return cls(run, profile, prepared)

    def setting(self, section: str, key: str) -> Any:
        """A setting of the profile; None if it has none."""
        return (self.profile.get(section) or {}).get(key)

    def held_out(self, limit: int | None) -> EvaluationSet:
        """The test rows, else the validation rows. Raises ProblemError when there are neither, or their files are
        gone."""
        for part, name in (("test_rows", "data.test"), ("validation_rows", "data.validation")):
            path = self.prepared.get(part)
            if path is None:
                continue
            if not Path(path).is_file():
                raise ProblemError(
                    Problem(
                        code="evaluation.rows_gone",
                        title=f"The prepared rows of run {self.run.id} are gone",
                        cause=f"there is no {path}",
                        hint="name what to evaluate on in --data",
                    )
                )
            tokens = self.prepared.get("validation") if part == "validation_rows" and limit is None else None
            with Path(path).open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in itertools.islice(file, limit)]
            return EvaluationSet(f"{name} of {self.run.id}", rows, Path(tokens) if tokens else None)
        if self.prepared.get("validation"):
            tokens = Path(self.prepared["validation"])
            return EvaluationSet(f"data.validation of {self.run.id}", [], tokens, key=str(self.prepared.get("hash")))
        raise ProblemError(
            Problem(
                code="evaluation.no_rows",
                title=f"Run {self.run.id} has no held-out rows",
                cause="its profile has neither data.test nor data.validation",
                hint="name what to evaluate on in --data",
            )
        )
