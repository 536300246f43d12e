"""Turns answers into new rows: parses and checks them and rejects duplicates, in the order of the requests."""

from __future__ import annotations

from collections import Counter
from typing import Any

from engine.llm_api.journal import Answer
from engine.options.data import ExpandOptions
from engine.prep.expand.duplicates import Duplicates
from engine.prep.expand.results import Results
from engine.prep.expand.seeds import Seeds
from engine.prep.expand.substitute import Seed
from engine.tasks.fences import load_json


class ReplyParser:
    """Takes the answers one by one. Counts answers, failed requests, good rows, and the latest consecutive answers
    without a good row (`fruitless`)."""

    def __init__(self, seeds: Seeds, options: ExpandOptions, duplicates: Duplicates, results: Results) -> None:
        self._seeds, self._options, self._duplicates, self._results = seeds, options, duplicates, results
        self.answers = self.failed = self.rows = self.fruitless = 0
        self.reasons: Counter[str] = Counter()
        self.forms: list[int] = []
        """For each good row, the index of its form in `Seeds.forms`."""
        self._forms = {id(form): number for number, form in enumerate(seeds.forms)}

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    def take(self, number: int, answer: Answer) -> None:
        """Take the rows of one answer: at most as many as were requested and as are still needed."""
        before = self.rows
        self.answers += 1
        shown = self._seeds.choose_seeds(number, self._options) if answer.reply is not None else []
        self._results.start_answer(number, answer, [seed.row for seed in shown])
        if answer.reply is None:
            self.failed += 1
            self._reject(0, "no answer", answer.finish, None)
        else:
            self._parse(shown, answer.reply, answer.finish)
        self.fruitless = 0 if self.rows > before else self.fruitless + 1

    def _parse(self, shown: list[Seed], reply: str, finish: str) -> None:
        try:
            items = _parse_items(reply)
        except ValueError as error:
            if finish == "length":
                self._reject(0, f"cut off at {self._options.max_tokens} tokens", "", reply)
            else:
                self._reject(0, "not JSON", str(error), reply)
            return
        for place, item in enumerate(items):
            if place >= self._options.per_request:
                self._reject(place + 1, "more rows than were asked for", "", item)
                continue
            seed = shown[place % len(shown)]
            try:
                row = self._seeds.task.build_row(item, seed)
                key = self._seeds.task.duplicate_key(row, seed.form)
            except (ValueError, RecursionError) as error:
                self._reject(place + 1, "bad row", str(error), item)
                continue
            if twice := self._duplicates.find(key):
                self._reject(place + 1, twice, "", item)
            elif self.rows == self._options.samples:
                self._reject(place + 1, "beyond expand.samples", "", item)
            else:
                self._duplicates.add(key)
                self.rows += 1
                self.forms.append(self._forms[id(seed.form)])
                self._results.add_row(place + 1, row)

    def _reject(self, item: int, kind: str, detail: str, value: Any) -> None:
        """Reject an item. Rejections are counted by kind; the detail differs from row to row."""
        self.reasons[kind] += 1
        self._results.add_reject(item, f"{kind}: {detail}" if detail else kind, value)


def _parse_items(reply: str) -> list[Any]:
    """The items of an answer: a list, the only list in an object, or a single item. Raises ValueError for anything but
    JSON."""
    value = load_json(reply)
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and len(value) == 1 and isinstance(only := next(iter(value.values())), list):
        return only
    return [value]
