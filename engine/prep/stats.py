"""Statistics of a data set as a model sees it: lengths, trained share, duplicates, languages, losses by truncation and
padding.

`measure` reads the rows once, span by span (see `chunks`). Lengths are those of whole rows, before truncation.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.options.data import DedupOptions
from engine.prep.chunks import Span, SpanResult
from engine.prep.formats.canonical import Canonical, conversation_of
from engine.prep.packing import pack
from engine.prep.rows import Rejects
from engine.prep.stages import dedup, fingerprints
from engine.prep.stages.context import Context
from engine.prep.templates import ChatTokenizer
from engine.prep.token_rows import BATCH, COLUMNS, MASKED, UNLIMITED, Batch, BatchTokenizer, Counts, percentile
from engine.prep.tokenize import make_row_tokenizer
from engine.prep.tokenize_files import read_span
from engine.prep.tokenize_replies import count_labels

SHARES = (5, 25, 50, 75, 95, 99)
"""Percentiles that are reported."""
CUTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Lengths at which truncation is measured, besides the requested one."""
MICRO_BATCH = 8
"""Rows per batch in the estimate of padding: they are padded to the longest of them."""
BINS = 32
SAMPLED = 10_000
"""Rows, roughly, whose language is detected."""

_READ = 400
"""Characters of a row that are used to detect its language."""
_VALUES = 1000
"""Values of a column that are counted separately; further ones are counted together."""
_LONG_VALUE = 100
"""Characters of a value that are shown."""
_ARRAYS = ("lengths", "first")
"""Files that a span leaves, int32: see `truncation`."""


