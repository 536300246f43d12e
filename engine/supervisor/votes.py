"""Stores votes and ratings: in `votes.jsonl` of every run that they are about, or of the home for models that are no
runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from engine.protocol.home import write_all
from engine.protocol.messages import Judgement, Problem, ProblemError
from engine.supervisor.runs import Runs

VOTES = ("left", "right", "tie", "both bad")


def check_judgement(judgement: Judgement) -> None:
    """Raises ProblemError when it is neither a vote between two replies nor a rating of one."""
    expected = 2 if judgement.vote else 1
    matches = len(judgement.targets) == len(judgement.replies) == expected
    if not matches or (judgement.vote not in VOTES if judgement.vote else not 1 <= judgement.rating <= 5):
        raise ProblemError(
            Problem(
                code="judgement.invalid",
                title="This is neither a vote nor a rating",
                cause=f"{len(judgement.targets)} targets, vote {judgement.vote!r}, rating {judgement.rating}",
                hint=f"a vote between two is one of {', '.join(VOTES)}; a rating of one is 1 to 5",
            )
        )


def find_files(runs: Runs, targets: Sequence[str]) -> list[Path]:
    """The files with judgements of these targets: each run's own, and the home's for targets that are no runs."""
    ids = [target.rpartition("@")[0] or target for target in targets]
    found = [runs.records[each].directory.votes if each in runs.records else runs.home.votes for each in ids]
    return list(dict.fromkeys(found))


def write(judgement: Judgement, paths: Iterable[Path]) -> Judgement:
    """Append the judgement to each file and sync it. An incomplete last line of a crash is left as a line of its own.
    Raises ProblemError."""
    line = msgspec.json.encode(judgement) + b"\n"
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                write_all(descriptor, b"\n" + line if torn else line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ProblemError(
                Problem(
                    code="file.unwritable", title="The judgement could not be saved", cause=f"{path}: {error.strerror}"
                )
            )
    return judgement


def read(paths: Iterable[Path]) -> list[Judgement]:
    """All judgements, oldest first, each once. Other lines are ignored."""
    found: dict[str, Judgement] = {}
    for path in paths:
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                judgement = msgspec.json.decode(line, type=Judgement)
            except msgspec.MsgspecError:
                continue
            found[judgement.id] = judgement
    return sorted(found.values(), key=lambda each: each.time)
