"""Reviews the rows of an expansion: the origin of each row, and the decision about it."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from engine.options.data import SourceOptions
from engine.prep import column_mapping, read_rows
from engine.prep.expand import decisions
from engine.prep.expand.decisions import MADE, UNDECIDED, WORDS
from engine.prep.formats.canonical import Canonical
from engine.prep.row_index import IndexedFile


class Review:
    """The rows that were made in a folder. A row's number is its line in `made.jsonl`, from 0.

    `indexed` has one entry per row, even if a row expands into several canonical ones.
    """

    def __init__(self, folder: Path, forms: list[SourceOptions]) -> None:
        """`forms` are the sources of the seeds; each row has the form of one of them. Raises ValueError for files that
        `expand` has not written."""
        self.folder = folder
        self.indexed = _index_made(folder / MADE, forms)
        with (folder / MADE).open("rb") as file:
            self._digests = [decisions.digest(line) for line in file]
        self._decisions = decisions.read_decisions(folder)
        self._answers, self._items = _read_origins(folder)
        report = json.loads((folder / "report.json").read_bytes())
        self._task = str(report.get("task", ""))

    def __len__(self) -> int:
        return len(self.indexed)

    def decision(self, number: int) -> str:
        """`accepted`, `dropped` or `undecided`."""
        return self._decisions.get(self._digests[number], UNDECIDED)

    def decide(self, number: int, decision: str) -> None:
        """Record a decision and update the folder's rows. Raises ValueError for an unknown decision."""
        if decision not in WORDS:
            raise ValueError(f"{decision} is not a decision; decisions are {', '.join(WORDS)}")
        row = self._digests[number]
        decisions.decide(self.folder, row, decision)
        self._decisions[row] = decision

    def counts(self) -> dict[str, int]:
        """Rows by decision."""
        found = dict.fromkeys(WORDS, 0)
        for number in range(len(self)):
            found[self.decision(number)] += 1
        return found

    def origin(self, number: int) -> dict[str, Any]:
        """The task, the request (from 1), the item of its answer that a row was made from, and the request's seed rows
        in canonical form."""
        if number >= len(self._answers):
            return {}
        with (self.folder / "answers.jsonl").open("rb") as file:
            file.seek(self._answers[number])
            answer = json.loads(file.readline())
        seeds = [self._canonical(seed) for seed in answer["seeds"]]
        return {"task": self._task, "request": answer["request"] + 1, "item": self._items[number], "seeds": seeds}

    def _canonical(self, seed: dict[str, Any]) -> Canonical:
        try:
            return self.indexed.convert(seed)[0]
        except ValueError:  # a seed must fit its task, but need not be a valid row
            return {"text": json.dumps(seed, ensure_ascii=False)}


def _index_made(path: Path, forms: list[SourceOptions]) -> IndexedFile:
    """An index of `made.jsonl`, each row of which has one of these forms. Raises ValueError."""
    forms = [form.model_copy(update={"encoding": None}) for form in forms]  # expanded rows are written in UTF-8
    formats = [read_rows.find_format(form, path) for form in forms]
    converters = [
        column_mapping.make_converter(form, row_format) for form, row_format in zip(forms, formats, strict=True)
    ]

    def convert(row: dict[str, Any]) -> list[Canonical]:
        faults = []
        for each in converters:
            try:
                return each(row)
            except ValueError as error:
                faults.append(str(error))
        raise ValueError("; ".join(faults))

    indexed = IndexedFile(forms[0], path, path, formats[0], convert)
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            indexed.lines.append(number)
            indexed.offsets.append(end)
            end += len(line)
            indexed.ends.append(end)
    return indexed


def _read_origins(folder: Path) -> tuple[array[int], array[int]]:
    """For each line of `made.jsonl`: the offset of its answer in `answers.jsonl`, and the item of the answer."""
    answers, items = array("Q"), array("Q")
    offset = 0
    with (folder / "answers.jsonl").open("rb") as file:
        for line in file:
            for item in json.loads(line)["items"]:
                answers.append(offset)
                items.append(item)
            offset += len(line)
    return answers, items