def measure(
    rows: Path,
    tokenizer: Any,
    kind: str,
    loss_on: str,
    max_length: int,
    by: str | None,
    context: Context,
    rejects: Rejects,
) -> dict[str, Any]:
    """Figures of placed rows (see `stages.row_files`), as `cockpit data stats` reports them. Rows that cannot be
    rendered go to `rejects`.

    `kind` is the kind of rows (a method's `Options.rows`). For preference pairs, the lengths of prompts and replies are
    reported too; the length of a pair is that of its longer sequence. `by` names a column whose values are reported
    separately. Raises ValueError if no row has that column, or if no row can be tokenised.
    """
    import numpy

    settings = context.settings(
        tokenizer=str(ChatTokenizer.of(tokenizer).save(context.folder)), kind=kind, loss_on=loss_on, by=by
    )
    size = max(1, rows.stat().st_size)
    settings["sampled"] = -(-SAMPLED * 8 * 2**20 // max(size, 8 * 2**20))  # per span of 8 MiB
    totals = _Totals(kind)
    work = f"{__name__}:measure_span"
    for done in context.within("tokens").work_through([rows], work, settings, "tokenising"):
        totals.add(done, rejects)
    counts = totals.counts
    if not counts.rows:
        raise ValueError(f"no row can be tokenised: {'; '.join(rejects.first) or 'there are none'}")
    if by and by not in totals.columns:
        raise ValueError(f"no row has a column {by!r}; there are {', '.join(sorted(totals.columns)) or 'none'}")
    lengths, first = (numpy.concatenate(totals.arrays[name]) for name in _ARRAYS)
    lengths = lengths.reshape(len(first), -1)
    groups = {value: _summarize_group(each) for value, each in _largest_first(totals.groups)}
    return {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "trained_share": counts.trained_tokens / counts.tokens,
        "rejected": rejects.count,
        "untrained": counts.masked,
        "turns": dict(counts.turns),
        "length": describe(counts.lengths),
        **({"parts": {name: describe(each) for name, each in totals.parts.items()}} if totals.parts else {}),
        **({"judged": dict(totals.judged)} if totals.judged else {}),
        "histogram": histogram(counts.lengths),
        "duplicates": duplicates([rows], context.within("fingerprints")),
        "languages": _language_shares(totals.languages),
        "truncation": {
            str(at): truncation(lengths, first, at)
            for at in sorted({*CUTS, max_length})
            if at <= max(max_length, lengths.max())
        },
        "padding": padding(numpy.minimum(lengths.ravel(), max_length), max_length),
        **({"by": {by: groups}} if by else {}),
    }


class _Totals:
    """The sums of all spans."""

    def __init__(self, kind: str) -> None:
        self.counts, self.groups = Counts(), dict[str, Counts]()
        self.languages, self.judged = Counter[str](), Counter[str]()
        self.parts: dict[str, Counter[int]] = {name.removesuffix("_ids"): Counter() for name in _id_columns(kind)}
        self.arrays: dict[str, list[Any]] = {name: [] for name in _ARRAYS}
        self.columns: set[str] = set()

    def add(self, done: SpanResult, rejects: Rejects) -> None:
        import numpy

        self.counts.add(Counts.from_json(done.counts["counts"]))
        self.languages.update(done.counts["languages"])
        self.judged.update(done.counts["judged"])
        for name, lengths in done.counts["parts"].items():
            self.parts[name].update(dict(lengths))
        self.columns |= set(done.counts["columns"])
        for name, each in done.counts["groups"].items():
            _group_of(self.groups, name).add(Counts.from_json(each))
        for name in _ARRAYS:
            self.arrays[name].append(numpy.fromfile(done.folder / name, dtype=numpy.int32))
        for line in (done.folder / "rejects.jsonl").read_bytes().splitlines():
            rejects.add(**msgspec.json.decode(line))


# ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def describe(lengths: Counter[int]) -> dict[str, float]:
    """Percentiles, maximum and mean of the rows' lengths."""
    rows = sum(lengths.values())
    shares = {f"p{share}": percentile(lengths, share) for share in SHARES}
    mean = sum(length * count for length, count in lengths.items()) / max(1, rows)
    return {**shares, "max": max(lengths, default=0), "mean": mean}


def histogram(lengths: Counter[int], bins: int = BINS) -> dict[str, list[int]]:
    """`rows` per bin, and the bins' `edges` in tokens, one more: bin i holds lengths from edges[i] to edges[i + 1] -
    1."""
    width = -(-(max(lengths, default=0) + 1) // bins)
    rows = [0] * bins
    for length, count in lengths.items():
        rows[length // width] += count
    return {"edges": [width * number for number in range(bins + 1)], "rows": rows}


def truncation(lengths: Any, first: Any, at: int) -> dict[str, int]:
    """What truncation at `at` tokens loses: `cut` rows, `lost` rows (without a trained token left) and `tokens`.

    `lengths` are the tokens of each row's sequences, int32 [rows, sequences], and `first` the index of the first
    trained token, int32 [rows].
    """
    return {
        "cut": int((lengths > at).any(axis=1).sum()),
        "lost": int((first >= at).sum()),
        "tokens": int((lengths.astype("int64") - at).clip(min=0).sum()),
    }


def padding(lengths: Any, capacity: int) -> dict[str, Any]:
    """The share of padding when shuffled rows are padded to the longest of MICRO_BATCH, and when they are packed into
    sequences."""
    import numpy

    mixed = numpy.random.default_rng(0).permutation(lengths)
    whole = len(mixed) // MICRO_BATCH * MICRO_BATCH
    batches = mixed[:whole].reshape(-1, MICRO_BATCH).max(axis=1, initial=0).astype(numpy.int64) * MICRO_BATCH
    padded = int(batches.sum()) + int(mixed[whole:].max(initial=0)) * (len(mixed) - whole)
    _, sizes = pack(lengths, capacity)
    tokens = int(lengths.sum(dtype=numpy.int64))
    return {
        "micro_batch": MICRO_BATCH,
        "padded": 1 - tokens / padded,
        "packed": 1 - tokens / (len(sizes) * capacity),
        "sequences": len(sizes),
        "sequence_length": capacity,
    }


def duplicates(rows: Sequence[Path], context: Context) -> dict[str, int]:
    """Rows that deduplication with default settings would drop: `exact` and `near` duplicates."""
    options = DedupOptions()
    prints = fingerprints.take_fingerprints(rows, options.shingle, options.near, context, "looking for duplicates")
    fate, _ = dedup.decide_rows(prints, 0, options)
    return {"exact": int((fate == dedup.EXACT).sum()), "near": int((fate == dedup.NEAR).sum())}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the histogram of lengths with percentiles as a PNG. Raises ValueError for a name that does not end in
    .png."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot {path}: the plot is a PNG file; give it a name that ends in .png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = figures["histogram"]["edges"]
    axes.bar(edges[:-1], figures["histogram"]["rows"], width=edges[1], align="edge", color="#5b8db8", edgecolor="white")
    for name, style in (("p50", "-"), ("p95", "--"), ("max", ":")):
        at = figures["length"][name]
        axes.axvline(at, color="#333333", linestyle=style, linewidth=1, label=f"{name} {at}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("rows")
    axes.set_title(f"{figures['rows']} rows, {figures['tokens']} tokens, {figures['trained_share']:.0%} trained")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _language_shares(languages: Counter[str]) -> dict[str, Any]:
    seen = languages.total()
    ordered = sorted(languages.items(), key=lambda each: (-each[1], each[0]))
    return {"sampled": seen, "shares": {language: count / seen for language, count in ordered}}


def _largest_first(groups: dict[str, Counts]) -> list[tuple[str, Counts]]:
    return sorted(groups.items(), key=lambda each: (-each[1].rows, each[0]))


def _summarize_group(counts: Counts) -> dict[str, Any]:
    lengths = describe(counts.lengths)
    return {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "trained_share": counts.trained_tokens / counts.tokens,
        **{name: lengths[name] for name in ("p50", "p95", "max", "mean")},
    }


# ── a span ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_span(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The work on a span (see `chunks.Work`): writes each row's lengths and the index of its first trained token as
    int32 files."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is one process per core already
    tokenizing = _load_row_tokenizer(settings["kind"], settings["tokenizer"], settings["loss_on"])
    parts: dict[str, Counter[int]] = {name: Counter() for name in _id_columns(settings["kind"])}
    judged = Counter[str]()
    counts, groups, columns = Counts(), dict[str, Counts](), set[str]()
    samples: list[tuple[int, str]] = []
    with (
        (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects_file,
        (folder / "lengths").open("wb") as lengths_file,
        (folder / "first").open("wb") as first_file,
    ):
        rejects = Rejects(rejects_file.write)
        rows = read_span(span, settings["files"], settings["formats"], rejects)
        while some := list(itertools.islice(rows, BATCH)):
            contents = [row.content for row in some]
            if not tokenizing.template and any(map(conversation_of, contents)):
                raise ValueError(
                    "the model has no chat template, and the rows are conversations: name an instruction-tuned model"
                )
            batch = tokenizing(contents, counts)
            for at, reason in batch.refused.items():
                rejects.add(some[at].file, some[at].line, some[at].offset, reason)
            if not batch.rows:
                continue
            lengths, first = tokenizing.lengths(batch)
            lengths_file.write(lengths.tobytes())
            first_file.write(first.tobytes())
            for name, found in parts.items():
                found.update(batch.columns[name][1])
            kept = [contents[at] for at in batch.rows]
            judged.update(count_labels(kept))
            samples = heapq.nsmallest(settings["sampled"], itertools.chain(samples, map(_sample_text, kept)))
            columns.update(*(content.get("columns", ()) for content in kept))
            if settings["by"]:
                _group(groups, settings["by"], kept, lengths, _count_trained(batch, lengths, first))
    return {
        "counts": counts.to_json(),
        "groups": {value: each.to_json() for value, each in groups.items()},
        "columns": sorted(columns)[:_VALUES],
        "parts": {name.removesuffix("_ids"): sorted(each.items()) for name, each in parts.items()},
        "judged": judged,
        "languages": Counter(_languages(text for _, text in samples)),
    }


def _id_columns(kind: str) -> list[str]:
    """Columns of token ids whose lengths are reported separately."""
    return [] if kind == "tokens" else [name for name in COLUMNS[kind] if name.endswith("_ids")]


def _count_trained(batch: Batch, lengths: Any, first: Any) -> list[int]:
    """Trained tokens of each row; for preference rows those of the replies."""
    import numpy

    if "labels" not in batch.columns:
        return (lengths - first[:, None]).sum(axis=1).tolist()  # type: ignore[no-any-return]
    starts = numpy.cumsum(lengths) - lengths.ravel()
    return numpy.add.reduceat(batch.columns["labels"][0] != MASKED, starts, dtype=numpy.int32).tolist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=2)
def _load_row_tokenizer(kind: str, tokenizer: str, loss_on: str) -> BatchTokenizer:
    """Cached from span to span; the folder's name is a hash of its content."""
    return make_row_tokenizer(kind, ChatTokenizer.load(Path(tokenizer)), loss_on, UNLIMITED)


def _sample_text(content: Canonical) -> tuple[int, str]:
    """A number that decides whether the row is sampled, and the beginning of its text. The number depends on the
    content alone."""
    text = content["text"] if "text" in content else " ".join(each["content"] for each in conversation_of(content))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()), text[:_READ]


def _languages(texts: Iterable[str]) -> Iterable[str]:
    """ISO 639-1 codes."""
    import py3langid

    return (py3langid.classify(text)[0] for text in texts)


def _group(groups: dict[str, Counts], by: str, rows: list[Canonical], lengths: Any, trained: list[int]) -> None:
    tokens, longest = lengths.sum(axis=1).tolist(), lengths.max(axis=1).tolist()
    for content, count, length, trained_tokens in zip(rows, tokens, longest, trained, strict=True):
        value = content.get("columns", {}).get(by)
        name = value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()
        group = _group_of(groups, name[:_LONG_VALUE])
        group.add(Counts(rows=1, tokens=count, trained_tokens=trained_tokens, lengths=Counter([length])))


def _group_of(groups: dict[str, Counts], name: str) -> Counts:
    if name not in groups and len(groups) >= _VALUES:
        name = "(further values)"
    return groups.setdefault(name, Counts())
