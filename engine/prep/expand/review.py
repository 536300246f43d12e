"""Going through the rows of an expansion one by one: what each came from, and what was decided about it."""

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
    """The rows that were made in a folder. A row's number is its place in `made.jsonl`, from 0.

    `indexed` has one place for each row, also where a row of the file stands for several canonical ones.
    """

    def __init__(self, folder: Path, forms: list[SourceOptions]) -> None:
        """`forms`: the sources that the seeds were of; each row has the form of one. Raises ValueError for files that are not as `expand` leaves them."""
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
        """Write a decision down; the folder's rows are in keeping with it when this returns. Raises ValueError for a word that is none."""
        if decision not in WORDS:
            raise ValueError(f"{decision} is no decision, only {', '.join(WORDS)}")
        row = self._digests[number]
        decisions.decide(self.folder, row, decision)
        self._decisions[row] = decision

    def counts(self) -> dict[str, int]:
        """Rows by what was decided about them."""
        found = dict.fromkeys(WORDS, 0)
        for number in range(len(self)):
            found[self.decision(number)] += 1
        return found

    def origin(self, number: int) -> dict[str, Any]:
        """The task, the request (from 1) and the item of its answer that a row was made of, and the seed rows that the request showed, canonical."""
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
        except ValueError:  # a seed need only fit its task
            return {"text": json.dumps(seed, ensure_ascii=False)}


def _index_made(path: Path, forms: list[SourceOptions]) -> IndexedFile:
    """The lines of `made.jsonl`. Its rows have one of these forms each. Raises ValueError."""
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
    """By line of `made.jsonl`: where its answer begins in `answers.jsonl`, and which item of it the row is."""
    answers, items = array("Q"), array("Q")
    offset = 0
    with (folder / "answers.jsonl").open("rb") as file:
        for line in file:
            for item in json.loads(line)["items"]:
                answers.append(offset)
                items.append(item)
            offset += len(line)
    return answers, items
