"""Slurm's jobs: submitted, followed and cancelled by Slurm's own commands, in a thread, since they may take long.

A job stands in the place of a run's first process. Its state comes from one `squeue` for all jobs, asked every few
seconds; of a job that squeue has forgotten, `sacct` may still know how it ended.
"""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.protocol.messages import Problem
from engine.supervisor.processes import Leader

POLL = 5.0
"""Seconds between two questions to Slurm."""
POLL_SOON = 1.0
"""The same after a job was submitted or cancelled."""
SOON = 20.0
"""For how long after that."""
PATIENCE = 60.0
"""Seconds that a command of Slurm may take."""
TRIES = 3
"""How often a job that may have been submitted is looked for."""
PAUSE = 2.0
"""Seconds between two such looks."""
PLACES = 30.0
"""Seconds between two looks at a job's place in the queue: Slurm lists all waiting jobs of the cluster for it."""
CLOSING = 10.0
"""Seconds after which an engine that ends cancels no further job: Slurm may not answer, which takes `PATIENCE` each."""
MISSING = 127
"""Exit status of a command that is not there."""
FORGOTTEN = 3
"""Answers of squeue without a job from which on it has ended."""

WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
"""States of a job that waits to be started, or to be started again."""
COMPLETING = "COMPLETING"
"""Its processes are being ended."""
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
                   "PREEMPTED", "REVOKED"})  # fmt: skip
KEPT = ("SLURM_CONF",)
"""Variables of Slurm that tell its commands where the cluster is, not what a process is in it."""
CAUSES = {
    "TIMEOUT": "Slurm ended it at its time limit",
    "NODE_FAIL": "a node of the job failed",
    "OUT_OF_MEMORY": "it used more memory than the job asked for",
    "BOOT_FAIL": "a node of the job could not be booted",
    "DEADLINE": "Slurm ended it at its deadline",
    "PREEMPTED": "Slurm took its nodes for a job of higher priority",
    "CANCELLED": "the job was cancelled",
}
FIELDS = "JobID: |,State: |,Reason: |,RestartCnt: |,exit_code: |,StartTime: "


@dataclass
class SlurmJob(Leader):
    """The job of one stage of a run. The thread sets the fields, the loop reads them."""

    pid: int = 0
    start_time: float = 0.0
    name: str = ""
    conf: str = ""
    """The configuration of its cluster; empty for the default one."""
    job: str = ""
    """Slurm's id; empty until sbatch has given it."""
    state: str = ""
    blocked: str = ""
    """What Slurm says that it waits for, in its own word."""
    shown: str = ""
    """What was last said to the user about it."""
    attempt: int = 1
    """The run's attempt that it was submitted for."""
    recorded: bool = False
    """Whether its id is in the run's journal."""
    restarts: int = 0
    """How often Slurm has started it again."""
    place: str | None = None
    """Its place among the jobs that wait for its partition, in words; empty when Slurm does not show it, None before
    the first look."""
    begins: str = ""
    """When Slurm means to start it, as it says."""
    exit: int | None = None
    failure: Problem | None = None
    """Why it could not be submitted."""
    ended: bool = False
    missing: int = 0
    cancelling: bool = False
    """Whether it is to be cancelled, and scancel has not done it yet."""

    @property
    def environment(self) -> dict[str, str]:
        """In which Slurm's commands find its cluster."""
        return os.environ | ({KEPT[0]: self.conf} if self.conf else {})

    def has_ended(self) -> bool:
        return self.ended

    @property
    def status(self) -> int | None:
        return self.exit

    @property
    def waits(self) -> bool:
        return not self.job or not self.state or self.state in WAITING

    def describe_wait(self) -> str:
        """What it waits for, as Slurm says."""
        if not self.job:
            return "the job is being submitted to Slurm"
        why = f" ({self.blocked})" if self.blocked not in ("", "None") else ""
        begins = f", expected to start at {self.begins.replace('T', ' ')}" if self.begins[:2] == "20" else ""
        place = f", {self.place}" if self.place else ""
        return f"Slurm job {self.job} is {(self.state or 'PENDING').lower()}{why}{place}{begins}"

    def explain_end(self) -> Problem | None:
        """Why Slurm ended it; None when its own process did."""
        if self.failure is not None:
            return self.failure
        if self.state not in CAUSES:
            return None
        return Problem(
            code="slurm.ended",
            title=f"Slurm job {self.job} ended as {self.state}",
            cause=CAUSES[self.state],
            hint=f"`sacct -j {self.job}` says more; `cockpit resume` goes on from the last checkpoint",
        )


