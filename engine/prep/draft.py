"""A profile for the data at hand: what a person would write who has looked at the rows and at this machine.

It has sources and their formats, a part held out, the length that the rows need, a base that is on this machine, and
the method that trains on such rows. Nothing of a task that the rows do not show.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.config.profile import Profile, parse
from engine.hardware.listing import list_visible
from engine.models import find as local_models
from engine.models import folders, limits
from engine.models.template_metadata import read_template
from engine.options.data import DataOptions, SourceOptions
from engine.prep import detect_format
from engine.prep.browse import Browser
from engine.prep.first_rows import percent
from engine.prep.row_views import RowViews
from engine.prep.rows import Row, too_many
from engine.prep.sources import HUB, find_left_out, find_source
from engine.prep.token_rows import percentile
from engine.protocol.home import Home

DEFAULT_BASE = "smollm2-135m-instruct"
"""The base where this machine has none: it is small, and fetched when it is first needed."""
LONGEST = 4096
"""Tokens of a sequence at most; who needs more knows so."""
_COVERED = 99
"""Percent of the rows that are to fit whole."""
_STEP = 64
"""Lengths are multiples of this."""
_CPU_BYTES = 1.2e9
"""Weights that are still trained in bearable time without a card."""
_CARD_SHARE = 0.55
"""Share of a card's memory that the weights may take."""
_LEAST_SPLIT = 20
"""Rows from which some are held out."""
_HELD_OUT = 1000
"""Rows that are enough to hold out."""
_MEASURED = 5000
"""Rows that are tokenised to choose the length."""
_PLAIN = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)\Z)[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)
_METHODS = {
    "conversations": ("sft", 2.0e-4),
    "text": ("pretrain", 2.0e-4),
    "pairs": ("dpo", 5.0e-5),
    "judged": ("kto", 5.0e-5),
}
"""Kind of rows -> method.kind, and the learning rate that LoRA usually takes there."""


@dataclass(frozen=True)
class Base:
    """A base model: the `name` by which a profile names it, and why it was chosen."""

    name: str
    reason: str
    positions: int | None = None


@dataclass(frozen=True)
class Rows:
    """What the training rows are: `good` and `bad` rows of the files, `formats` of each source, and the `kind` that
    `detect_format.find_kind` gives."""

    good: int
    bad: int
    formats: tuple[str, ...]
    kind: str


def choose_base(home: Home, kind: str) -> Base:
    """The largest whole model on this machine that it can train with LoRA, with a chat template where rows are
    conversations; else the smallest one, else the default."""
    cards = [card.memory_total for card in list_visible() if card.memory_total]
    room = min(cards) * _CARD_SHARE if cards else _CPU_BYTES
    found = [model for model in local_models.find(home) if _can_be_trained(model, needs_template=kind != "text")]
    if not found:
        return Base(DEFAULT_BASE, "no model on this machine fits; it is downloaded on first use")
    fitting = [model for model in found if model.size <= room]
    chosen = max(fitting, key=_size) if fitting else min(found, key=_size)
    place = "a card" if cards else "its CPU"
    reason = f"the largest on this machine that {place} can train" if fitting else "the smallest on this machine"
    return Base(chosen.name, reason, limits.read_positions(chosen.path))


def _size(model: local_models.Found) -> tuple[int, str]:
    return model.size, model.name


def _can_be_trained(model: local_models.Found, *, needs_template: bool) -> bool:
    path = model.path
    if model.kind != "model" or model.problems or not (path / "config.json").is_file():
        return False
    if folders.is_reward_model(path) or not folders.has_tokenizer(path):
        return False
    return bool(read_template(path)) or not needs_template


def find_kind(formats: tuple[str, ...]) -> str:
    """The kind of rows of the first known format."""
    known = [name for name in formats if name != "auto"]
    return detect_format.find_kind(known[0]) if known else "conversations"


def draft_from(browser: Browser, home: Home, name: str, progress: Callable[[int, int], object]) -> dict[str, Any]:
    """A profile for the training rows that a browser has open (see `draft`). `progress` gets (rows done, rows in all).
    Raises ValueError, ProblemError."""
    sources = browser.parts["train"]
    named = {part: [files[0].options for files in browser.parts[part]] for part in ("train", "validation")}
    profile = replace(browser.profile, data=browser.profile.data.model_copy(update=named))  # no names of a catalogue
    formats = tuple(next((file.format for file in files if file.format != "auto"), "auto") for files in sources)
    good = sum(len(file) for files in sources for file in files)
    bad = sum(file.rejected for files in sources for file in files)
    measured = min(good, _MEASURED)

    def measure(trial: Profile) -> dict[str, Any]:
        def some() -> Iterator[Row]:
            files = (file.row(at) for files in sources for file in files for at in range(len(file)))
            for number, row in enumerate(itertools.islice(files, measured)):
                progress(number, measured)
                yield row

        counts = RowViews(trial, home).count(some(), lambda *_: None)
        return {
            **counts.summary(),
            "p99": percentile(counts.lengths, _COVERED),
            "lengths": sorted(counts.lengths.items()),
        }

    kind = find_kind(formats)
    return draft(profile, Rows(good, bad, formats, kind), choose_base(home, kind), measure, name=name)


