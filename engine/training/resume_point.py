"""Chooses the checkpoint that an attempt resumes: the newest whole one on the journal's way, or the one asked for."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from engine.models.weights import DamagedFile, read_header
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Problem, ProblemError
from engine.storage import manifest
from engine.training.checkpoints import RESUME_FOLDER
from engine.training.lineage import Lineage


@dataclass(frozen=True)
class ResumePoint:
    """`step` is None for a run that starts from the beginning. `damaged` has what is wrong with each newer checkpoint
    that was passed over, by step."""

    step: int | None = None
    damaged: dict[int, str] = field(default_factory=dict)


def choose(run: RunDirectory, history: Lineage, from_step: int | None) -> ResumePoint:
    """The checkpoint to resume. Raises ProblemError when the journal leads to none of those that exist, and when the
    one asked for is damaged or missing."""
    steps = run.checkpoint_steps()
    if from_step is not None:
        _check_asked(run, from_step, steps)
        return ResumePoint(from_step)
    if not steps:
        return ResumePoint()
    current = sorted((step for step in steps if step in history.steps), reverse=True)
    if not current:
        raise _lost_journal_error(run, steps)
    damaged: dict[int, str] = {}
    for step in current:
        wrong = find_damage(run.checkpoint(step))
        if not wrong:
            return ResumePoint(step, damaged)
        damaged[step] = wrong
    others = [step for step in steps if step not in damaged and not find_damage(run.checkpoint(step))]
    raise ProblemError(
        Problem(
            code="checkpoint.damaged",
            title=f"No checkpoint of {run.id} is whole",
            cause="; ".join(f"step {step}: {wrong}" for step, wrong in damaged.items()),
            hint=f"{_suggest(run, others)}, copy the damaged files back, or train the profile anew",
        )
    )


def find_damage(folder: Path) -> str:
    """What is wrong with a checkpoint, by the hashes of its manifest; one of an older version has none, and is read
    as far as damage shows. Empty for a whole one."""
    if (folder / manifest.FILE).exists():
        return manifest.find_damage(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        try:
            if path.suffix == ".safetensors":
                read_header(path)
            elif path.suffix == ".pt" and (wrong := _find_damaged_member(path)):
                return f"{name} is damaged at {wrong}"
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
        except DamagedFile as error:
            return str(error)
        except (OSError, ValueError, RecursionError, zipfile.BadZipFile) as error:
            return f"{name} cannot be read ({error or type(error).__name__})"
    missing = next(
        (name for name in (f"{RESUME_FOLDER}/optimizer.pt", "lock.json") if not (folder / name).exists()), ""
    )
    return f"{missing} is missing" if missing else ""


def _find_damaged_member(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _check_asked(run: RunDirectory, step: int, steps: list[int]) -> None:
    """Raises ProblemError when the checkpoint that was asked for cannot be resumed."""
    if step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise ProblemError(
            Problem(
                code="checkpoint.not_found",
                title=f"There is no checkpoint of step {step}",
                hint=f"the checkpoints are: {kept}",
            )
        )
    if wrong := find_damage(run.checkpoint(step)):
        whole = [each for each in steps if each != step and not find_damage(run.checkpoint(each))]
        raise ProblemError(
            Problem(
                code="checkpoint.damaged",
                title=f"The checkpoint of step {step} is damaged",
                cause=wrong,
                hint=_suggest(run, whole),
            )
        )


def _suggest(run: RunDirectory, whole: list[int]) -> str:
    if not whole:
        return "no other checkpoint is whole"
    return " or ".join(f"`cockpit resume {run.id}@{step}`" for step in sorted(whole, reverse=True)[:3])


def _lost_journal_error(run: RunDirectory, steps: list[int]) -> ProblemError:
    try:
        state = "empty" if not run.events.stat().st_size else "damaged, or not this run's"
    except OSError:
        state = "missing"
    listed = ", ".join(map(str, steps))
    return ProblemError(
        Problem(
            code="checkpoint.off_journal",
            title=f"{run.id} has checkpoints, and its journal leads to none of them",
            cause=f"{run.events.name} is {state}; the checkpoints on disk are {listed}. Starting from the beginning "
            "would replace them, so nothing was done",
            hint=f"`cockpit resume {run.id}@{steps[-1]}` continues from the newest",
        )
    )
