"""Starts a run at a later stage: the results of the stages before it are taken from the newest run of the same
profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import stage_plan
from engine.config.profile import Profile, ProfileError
from engine.protocol import stages, states
from engine.protocol.messages import Problem, ProblemError, Submit
from engine.supervisor.run_record import Record
from engine.supervisor.runs import Runs

PREPARE_SETTINGS = ("data", "model", "method", "training.seed")
"""Settings that prepared rows depend on."""


def find_prepared_run(runs: Runs, message: Submit, profile: Profile) -> tuple[Record, Profile]:
    """The newest run of this profile whose prepared rows a new run can use, and `profile` with its base. Raises
    ProblemError."""
    record = _find_newest(runs, message, stages.PREPARE)
    before, profile = _load_comparable(runs, record, profile)
    changed = [name for name in _list_differences(before, profile) if stage_plan.is_within(name, PREPARE_SETTINGS)]
    if changed:
        raise _settings_changed_error(record, changed, stages.TRAIN, stages.PREPARE)
    return record, profile


def find_trained_run(runs: Runs, message: Submit, profile: Profile) -> tuple[Record, Profile]:
    """The newest run of this profile that can go on with the stage `message.first`, and `profile` with its base. Raises
    ProblemError."""
    earlier = [
        stage
        for stage in stage_plan.list_stages(profile)
        if stages.STAGES.index(stage) < stages.STAGES.index(message.first)
    ]
    record = _find_newest(runs, message, earlier[-1])
    if record.run.state not in states.ENDED:
        raise ProblemError(
            Problem(
                code="run.live",
                title=f"{record.run.id} is {record.run.state}",
                hint=f"wait, or cockpit stop {record.run.id}",
            )
        )
    before, profile = _load_comparable(runs, record, profile)
    changed = _list_differences(before, profile)
    touched = stage_plan.find_first_touched(changed)
    if stages.STAGES.index(touched) < stages.STAGES.index(message.first):
        early = [name for name in changed if stage_plan.find_first_touched([name]) == touched]
        raise _settings_changed_error(record, early, message.first, touched)
    return record, profile


def _find_newest(runs: Runs, message: Submit, stage: str) -> Record:
    """The newest run of this host and profile that has the result of `stage`. Raises ProblemError."""
    found = [
        record
        for record in runs.records.values()
        if record.job.kind == "train"
        and record.job.source == message.source
        and runs.is_local(record)
        and record.directory.result(stage).is_file()
    ]
    if not found:
        raise ProblemError(
            Problem(
                code="stage.no_predecessor",
                title=f"No run can start at {message.first}",
                cause=f"no run of {Path(message.source).name} has finished its stage {stage}",
                hint="run without --from",
            )
        )
    return max(found, key=lambda record: record.run.created)


def _load_comparable(runs: Runs, record: Record, profile: Profile) -> tuple[Profile, Profile]:
    """The run's profile, and `profile` with the folder that the run's base was copied to, where both name the same
    checkpoint of a run."""
    try:
        before = runs.load_profile(record)
    except (ProfileError, OSError) as error:
        raise ProblemError(
            Problem(
                code="profile.outdated", title=f"The profile of {record.run.id} is no longer valid", cause=str(error)
            )
        )
    kept, named = Path(before.model.base), profile.model.base
    if kept.parent == runs.home.cache and kept.name.startswith(f"{named}-"):
        profile = replace(profile, model=profile.model.model_copy(update={"base": str(kept)}))
    return before, profile


def _list_differences(before: Profile, after: Profile) -> list[str]:
    """Dotted names of the settings that differ. A list is compared as a whole."""
    return list(_walk(before.to_dict(), after.to_dict()))


def _walk(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _walk(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def _settings_changed_error(record: Record, names: list[str], stage: str, earlier_stage: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="stage.settings_changed",
            title=f"{stage} cannot continue {record.run.id}",
            cause=f"settings of an earlier stage have changed: {', '.join(names[:6])}",
            hint=f"run without --from, or start with --from {earlier_stage}",
        )
    )
