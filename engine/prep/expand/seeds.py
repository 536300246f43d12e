"""The seed rows: chooses their task, samples those that prompts show, and builds the prompts."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

from engine.options.data import ExpandOptions, SourceOptions
from engine.prep import read_rows, readers
from engine.prep.expand.duplicates import Duplicates
from engine.prep.expand.substitute import Form, Seed
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import did_you_mean
from engine.tasks import TASKS
from engine.tasks.task import load_task

POOL = 10_000
"""Seed rows, at most, that prompts show and that new rows must not resemble; a seeded sample of larger sets. New rows
must differ from all seed rows."""
_LOOKED_AT = 100
_HAN, _KANA, _LETTER = re.compile(r"[\u4e00-\u9fff]"), re.compile(r"[\u3040-\u30ff]"), re.compile(r"[^\W\d_]")
_PLACE = re.compile(r"\{(seed|count)\}")
_ANY = "engine.prep.expand.rows"
"""The module for rows of any format."""


Sources = list[tuple[SourceOptions, list[Path]]]
"""Sources with their files."""


@dataclass(frozen=True)
class Seeds:
    """What requests need to know about the seed rows."""

    task: ModuleType
    name: str
    """The task's name."""
    pool: list[Seed]
    prompt: str
    digest: str
    """A hash of the files' bytes."""
    count: int
    """Rows that fit the task."""
    unused: int
    """Rows that are bad or do not fit the task."""
    forms: list[Form]
    """The forms of the seed rows, and so of the new rows."""

    def choose_seeds(self, number: int, options: ExpandOptions) -> list[Seed]:
        """The seed rows of request `number`; they depend on the random seed and the number alone."""
        return Random(f"{options.seed}:{number}").sample(self.pool, min(options.shots, len(self.pool)))

    def build_prompt(self, number: int, options: ExpandOptions) -> str:
        """The prompt of request `number`."""
        lines = [json.dumps(self.task.show(seed), ensure_ascii=False) for seed in self.choose_seeds(number, options)]
        words = {"seed": "\n".join(lines), "count": str(options.per_request)}
        return _PLACE.sub(lambda found: words[found[1]], self.prompt)


def expansions() -> dict[str, str]:
    """Task, or `rows` -> the module that makes its rows."""
    return {name: module for name in TASKS if (module := load_task(name).expansion)} | {"rows": _ANY}


def find_problems(options: ExpandOptions) -> Iterator[tuple[str, str]]:
    """Yields `(key, message)`, the key within `expand`, for an unknown task and for prompts without a place for
    seeds."""
    known = expansions()
    for key, name in [("task", options.task), *(("prompts", name) for name in options.prompts)]:
        if name is not None and name not in known:
            yield key, f"there is no task {name}{did_you_mean(name, known)}; known are {', '.join(known)}"
    for name, prompt in options.prompts.items():
        if "{seed}" not in prompt:
            yield f"prompts.{name}", "has no {seed}: every request would be the same"


def check_options(options: ExpandOptions) -> None:
    """Raises ValueError for the first of the problems."""
    for key, message in find_problems(options):
        raise ValueError(f"expand.{key}: {message}")


def read_seeds(
    sources: Sources,
    options: ExpandOptions,
    duplicates: Duplicates,
    progress: Callable[[int, int], object],
) -> Seeds:
    """Read the seed rows of all sources, at most `max_rows` of each, and add them to `duplicates`. `progress` gets
    (bytes done, in all).

    Raises ProblemError if no row fits the task, ValueError for files that cannot be read.
    """
    check_options(options)
    digest = hashlib.sha256()
    forms: dict[tuple[int, str], Form] = {}
    name = options.task or _choose_task(_sample_sources(sources))
    task = load_expansion(name)
    random = Random(f"{options.seed}:pool")
    pool: list[Seed] = []
    columns: dict[int, set[str]] = {}
    count = unused = 0
    first = ""
    paths = [path for _, listed in sources for path in listed]
    total = sum(path.stat().st_size for path in paths)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    for seed, where, done in _iterate_seeds(sources, forms):
        progress(done, total)
        if seed is None or not task.fits(seed):
            unused += 1
            first = first or (where if seed is None else f"{where}: it does not fit the task {name}")
            continue
        count += 1
        columns.setdefault(id(seed.form), set()).update(seed.row)
        duplicates.add_exact(task.duplicate_key(seed.row, seed.form))
        # Reservoir sampling (Vitter's algorithm R): every row is equally likely to be kept.
        if len(pool) < POOL:
            pool.append(seed)
        elif (place := random.randrange(count)) < POOL:
            pool[place] = seed
    if not pool:
        raise ProblemError(
            Problem(
                code="expand.no_seed",
                title=f"No row of {', '.join(source.source for source, _ in sources)} can be a seed of the task {name}",
                cause=first or "it has no rows",
                hint=f"tasks are {', '.join(expansions())}: --set expand.task=NAME",
            )
        )
    known = {form: frozenset(names) for form, names in columns.items()}
    pool = [seed._replace(columns=known[id(seed.form)]) for seed in pool]
    for seed in pool:
        duplicates.add(task.duplicate_key(seed.row, seed.form))
    prompt = options.prompts.get(name) or task.PROMPTS[_choose_language(task, pool)]
    return Seeds(task, name, pool, prompt, digest.hexdigest(), count, unused, list(forms.values()))


def load_expansion(name: str) -> ModuleType:
    return importlib.import_module(expansions()[name])


def _iterate_seeds(sources: Sources, forms: dict[tuple[int, str], Form]) -> Iterator[tuple[Seed | None, str, int]]:
    """Yields (seed, place, bytes done) for every row, and (None, place and reason, bytes done) for a bad one. Adds the
    rows' forms to `forms`, by source and format."""
    before = 0
    for number, (source, paths) in enumerate(sources):
        good = 0
        for path in paths:
            size = path.stat().st_size
            form: Form | None = None
            for record in readers.read(path, encoding=source.encoding) if size and good != source.max_rows else ():
                place, done = f"{path.name}:{record.line}", before + min(record.end, size)
                if record.value is None:
                    yield None, f"{place}: {record.reason}", done
                    continue
                if form is None:
                    row_format = read_rows.find_format(source, path)
                    form = forms.setdefault(
                        (number, row_format), Form(source, row_format, read_rows.make_converter(source, row_format))
                    )
                try:
                    seed = Seed(record.value, form, form.content(record.value))
                except ValueError as error:
                    yield None, f"{place}: {error}", done
                    continue
                yield seed, place, done
                good += 1
                if good == source.max_rows:
                    break
            before += size


def _sample_sources(sources: Sources) -> list[Seed]:
    """The rows by which the task is chosen: the same number of each source."""
    each = max(1, _LOOKED_AT // len(sources))
    looked_at = (itertools.islice(_iterate_seeds([source], {}), each) for source in sources)
    return [seed for seeds in looked_at for seed, _, _ in seeds if seed]


def _choose_task(seeds: list[Seed]) -> str:
    return next(
        name for name in expansions() if 2 * sum(load_expansion(name).fits(seed) for seed in seeds) >= len(seeds)
    )


def _choose_language(task: ModuleType, pool: list[Seed]) -> str:
    text = "".join(json.dumps(task.show(seed), ensure_ascii=False) for seed in pool[:20])
    chinese = len(_HAN.findall(text)) > 0.2 * len(_LETTER.findall(text)) and not _KANA.search(text)
    return "zh" if chinese else "en"
