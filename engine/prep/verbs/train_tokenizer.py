"""`cockpit tokenizer train`: trains a tokenizer on data files of any format."""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil

from engine.models import targets
from engine.models.catalogue import CATALOGUE
from engine.models.folders import has_tokenizer
from engine.options.data import SourceOptions
from engine.prep import read_rows, tokenizer_training
from engine.prep.base_model import load_tokenizer
from engine.prep.formats.canonical import all_text
from engine.prep.rows import Rejects, Row
from engine.prep.tokenizer_training import RECORD
from engine.protocol.home import Home, sync
from engine.protocol.messages import Problem, ProblemError

HELD_OUT = 1000
"""Texts that are held out to measure compression, at most, and at most a tenth of all texts."""
_MEASURED = 20_000
"""Characters of a held-out text that are measured."""
_TOLD = 500
"""Rows between two progress reports."""

Progress = Callable[[str, int, int], None]


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{directory, size, kind, samples, held_out, rejected, notes, compression: {name: {…}}}`. Raises ValueError,
    ProblemError."""
    out = Path(arguments.out).expanduser().absolute()
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a tokenizer that this command has made: name a new folder")
    if arguments.samples < 1:
        raise ValueError("--samples must be at least 1")
    others = _load_others(home, arguments.compare)
    template = _read_template(arguments.template)
    files = Texts(arguments.files, arguments.seed, progress)
    count = files.count()
    chosen, held = sample_rows(count, arguments.samples, arguments.seed)
    tokenizer = tokenizer_training.train(
        files.take(chosen, "training"),
        kind=arguments.kind,
        size=arguments.size,
        special=arguments.special,
        template=template,
        byte_fallback=not arguments.no_byte_fallback,
    )
    # With few rows none are held out: compression is then measured on the training texts, and a note says so.
    measured = [text[:_MEASURED] for text in files.take(held or chosen, "measuring")]
    result = {
        "size": len(tokenizer),
        "kind": arguments.kind,
        "samples": len(chosen),
        "held_out": len(held),
        "rejected": files.rejected,
        "notes": tokenizer_training.list_notes(tokenizer, arguments.size),
        "compression": tokenizer_training.measure_compression(
            {out.name: tokenizer} | {_label_compared(name, out.name): each for name, each in others.items()}, measured
        ),
    }
    if not held:
        result["notes"].append("too few rows to hold any out: compression is measured on the training texts")
    _save(tokenizer, out, result)
    return {"directory": str(out), **result}


def _read_template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no chat template {file}; --template takes a Jinja file")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8; --template takes a Jinja file")


def _label_compared(name: str, own: str) -> str:
    return f"{name} (compared)" if name == own else name


def sample_rows(count: int, samples: int, seed: int) -> tuple[set[int], set[int]]:
    """The numbers of the rows to train on and to hold out: a seeded sample of `count` rows without replacement."""
    held = min(HELD_OUT, count // 10)
    numbers = Random(seed).sample(range(count), min(count, samples + held))
    return set(numbers[held:]), set(numbers[:held])


class Texts:
    """The texts of files, streamed again each time, so they need not fit in memory."""

    def __init__(self, files: list[str], seed: int, progress: Progress) -> None:
        self.sources = [SourceOptions(source=file) for file in files]
        self.seed, self.progress = seed, progress
        self.rejected = 0

    def count(self) -> int:
        """The number of good rows. Raises ProblemError if there are none."""
        rejects = Rejects(lambda _: None)
        count = 0
        for _ in self._read(rejects):
            count += 1
            if count % _TOLD == 0:
                self.progress("reading", count, 0)
        if not count:
            raise ProblemError(
                Problem(
                    code="tokenizer.no_text",
                    title="There is nothing to learn from",
                    cause="; ".join(rejects.first) or "the files hold no rows",
                )
            )
        self.rejected = rejects.count
        return count

    def take(self, numbers: set[int], phase: str) -> _Selection:
        return _Selection(self, numbers, phase)

    def texts(self) -> Iterator[str]:
        return (all_text(row.content) for row in self._read(Rejects(lambda _: None)))

    def _read(self, rejects: Rejects) -> Iterator[Row]:
        return read_rows.read(self.sources, Path.cwd(), rejects, self.seed, lambda _: None)


class _Selection:
    """The texts with these numbers; can be iterated more than once."""

    def __init__(self, texts: Texts, numbers: set[int], phase: str) -> None:
        self.all, self.numbers, self.phase = texts, numbers, phase

    def __iter__(self) -> Iterator[str]:
        taken = 0
        for number, text in enumerate(self.all.texts()):
            if number in self.numbers:
                taken += 1
                if taken % _TOLD == 0 or taken == len(self.numbers):
                    self.all.progress(self.phase, taken, len(self.numbers))
                yield text


def _load_others(home: Home, names: list[str]) -> dict[str, Any]:
    """Tokenizers to compare with, by name: the requested ones, or else those of the pulled catalogue models."""
    names = names or [name for name in CATALOGUE if has_tokenizer(home.models / name)]
    folders = dict(_find_tokenizer(name, home) for name in names)  # all before the first is loaded: this may need torch
    return {
        label: load_tokenizer(folder, "auto", Path.cwd(), trust_remote_code=False) for label, folder in folders.items()
    }


def _find_tokenizer(name: str, home: Home) -> tuple[str, Path]:
    """Label and folder of a tokenizer, named by a folder or by any target. Raises ProblemError."""
    folder = Path(name).expanduser().absolute()
    if has_tokenizer(folder):
        return folder.name, folder
    target = targets.fetch(targets.resolve(name, home, Path.cwd()), home, lambda *_: None)
    for each in filter(None, (target.adapter, Path(target.base))):
        if has_tokenizer(each):
            return target.label, each
    raise ProblemError(
        Problem(
            code="tokenizer.missing",
            title=f"{name} has no tokenizer on this machine",
            hint=f"cockpit model pull {name}"
            if target.on_hub
            else "--compare takes a folder or a model with a tokenizer",
        )
    )


def _save(tokenizer: Any, out: Path, record: dict[str, Any]) -> None:
    """Write the folder atomically, replacing an earlier one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(out)
    draft, old = (out.with_name(f".{out.name}.{kind}.{os.getpid()}") for kind in ("draft", "old"))
    try:
        tokenizer.save_pretrained(draft)
        (draft / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        for path in (*draft.iterdir(), draft):
            sync(path)
        if out.exists():
            out.rename(old)
        draft.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _remove_stale(out: Path) -> None:
    """Remove drafts that killed processes have left beside `out`."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*"):
        left = re.fullmatch(r"(?:draft|old)\.(\d+)", path.name.removeprefix(f".{out.name}."))
        if left and not psutil.pid_exists(int(left[1])):
            shutil.rmtree(path)
