"""The queue: a submitted run is checked, its profile frozen, and it waits here; the first run starts when its devices
are free."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from dataclasses import replace
from pathlib import Path

import msgspec

from engine.config import stage_plan
from engine.config.profile import Profile, ProfileError, check_shell, parse, pin
from engine.protocol import journal, stages, states
from engine.protocol.home import RunDirectory, host_name, make_private, write_private
from engine.protocol.messages import Holder, Label, Problem, ProblemError, Resume, Run, Submit
from engine.supervisor import admission, labels, processes, room, start_stage
from engine.supervisor.devices import Assigned
from engine.supervisor.hang_detector import Heartbeats
from engine.supervisor.launching import Launcher
from engine.supervisor.run_record import Job, Record, replay
from engine.supervisor.runs import HOST, Runs
from engine.supervisor.slurm import SlurmJob
from engine.supervisor.waiting import WaitingRuns


class Queue:
    """Runs that are to be started. `waiting` has their order, `launcher` starts their workers."""

    def __init__(self, runs: Runs, launcher: Launcher) -> None:
        self.runs, self.launcher, self.devices = runs, launcher, launcher.devices
        self.home = runs.home
        self.waiting = WaitingRuns(runs)
        self._shown_wait: tuple[str, Assigned] | None = None

    def submit(self, message: Submit) -> Run:
        """Check the profile, freeze it and queue the run. Raises ProblemError, and leaves nothing on disk then."""
        labels.check_group(message.group)
        directory = Path(message.directory or "/")
        rows = message.first not in (*stages.AFTER, stages.TRAIN)
        profile = self._check_profile(message.profile, message.source, directory, rows=rows)
        try:
            check_shell(profile, message.environment)
        except ProfileError as error:
            raise ProblemError(
                Problem(
                    code="profile.environment",
                    title="The environment lacks variables that the profile needs",
                    cause=str(error),
                )
            )
        admission.check_devices(self.devices, profile, message.environment)
        admission.check_disk(self.home, profile)
        near = room.check_submitted(message, profile, self.home, self.devices, idle=not self.runs.list_live())
        if message.first in stages.AFTER:
            return self._requeue_trained(message, *start_stage.find_trained_run(self.runs, message, profile))
        admission.check_export_folder(profile)
        made = None
        if message.first == stages.TRAIN:
            made, profile = start_stage.find_prepared_run(self.runs, message, profile)
        run_directory = self._new_directory(profile.name or Path(message.source).stem or message.kind)
        job = Job(
            kind=message.kind,
            name=profile.name or run_directory.id,
            source=message.source,
            directory=str(directory),
            output=message.output,
            host=host_name(),
            created=time.time(),
            first=message.first,
        )
        try:
            if made is not None:
                write_private(run_directory.prepared, made.directory.prepared.read_bytes())
            write_private(run_directory.profile, profile.to_yaml().encode())
            labels.save(run_directory, labels.Labels(group=message.group))
            write_private(run_directory.path / "job.json", msgspec.json.format(msgspec.json.encode(job)))
        except OSError as error:
            shutil.rmtree(run_directory.path, ignore_errors=True)
            raise ProblemError(
                Problem(
                    code="file.unwritable",
                    title="The run could not be written",
                    cause=str(error),
                    hint=f"free some disk space in {self.home.root}",
                )
            )
        record, _ = replay(run_directory, job, None, 0)
        record.environment = message.environment
        self.runs.records[record.run.id] = record
        self.runs.remember_profile(record, profile)
        record.run.priority = profile.launch.priority
        self.enqueue(record, "submitted")
        self._warn_near(record, near)
        return record.run

    def _warn_near(self, record: Record, near: str) -> None:
        """Note that the run may not fit, if there is a word about it."""
        if near:
            record.write_lifecycle(room.warn_near(record.run.attempt, near))
            record.warnings.append(near)

    def _requeue_trained(self, message: Submit, record: Record, profile: Profile) -> Run:
        """Queue the next attempt of a trained run, from the stage `message.first` on, with the settings of
        `profile`."""
        admission.check_export_folder(profile)
        if message.group:
            labels.change(record.directory, record.run, Label(run=record.run.id, group=message.group))
        self._clear_results(record, message.first)
        record.directory.prepared.unlink(missing_ok=True)  # the profile may name other test rows now
        self._write(record.directory.profile, profile.to_yaml().encode())
        self.runs.remember_profile(record, profile)
        record.environment = message.environment or record.environment
        record.resume_step = None
        record.run.priority = profile.launch.priority
        self.enqueue(record, "resume")
        return record.run

    def resume(self, record: Record, message: Resume) -> Run:
        """Queue an ended run's next attempt, from its newest checkpoint or the one asked for. Raises ProblemError."""
        if record.run.state not in states.ENDED:
            raise ProblemError(
                Problem(
                    code="run.live",
                    title=f"{record.run.id} is {record.run.state}",
                    cause="only a run that has ended can be resumed",
                )
            )
        steps = record.directory.checkpoint_steps()
        if message.step is not None and message.step not in steps:
            raise ProblemError(
                Problem(
                    code="checkpoint.not_found",
                    title=f"{record.run.id} has no checkpoint at step {message.step}",
                    hint=f"it has: {', '.join(map(str, steps)) or 'none'}",
                )
            )
        profile = self._load_profile(record)
        again = None if message.step is None else stages.TRAIN
        if message.changes:
            text = record.directory.profile.read_text(encoding="utf-8")
            overrides = [f"{key}={json.dumps(value)}" for key, value in message.changes.items()]
            where = record.job.source, Path(record.job.directory), overrides
            sources_gone = False
            try:
                profile = self._check_profile(text, *where)
            except ProblemError:
                # The files of its rows may be gone: the prepared ones do, unless other rows are asked for.
                other_rows = any(stage_plan.is_within(key, start_stage.PREPARE_SETTINGS) for key in message.changes)
                if other_rows or not record.directory.prepared.is_file():
                    raise
                profile, sources_gone = self._check_profile(text, *where, prepared=True), True
            again = again or stage_plan.find_first_touched(message.changes)
        environment = message.environment or record.environment
        admission.check_devices(self.devices, profile, environment)
        admission.check_disk(self.home, profile)
        if again or not record.directory.result(stages.EXPORT).is_file():
            admission.check_export_folder(profile)
        if message.changes:
            self._write(record.directory.profile, profile.to_yaml().encode())
            if not sources_gone:  # rows are prepared again: at once, from the cache, when they are the same
                record.directory.prepared.unlink(missing_ok=True)
            self.runs.remember_profile(record, profile)
        if again:
            self._clear_results(record, again)
        record.environment = environment
        record.remade = False
        record.resume_step = message.step
        record.run.priority = profile.launch.priority
        self.enqueue(record, "resume")
        return record.run

    def _load_profile(self, record: Record) -> Profile:
        """The run's frozen profile. Raises ProblemError when it is damaged or no longer valid."""
        try:
            return self.runs.load_profile(record)
        except (ProfileError, OSError) as error:
            raise ProblemError(
                Problem(
                    code="profile.outdated",
                    title=f"The profile of {record.run.id} is no longer valid",
                    cause=str(error),
                    hint=f"mend {record.directory.profile}, or train the original profile again",
                )
            )

    def _check_profile(
        self,
        text: str,
        source: str,
        directory: Path,
        overrides: list[str] | None = None,
        *,
        prepared: bool = False,
        rows: bool = False,
    ) -> Profile:
        try:
            name, given = source or "profile", overrides or []
            return pin(parse(text, name, directory, given, self.home, prepared=prepared, rows=rows), self.home)
        except ProfileError as error:
            raise ProblemError(
                Problem(
                    code="profile.invalid",
                    title="The profile is not valid",
                    cause=str(error),
                    hint="cockpit profile check",
                )
            )

    def _write(self, path: Path, content: bytes) -> None:
        """Raises ProblemError when the disk does not take the file; the one before is kept then."""
        try:
            write_private(path, content)
        except OSError as error:
            raise ProblemError(
                Problem(
                    code="file.unwritable",
                    title=f"{path.name} could not be written",
                    cause=str(error),
                    hint=f"free some disk space in {self.home.root}",
                )
            )

    def _clear_results(self, record: Record, stage: str) -> None:
        """Remove the results of this stage and all later ones, so that they are done again."""
        for later in stages.STAGES[stages.STAGES.index(stage) :]:
            record.directory.result(later).unlink(missing_ok=True)

    def _new_directory(self, name: str) -> RunDirectory:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "run"
        while True:
            run = self.home.run(f"{stem}-{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
            try:
                make_private(self.home.runs)
                run.path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            return run

    def enqueue(self, record: Record, event: str) -> None:
        """Queue the next attempt; `event` is `submitted` or `resume`."""
        run = record.run
        run.attempt = record.newest_attempt() + 1
        run.started = run.ended = 0.0
        record.end, record.stop_requested, record.ranks, record.heartbeats = None, False, {}, Heartbeats()
        record.move(event)
        self.waiting.add(record)

    @property
    def order(self) -> list[str]:
        """The ids of the waiting runs, the next one first."""
        return self.waiting.order

    def schedule(self) -> None:
        """Start the runs at the head of the queue whose devices are free, and those that need none of this host's."""
        for record in [self.runs.records[run_id] for run_id in self.order]:
            if self._goes_elsewhere(record) and not self._wait_to_prepare(record):
                self._begin(record, [])
        while waiting := [run_id for run_id in self.order if not self._goes_elsewhere(self.runs.records[run_id])]:
            record = self.runs.records[run_id := waiting[0]]
            try:
                profile = self.runs.load_profile(record)
                if profile.launch.via != "local":  # of these stages each is one process
                    alone = {"processes": 1, "devices": "auto", "wait_for": None}
                    profile = replace(profile, launch=profile.launch.model_copy(update=alone))
                found = self.devices.assign(run_id, profile, record.environment, self.runs.find_busy_devices())
            except (ProfileError, OSError) as error:
                self.remove(record)
                record.move(
                    "failed",
                    problem=Problem(
                        code="profile.outdated", title="The run's profile is no longer valid", cause=str(error)
                    ),
                )
                continue
            except ProblemError as error:  # the host has lost devices since it was queued; it may get them back
                found = Assigned(None, [], f"{error.problem.title}: {error.problem.cause}")
            if found.devices is None:
                self._keep_waiting(record, found)
                return
            self._begin(record, found.devices)

    def _goes_elsewhere(self, record: Record) -> bool:
        """Whether a waiting run needs none of this host's devices for its next stage."""
        if not self.runs.is_elsewhere(record, stages.TRAIN):
            return False
        return self.runs.is_elsewhere(record, self.find_next_stage(record) or stages.TRAIN)

    def _wait_to_prepare(self, record: Record) -> bool:
        """Whether a run has to wait until the rows of another one that goes elsewhere are prepared: on this host, one
        after the other."""
        others = (each for each in self.runs.list_live() if each.run.state == states.PREPARING)
        busy = next((each for each in others if each is not record and self.runs.is_elsewhere(each)), None)
        if busy is None or self.find_next_stage(record) != stages.PREPARE:
            return False
        holders = [Holder(device=HOST, job=busy.run.id)]
        if record.run.holders != holders:
            record.run.reason = f"waits until the rows of {busy.run.id} are prepared"
            record.run.code, record.run.holders, record.changed = "queue.devices_held", holders, True
        return True

    def _begin(self, record: Record, devices: list[int]) -> None:
        """Take a run out of the queue and start it. One that has all its results is resumed to train to a later end."""
        self.remove(record)
        record.run.devices = devices
        self.start(record, self.find_next_stage(record) or stages.TRAIN)

    def _keep_waiting(self, record: Record, wait: Assigned) -> None:
        """Say in the run's summary what it waits for. It is not journalled: the next engine finds out by itself."""
        run = record.run
        if self._shown_wait == (run.id, wait) and run.code:
            return
        if self._shown_wait and (before := self.runs.records.get(self._shown_wait[0])) and before.run.position > 1:
            before.run.reason, before.run.code, before.run.holders, before.changed = "", "", [], True
        self._shown_wait = run.id, wait
        run.reason, run.code, run.holders, record.changed = wait.words, "queue.devices_held", wait.holders, True

    def advance(self, record: Record, stage: str) -> None:
        """Start a run's next stage, or queue it again, before all others, where somebody has taken its devices
        meanwhile: they are unused while rows are prepared."""
        run = record.run
        own = stage in stages.AFTER and record.stage == stages.TRAIN and not run.devices
        if own and self.runs.load_profile(record).launch.via in ("ssh", "none"):  # from here on it needs this host
            record.move("requeue")
            record.leader = None
            self.waiting.add(record, first=True)
        elif run.state == states.PREPARING and self.devices.find_taken(run, self.runs.load_profile(record)):
            record.move("requeue")
            run.devices, record.leader = [], None
            self.waiting.add(record, first=True)
        else:
            self.start(record, stage)

    def remove(self, record: Record) -> None:
        """Take a run out of the queue."""
        self.waiting.remove(record)

    def find_next_stage(self, record: Record) -> str | None:
        """The first stage of the run that has no result yet; None when all have one."""
        directory = record.directory
        return next((stage for stage in self._list_stages(record) if not directory.result(stage).is_file()), None)

    def _list_stages(self, record: Record) -> list[str]:
        """The stages of the run that have a worker."""
        if record.job.kind == stages.PREPARE:
            return [stages.PREPARE]
        return [stage for stage in stage_plan.list_stages(self.runs.load_profile(record)) if stage in stages.RESULTS]

    def start(self, record: Record, stage: str) -> None:
        """Start the worker of a stage. All stages but `prepare` use the run's devices. Results of this and later stages
        are removed."""
        run, profile = record.run, self.runs.load_profile(record)
        if stage != stages.PREPARE:
            self._clear_results(record, stage)
        record.stage, record.identity, record.held_instructions, record.end = stage, None, [], None
        record.ranks, record.heartbeats = {}, Heartbeats()  # those of the stage before are silent from now on
        run.stage, run.phase = stage, ""
        record.oom_kills = processes.count_oom_kills()
        record.log_begin = log.stat().st_size if (log := record.directory.log).is_file() else 0
        try:
            leader = self.launcher.start(record, stage, profile)
        except OSError as error:
            record.move(
                "failed",
                problem=Problem(code="worker.not_started", title="The worker could not be started", cause=str(error)),
            )
            return
        record.leader = leader
        if isinstance(leader, SlurmJob):  # it begins when Slurm says so
            if run.state == states.PREPARING:
                record.move("requeue")
            record.changed = True
            return
        run.started = run.started or time.time()
        record.write_lifecycle(
            journal.Launched(
                attempt=run.attempt,
                pid=leader.pid,
                start_time=leader.start_time,
                identity=leader.identity,
                stage=stage,
                devices=run.devices,
            )
        )
        if run.state != states.RUNNING:  # the stages after training belong to the same running state
            record.move("prepare" if stage == stages.PREPARE else "start")
        record.changed = True