class Slurm:
    """All jobs of this engine that have not ended."""

    def __init__(self) -> None:
        self._jobs: list[SlurmJob] = []
        self._thread = ThreadPoolExecutor(1, "slurm")
        self._asking = False
        self._due = 0.0
        self._soon = 0.0
        self._placed: dict[str, float] = {}
        """Configuration of a cluster -> when the places of its jobs were last looked at."""

    def submit(self, name: str, script: Path, environment: Mapping[str, str], attempt: int) -> SlurmJob:
        """Give a batch script to Slurm, in this environment, which the job inherits. `name` is the job's."""
        job = SlurmJob(attempt=attempt, name=name, conf=environment.get(KEPT[0], ""))

        def submit() -> None:
            try:
                self._submit(job, script, environment)
            except Exception as error:  # noqa: BLE001 - the run must not wait for ever
                self._refuse(job, script, f"{type(error).__name__}: {error}")

        self._start(submit)
        return job

    def watch(self, job: SlurmJob) -> None:
        """Follow a job that an earlier engine submitted."""
        self._jobs.append(job)
        self.hurry()

    def cancel(self, job: SlurmJob) -> None:
        """Cancel a job, as often as it takes."""
        job.cancelling = True
        self._start(lambda: self._cancel(job))

    def refresh(self) -> None:
        """Ask Slurm how its jobs stand, when that is due. Returns at once."""
        now = time.monotonic()
        if self._jobs and not self._asking and now >= self._due:
            self._due = now + (POLL_SOON if now < self._soon else POLL)
            self._asking = True
            self._start(self._ask)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        deadline = time.monotonic() + CLOSING
        for job in list(self._jobs):  # nobody would cancel it before the next engine
            if job.cancelling and time.monotonic() < deadline:
                self._cancel(job)

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception:  # noqa: BLE001 - nothing may end this thread
                traceback.print_exc()
                self._asking = False

        self._thread.submit(guarded)

    def hurry(self) -> None:
        """Something is about to change: ask more often for a while."""
        now = time.monotonic()
        self._due, self._soon = min(self._due, now + POLL_SOON), now + SOON

    def _submit(self, job: SlurmJob, script: Path, environment: Mapping[str, str]) -> None:
        # An engine that died right after submitting it has not recorded it: two of them would write one journal.
        found, error = self._find(job)
        if not found and not error:
            status, output, error = self._run(["sbatch", "--parsable", str(script)], environment)
            if status == 0 and output.strip():
                found, error = output.strip().splitlines()[-1].partition(";")[0], ""
            else:  # it may have been taken all the same, and the answer lost
                error = (error or output).strip() or f"sbatch ended with status {status}"
                found = self._find(job)[0]
        if found:
            job.job = found
            self.watch(job)
        else:
            self._refuse(job, script, error)

    def _find(self, job: SlurmJob) -> tuple[str, str]:
        """The id of the job of this name, whatever has become of it, or why Slurm does not say; both are empty when
        there is none."""
        command = ["squeue", "--noheader", "--user", str(os.getuid()), "--states", "all"]
        command += ["--name", job.name, "--format", "%A"]
        for attempt in range(TRIES):
            time.sleep(PAUSE if attempt else 0.0)
            status, output, error = self._run(command, job.environment)
            if status == 0:
                return max(output.split(), key=int, default=""), ""
            if status == MISSING:
                break
        return "", error.strip() or f"squeue ended with status {status}"

    def _refuse(self, job: SlurmJob, script: Path, error: str) -> None:
        job.failure = Problem(
            code="slurm.refused",
            title="Slurm did not take the job",
            cause=error[:1000],
            hint=f"correct launch.slurm, or submit it by hand to see more: sbatch {script}",
        )
        job.ended = True

    def _cancel(self, job: SlurmJob) -> None:
        if job.job and not job.ended:
            status, _, error = self._run(["scancel", job.job], job.environment)
            job.cancelling = status != 0
            if job.cancelling:
                print(f"scancel {job.job}: {error.strip()}", flush=True)
            self.hurry()

    def _ask(self) -> None:
        jobs = list(self._jobs)
        for job in jobs:
            if not job.job:
                job.job = self._find(job)[0]
            if job.cancelling:
                self._cancel(job)
        for conf in {job.conf for job in jobs}:
            self._ask_cluster([job for job in jobs if job.conf == conf])
        self._asking = False

    def _ask_cluster(self, jobs: list[SlurmJob]) -> None:
        command = ["squeue", "--noheader", "--user", str(os.getuid()), "--states", "all", "--Format", FIELDS]
        status, output, error = self._run(command, jobs[0].environment)
        if status == 0:
            rows = (line.split("|") for line in output.splitlines())
            known = {row[0].strip(): row for row in rows if len(row) == FIELDS.count(",") + 1}
            for job in jobs:
                self._update(job, known.get(job.job))
            self._find_places([job for job in jobs if job.state == "PENDING" and not job.ended])
        elif error:
            for job in jobs:
                job.blocked = error.strip().splitlines()[-1][:200] if error.strip() else ""

    def _find_places(self, jobs: list[SlurmJob]) -> None:
        """Each job's place among all that wait for its partition, by priority, when that is due. Some clusters show
        only one's own."""
        now = time.monotonic()
        if not jobs or (all(job.place is not None for job in jobs) and now < self._placed[jobs[0].conf] + PLACES):
            return
        self._placed[jobs[0].conf] = now
        command = ["squeue", "--noheader", "--states", "PENDING", "--sort", "-p,i", "--format", "%A|%P"]
        status, output, _ = self._run(command, jobs[0].environment)
        waiting = dict(line.strip().split("|", 1) for line in output.splitlines() if "|" in line) if status == 0 else {}
        for job in jobs:
            where = waiting.get(job.job)
            same = [number for number, partition in waiting.items() if partition == where]
            job.place = f"place {same.index(job.job) + 1} of {len(same)} in partition {where}" if where else ""

    def _update(self, job: SlurmJob, row: list[str] | None) -> None:
        if row is None:
            job.missing += 1
            if job.missing >= FORGOTTEN:
                if job.job:
                    self._look_up(job)
                self._end(job)
            return
        _, state, blocked, restarts, status, begins = (field.strip() for field in row)
        job.restarts = max(job.restarts, int(restarts) if restarts.isdigit() else 0)
        if state not in ENDED:
            job.missing = 0
            job.state, job.blocked, job.begins = state, blocked, begins
            return
        job.missing += 1  # it may be about to be queued again: looked at twice
        if job.missing > 1:
            job.state, job.blocked = state, blocked
            job.exit = _read_status(status)
            self._end(job)

    def _look_up(self, job: SlurmJob) -> None:
        """Ask the accounting, if there is one, how a job ended that squeue has forgotten."""
        command = [
            "sacct",
            "--jobs",
            job.job,
            "--allocations",
            "--noheader",
            "--parsable2",
            "--format",
            "State,ExitCode",
        ]
        status, output, _ = self._run(command, job.environment)
        state, _, code = output.strip().partition("|")
        if status == 0 and state:
            job.state = state.partition(" ")[0]
            number, _, ended_by = code.strip().partition(":")
            job.exit = int(number) or -int(ended_by) if number.isdigit() and ended_by.isdigit() else None

    def _end(self, job: SlurmJob) -> None:
        self._jobs.remove(job)
        job.ended = True

    def _run(self, command: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        try:
            done = subprocess.run(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
        except FileNotFoundError:
            return MISSING, "", f"there is no {command[0]} on this host: is it a login node of the cluster?"
        except (OSError, subprocess.TimeoutExpired) as error:
            return 1, "", str(error)
        return done.returncode, done.stdout, done.stderr


def _read_status(text: str) -> int | None:
    """The exit status, negative for a signal, that squeue gives as wait(2) does."""
    if not text.isdigit():
        return None
    number = int(text)
    return number >> 8 if number > 255 else -number
