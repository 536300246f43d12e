"""All runs under a home: finds them, and reads their profiles."""

from __future__ import annotations

import time
from pathlib import Path

from engine.config import stage_plan
from engine.config.issues import Issue
from engine.config.profile import Profile, ProfileError, parse
from engine.protocol import stages, states
from engine.protocol.home import Home, host_name
from engine.protocol.messages import Problem, ProblemError
from engine.supervisor.run_record import Record

AGAIN = 5.0
"""Seconds after which the loop reads a profile again that could not be read."""
HOST = -1
"""Stands for the host itself where it has no devices."""


class Runs:
    """All runs under one home, including those of other hosts that share it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.records: dict[str, Record] = {}
        self._profiles: dict[str, Profile] = {}
        self._damaged: dict[str, float] = {}

    def find(self, reference: str) -> Record:
        """Find a run by its id, an unambiguous prefix of it, or `last`. Raises ProblemError."""
        if reference in self.records:
            return self.records[reference]
        if not self.records:
            raise ProblemError(
                Problem(code="run.none", title="There are no runs yet", hint="cockpit demo, or cockpit train PROFILE")
            )
        if reference == "last":
            return max(self.records.values(), key=lambda record: record.run.created)
        matches = sorted(run_id for run_id in self.records if run_id.startswith(reference))
        if len(matches) == 1:
            return self.records[matches[0]]
        cause = f"it could mean {', '.join(matches[:5])}" if matches else "no run's id starts with it"
        raise ProblemError(
            Problem(
                code="run.ambiguous" if matches else "run.not_found",
                title=f"Which run is {reference}?",
                cause=cause,
                hint="cockpit runs",
            )
        )

    def list_live(self) -> list[Record]:
        """The runs of this host that have not ended."""
        return [record for record in self.records.values() if record.run.state in states.LIVE and self.is_local(record)]

    def is_local(self, record: Record) -> bool:
        return record.job.host == host_name()

    def is_elsewhere(self, record: Record, stage: str = "") -> bool:
        """Whether the run computes on other hosts' devices than this one's. After training only Slurm's runs do.
        `stage` is the run's present one by default."""
        run = record.run.id
        try:
            if self._damaged.get(run, 0.0) > time.monotonic():
                return False
            via = self.load_profile(record).launch.via
            return via == "slurm" or (via != "local" and (stage or record.stage) not in stages.AFTER)
        except (ProfileError, OSError):
            self._damaged[run] = time.monotonic() + AGAIN
            return False

    def load_profile(self, record: Record, *, keep: bool = True) -> Profile:
        """The run's frozen profile, in memory from then on if `keep`. Raises ProfileError when it is no longer valid,
        whatever is in its file, and OSError."""
        if record.run.id in self._profiles:
            return self._profiles[record.run.id]
        path = record.directory.profile
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a file")
            text = path.read_text(encoding="utf-8")
            prepared = record.directory.prepared.is_file()
            profile = parse(text, str(path), Path(record.job.directory), home=self.home, prepared=prepared)
        except (ProfileError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file may do anything to a parser
            wrong = f"it is damaged ({type(error).__name__}: {str(error)[:200]})"
            raise ProfileError([Issue(wrong, code="profile.syntax", file=str(path))])
        if keep:
            self._profiles[record.run.id] = profile
        return profile

    def remember_profile(self, record: Record, profile: Profile) -> None:
        """Keep a profile that has just been checked, and describe it in the run's summary."""
        self._profiles[record.run.id] = profile
        self.describe(record, profile)

    def describe(self, record: Record, profile: Profile) -> None:
        run = record.run
        run.base, run.method, run.adapter = profile.model.origin, profile.method.kind, profile.adapter.kind
        run.stages = [stages.PREPARE] if record.job.kind == "prepare" else stage_plan.list_stages(profile)
        run.learning_rate = profile.training.learning_rate
        run.epochs, run.max_steps = profile.training.epochs, profile.training.max_steps or run.max_steps

    def find_busy_devices(self) -> dict[int, str]:
        """Devices that runs hold, and which runs those are; `HOST` for a run without devices."""
        running = (
            record.run
            for record in self.records.values()
            if record.run.state in states.STARTED and self.is_local(record) and not self.is_elsewhere(record)
        )
        return {index: run.id for run in running for index in (run.devices or [HOST])}

    def forget(self, record: Record) -> None:
        del self.records[record.run.id]
        self._profiles.pop(record.run.id, None)
