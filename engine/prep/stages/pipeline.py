"""Runs the stages in order, from a profile's sources to rows that are ready to be tokenised.

validate → exclude → clean → dedup → split → balance → weights and limit. Each stage writes a file of placed canonical
rows and its counts, and is not repeated; its input is removed when it is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from engine.options.data import DataOptions, DedupOptions, SourceOptions
from engine.prep import chunks
from engine.prep.stages import row_files
from engine.prep.stages.balance import balance
from engine.prep.stages.clean import clean
from engine.prep.stages.context import Context, run_once
from engine.prep.stages.dedup import dedup
from engine.prep.stages.exclude import exclude
from engine.prep.stages.row_files import PlacedRow
from engine.prep.stages.split import split
from engine.prep.stages.validate import CANONICAL, SourceFile, find_format, validate
from engine.protocol.messages import Problem, ProblemError

OPTIONAL_STAGES = ("exclude", "clean", "dedup", "split", "balance")
"""Keys of the data section that enable a stage."""

SourceFiles = dict[str, list[tuple[SourceOptions, list[Path]]]]
"""Part -> its sources, each with its files."""
Check = Callable[[str, dict[str, Any]], object]
"""Called with (part, counts of `validate`); raises if there are too many bad rows."""


@dataclass(frozen=True)
class StageRows:
    """Files of placed canonical rows by part; parts without sources are absent. `stages` are counts, `{name, part, in,
    out, …}`."""

    parts: dict[str, Path]
    rejects: list[Path]
    stages: list[dict[str, Any]]
    files: list[str]
    """The paths of the source files, indexed by the file number of a row."""

    def validate_counts(self, part: str) -> dict[str, Any]:
        """The counts of `validate` for this part; for a part that was split off, those of the training sources."""
        counts = {stage["part"]: stage for stage in self.stages if stage["name"] == "validate"}
        return counts.get(part, counts["train"])

    def save(self, folder: Path) -> None:
        """Link or copy all files into a folder that `load` reads. A kill does not affect the original files."""
        for part, path in self.parts.items():
            try:
                os.link(path, folder / f"{part}.jsonl")
            except OSError:  # a file system without links
                shutil.copyfile(path, folder / f"{part}.jsonl")
        with (folder / "rejects.jsonl").open("wb") as joined:
            for path in self.rejects:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, joined, 2**20)
        content = {"parts": list(self.parts), "stages": self.stages, "files": self.files}
        (folder / "rows.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> StageRows:
        content = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        parts = {part: folder / f"{part}.jsonl" for part in content["parts"]}
        return cls(parts, [folder / "rejects.jsonl"], content["stages"], content["files"])


def run_stages(
    data: DataOptions,
    source_files: SourceFiles,
    seed: int,
    context: Context,
    check: Check,
    begun: StageRows | None = None,
    excluded: Mapping[str, float] | None = None,
) -> StageRows:
    """Run the stages that `data` enables and that `begun` has not completed.

    `excluded` are the weights of the rows that `data.exclude` lists. The rows are in `context.folder`, where the work
    of a killed process is continued. Raises ValueError, OSError, and
    what `check` raises.
    """
    files = [str(path) for sources in source_files.values() for _, paths in sources for path in paths]
    work = _Pipeline(data, seed, replace(context, files=tuple(files)))
    if begun:
        work.resume(begun)
    done = {stage["name"] for stage in work.stages}
    number = 0
    for part, sources in source_files.items():
        if sources and "validate" not in done:
            checked = work.validate(part, sources, number)
            check(part, checked)
        number += sum(len(paths) for _, paths in sources)
    if excluded is not None and "exclude" not in done:
        work.exclude(excluded)
    for part in list(work.parts):
        if data.clean and "clean" not in done:
            work.clean(part)
    if data.dedup and "dedup" not in done:
        work.dedup()
    if data.split and "split" not in done:
        work.split()
    if data.balance and "balance" not in done:
        work.balance()
    weights = _file_weights(source_files)
    if data.max_rows or any(weight != 1 for weight in weights):
        work.weigh(weights)
    return StageRows(work.parts, work.rejects, work.stages, files)


class _Pipeline:
    """The current files of all parts, and the stages that change them."""

    def __init__(self, data: DataOptions, seed: int, context: Context) -> None:
        self.data, self.seed, self.context = data, seed, context
        self.parts: dict[str, Path] = {}
        self.rejects: list[Path] = []
        self.stages: list[dict[str, Any]] = []

    def resume(self, begun: StageRows) -> None:
        """Continue from these rows, linked under own names, which the next stage removes."""
        self.context.folder.mkdir(parents=True, exist_ok=True)
        for part, path in begun.parts.items():
            own = self.context.folder / f"{part}.begun.jsonl"
            own.unlink(missing_ok=True)
            try:
                os.link(path, own)
            except OSError:  # a file system without links
                shutil.copyfile(path, own)
            self.parts[part] = own
        self.rejects, self.stages = list(begun.rejects), list(begun.stages)

    def validate(self, part: str, sources: list[tuple[SourceOptions, list[Path]]], number: int) -> dict[str, Any]:
        def make(context: Context, rows: Path, rejects: Path) -> dict[str, Any]:
            found = ((index, options, path) for index, (options, paths) in enumerate(sources) for path in paths)
            listed = (
                SourceFile(number + at, index, path, options, find_format(options, path))
                for at, (index, options, path) in enumerate(found)
            )
            try:
                counts = validate(listed, CANONICAL, rows, rejects, context)
            except ValueError as error:
                raise ProblemError(
                    Problem(code="data.source.unusable", title=f"data.{part} cannot be read", cause=str(error))
                ) from error
            return {"in": counts["read"], **counts}

        return self._once("validate", part, make)

    def exclude(self, weights: Mapping[str, float]) -> None:
        rows, seed = self.parts["train"], self.seed
        self._once("exclude", "train", lambda context, kept, _: exclude(rows, kept, weights, seed, context))

    def clean(self, part: str) -> None:
        options = self.data.clean
        assert options is not None
        self._once(
            "clean", part, lambda context, rows, rejects: clean(self.parts[part], rows, rejects, options, context)
        )

    def dedup(self) -> None:
        options = self.data.dedup
        assert options is not None
        held_out = [path for part, path in self.parts.items() if part != "train"] if options.against_held_out else []
        self._once(
            "dedup",
            "train",
            lambda context, rows, rejects: dedup(self.parts["train"], rows, rejects, options, context, held_out),
        )

    def split(self) -> None:
        options, whole = self.data.split, self.parts["train"]
        assert options is not None
        out = {name: self.context.folder / f"{name}.split.jsonl" for name in ("train", "validation", "test")}
        counts = run_once(
            self.context,
            "split.train",
            lambda context: split(whole, out, options, self.data.dedup or DedupOptions(), context),
        )
        self.stages.append({"name": "split", "part": "train", **counts, "out": counts["train"]})
        whole.unlink(missing_ok=True)
        held_out = {name for name in ("validation", "test") if getattr(options, name)}
        self.parts |= {name: path for name, path in out.items() if name == "train" or name in held_out}

    def balance(self) -> None:
        options = self.data.balance
        assert options is not None
        self._once("balance", "train", lambda context, rows, _: balance(self.parts["train"], rows, options, context))

    def weigh(self, weights: list[float]) -> None:
        most, seed = self.data.max_rows, self.seed
        self._once(
            "weigh", "train", lambda context, rows, _: weigh(self.parts["train"], rows, weights, most, seed, context)
        )

    def _once(self, name: str, part: str, make: Callable[[Context, Path, Path], dict[str, Any]]) -> dict[str, Any]:
        """Run one stage on one part; its output replaces the part's rows."""
        rows = self.context.folder / f"{part}.{name}.jsonl"
        rejects = self.context.folder / f"{part}.{name}.rejects"
        counts = run_once(self.context, f"{name}.{part}", lambda context: make(context, rows, rejects))
        if before := self.parts.get(part):
            before.unlink(missing_ok=True)
        self.parts[part] = rows
        if rejects.is_file():
            self.rejects.append(rejects)
        self.stages.append({"name": name, "part": part, **counts})
        return counts