def draft(
    profile: Profile,
    rows: Rows,
    base: Base,
    measure: Callable[[Profile], Mapping[str, Any]],
    *,
    name: str,
) -> dict[str, Any]:
    """A profile that trains on the training sources of `profile`, as YAML, and the facts that it was written from. The
    held-out sources of `profile` are kept.

    `measure` gives the counts of the training rows, tokenised as a profile says. Raises ValueError without good rows.
    """
    if not rows.good:
        raise ValueError("there is no good row to train on")
    method, rate = _METHODS[rows.kind]
    longest = min(LONGEST, base.positions or LONGEST)
    trial = parse(
        f"data: {{train: [x], max_length: {longest}}}\nmodel: {{base: {json.dumps(base.name)}}}\nmethod: {{kind: "
        f"{method}}}",
        "draft",
        profile.directory,
        elsewhere=True,
    )
    trial = replace(trial, data=trial.data.model_copy(update={"train": profile.data.train}))
    counts = measure(trial)
    length = _choose_length(counts, longest)
    facts = _plan(rows, counts, (length, longest), profile.data, profile.directory)
    text = _write(profile, rows, base, (method, rate), facts, name)
    return {"profile": text, "name": name, "base": base.name, "base_reason": base.reason, "method": method, **facts}


def _choose_length(counts: Mapping[str, Any], longest: int) -> int:
    """The length that nearly all rows need; all of them if that costs little more."""
    most, enough = int(counts["max"]), int(counts["p99"])  # after cutting at `longest`
    wanted = most if most <= 1.5 * enough else enough
    return int(min(longest, max(2 * _STEP, math.ceil(wanted / _STEP) * _STEP)))


def _count_cut(counts: Mapping[str, Any], length: int, longest: int) -> int:
    """Measured rows that are longer than `length`. The counts are those after cutting at `longest`: a row without a
    trained token before that has no length."""
    if length >= longest:
        return int(counts["truncated"])
    kept = sum(count for tokens, count in counts["lengths"] if tokens > length)
    return int(kept + min(counts["masked"], counts["truncated"]))


