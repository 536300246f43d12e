"""Votes and ratings: each lies with every run that it is about, in `votes.jsonl`; those of models that are no runs lie in the home's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from engine.protocol.messages import Judgement, Problem, ProblemError
from engine.supervisor.runs import Runs

VOTES = ("left", "right", "tie", "both bad")


def check(judgement: Judgement) -> None:
    """Raises ProblemError for what is neither a vote between two nor a rating of one."""
    wanted = 2 if judgement.vote else 1
    fits = len(judgement.targets) == len(judgement.replies) == wanted
    if not fits or (judgement.vote not in VOTES if judgement.vote else not 1 <= judgement.rating <= 5):
        raise ProblemError(
            Problem(
                code="judgement.invalid",
                title="This is neither a vote nor a rating",
                cause=f"{len(judgement.targets)} targets, vote {judgement.vote!r}, rating {judgement.rating}",
                hint=f"a vote between two is one of {', '.join(VOTES)}; a rating of one is 1 to 5",
            )
        )


def files(runs: Runs, targets: Sequence[str]) -> list[Path]:
    """Where judgements of these targets lie: of each run its own file, of all others the home's."""
    ids = [target.rpartition("@")[0] or target for target in targets]
    found = [runs.records[each].directory.votes if each in runs.records else runs.home.votes for each in ids]
    return list(dict.fromkeys(found))


def write(judgement: Judgement, paths: Iterable[Path]) -> Judgement:
    """Append it to each file, on the disk when this returns. A line that a crash tore before stays alone. Raises ProblemError."""
    line = msgspec.json.encode(judgement) + b"\n"
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, b"\n" + line if torn else line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ProblemError(
                Problem(
                    code="file.unwritable", title="The judgement could not be kept", cause=f"{path}: {error.strerror}"
                )
            )
    return judgement


def read(paths: Iterable[Path]) -> list[Judgement]:
    """All judgements, oldest first, each once. Lines that are none are passed over."""
    found: dict[str, Judgement] = {}
    for path in paths:
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                judgement = msgspec.json.decode(line, type=Judgement)
            except msgspec.MsgspecError:
                continue
            found[judgement.id] = judgement
    return sorted(found.values(), key=lambda each: each.time)