def weigh(rows: Path, out: Path, weights: list[float], most: int | None, seed: int, context: Context) -> dict[str, Any]:
    """Repeat each row by its file's weight (by file number), and keep a seeded sample of at most `most` rows. Returns
    `in`, `weighted`, `out`."""
    before = weighted = 0
    for times, _ in _repeat_by_weight(rows, weights, seed):
        before, weighted = before + 1, weighted + times
    due, left, written = min(weighted, most or weighted), weighted, 0
    chance = Random(f"{seed}:max_rows")
    total, done = rows.stat().st_size, 0
    with chunks.write_together(out) as (file,):
        for times, row in _repeat_by_weight(rows, weights, seed):
            line = row.to_line()
            for _ in range(times):
                # Selection sampling (Knuth, TAOCP 3.4.2, algorithm S): exactly `due` rows, each choice equally likely.
                if chance.random() * left < due - written:
                    file.write(line)
                    written += 1
                left -= 1
            done += len(line)
            context.progress("sampling", done, total)
    return {"in": before, "weighted": weighted, "out": written}


def _repeat_by_weight(rows: Path, weights: list[float], seed: int) -> Iterator[tuple[int, PlacedRow]]:
    """Yields (times, row): the integer part of the weight, plus one with the probability of its fraction."""
    chance = [Random(f"{seed}:{number}") for number in range(len(weights))]
    for row in row_files.read_file(rows):
        weight = weights[row.file]
        yield int(weight) + (chance[row.file].random() < weight % 1), row


def _file_weights(source_files: SourceFiles) -> list[float]:
    """The weight of each file, by its number."""
    return [options.weight for sources in source_files.values() for options, paths in sources for _ in paths]
