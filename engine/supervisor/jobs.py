"""The runs: queue, launch, watch, adopt, end. Every decision about a run's state is taken here."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from engine.launchers.local import command
from engine.protocol import journal, states
from engine.protocol.home import Home, RunDirectory, host_name, write_private
from engine.protocol.messages import (
    Body,
    Instruction,
    Points,
    Problem,
    ProblemError,
    Rank,
    Resume,
    Run,
    RunChanged,
    RunRemoved,
    Submit,
    Told,
)
from engine.protocol.profile import Profile, ProfileError, parse
from engine.protocol.wire import process_alive, workers_address
from engine.supervisor import processes, scheduler
from engine.supervisor.autopsy import Death, explain
from engine.supervisor.processes import Leader
from engine.supervisor.record import Job, Record, by_name, log_tail, read_job, replay

CPU = -1


class Jobs:
    """All runs under one home; `workers` is the package that their workers come from.

    `publish` sends a body to every attached cockpit, `instruct` one to a worker's address; `background` calls its first
    argument in a thread and then its second in the loop.
    """

    def __init__(
        self,
        home: Home,
        workers: str,
        publish: Callable[[Body], None],
        instruct: Callable[[bytes, Instruction], None],
        background: Callable[[Callable[[], None], Callable[[], None]], None],
    ) -> None:
        self.home, self.workers = home, workers
        self.publish, self.instruct, self.background = publish, instruct, background
        self.records: dict[str, Record] = {}
        self.queue: list[str] = []
        self.device_count = 0
        self._profiles: dict[str, Profile] = {}

    # ── finding ───────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, reference: str) -> Record:
        """By id, unambiguous prefix, or `last`. Raises ProblemError."""
        if reference in self.records:
            return self.records[reference]
        if not self.records:
            raise ProblemError(Problem(title="There are no runs yet", hint="cockpit demo, or cockpit train PROFILE"))
        if reference == "last":
            return max(self.records.values(), key=lambda record: record.run.created)
        matches = sorted(run_id for run_id in self.records if run_id.startswith(reference))
        if len(matches) == 1:
            return self.records[matches[0]]
        cause = f"it could be {', '.join(matches[:5])}" if matches else "no run's id begins like that"
        raise ProblemError(Problem(title=f"Which run is {reference}?", cause=cause, hint="cockpit runs"))

    def live(self) -> list[Record]:
        """Runs of this host with something still to happen."""
        return [record for record in self.records.values() if record.run.state in states.LIVE and self.ours(record)]

    def ours(self, record: Record) -> bool:
        return record.job.host == host_name()

    def profile(self, record: Record) -> Profile:
        """The run's frozen profile. Raises ProfileError when it has gone bad since."""
        if record.run.id not in self._profiles:
            text = record.directory.profile.read_text(encoding="utf-8")
            self._profiles[record.run.id] = parse(
                text, str(record.directory.profile), Path(record.job.directory), home=self.home
            )
        return self._profiles[record.run.id]

    # ── submitting ────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, message: Submit) -> Run:
        """Check, freeze and queue. Raises ProblemError, with nothing left on disk."""
        directory = Path(message.directory or "/")
        profile = self._checked(message.profile, message.source, directory)
        self._demand("", profile)
        run_directory = self._new_directory(profile.name or Path(message.source).stem or message.kind)
        job = Job(
            kind=message.kind,
            name=profile.name or run_directory.id,
            source=message.source,
            directory=str(directory),
            output=message.output,
            host=host_name(),
            created=time.time(),
        )
        try:
            write_private(run_directory.profile, profile.to_yaml().encode())
            write_private(run_directory.path / "job.json", msgspec.json.format(msgspec.json.encode(job)))
        except OSError as error:
            shutil.rmtree(run_directory.path, ignore_errors=True)
            raise ProblemError(
                Problem(title="The run could not be written", cause=str(error), hint=f"make room in {self.home.root}")
            )
        record, _ = replay(run_directory, job, None, 0)
        record.environment = message.environment
        self._profiles[record.run.id] = profile
        self.records[record.run.id] = record
        self._describe(record, profile)
        self._enqueue(record, "submitted")
        return record.run

    def resume(self, record: Record, message: Resume) -> Run:
        """Queue an ended run's next attempt, from its newest checkpoint or the one asked for. Raises ProblemError."""
        if record.run.state not in states.ENDED:
            raise ProblemError(
                Problem(
                    title=f"{record.run.id} is {record.run.state}", cause="only a run that has ended can be resumed"
                )
            )
        steps = record.directory.checkpoint_steps()
        if message.step is not None and message.step not in steps:
            raise ProblemError(
                Problem(
                    title=f"{record.run.id} has no checkpoint at step {message.step}",
                    hint=f"it has: {', '.join(map(str, steps)) or 'none'}",
                )
            )
        if message.changes:
            text = record.directory.profile.read_text(encoding="utf-8")
            overrides = [f"{key}={json.dumps(value)}" for key, value in message.changes.items()]
            profile = self._checked(text, record.job.source, Path(record.job.directory), overrides)
            write_private(record.directory.profile, profile.to_yaml().encode())
            record.directory.prepared.unlink(
                missing_ok=True
            )  # prepared anew: a hit in the cache when the data settings stand
            self._profiles[record.run.id] = profile
            self._describe(record, profile)
        record.environment |= message.environment
        record.resume_step = message.step
        self._enqueue(record, "resume")
        return record.run

    def _checked(self, text: str, source: str, directory: Path, overrides: list[str] | None = None) -> Profile:
        try:
            return parse(text, source or "profile", directory, overrides or [], self.home)
        except ProfileError as error:
            raise ProblemError(
                Problem(title="The profile does not hold", cause=str(error), hint="cockpit profile check")
            )

    def _new_directory(self, name: str) -> RunDirectory:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "run"
        while True:
            run = self.home.run(f"{stem}-{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
            try:
                run.path.mkdir(mode=0o700, parents=True)
            except FileExistsError:
                continue
            return run

    def _describe(self, record: Record, profile: Profile) -> None:
        run = record.run
        run.base, run.method, run.adapter = profile.model.base, profile.method.kind, profile.adapter.kind
        run.epochs, run.max_steps = profile.training.epochs, profile.training.max_steps or run.max_steps

    def _enqueue(self, record: Record, event: str) -> None:
        run = record.run
        run.attempt += 1
        run.started = run.ended = 0.0
        record.end, record.stop_asked, record.ranks = None, False, {}
        self.queue.append(run.id)
        record.move(event)
        self._renumber()

    def _renumber(self) -> None:
        for position, run_id in enumerate(self.queue, 1):
            record = self.records[run_id]
            if record.run.position != position:
                record.run.position, record.changed = position, True

    def reorder(self, record: Record, position: int) -> Run:
        """Move a queued run to a place in the queue, from 1. Raises ProblemError when it is not queued."""
        if record.run.id not in self.queue:
            raise ProblemError(Problem(title=f"{record.run.id} is not queued", cause=f"it is {record.run.state}"))
        self.queue.remove(record.run.id)
        self.queue.insert(max(0, position - 1), record.run.id)
        self._renumber()
        return record.run

    # ── starting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def schedule(self) -> None:
        """Start what can start."""
        while self.queue:
            record = self.records[self.queue[0]]
            try:
                demands = [self._demand(record.run.id, self.profile(record))]
            except (ProfileError, OSError) as error:
                self._leave_queue(record)
                record.move("failed", problem=Problem(title="The run's profile no longer holds", cause=str(error)))
                continue
            found = scheduler.first(demands, self.device_count, self._busy(), CPU in self._busy())
            if found is None:
                return
            self._leave_queue(record)
            record.run.devices = found[1]
            prepared = record.job.kind == "train" and record.directory.prepared.is_file()
            self._start(record, "train" if prepared else "prepare")

    def _demand(self, run_id: str, profile: Profile) -> scheduler.Demand:
        """Raises ProblemError when this host can never give what the profile asks for."""
        launch = profile.launch
        demand = scheduler.Demand(
            run_id,
            launch.processes if isinstance(launch.processes, int) else None,
            tuple(launch.devices) if isinstance(launch.devices, list) else None,
        )
        try:
            scheduler.assign(demand, self.device_count, (), False)
        except ValueError as error:
            raise ProblemError(
                Problem(
                    title="This host cannot run it",
                    cause=f"the profile {error}",
                    hint="set launch.processes and launch.devices",
                )
            )
        return demand

    def _busy(self) -> set[int]:
        running = (
            record.run for record in self.records.values() if record.run.state in states.STARTED and self.ours(record)
        )
        return {index for run in running for index in (run.devices or [CPU])}

    def _leave_queue(self, record: Record) -> None:
        self.queue.remove(record.run.id)
        record.run.position = 0
        record.changed = True
        self._renumber()

    def _start(self, record: Record, stage: str) -> None:
        run, profile = record.run, self.profile(record)
        worker = [
            f"{self.workers}.{stage}",
            *("--home", str(self.home.root)),
            *("--job", run.id),
            *("--attempt", str(run.attempt)),
            *("--address", workers_address(self.home)),
        ]
        environment = dict(profile.launch.environment) | record.environment
        count = 1
        if stage == "train":
            worker += ["--from-step", str(record.resume_step)] if record.resume_step is not None else []
            count = profile.launch.processes if isinstance(profile.launch.processes, int) else max(1, len(run.devices))
            if run.devices:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, run.devices))
        port = profile.launch.port if isinstance(profile.launch.port, int) else None
        record.stage, record.identity, record.held, record.end = stage, None, [], None
        record.oom_kills = processes.oom_kills()
        try:
            leader = processes.start(command(worker, count, port), record.directory.log, environment)
        except OSError as error:
            record.move("failed", problem=Problem(title="The worker could not be started", cause=str(error)))
            return
        record.leader = leader
        run.started = run.started or time.time()
        record.note(
            journal.Launched(
                attempt=run.attempt, pid=leader.pid, start_time=leader.start_time, stage=stage, devices=run.devices
            )
        )
        record.move("start" if stage == "train" else "prepare")

    # ── watching ──────────────────────────────────────────────────────────────────────────────────────────────────

    def joined(self, record: Record, rank: int, identity: bytes) -> None:
        if rank == 0:
            record.identity = identity
            for instruction in record.held:
                self.instruct(identity, instruction)
            record.held = []
        self.ingest(record)

    def heard(self, record: Record, rank: Rank) -> None:
        record.ranks[rank.rank] = rank

    def ingest(self, record: Record) -> bool:
        """Read on in a run's journal and tell what it says. True when there is more to read."""
        entries, more = record.take()
        values = by_name(entries)
        if values:
            self.publish(Points(run=record.run.id, attempt=record.run.attempt, values=values))
        for entry in entries:
            if isinstance(entry, journal.Metrics):
                continue
            self.publish(Told(run=record.run.id, entry=msgspec.to_builtins(entry)))
            if isinstance(entry, journal.Ledger) and entry.attempt == record.run.attempt:
                self._follow_ledger(record, entry)
        return more

    def _follow_ledger(self, record: Record, entry: journal.Ledger) -> None:
        """The worker's own word that it paused or went on is what moves the state: it knows, we would guess."""
        if entry.name == "pause" and record.run.state == states.RUNNING:
            record.move("pause", reason=str(entry.new or "asked"))
        elif entry.name == "continue" and record.run.state == states.PAUSED:
            record.move("continue")

    def reap(self) -> None:
        """Notice workers that have ended, and move their runs on."""
        for record in list(self.records.values()):
            if record.leader is not None and record.leader.ended():
                self._ended(record, record.leader)

    def _ended(self, record: Record, leader: Leader) -> None:
        """The first process is gone. Ranks whose launcher was killed would hold their devices for good: end them, then settle."""
        record.leader, record.identity = None, None
        self.background(lambda: self._end_processes(record), lambda: self._settle(record, leader.pid, leader.status))

    def _end_processes(self, record: Record) -> None:
        processes.end(processes.of_job(record.run.id, self.home.root))

    def _settle(self, record: Record, pid: int, status: int | None) -> None:
        while self.ingest(record):
            pass
        record.note(journal.Exit(attempt=record.run.attempt, pid=pid, status=status))
        record.ranks = {}
        end = record.end
        if end is not None and end.status == "failed":
            self._failed(record, end.problem)
        elif end is not None and end.status in ("completed", "stopped"):
            self._finish(record, "done" if end.status == "completed" else "stopped")
        elif record.stop_asked:
            self._finish(record, "stopped")
        elif record.stage == "prepare" and status in (0, None) and record.directory.prepared.is_file():
            self._prepared(record)
        elif status is None:
            record.move(
                "lost",
                reason="its worker is gone and left no word; it ran under an earlier engine, so its exit status is unknown",
            )
        else:
            self._failed(record, self._autopsy(record, status))

    def _failed(self, record: Record, problem: Problem | None) -> None:
        """Restarts are counted by attempts, so that an engine's restart forgets none."""
        record.move("failed", problem=problem)
        if not record.stop_asked and record.run.attempt <= self._restarts(record):
            self._enqueue(record, "resume")

    def _restarts(self, record: Record) -> int:
        try:
            return self.profile(record).launch.restarts
        except (ProfileError, OSError):
            return 0

    def _finish(self, record: Record, event: str) -> None:
        if event == "stopped" and record.run.state != states.STOPPING:
            record.move("stop")
        record.move(event)

    def _prepared(self, record: Record) -> None:
        if record.job.kind == "prepare":
            record.move("done")
        else:
            self._start(record, "train")

    def _autopsy(self, record: Record, status: int) -> Problem:
        death = Death(status, log_tail(record.directory.log), processes.oom_kills() > record.oom_kills)
        try:
            profile = self.profile(record)
        except (ProfileError, OSError):
            profile = None
        return explain(death, profile)

    # ── ending ────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop_without_asking(self, record: Record) -> None:
        """End a queued or preparing run, or a running one `--now`: nothing is asked of the worker."""
        record.stop_asked = True
        if record.run.state == states.QUEUED:
            self._leave_queue(record)
            record.move("stop")
            record.move("stopped")
            return
        if record.run.state != states.STOPPING:
            record.move("stop")
        self.background(lambda: self._end_processes(record), self.reap)

    def delete(self, record: Record) -> None:
        """Remove an ended run's directory: renamed first, so that a half-deleted run is never seen. Raises ProblemError."""
        if record.run.state not in states.ENDED:
            raise ProblemError(
                Problem(title=f"{record.run.id} is {record.run.state}", hint=f"cockpit stop {record.run.id}")
            )
        record.close()
        doomed = record.directory.path.with_name(f".deleted-{record.run.id}")
        record.directory.path.rename(doomed)
        del self.records[record.run.id]
        self._profiles.pop(record.run.id, None)
        shutil.rmtree(doomed, ignore_errors=True)
        self.publish(RunRemoved(run=record.run.id))

    # ── taking over ───────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, indexed: dict[str, tuple[Run, int]], store: Callable[[Record], None]) -> None:
        """Read every run directory; adopt what lives, settle what died while nobody watched. `store` indexes what was read."""
        for left in self.home.runs.glob(".deleted-*"):
            shutil.rmtree(left, ignore_errors=True)
        for path in sorted(self.home.runs.iterdir()):
            directory = RunDirectory(path)
            job = read_job(directory)
            if job is None:
                continue
            record, launched = replay(directory, job, *indexed.get(directory.id, (None, 0)))
            self.records[record.run.id] = record
            record.changed = True
            while self.ingest(record):
                store(record)
            try:
                self._describe(record, self.profile(record))
            except (ProfileError, OSError):
                pass  # an ended run whose sources have gone is still worth showing
            if self.ours(record):
                self._take_over(record, launched)
        self.queue.sort(key=lambda run_id: self.records[run_id].run.position or self.records[run_id].run.created)
        self._renumber()

    def refresh_foreign(self) -> None:
        """Read on in live runs of other hosts that share this home. They are shown, never touched."""
        for record in self.records.values():
            if not self.ours(record) and record.run.state in states.LIVE:
                fresh, _ = replay(record.directory, record.job, None, 0)
                record.run.state, record.run.reason, record.run.problem = (
                    fresh.run.state,
                    fresh.run.reason,
                    fresh.run.problem,
                )
                record.changed = True
                self.ingest(record)

    def _take_over(self, record: Record, launched: journal.Launched | None) -> None:
        run = record.run
        if run.state == "":  # submitted, and the engine died before it was queued
            record.move("submitted")
        if run.state == states.QUEUED:
            self.queue.append(run.id)
        if run.state not in states.STARTED:
            return
        record.stop_asked = run.state == states.STOPPING
        leader = Leader(launched.pid, launched.start_time) if launched else None
        if leader is not None and process_alive(leader.pid, leader.start_time):
            record.leader = leader
            record.note(journal.Adopted(attempt=run.attempt, pid=leader.pid))
        elif leader is not None:
            self._ended(record, leader)
        else:
            record.move("lost", reason="the engine ended while the run was between two workers")

    # ── telling ───────────────────────────────────────────────────────────────────────────────────────────────────

    def changed(self) -> list[Record]:
        """Records to publish and to store, each once; publishes them."""
        records = [record for record in self.records.values() if record.changed]
        for record in records:
            record.changed = False
            self.publish(RunChanged(run=record.run))
        return records

    def pids(self, record: Record) -> list[int]:
        """All live processes of the run, launcher and ranks."""
        found = processes.of_job(record.run.id, self.home.root) if record.leader else []
        return sorted(process.pid for process in found if psutil.pid_exists(process.pid))