def _plan(
    rows: Rows, counts: Mapping[str, Any], lengths: tuple[int, int], data: DataOptions, directory: Path
) -> dict[str, Any]:
    """The figures of the profile. `lengths` are that of the profile, and that at which rows were cut to measure
    them."""
    length, read = lengths[0], rows.good + rows.bad
    has_splits = bool(data.validation) or any(_has_validation(source, directory) for source in data.train)
    share = 0.0 if has_splits or rows.good < _LEAST_SPLIT else 0.1 if rows.good < 10 * _LEAST_SPLIT else 0.05
    share = round(min(share, _HELD_OUT / rows.good), 4)
    trained = rows.good - round(rows.good * share)
    micro = 8 if length <= 512 else 4 if length <= 1024 else 2 if length <= 2048 else 1
    micro = max(1, min(micro, trained // 4))
    accumulation = max(1, min(16 // micro, trained // (4 * micro)))
    epochs = 3 if rows.good < 2000 else 2 if rows.good < 20_000 else 1
    steps = math.ceil(trained / (micro * accumulation)) * epochs
    return {
        "rows": rows.good,
        "rejected": rows.bad,
        "rejected_share": rows.bad / read,
        "max_rejected": data.max_rejected,
        "refused": too_many(rows.bad, read, data.max_rejected),
        "max_length": length,
        "cut": _count_cut(counts, *lengths),
        "measured": counts["rows"] + counts["masked"],
        "p50": counts["p50"],
        "p95": counts["p95"],
        "longest": counts["max"],
        "longer": counts["truncated"],
        "split": share,
        "has_splits": has_splits,
        "micro_batch": micro,
        "accumulation": accumulation,
        "epochs": epochs,
        "steps": steps,
        "tokens": round(counts["tokens"] / max(counts["rows"], 1) * trained * epochs),
    }


def _has_validation(source: SourceOptions, directory: Path) -> bool:
    """Whether a folder names files for validation."""
    try:
        return bool(find_left_out(source.source, directory, "train")) and bool(
            Path(str(find_source(source.source, directory))).is_dir()
        )
    except (ValueError, OSError):
        return False


def _write(
    profile: Profile, rows: Rows, base: Base, method: tuple[str, float], facts: Mapping[str, Any], name: str
) -> str:
    data = profile.data
    held_out = [source.model_copy(update={"weight": 1.0}) for source in data.validation or data.train]
    formats = ("auto",) * len(held_out) if data.validation else rows.formats
    every = max(1, facts["steps"] // 4)
    fits = "all of them fit" if not facts["cut"] else f"{facts['cut']:,} of {facts['measured']:,} are cut"
    lines = [
        f"# {rows.good:,} rows{f' and {rows.bad:,} bad ones' if rows.bad else ''}; {facts['steps']:,} steps.",
        f"name: {_quote(name)}",
        "",
        "model:",
        f"  base: {_quote(base.name)}   # {base.reason}",
        "  dtype: bfloat16",
        "",
        "adapter: {kind: lora, rank: 16, alpha: 32, dropout: 0.05, targets: all-linear}",
        "",
        "data:",
        "  train:",
        *_list_sources(data.train, rows.formats, profile.directory),
    ]
    if facts["has_splits"]:
        lines += ["  validation:", *_list_sources(held_out, formats, profile.directory)]
    elif facts["split"]:
        lines += [f"  split: {{validation: {facts['split']:g}}}   # held out, for evaluation"]
    if data.max_rejected != DataOptions.model_fields["max_rejected"].default:
        lines += [f"  max_rejected: {data.max_rejected:g}"]
    lines += [
        f"  max_length: {facts['max_length']}   # p50 {facts['p50']}, p95 {facts['p95']}, longest "
        f"{_describe_longest(facts)} tokens: {fits}",
        "",
        f"method: {{kind: {method[0]}}}",
        "",
        "training:",
        f"  epochs: {facts['epochs']}",
        f"  micro_batch: {facts['micro_batch']}",
        *([f"  accumulation: {facts['accumulation']}"] if facts["accumulation"] > 1 else []),
        f"  learning_rate: {method[1]:.1e}".replace("e-0", "e-"),
        f"  warmup: {min(20, max(1, facts['steps'] // 20))}   # steps",
        "",
        f"checkpoint: {{every_steps: {every}, keep: 3}}",
        f"evaluation: {{every_steps: {every}}}",
    ]
    return "\n".join(lines) + "\n"


def _describe_longest(facts: Mapping[str, Any]) -> str:
    """The tokens of the longest row; `longer` rows were cut before they were measured."""
    return f"more than {facts['longest']}" if facts["longer"] else str(facts["longest"])


def _list_sources(sources: Sequence[SourceOptions], formats: Sequence[str], directory: Path) -> list[str]:
    return [f"    - {_describe_source(each, form, directory)}" for each, form in zip(sources, formats, strict=True)]


def _describe_source(source: SourceOptions, row_format: str, directory: Path) -> str:
    """A source as YAML on one line, with its place and format."""
    options = source.model_dump(exclude_defaults=True)
    options["source"] = source.source if source.source.startswith(HUB) else _absolute(source.source, directory)
    if row_format != "auto":
        options.setdefault("format", row_format)
    options = {"source": options.pop("source"), **options}
    return f"{{{', '.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in options.items())}}}"


def _quote(name: str) -> str:
    """A name as YAML reads it."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _absolute(source: str, directory: Path) -> str:
    """The path of a source that does not depend on where the profile lies. A glob stays one."""
    try:
        return str(find_source(source, directory))
    except ValueError:
        return str(directory / Path(source).expanduser())


def describe(facts: Mapping[str, Any]) -> list[str]:
    """What was found and chosen, in sentences."""
    read = facts["rows"] + facts["rejected"]
    lost = (
        f"{facts['rejected']:,} of {read:,} rows are bad = {percent(facts['rejected_share'])}"
        if facts["rejected"]
        else f"all {read:,} rows are good"
    )
    if facts["refused"]:
        lost += f", above {percent(facts['max_rejected'])}: a launch would be refused"
    held_out = f"{percent(facts['split'])} held out" if facts["split"] else "nothing held out"
    cut = f", {facts['cut']:,} of {facts['measured']:,} rows cut" if facts["cut"] else ", no row cut"
    return [
        lost,
        f"base {facts['base']}: {facts['base_reason']}",
        f"method {facts['method']}; {'validation files found' if facts['has_splits'] else held_out}",
        f"length {facts['max_length']} tokens: half of the rows have {facts['p50']} at most, the longest "
        f"{_describe_longest(facts)}{cut}",
        f"{facts['steps']:,} steps of {facts['micro_batch']} × {facts['accumulation']} rows in {facts['epochs']} "
        f"epochs, about {facts['tokens']:,} tokens",
    ]
