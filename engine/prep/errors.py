"""The problems that end a preparation: too many bad rows, nothing to train on, an end of turn that is never trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.config.profile import Profile
from engine.options.tables import ROW_KINDS
from engine.prep.rendered import METHODS
from engine.prep.rows import too_many
from engine.prep.stages.pipeline import StageRows
from engine.prep.token_rows import Counts
from engine.protocol.messages import Problem, ProblemError


@contextmanager
def problems_for_mistakes(title: str) -> Iterator[None]:
    """Turns errors that the user can correct into problems. Disk errors pass through, so that finished work is kept."""
    try:
        yield
    except (ValueError, FileNotFoundError, PermissionError) as error:
        raise ProblemError(Problem(code="data.source.unusable", title=title, cause=str(error))) from error


def count_bad(profile: Profile, checked: dict[str, Any]) -> int:
    """Bad rows that count towards `data.max_rejected`. Rows without a reply do not count if cleaning is to drop
    them."""
    drops_empty = profile.data.clean and profile.data.clean.empty
    return int(checked["rejected"]) - (checked["empty"] if drops_empty else 0)


def check_rejects(rejected: int, read: int, first: list[str], limit: float, part: str) -> None:
    if too_many(rejected, read, limit):
        raise ProblemError(
            Problem(
                code="data.rows.bad",
                title=f"{rejected} of {read} rows of {part} are bad",
                cause="; ".join(first) + (" …" if rejected > len(first) else ""),
                hint=f"mend the rows, or raise data.max_rejected (now {limit:g}) to go on without them",
            )
        )


def check_kind(counts: Counts, method: Any, part: str) -> None:
    """Raises ProblemError if all rows are of a kind that another method trains on."""
    if counts.rows or counts.masked or not counts.misfits:
        return
    (kind, _), *_ = counts.misfits.most_common(1)
    raise ProblemError(
        Problem(
            code="data.rows.wrong_kind",
            title=f"{part} does not hold what method.kind {method.kind} trains on",
            cause=f"{method.kind} takes {ROW_KINDS[method.rows]}; each of these rows is {ROW_KINDS[kind]}",
            hint=f"set method.kind to {METHODS[kind]}, or name other rows in {part}",
        )
    )


def check_trained(counts: Counts, max_length: int, tokenizer: Any, method: Any, rows: StageRows) -> None:
    """Raises ProblemError if there is nothing to train on, or if no end of a turn is trained."""
    if not counts.rows and counts.masked:
        raise ProblemError(
            Problem(
                code="data.rows.masked",
                title="No token would be trained",
                cause=f"all {counts.masked} rows are masked: cut at {max_length} tokens, none reaches its reply",
                hint="raise data.max_length",
            )
        )
    if not counts.rows:
        left = [
            f"{stage['name']} leaves {stage['out']} of {stage['in']}"
            for stage in rows.stages
            if stage["part"] == "train"
        ]
        checked = rows.validate_counts("train")
        bad = f"all {checked['in']} rows are bad: {'; '.join(checked['first'])}" if checked["in"] else ""
        raise ProblemError(
            Problem(
                code="data.train.empty",
                title="The training set is empty",
                cause="; ".join(left) if checked["good"] else bad or "its files hold no rows",
                hint="loosen what data asks of its rows"
                if checked["good"]
                else "mend the rows, or say how they are read (format, columns)"
                if bad
                else "name files with rows in data.train",
            )
        )
    if counts.ended or getattr(method, "loss_on", "") == "all" or getattr(method, "scores", False):
        return
    cut = counts.truncated == counts.rows
    raise ProblemError(
        Problem(
            code="data.turn_end_untrained",
            title="The end of a turn is never trained: the model would not learn to stop",
            cause=f"every row is cut at {max_length} tokens, before its reply ends"
            if cut
            else (
                "the chat template puts no special token after a reply "
                f"(the tokenizer's end token is {tokenizer.eos_token!r})"
            ),
            hint="raise data.max_length"
            if cut
            else "name a template in data.template that ends the assistant's turns with an end token",
        )
    )
