"""Sources that are tokenised already: folders that `datasets.save_to_disk` or `cockpit data tokenize` wrote. They are
used unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.options.data import DataOptions
from engine.prep.sources import find_source, is_tokenised
from engine.prep.stages.source_files import PARTS
from engine.prep.token_rows import COLUMNS, MASKED, PLAIN, Counts
from engine.protocol.messages import Problem, ProblemError

_WORK_ON_ROWS = ("expand", "exclude", "clean", "dedup", "split", "balance", "max_rows", "packing", "test")


def find_folders(data: DataOptions, directory: Path, learning: bool = False) -> dict[str, Path]:
    """Part -> its tokenised folder; empty if all sources are rows. Raises ProblemError if tokenised data is combined
    with rows, with options that need rows, or with a tokenizer that is to be trained (`learning`)."""
    found: dict[str, Path] = {}
    for part in PARTS:
        for index, source in enumerate(getattr(data, part)):
            try:
                path = find_source(source.source, directory)
            except ValueError:
                continue  # a glob, or a name in the catalogue
            if isinstance(path, Path) and is_tokenised(path):
                if len(getattr(data, part)) > 1 or source.model_fields_set - {"source"}:
                    raise _problem(
                        f"data.{part}.{index} is tokenised already: it must be the only source "
                        "and have no other options"
                    )
                found[part] = path
    if found and any(getattr(data, part) and part not in found for part in ("train", "validation")):
        raise _problem("data.train and data.validation must both be tokenised, or both be rows")
    row_options = [name for name in _WORK_ON_ROWS if getattr(data, name)]
    if found and row_options:
        raise _problem(f"data.{row_options[0]} works on rows, and {next(iter(found.values()))} holds tokens")
    if found and learning:
        raise _problem(f"model.tokenizer is trained on rows, and {next(iter(found.values()))} holds tokens")
    return found


def count_tokens(folder: Path, method: Any, max_length: int) -> Counts:
    """The counts of a tokenised folder, read batch by batch. Raises ProblemError for sequences longer than
    `max_length`, for rows of a kind that the method does not train on, and if nothing can be trained on."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import load_from_disk

    if method.rows == "prompts":
        raise _problem(f"{folder} holds tokens, and method.kind {method.kind} needs to know what a prompt says")
    counts, table = Counts(), load_from_disk(str(folder)).data
    columns = COLUMNS[method.rows]
    if missing := [name for name in columns if name not in table.column_names]:
        raise _problem(f"{folder} has no {', '.join(missing)}, which method.kind {method.kind} trains on")
    if columns != PLAIN:
        return _check_counts(_count_replies(table.select(columns), counts), folder, max_length)
    for batch in table.select(columns).to_batches():
        ids, labels = batch.column("input_ids"), batch.column("labels")
        lengths = pc.list_value_length(ids)
        if lengths != pc.list_value_length(labels):
            raise _problem(f"{folder} has rows whose input_ids and labels differ in length")
        counts.rows += len(ids)
        counts.tokens += pc.sum(lengths).as_py() or 0
        counts.trained_tokens += (
            pc.sum(pc.not_equal(labels.flatten(), pa.scalar(MASKED, labels.type.value_type))).as_py() or 0
        )
        counts.lengths.update(lengths.to_pylist())
    return _check_counts(counts, folder, max_length)


def check_ids(folder: Path, method: Any, rows: int | None) -> None:
    """Raises ProblemError for a token id beyond the model's embedding of so many `rows`; None if that is unknown."""
    import pyarrow.compute as pc
    from datasets import load_from_disk

    table = load_from_disk(str(folder)).data
    for name in COLUMNS[method.rows]:
        if rows is None or name not in table.column_names or name in ("labels", "label"):
            continue
        largest = pc.max(pc.list_flatten(table.column(name))).as_py()
        if largest is not None and largest >= rows:
            raise _problem(f"{folder} holds the token id {largest}, and the model's embedding has {rows} rows")


def _count_replies(table: Any, counts: Counts) -> Counts:
    """Counts of preference rows: all tokens of their sequences, and the length of the longer one."""
    import numpy
    import pyarrow.compute as pc

    for batch in table.to_batches():
        prompts, *replies = (
            pc.list_value_length(batch.column(name)).to_numpy() for name in table.column_names if name != "label"
        )
        counts.rows += len(prompts)
        counts.trained_tokens += int(sum(reply.sum() for reply in replies))
        counts.tokens += int(sum((prompts + reply).sum() for reply in replies))
        counts.lengths.update((prompts + numpy.max(replies, axis=0)).tolist())
    return counts


def _check_counts(counts: Counts, folder: Path, max_length: int) -> Counts:
    if counts.lengths and max(counts.lengths) > max_length:
        raise _problem(
            f"{folder} has sequences of up to {max(counts.lengths)} tokens, more than data.max_length ({max_length})"
        )
    if not counts.trained_tokens:
        raise _problem(f"{folder} holds no token that is trained")
    return counts


def _problem(cause: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="data.tokenised_unusable",
            title="The tokenised data cannot be used",
            cause=cause,
            hint="name the rows that it was made of instead",
        )
    )


def summarize(counts: dict[str, Counts]) -> dict[str, Any]:
    """The statistics in `prepared.json`, for both parts."""
    return {part: counts.get(part, Counts()).summary() for part in ("train", "validation")}
