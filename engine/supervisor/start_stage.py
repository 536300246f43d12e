"""Beginning in the middle: what lies before the stage that is asked for is taken from the newest run of the same profile."""

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

_PREPARED = ("data", "model", "method", "training.seed")
"""Settings that prepared rows depend on."""


def prepared(runs: Runs, message: Submit, profile: Profile) -> tuple[Record, Profile]:
    """The newest run of this profile whose rows serve a new one, and `profile` on its base. Raises ProblemError."""
    record = _newest(runs, message, stages.PREPARE)
    before, profile = _alike(runs, record, profile)
    changed = [name for name in _differences(before, profile) if stage_plan.within(name, _PREPARED)]
    if changed:
        raise _changed(record, changed, stages.TRAIN, stages.PREPARE)
    return record, profile


def trained(runs: Runs, message: Submit, profile: Profile) -> tuple[Record, Profile]:
    """The newest run of this profile that goes on with the stage `message.first`, and `profile` on its base. Raises ProblemError."""
    before_it = [
        stage for stage in stage_plan.asked(profile) if stages.STAGES.index(stage) < stages.STAGES.index(message.first)
    ]
    record = _newest(runs, message, before_it[-1])
    if record.run.state not in states.ENDED:
        raise ProblemError(
            Problem(
                code="run.live",
                title=f"{record.run.id} is {record.run.state}",
                hint=f"wait, or cockpit stop {record.run.id}",
            )
        )
    before, profile = _alike(runs, record, profile)
    changed = _differences(before, profile)
    touched = stage_plan.first_touched(changed)
    if stages.STAGES.index(touched) < stages.STAGES.index(message.first):
        early = [name for name in changed if stage_plan.first_touched([name]) == touched]
        raise _changed(record, early, message.first, touched)
    return record, profile


def _newest(runs: Runs, message: Submit, stage: str) -> Record:
    """The newest run of ours of this profile with the result of `stage`."""
    found = [
        record
        for record in runs.records.values()
        if record.job.kind == "train"
        and record.job.source == message.source
        and runs.ours(record)
        and record.directory.result(stage).is_file()
    ]
    if not found:
        raise ProblemError(
            Problem(
                code="stage.no_predecessor",
                title=f"There is nothing to begin with {message.first} on",
                cause=f"no run of {Path(message.source).name} has come to the end of its stage {stage}",
                hint="leave --from out",
            )
        )
    return max(found, key=lambda record: record.run.created)


def _alike(runs: Runs, record: Record, profile: Profile) -> tuple[Profile, Profile]:
    """The run's profile, and `profile` with the folder that its base was put into, where both name the same checkpoint of a run."""
    try:
        before = runs.profile(record)
    except (ProfileError, OSError) as error:
        raise ProblemError(
            Problem(code="profile.outdated", title=f"The profile of {record.run.id} no longer holds", cause=str(error))
        )
    kept, named = Path(before.model.base), profile.model.base
    if kept.parent == runs.home.cache and kept.name.startswith(f"{named}-"):
        profile = replace(profile, model=profile.model.model_copy(update={"base": str(kept)}))
    return before, profile


def _differences(before: Profile, after: Profile) -> list[str]:
    """Dotted names of the settings that differ, lists as a whole."""
    return list(_walk(before.resolved(), after.resolved()))


def _walk(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _walk(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def _changed(record: Record, names: list[str], stage: str, earlier: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="stage.settings_changed",
            title=f"{stage} cannot go on from {record.run.id}",
            cause=f"settings of an earlier stage have changed since: {', '.join(names[:6])}",
            hint=f"leave --from out, or begin with --from {earlier}",
        )
    )
